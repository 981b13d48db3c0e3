"""``moesim cost`` from the command line: every operation answers, says where the number comes from, or refuses."""

import json

import pytest

from moesim.cli import main
from moesim.costs import OPERATIONS

KEYS = ["op", "seconds", "low", "high", "basis", "bound_s", "limited_by", "source"]
MIXTRAL = "expert-ffn --gpu H200 --hidden 4096 --ffn 14336"
GROUP = "expert-ffn --gpu H200 --hidden 7168 --ffn 2048 --dtype fp8_block --experts 256 --top-k 8 --ep 32"
EXCHANGE = "all-to-all --cluster dgx-h100 --nodes 2 --hidden 4096 --top-k 2 --experts 16"
GOOD = {
    "expert-ffn": (f"{MIXTRAL} --tokens-per-expert 120,3,0", ["rank"]),
    "gemm": ("gemm --gpu A100 --m 4096 --n 4096 --k 4096", []),
    "attention": ("attention --gpu H100 --phase prefill --heads 32 --kv-heads 8 --head-dim 128 --context 4096", []),
    "all-to-all": (
        f"{EXCHANGE} --tokens-per-rank 512",
        ["algorithm", "compared", "as_fast", "fused", "cannot_run", "busiest", "traffic"],
    ),
    "all-reduce": ("all-reduce --cluster dgx-h100 --bytes 64MiB", []),
    "all-gather": ("all-gather --cluster dgx-h100 --nodes 2 --bytes 1e6", []),
    "reduce-scatter": ("reduce-scatter --cluster pcie-l40s --ranks 4 --bytes 1GB", []),
    "send": ("send --cluster dgx-a100 --bytes 1MiB --across", []),
}  # fmt: skip


@pytest.fixture
def ask(capsys):
    """The JSON answer of one call."""

    def answer(line):
        code = main(["cost", *line.split(), "--json"])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return json.loads(captured.out)

    return answer


