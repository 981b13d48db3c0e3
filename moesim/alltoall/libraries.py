"""What is known about the kernels that exchange tokens: constants with a birth certificate, one line for each.

``hardware_profiles/libraries.csv`` holds a line for every library, release, mechanism, fabric and direction. Its
constants were fitted by ``studies/build_network_profile.py``; the line says on which rows, on which others they were
judged, and how wrong they were there. Of several lines that fit a GPU the first is the one that a plan uses.

    start_us            before the first byte moves; across_us more between nodes, far_us x (N-1)/N with N nodes
    expert_ns           more of the start for each expert: each is counted and waited for
    first_ns, pipe_ns   for each byte of a token: to send the first chunk, to fill the pipe behind it
    token_ns, copy_ns   time of one SM for each token, and for each copy of one; sm_gb_s bytes of copies an SM moves
    up_gb_s, nic_gb_s   what the kernel gets out of a GPU's link inside a node and of its NIC, where
    link_gb_s           is what NCCL gets out of the first: another cluster's links count in this proportion
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from moesim.cluster import CLUSTERS, Cluster, Group
from moesim.errors import MoesimError, choice
from moesim.profile import shipped_folder
from moesim.units import GB, US

NS: Final = 1e-9
TABLE: Final = "libraries.csv"
NIC_GB_S: Final = 48.0  # NCCL on the 400 Gb/s NICs that all lines but EFA's were measured on (cluster presets)
LIBRARIES: Final = {
    "deepep": ("deepep", "normal"), "deepep_ll": ("deepep", "low_latency"), "hybrid_ep": ("hybrid_ep", "by_node"),
}  # fmt: skip
CARRIED_BAND: Final = 0.40  # constants of another GPU, or outside of what was measured
# Most ranks, fewest and most tokens of a rank in the rows that constants were fitted or judged on (validate, network).
MEASURED: Final = {"normal": (64, 1, 32768), "low_latency": (256, 1, 2048), "by_node": (64, 4096, 4096)}
_PRESET: Final = tuple((one.gpu.name, one.scale_up) for one in CLUSTERS.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One line of the table, in seconds and bytes."""

    library: str
    release: str
    mechanism: str  # "normal", "low_latency"
    gpus: tuple[str, ...]  # of which it holds; the constants were fitted on the first
    architecture: str  # whose other GPUs it stands in for
    direction: str
    sms: int  # SMs that it occupies while bytes move
    start_s: float
    across_s: float
    far_s: float
    expert_s: float
    first_s: float  # for each byte of a token
    pipe_s: float
    across_pipe_s: float
    token_s: float
    copy_s: float
    sm_bytes_per_s: float
    across_sm_bytes_per_s: float
    up_share: float  # of what NCCL gets out of the link
    nic_share: float
    rms: float  # on rows that the fit did not see
    basis: str
    source: str


def find(library: str, mechanism: str, direction: str, cluster: Cluster, release: str = "") -> tuple[Kernel, bool]:
    """The line for a cluster's GPU, and whether it was measured there; else that of a GPU of its architecture."""
    there = [
        kernel for kernel in kernels()
        if (kernel.library, kernel.mechanism, kernel.direction) == (library, mechanism, direction)
        and release in ("", kernel.release)
    ]  # fmt: skip
    own = [kernel for kernel in there if cluster.gpu.name in kernel.gpus]
    twins = [kernel for kernel in there if kernel.architecture == cluster.gpu.architecture]
    if not own and not twins:
        raise MoesimError(
            f"no constants of {library} {release or mechanism} for {cluster.gpu.name}: "
            f"known are {', '.join(sorted({gpu for kernel in there for gpu in kernel.gpus})) or 'none'}"
        )
    return (own or twins)[0], bool(own)


def judged(kernel: Kernel, cluster: Cluster, group: Group, tokens: float) -> bool:
    """Whether rows like this one were measured: so many ranks and tokens, whole links that are not guesses.

    A GPU's preset stands for the links that its rows were measured on, whatever these were carried over from.
    """
    ranks, fewest, most = MEASURED[kernel.mechanism]
    out, fabric = cluster.scale_out, cluster.fabric
    whole = not fabric.degraded and (group.nodes == 1 or fabric.oversubscription * fabric.ecmp == 1.0)
    inside = cluster.scale_up.basis != "estimated" or (cluster.gpu.name, cluster.scale_up) in _PRESET
    between = group.nodes == 1 or (out is not None and out.basis != "estimated")
    return whole and inside and between and group.size <= ranks and fewest <= tokens <= most


def sms(algorithm: str, cluster: Cluster) -> int:
    """SMs that an algorithm's kernel keeps busy while bytes move; none where the NIC sends by itself."""
    if algorithm not in LIBRARIES:
        raise choice("library of", algorithm, list(LIBRARIES))
    return find(*LIBRARIES[algorithm], "dispatch", cluster)[0].sms


def band(kernel: Kernel, known: bool) -> float:
    """Half-width of the 90 % band: 1.645 x the rms error on rows that the fit did not see, 10 % at least."""
    return max(0.10 if known else CARRIED_BAND, 1.645 * kernel.rms)


@lru_cache(maxsize=1)
def kernels() -> tuple[Kernel, ...]:
    """All lines."""
    path = shipped_folder() / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(read(row) for row in csv.DictReader(file))
    except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise MoesimError(f"cannot read {path}: {error}; restore it") from None


def read(row: dict[str, str]) -> Kernel:
    """One line; an empty constant is no time, or no limit."""

    def time(name: str, unit: float) -> float:
        return float(row[name] or 0.0) * unit

    def rate(name: str) -> float:
        return float(row[name] or "inf") * GB

    return Kernel(
        library=row["library"],
        release=row["release"],
        mechanism=row["mechanism"],
        gpus=tuple(row["gpus"].split()),
        architecture=row["architecture"],
        direction=row["direction"],
        sms=int(row["sms"]),
        start_s=time("start_us", US),
        across_s=time("across_us", US),
        far_s=time("far_us", US),
        expert_s=time("expert_ns", NS),
        first_s=time("first_ns", NS),
        pipe_s=time("pipe_ns", NS),
        across_pipe_s=time("across_pipe_ns", NS),
        token_s=time("token_ns", NS),
        copy_s=time("copy_ns", NS),
        sm_bytes_per_s=rate("sm_gb_s"),
        across_sm_bytes_per_s=rate("across_sm_gb_s"),
        up_share=rate("up_gb_s") / rate("link_gb_s"),
        nic_share=float(row["nic_gb_s"] or "inf") / NIC_GB_S,
        rms=float(row["rms_judged"] or CARRIED_BAND),
        basis=row["basis"],
        source=row["source"],
    )
