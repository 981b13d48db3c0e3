"""Copies of tokens sorted by expert, with padded block offsets.

    experts_TK  -->  row of each copy, copy of each row, counts and offsets of the experts, expert of each block

The copies of an expert stand in the order of their numbers, so the result is the same in every run. A counting
sort: chunks of copies count their experts and rank themselves, the counts are summed over the chunks, then each
copy knows its row. Nothing waits for the host: buffers and grids are sized by the worst load.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from .common import Work, divide_up

CHUNK: Final = 256  # copies that one program ranks among each other; up to one chunk, a single launch sorts
COLUMNS: Final = 32  # of them compared at a time
SCAN_CHUNKS: Final = 256  # chunks and experts that one step of the scan sums
SCAN_EXPERTS: Final = 8


class Sorted(NamedTuple):
    """Where each copy t*K+j of a token stands when the copies are sorted by expert, in blocks of ``block`` rows."""

    source_R: torch.Tensor  # int32: copy in this row; T*K where the row is padding
    row_TK: torch.Tensor  # int32: row of each copy; -1 where its expert is not here
    counts_E: torch.Tensor  # int32: copies of each expert
    offsets_E1: torch.Tensor  # int32: first row of each expert, a multiple of block; at the end the rows in use
    block_expert_B: torch.Tensor  # int32: expert of each block of rows; -1 beyond the last
    block: int
    tokens: int
    top_k: int

    @property
    def rows(self) -> int:
        """The rows that the buffers hold: the most that any load can need."""
        return self.source_R.shape[0]


def most_blocks(copies: int, experts: int, block: int) -> int:
    """The most blocks that ``copies`` over ``experts`` can fill, each expert beginning a block of its own."""
    alone = min(copies, experts)
    return alone + (copies - alone) // block


def sort_by_expert_reference(experts_TK: torch.Tensor, experts: int, block: int) -> Sorted:
    """What sort_by_expert gives, by a stable sort."""
    tokens, top_k = experts_TK.shape
    copies, device = tokens * top_k, experts_TK.device
    blocks = most_blocks(copies, experts, block)
    expert_N = experts_TK.reshape(-1).long()
    here_N = (expert_N >= 0) & (expert_N < experts)
    counts_E = torch.bincount(expert_N[here_N], minlength=experts)
    padded_E = (counts_E + block - 1) // block * block
    offsets_E1 = torch.cat([padded_E.new_zeros(1), padded_E.cumsum(0)])
    source_R = torch.full((blocks * block,), copies, device=device)
    row_N = torch.full((copies,), -1, device=device)
    block_expert_B = torch.full((blocks,), -1, device=device)
    for e in range(experts):
        copies_e = torch.nonzero(expert_N == e).reshape(-1)
        row_N[copies_e] = offsets_E1[e] + torch.arange(len(copies_e), device=device)
        source_R[row_N[copies_e]] = copies_e
        block_expert_B[offsets_E1[e] // block : offsets_E1[e + 1] // block] = e
    arrays = (source_R, row_N.reshape(tokens, top_k), counts_E, offsets_E1, block_expert_B)
    return Sorted(*(array.int() for array in arrays), block, tokens, top_k)


@triton.jit
def _rank_and_clear(
    experts_ptr, source_ptr, block_expert_ptr, chunk, chunks, copies, experts, rows, blocks,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """This chunk's copies: expert (``experts``: not here), rank among the equal; counts. Clears a share of rows."""
    copy = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(experts_ptr + copy, mask=copy < copies, other=-1).to(tl.int32)
    expert = tl.where((expert >= 0) & (expert < experts), expert, experts)
    before = tl.zeros((CHUNK, COLUMNS), dtype=tl.int32)
    for first in range(0, CHUNK, COLUMNS):
        other = chunk * CHUNK + first + tl.arange(0, COLUMNS)
        others_expert = tl.load(experts_ptr + other, mask=other < copies, other=-1).to(tl.int32)
        before += ((others_expert[None, :] == expert[:, None]) & (other[None, :] < copy[:, None])).to(tl.int32)
    rank = tl.sum(before, axis=1)
    count = tl.histogram(expert, BINS)
    first = chunk * CHUNK
    while first < rows:
        row = first + tl.arange(0, CHUNK)
        tl.store(source_ptr + row, tl.zeros((CHUNK,), tl.int32) + copies, mask=row < rows)
        tl.store(block_expert_ptr + row, tl.full((CHUNK,), -1, tl.int32), mask=row < blocks)
        first += chunks * CHUNK
    return copy, expert, rank, count


