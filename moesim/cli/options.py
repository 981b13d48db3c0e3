"""Options that several commands share, and the scenario they describe."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from moesim.step.scenario import Scenario

F = TypeVar("F", bound=Callable[..., Any])

SCENARIO: Final = (
    click.argument("model"),
    click.option("--cluster", "-c", required=True, help="Preset (moesim list clusters) or a YAML file."),
    click.option("--nodes", type=int, help="Nodes of the cluster.  [default: as the cluster says, presets 1]"),
    click.option("--workload", "-w", default="train", show_default=True, help="train, prefill or decode."),
    click.option("--global-batch", type=int, help="Sequences per step over the whole cluster.  [train: 2048]"),
    click.option("--seq", type=int, help="Tokens per training sequence.  [default: 4096]"),
    click.option("--batch", type=float, help="Sequences per GPU.  [decode: 128; prefill: 4,096 tokens a GPU]"),
    click.option("--isl", type=int, help="Prompt tokens (prefill, decode).  [default: 4096]"),
    click.option("--osl", type=int, help="Output tokens; decode is played half-way through them.  [default: 0]"),
    click.option("--dtype", default="bf16", show_default=True, help="bf16, fp8 or fp8_block; serving: int4, ternary."),
    click.option("--routing", help="uniform, zipf:S, lognormal:SIGMA, a preset, or a FILE with your own load.  "
                                   "[train: uniform; serving: lognormal:0.5]"),
    click.option("--mtp", type=int, help="Multi-token-prediction modules to train.  [default: those of the model]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the routing draw."),
    click.option("--average-load", is_flag=True, help="Replace the routing draw by its mean: optimistic."),
    click.option("--gpu-hour-price", type=float, help="Price of one GPU-hour, for cost per million tokens."),
)  # fmt: skip
AS_JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")


def with_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Apply click options in the order they are listed."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def read_scenario(asked: dict[str, Any]) -> "Scenario":
    """The scenario that the options of ``SCENARIO`` describe."""
    from moesim.cluster import load_cluster
    from moesim.errors import MoesimError
    from moesim.model import load_model
    from moesim.routing import parse_routing
    from moesim.step.scenario import make_scenario
    from moesim.workload import DEFAULT_ROUTING, make_workload

    model = load_model(asked["model"])
    cluster = load_cluster(asked["cluster"], asked["nodes"])
    if asked["gpu_hour_price"] is not None:
        cluster = replace(cluster, gpu_hour_price=asked["gpu_hour_price"], gpu_hour_price_source="--gpu-hour-price")
    if asked["seed"] < 0:
        raise MoesimError(f"--seed is {asked['seed']}: give 0 or more")
    sizes = {name: asked[name] for name in ("global_batch", "seq", "batch", "isl", "osl", "dtype")}
    workload = make_workload(asked["workload"], cluster.gpus, **sizes)
    routing = parse_routing(asked["routing"] or DEFAULT_ROUTING[workload.kind])
    how = {"seed": asked["seed"], "average": asked["average_load"], "mtp": asked["mtp"]}
    return make_scenario(model, cluster, workload, routing, **how)


def described(scenario: "Scenario") -> dict[str, Any]:
    """The inputs as they were understood, defaults filled in: part of every answer."""
    work, cluster = scenario.workload, scenario.cluster
    return {
        "model": scenario.model.name,
        "mtp": scenario.model.mtp_layers,
        "cluster": {"name": cluster.name, "gpu": cluster.gpu.name, "nodes": cluster.nodes, "gpus": cluster.gpus},
        "workload": {
            "kind": work.kind, "sequences": work.sequences, "queries": work.queries, "past": work.past,
            "tokens": work.tokens, "dtype": work.dtype,
        },
        "routing": "average load" if scenario.average else scenario.routing.label,
        "seed": scenario.seed,
    }  # fmt: skip
