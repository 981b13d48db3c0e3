"""What overlaps with what: the builder, a layer's ops, a step's ops."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from moesim.program import (
    LAYERS,
    Builder,
    LayerShape,
    Passes,
    backward_layer,
    forward_layer,
    pair_layer,
    pipeline,
)
from moesim.strategy import CHUNKED

PLAIN = LayerShape(moe=True, ep=True, overlap="chunked")


def names(program, stream):
    return [f"{op.name} {op.chunk}" if op.chunk else op.name for op in program if op.stream == stream]


def waits(program, name, chunk=0):
    """Names of the ops that the first op of this name and chunk waits for."""
    op = next(op for op in program if (op.name, op.chunk) == (name, chunk))
    return [program[i].name for i in op.waits]


def test_an_op_waits_across_streams_only_for_other_streams():
    build = Builder()
    first = build.add("a", "compute")
    second = build.add("b", "compute", first)
    third = build.add("c", "comm", first, second)
    program = build.program()
    assert program[second].waits == (first,)
    assert program[second].across == ()
    assert program[third].across == (first, second)
    assert program.awaited == {first, second}


def test_a_serial_program_is_one_chain():
    build = Builder(serial=True)
    for stream in ("comm", "compute", "comm"):
        build.add("op", stream)
    assert [op.waits for op in build.program()] == [(), (0,), (1,)]


def test_the_key_is_the_name_unless_durations_differ():
    build = Builder()
    build.add("forward", "stage 0")
    build.add("forward", "stage 0", key="forward 0.1")
    assert [op.key for op in build.program()] == ["forward", "forward 0.1"]


def test_dispatches_come_before_combines_and_shared_experts_before_routed_ones():
    program = forward_layer(PLAIN._replace(chunks=2, shared=True))
    assert names(program, "comm") == ["dispatch", "dispatch 1", "combine", "combine 1"]
    assert names(program, "compute") == ["attention", "route", "shared", "experts", "experts 1", "merge"]
    assert waits(program, "experts", 1) == ["dispatch"]
    assert waits(program, "merge") == ["combine", "combine", "shared"]


def test_weight_gradients_wait_for_the_data_gradient_of_their_chunk_only():
    program = backward_layer(PLAIN._replace(chunks=2), recompute="none")
    assert names(program, "comm") == ["combine grad", "combine grad 1", "dispatch grad", "dispatch grad 1"]
    assert waits(program, "experts weight grad", 1) == ["experts grad"]
    assert waits(program, "route grad") == ["dispatch grad", "dispatch grad"]


def test_full_recompute_plays_the_forward_pass_first():
    forward = [op.name for op in forward_layer(PLAIN)]
    again = [op.name for op in backward_layer(PLAIN, recompute="full")]
    assert again[: len(forward)] == forward
    assert again[len(forward) :] == [op.name for op in backward_layer(PLAIN, recompute="none")]


def test_selective_recompute_is_one_op():
    with_it = backward_layer(PLAIN, recompute="selective")
    assert len(with_it) == len(backward_layer(PLAIN, recompute="none")) + 1
    assert with_it[0].name == "recompute"


def test_tensor_parallel_blocks_stand_between_gather_and_scatter():
    program = forward_layer(LayerShape(moe=False, tp=True))
    assert [op.name for op in program] == [
        "tp gather", "attention", "tp scatter", "tp gather", "ffn", "tp scatter",
    ]  # fmt: skip


def test_replicated_tokens_are_summed_after_attention_and_after_the_experts():
    program = forward_layer(LayerShape(moe=True, tp=True, replicated=True))
    assert [op.name for op in program] == ["attention", "tp scatter", "route", "experts", "merge", "tp scatter"]


def test_zero_3_weights_and_zero_2_gradients_pass_behind_the_compute_of_a_layer():
    program = backward_layer(PLAIN._replace(gathers_weights=True, reduces_gradients=True), recompute="none")
    assert [op.name for op in program if op.stream == "dp"] == ["weight gather", "gradient scatter"]
    assert not any(program[i].stream == "dp" for op in program for i in op.waits)


def test_a_sliced_input_is_gathered_again_beside_the_data_gradients():
    # arXiv:2205.05198 section 4.2.2; gradients of the input leave beside those of the weights, serial or not
    program = backward_layer(LayerShape(moe=False, tp=True), recompute="none")
    assert names(program, "comm") == ["tp gather", "tp gather again", "tp scatter"] * 2
    assert waits(program, "ffn weight grad") == ["ffn grad", "tp gather again"]
    assert waits(program, "tp scatter") == ["ffn grad"]


def test_a_step_of_one_stage_is_forward_backward_optimizer():
    program = pipeline(Passes(stages=1, micro_batches=2))
    keys = [op.key for op in program]
    assert keys == ["forward 0.0", "backward 0.0", "forward 0.0", "backward 0.0", "optimizer 0"]


def test_micro_batches_take_turns_in_their_class():
    program = pipeline(Passes(stages=1, micro_batches=4, classes=2, backward=False))
    assert [op.key for op in program] == ["forward 0.0", "forward 0.1", "forward 0.0", "forward 0.1"]


def test_the_first_two_forwards_wait_for_weights_and_gradients_leave_last():
    program = pipeline(Passes(stages=1, micro_batches=3, reduces=True))
    assert waits(program, "forward", 0) == ["gather first"]
    assert waits(program, "forward", 1) == ["gather rest"]
    assert waits(program, "forward", 2) == []
    assert waits(program, "reduce rest") == ["forward"]  # what runs just before the last backward
    assert waits(program, "reduce last") == ["reduce rest", "backward"]
    assert waits(program, "optimizer") == ["backward", "reduce last"]


def test_a_token_waits_for_the_one_before_it():
    program = pipeline(Passes(stages=2, micro_batches=1, backward=False, rounds=2))
    forwards = [(op.key, [program[i].key for i in op.waits]) for op in program if op.name == "forward"]
    assert forwards == [
        ("forward 0.0", []),
        ("forward 1.0", ["send 0"]),
        ("forward 0.0", ["forward 1.0"]),
        ("forward 1.0", ["send 0"]),
    ]


flags = dict.fromkeys(
    ("moe", "ffn", "tp", "cp", "ep", "etp", "shared", "latent", "replicated", "gathers_weights", "reduces_gradients"),
    st.booleans(),
)
shapes = st.builds(
    LayerShape, chunks=st.sampled_from([1, 2, 4]), overlap=st.sampled_from(sorted(LAYERS)), slot=st.integers(0, 1),
    mixer=st.sampled_from(["attention", "mamba", "norm"]), ring=st.sampled_from([0, 2, 3]), **flags,
).map(lambda shape: possible(shape if shape.overlap in CHUNKED else shape._replace(chunks=1)))  # fmt: skip


def possible(shape):
    """Not empty; a ring is attention's, a shortcut is for layers that have both blocks."""
    if shape.overlap.startswith("shortcut"):
        return shape._replace(mixer="attention", ffn=True)
    ring = shape.ring if shape.mixer == "attention" else 0
    return shape._replace(ffn=shape.ffn or shape.moe or shape.mixer == "norm", ring=ring)