@triton.jit
def _place(
    source_ptr, row_ptr, offsets_ptr, block_expert_ptr, copy, expert, rank, count, first, copies, experts, block,
    BINS: tl.constexpr,
):  # fmt: skip
    """Write the rows of these copies: each block's first copy names its expert; ``first`` writes the offsets."""
    bins = tl.arange(0, BINS)
    padded = tl.where(bins < experts, (count + block - 1) // block * block, 0)
    ends = tl.cumsum(padded, axis=0)
    if first:
        tl.store(offsets_ptr + bins, ends - padded, mask=bins <= experts)
    here = expert < experts
    row = tl.gather(ends - padded, expert, 0) + rank
    tl.store(row_ptr + copy, tl.where(here, row, -1), mask=copy < copies)
    tl.store(source_ptr + row, copy, mask=here)
    tl.store(block_expert_ptr + row // block, expert, mask=here & (rank % block == 0))


@triton.jit(do_not_specialize=["copies", "rows", "blocks"])
def _sort_chunk_kernel(
    experts_ptr, source_ptr, row_ptr, counts_ptr, offsets_ptr, block_expert_ptr,
    copies, experts, block, rows, blocks,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """All of it, in one program, for copies that fit in one chunk."""
    copy, expert, rank, count = _rank_and_clear(
        experts_ptr, source_ptr, block_expert_ptr, 0, 1, copies, experts, rows, blocks, CHUNK, COLUMNS, BINS
    )
    bins = tl.arange(0, BINS)
    tl.store(counts_ptr + bins, count, mask=bins < experts)
    tl.debug_barrier()  # what is cleared is cleared before it is written
    _place(
        source_ptr, row_ptr, offsets_ptr, block_expert_ptr,
        copy, expert, rank, count, True, copies, experts, block, BINS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["copies", "rows", "blocks"])
def _rank_kernel(
    experts_ptr, source_ptr, row_ptr, block_expert_ptr, table_ptr, copies, experts, rows, blocks,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Each chunk: rank of each copy among its expert's copies in the chunk, and a line of the table of counts."""
    chunk = tl.program_id(0)
    copy, _, rank, count = _rank_and_clear(
        experts_ptr, source_ptr, block_expert_ptr, chunk, tl.num_programs(0), copies, experts, rows, blocks,
        CHUNK, COLUMNS, BINS,
    )  # fmt: skip
    bins = tl.arange(0, BINS)
    tl.store(row_ptr + copy, rank, mask=copy < copies)
    tl.store(table_ptr + chunk.to(tl.int64) * experts + bins, count, mask=bins < experts)


@triton.jit(do_not_specialize=["chunks"])
def _scan_kernel(table_ptr, counts_ptr, chunks, experts, CHUNKS: tl.constexpr, EXPERTS: tl.constexpr):
    """The table of counts becomes the copies of the expert in earlier chunks; the totals are counts_E."""
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), dtype=tl.int32)
    first = 0
    while first < chunks:
        chunk = first + tl.arange(0, CHUNKS)
        at = chunk.to(tl.int64)[:, None] * experts + expert[None, :]
        inside = (chunk < chunks)[:, None] & (expert < experts)[None, :]
        count = tl.load(table_ptr + at, mask=inside, other=0)
        tl.store(table_ptr + at, total[None, :] + tl.cumsum(count, axis=0) - count, mask=inside)
        total += tl.sum(count, axis=0)
        first += CHUNKS
    tl.store(counts_ptr + expert, total, mask=expert < experts)


@triton.jit(do_not_specialize=["copies"])
def _place_kernel(
    experts_ptr, source_ptr, row_ptr, counts_ptr, offsets_ptr, block_expert_ptr, table_ptr, copies, experts, block,
    CHUNK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Each chunk: rank in the chunk plus the copies in earlier chunks is the rank; then the rows."""
    chunk = tl.program_id(0)
    copy = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(experts_ptr + copy, mask=copy < copies, other=-1).to(tl.int32)
    expert = tl.where((expert >= 0) & (expert < experts), expert, experts)
    rank = tl.load(row_ptr + copy, mask=copy < copies, other=0)
    rank += tl.load(table_ptr + chunk.to(tl.int64) * experts + expert, mask=expert < experts, other=0)
    bins = tl.arange(0, BINS)
    count = tl.load(counts_ptr + bins, mask=bins < experts, other=0)
    _place(
        source_ptr, row_ptr, offsets_ptr, block_expert_ptr,
        copy, expert, rank, count, chunk == 0, copies, experts, block, BINS,
    )  # fmt: skip


def sort_by_expert(experts_TK: torch.Tensor, experts: int, block: int) -> Sorted:
    """The copies sorted by expert, each expert from a multiple of ``block``; entries outside [0, experts): not here."""
    if experts_TK.ndim != 2 or experts < 1 or block < 1:
        raise ValueError(
            f"cannot sort {tuple(experts_TK.shape)} by {experts} experts in blocks of {block}: "
            "give experts_TK [T, K] and at least one expert and one row a block"
        )
    tokens, top_k = experts_TK.shape
    copies = tokens * top_k
    blocks = most_blocks(copies, experts, block)
    chunks, bins = divide_up(copies, CHUNK), max(CHUNK, triton.next_power_of_2(experts + 1))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=experts_TK.device)

    order = Sorted(empty(blocks * block), empty(tokens, top_k), empty(experts), empty(experts + 1), empty(blocks),
                   block, tokens, top_k)  # fmt: skip
    source_R, row_TK, counts_E, offsets_E1, block_expert_B = order[:5]
    experts_TK = experts_TK.contiguous()
    if not copies:
        counts_E.zero_()
        offsets_E1.zero_()
    elif chunks == 1:
        _sort_chunk_kernel[(1,)](
            experts_TK, source_R, row_TK, counts_E, offsets_E1, block_expert_B,
            copies, experts, block, order.rows, blocks, CHUNK=CHUNK, COLUMNS=COLUMNS, BINS=bins, num_warps=8,
        )  # fmt: skip
    else:
        table = empty(chunks, experts)
        _rank_kernel[(chunks,)](
            experts_TK, source_R, row_TK, block_expert_B, table,
            copies, experts, order.rows, blocks, CHUNK=CHUNK, COLUMNS=COLUMNS, BINS=bins, num_warps=8,
        )  # fmt: skip
        _scan_kernel[(divide_up(experts, SCAN_EXPERTS),)](
            table, counts_E, chunks, experts, CHUNKS=SCAN_CHUNKS, EXPERTS=SCAN_EXPERTS
        )
        _place_kernel[(chunks,)](
            experts_TK, source_R, row_TK, counts_E, offsets_E1, block_expert_B, table,
            copies, experts, block, CHUNK=CHUNK, BINS=bins,
        )  # fmt: skip
    return order


def sort_cost(tokens: int, experts: int, top_k: int) -> Work:
    """In int32: reads each copy's expert, writes its row and source, and counts and offsets of the experts."""
    copies = tokens * top_k
    return Work(flops=float(copies + experts), bytes=12.0 * copies + 8.0 * experts)