@pytest.fixture
def refuse(capsys):
    """The one line that a wrong call gets."""

    def line(text):
        code = main(["cost", *text.split()])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert captured.err.startswith("moesim: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return line


def test_every_operation_has_a_good_call_here():
    assert list(GOOD) == list(OPERATIONS)


@pytest.mark.parametrize("name", GOOD)
def test_an_answer_has_a_band_a_bound_a_basis_and_a_source(name, ask):
    line, more = GOOD[name]
    found = ask(line)
    assert list(found) == [*KEYS, *more, "inputs"]
    assert found["op"] == name
    assert 0 < found["bound_s"] <= found["seconds"]
    assert found["low"] <= found["seconds"] <= found["high"]
    assert list(found["basis"]) == ["measured", "published", "estimated"]
    assert sum(found["basis"].values()) == pytest.approx(1.0)
    assert found["source"]


@pytest.mark.parametrize("name", GOOD)
def test_the_same_call_answers_people_with_the_source(name, ask, capsys):
    line, _ = GOOD[name]
    assert main(["cost", *line.split()]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}: ")
    assert ask(line)["source"] in text


@pytest.mark.parametrize("name", GOOD)
def test_the_help_names_every_option_with_its_default(name, capsys):
    assert main(["cost", name, "--help"]) == 0
    text = capsys.readouterr().out
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert text.count("[required]") >= 2
    assert {"--from", "--out", "--json"} <= {line.split()[0] for line in options}


def test_the_options_are_frozen():
    names = {name: " ".join(f.name for f in op.inputs.__dataclass_fields__.values()) for name, op in OPERATIONS.items()}
    group = "cluster nodes ranks ranks_per_node"
    assert names == {
        "expert-ffn": "gpu hidden ffn dtype kernel no_gate tokens_per_expert tokens_global tokens_per_rank "
        "experts top_k ep tp load seed",
        "gemm": "gpu m n k dtype",
        "attention": "gpu kind phase heads kv_heads head_dim v_head_dim latent_dim batch queries context window "
        "dtype kv_dtype",
        "all-to-all": f"{group} tokens_per_rank tokens_global hidden top_k experts expert_groups top_groups "
        "redundant_experts capacity_factor algorithm routing dtype direction placement seed",
        "all-reduce": f"{group} bytes",
        "all-gather": f"{group} bytes",
        "reduce-scatter": f"{group} bytes",
        "send": "cluster bytes same_node",
    }


def test_the_bound_of_a_gemm_is_its_flops_over_the_peak(ask):
    found = ask("gemm --gpu h200 --m 4096 --n 4096 --k 4096")  # 2 x 4096^3 FLOPs at 989 TFLOP/s
    assert found["bound_s"] == pytest.approx(2 * 4096**3 / 989e12)
    assert found["inputs"] == {"gpu": "H200", "m": 4096, "n": 4096, "k": 4096, "dtype": "bf16"}


def test_the_bound_of_decode_reads_the_cache_once(ask):
    found = ask("attention --gpu H200 --phase decode --heads 8 --head-dim 128 --context 100000 --batch 64")
    cache_bytes = 64 * 100_000 * 8 * 2 * 128 * 2  # keys and values in bf16
    assert found["bound_s"] == pytest.approx(cache_bytes / 4.8e12, rel=0.01)
    assert (found["inputs"]["queries"], found["inputs"]["kv_heads"]) == (1, 8)


def test_a_window_cuts_prefill(ask):
    line = "attention --gpu H200 --phase prefill --heads 32 --head-dim 128 --context 16384"
    assert ask(f"{line} --window 1024")["seconds"] < ask(line)["seconds"] / 2


def test_mla_decode_is_priced_on_its_latent(ask):
    line = "attention --gpu H200 --kind mla --phase decode --heads 128 --head-dim 192 --context 8192 --batch 32"
    found = ask(f"{line} --v-head-dim 128 --latent-dim 576")
    assert found["inputs"]["kv_heads"] == 1
    assert found["bound_s"] >= 32 * 8192 * 576 * 2 / 4.8e12


def test_more_tokens_never_take_less_time(ask):
    times = [ask(f"{MIXTRAL} --tokens-per-expert {n},{n},0")["seconds"] for n in (0, 1, 10, 100, 1000, 10000)]
    assert times[0] == 0.0
    assert times == sorted(times)


def test_the_most_loaded_rank_of_a_power_law_takes_longer_than_a_balanced_one(ask):
    balanced = ask(f"{GROUP} --tokens-global 16384 --load balanced")
    skewed = ask(f"{GROUP} --tokens-global 16384 --load power-law:1.2")
    assert balanced["rank"] == {"token_copies": 4096.0, "active_experts": 8.0, "over_mean": 1.0}
    assert skewed["seconds"] > 2 * balanced["seconds"]
    assert skewed["rank"]["over_mean"] > 2


@pytest.mark.parametrize("load", ["uniform", "zipf:0.8", "lognormal:1"])
def test_a_drawn_load_is_heavier_than_the_mean(load, ask):
    found = ask(f"{GROUP} --tokens-global 16384 --load {load}")
    assert found["rank"]["over_mean"] > 1.0
    assert found["inputs"]["draws"] == 32
    assert found == ask(f"{GROUP} --tokens-global 16384 --load {load} --seed 0")
    assert found["seconds"] != ask(f"{GROUP} --tokens-global 16384 --load {load} --seed 1")["seconds"]


def test_balanced_tokens_of_a_group_are_those_of_its_experts(ask):
    # 64 tokens x 2 choices over 8 experts are 16 each; two ranks hold 4 experts each
    group = ask(f"{MIXTRAL} --tokens-global 64 --experts 8 --top-k 2 --ep 2")
    assert group["seconds"] == ask(f"{MIXTRAL} --tokens-per-expert 16,16,16,16 --top-k 2")["seconds"]
    assert group["seconds"] == ask(f"{MIXTRAL} --tokens-per-rank 32 --experts 8 --top-k 2 --ep 2")["seconds"]


def test_tensor_parallelism_divides_the_width(ask):
    half = "expert-ffn --gpu H200 --hidden 4096 --ffn 7168 --tokens-per-expert 64,64"
    assert ask(f"{MIXTRAL} --tokens-per-expert 64,64 --tp 2")["seconds"] == ask(half)["seconds"]


def test_a_gate_is_a_third_matrix(ask):
    line = f"{MIXTRAL} --tokens-per-expert 2000,2000"
    assert ask(f"{line} --no-gate")["bound_s"] == pytest.approx(ask(line)["bound_s"] * 2 / 3)


@pytest.mark.parametrize("name", ["all-reduce", "all-gather", "reduce-scatter"])
def test_one_rank_exchanges_nothing(name, ask):
    found = ask(f"{name} --cluster dgx-h200 --ranks 1 --bytes 64MiB")
    assert (found["seconds"], found["high"]) == (0.0, 0.0)


def test_a_message_takes_its_latency_and_its_bytes(ask):
    inside = ask("send --cluster dgx-h100 --bytes 48e6 --same-node")
    across = ask("send --cluster dgx-h100 --bytes 48e6 --across")
    assert across["seconds"] == pytest.approx(19.9e-6 + 1e-3)  # 48 MB at 48 GB/s
    assert across["bound_s"] == pytest.approx(48e6 / 50e9)
    assert inside["seconds"] < across["seconds"]
    assert inside["inputs"]["same_node"] is True


def test_ranks_of_a_collective_are_all_of_the_cluster_unless_stated(ask):
    found = ask("all-reduce --cluster dgx-h100 --nodes 4 --bytes 64MiB")
    assert found["inputs"] == {
        "cluster": "dgx-h100", "nodes": 4, "ranks": 32, "ranks_per_node": 8, "bytes": 64 * 2**20,
    }  # fmt: skip
    spread = ask("all-reduce --cluster dgx-h100 --nodes 4 --ranks 4 --ranks-per-node 1 --bytes 64MiB")
    assert spread["limited_by"] == "nic"


def test_best_is_the_fastest_of_all(ask):
    best = ask(f"{EXCHANGE} --tokens-per-rank 512")
    assert best["compared"][best["algorithm"]] == min(best["compared"].values()) == best["seconds"]
    for name, seconds in best["compared"].items():
        assert ask(f"{EXCHANGE} --tokens-per-rank 512 --algorithm {name}")["seconds"] == seconds


def test_two_nodes_cannot_be_faster_than_half_of_the_copies_over_the_nic(ask):
    # 1024 copies of 4096 bf16 values a rank; uniform routing sends half of them to the other node
    found = ask(f"{EXCHANGE} --tokens-per-rank 512 --algorithm linear")
    assert found["bound_s"] == pytest.approx(512 * 4096 * 2 / 50e9, rel=0.15)
    together = ask(f"{EXCHANGE} --tokens-global 8192 --algorithm linear")
    assert together["seconds"] == found["seconds"]


def test_rows_in_fp8_carry_their_scales(ask):
    line = f"{EXCHANGE} --tokens-per-rank 4096 --algorithm linear"
    bf16, fp8 = ask(line), ask(f"{line} --dtype fp8_block")
    assert fp8["bound_s"] / bf16["bound_s"] == pytest.approx(1.03125 / 2)


def test_balancing_the_placement_helps_a_skewed_exchange(ask):
    line = f"{EXCHANGE} --tokens-per-rank 4096 --algorithm linear --routing zipf:1 --experts 64"
    assert ask(f"{line} --placement balanced")["seconds"] < ask(line)["seconds"]


def test_one_rank_dispatches_for_free(ask):
    found = ask("all-to-all --cluster dgx-h100 --ranks 1 --tokens-per-rank 5 --hidden 8 --top-k 1 --experts 4")
    assert found["seconds"] == 0.0


def test_the_gpu_may_be_that_of_a_cluster(ask):
    line = "gemm --m 1024 --n 1024 --k 1024 --gpu"
    assert ask(f"{line} hgx-h800")["inputs"]["gpu"] == "H800"
    assert ask(f"{line} hgx-h800")["basis"]["estimated"] == 1.0
    assert ask(f"{line} gb200")["inputs"]["gpu"] == "GB200"


def test_the_python_api_is_the_same_function(ask):
    cost = OPERATIONS["expert-ffn"](gpu="H200", hidden=4096, ffn=14336, tokens_per_expert=[120, 3, 0])
    assert float(cost.seconds) == ask(GOOD["expert-ffn"][0])["seconds"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("matmul", ["No such command", "matmul"]),
        ("gemm --gpu h300 --m 1 --n 1 --k 1", ["h300", "B300", "GB300"]),
        ("gemm --gpu H200 --m 1", ["n, k", "--n and --k"]),
        ("gemm --gpu H200 --m 0 --n 1 --k 1", ["m '0'", "at least 1"]),
        ("gemm --gpu H200 --m 1.5 --n 1 --k 1", ["m '1.5'", "whole number"]),
        ("gemm --gpu H200 --m nan --n 1 --k 1", ["m 'nan'"]),
        ("gemm --gpu H200 --m 1 --n 1 --k 1 --dtype fp16", ["fp16", "bf16"]),
        ("gemm --gpu H200 --m 1e11 --n 1024 --k 1024", ["gemm m", "far outside", "measure"]),
        ("gemm --gpu H200 --m 1 --n 1 --k 1 --out t.csv", ["--out", "--from"]),
        (MIXTRAL, ["no tokens", "tokens_per_expert"]),
        (f"{MIXTRAL} --tokens-per-expert 1,x", ["tokens_per_expert '1,x'"]),
        (f"{MIXTRAL} --tokens-per-expert 1,-2", ["tokens_per_expert '1,-2'"]),
        (f"{MIXTRAL} --tokens-per-expert 1,2 --tokens-global 8", ["give exactly one of"]),
        (f"{MIXTRAL} --tokens-per-expert 1,2 --ep 2", ["ep 2", "leave it out"]),
        (f"{MIXTRAL} --tokens-per-expert 1,2 --tp 3", ["14336", "tp 3"]),
        (f"{MIXTRAL} --tokens-per-expert 1,2 --kernel fastest", ["fastest"]),
        (f"{MIXTRAL} --tokens-global 8 --top-k 2", ["experts not given"]),
        (f"{MIXTRAL} --tokens-global 8 --experts 8 --top-k 9", ["top_k 9", "8"]),
        (f"{MIXTRAL} --tokens-global 8 --experts 8 --top-k 2 --ep 3", ["experts 8", "ep 3"]),
        (f"{MIXTRAL} --tokens-global 8 --experts 8 --top-k 2 --load power-law:-1", ["power-law:-1"]),
        (f"{MIXTRAL} --tokens-global 8 --experts 8 --top-k 2 --load pareto", ["pareto", "balanced"]),
        ("attention --gpu H200 --phase decode --heads 6 --kv-heads 4 --head-dim 64 --context 9", ["kv_heads 4"]),
        ("attention --gpu H200 --phase decode --kind mla --heads 6 --head-dim 64 --context 9", ["latent_dim"]),
        ("attention --gpu H200 --phase decode --heads 6 --head-dim 64 --context 9 --queries 10", ["queries 10"]),
        ("all-reduce --cluster dgx-h100 --bytes 5GB/s", ["bytes '5GB/s'", "64MiB"]),
        ("all-reduce --cluster dgx-h100 --bytes 5GB --ranks 16", ["16 ranks", "does not fit"]),
        ("all-reduce --cluster dgx-h100 --bytes 5GB --nodes 0", ["nodes '0'"]),
        (EXCHANGE, ["exactly one of tokens_per_rank and tokens_global"]),
        (f"{EXCHANGE} --tokens-global 9", ["tokens_global 9", "16 ranks"]),
        (f"{EXCHANGE} --tokens-per-rank 9 --experts 24", ["24 experts", "16 ranks"]),
        (f"{EXCHANGE} --tokens-per-rank 9 --algorithm brook", ["brook", "bruck"]),
        (f"{EXCHANGE} --tokens-per-rank 9 --nodes 1000", ["8000 ranks", "16 experts"]),
        (f"{EXCHANGE} --tokens-per-rank 9 --nodes 1 --algorithm 2dh", ["2dh", "more than one node"]),
    ],
)  # fmt: skip
def test_a_wrong_call_gets_one_line_that_names_the_value(line, words, refuse):
    text = refuse(line)
    for word in words:
        assert word in text