@given(shapes, st.sampled_from(["none", "selective", "full", "mla_up+moe", "mlp+shared_experts"]))
def test_nothing_waits_for_what_comes_later(shape, recompute):
    programs = [forward_layer(shape), pair_layer(shape._replace(overlap="chunked", chunks=1), recompute=recompute)]
    programs += [backward_layer(shape, recompute=recompute, part=part) for part in ("all", "data", "weights")]
    for program in programs:
        for index, op in enumerate(program):
            assert all(0 <= i < index for i in op.waits)
            assert set(op.across) <= set(op.waits)
            assert all(program[i].stream != op.stream for i in op.across)
        played = [pair for ops in program.streams.values() for pair in ops]
        assert sorted(played) == list(enumerate(program))


@given(shapes, st.sampled_from(["none", "selective"]))
def test_data_and_weight_gradients_together_are_the_whole_backward_pass(shape, recompute):
    def ops(part):
        program = backward_layer(shape, recompute=recompute, part=part)
        return Counter(op.key for op in program if op.stream == "compute" and op.name != "nothing")

    assert ops("all") == ops("data") + ops("weights")
    assert all("weight" in key for key in ops("weights"))
    assert not any("weight" in key for key in ops("data"))


@given(st.sampled_from(["gpipe", "1f1b", "zero_bubble"]), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_every_stage_runs_every_pass_once(schedule, stages, micro_batches, reduces):
    program = pipeline(Passes(stages=stages, micro_batches=micro_batches, schedule=schedule, reduces=reduces))
    kinds = ("forward", "data", "weights") if schedule == "zero_bubble" else ("forward", "backward")
    for stage in range(stages):
        passes = [(op.name, op.chunk) for op in program if op.stream == f"stage {stage}"]
        assert len(passes) == len(kinds) * micro_batches + 1
        for name in kinds:
            assert [j for what, j in passes if what == name] == list(range(micro_batches))


def test_virtual_stages_send_from_the_last_stage_to_the_first():
    # two stages of two parts, two micro-batches: 0 -> 1 -> 2 -> 3 is stage 0 -> 1 -> 0 -> 1, and back
    program = pipeline(Passes(stages=2, micro_batches=2, schedule="interleaved", virtual=2))
    sent = Counter(op.key for op in program if op.name in ("send", "back"))
    assert sent == {"send 0": 4, "send 1": 2, "back 1": 4, "back 0": 2}


def test_dualpipe_sends_both_ways_at_once():
    program = pipeline(Passes(stages=4, micro_batches=8, schedule="dualpipe"))
    sent = Counter(op.key for op in program if op.name in ("send", "back"))
    # 4 micro-batches go up and their gradients down, 4 go down and their gradients up
    assert sent == {f"send {s}": 8 for s in range(3)} | {f"back {s}": 8 for s in range(1, 4)}
    first = next(op for op in program if op.name == "pair")
    assert {program[i].name for i in first.waits} <= {"forward", "send", "back"}
