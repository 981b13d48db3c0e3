"""``moesim goodput``: useful over wall time of a training run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from moesim.cli.options import AS_JSON, SCENARIO, described, read_scenario, with_options
from moesim.cli.output import print_json, print_table

if TYPE_CHECKING:
    from moesim.goodput import Goodput, Reality


@click.command("goodput")
@with_options(*SCENARIO)
@click.option("--strategy", "-s", required=True, help="'dp=8 ep=8 …', a YAML file, or a plan.json.")
@click.option("--gpu-mtbf", help="Time between failures of one GPU, as in 50000h.  [default: 50676h, Llama 3]")
@click.option("--restart", help="From a failure to computing again, as in 10min.  [default: 10min, MegaScale]")
@click.option("--write-bandwidth", help="Checkpoint bytes per second and GPU.  [default: 122MB/s, Llama 3]")
@click.option("--checkpoint-interval", help="Computing between two checkpoints, as in 30min.  [default: the best]")
@click.option("--slow-nodes", type=float, help="Share of slow nodes.  [default: 0.005, MegaScale]")
@click.option("--slowness", type=float, help="Extra computing time of a slow node.  [default: 0.1, MegaScale]")
@click.option("--jitter", type=float,
              help="Deviation of a rank at a barrier over its exchange.  [default: 0.044, FlashMoE]")  # fmt: skip
@AS_JSON
def command(strategy: str, as_json: bool, **asked: Any) -> int:
    """Train MODEL for weeks: what a step gains from waits, stragglers, failures and checkpoints. Every default is
    published and shown with its source."""
    from moesim.goodput import goodput
    from moesim.metrics import measure
    from moesim.report import question
    from moesim.strategy import load_strategy, show

    reality = read_reality(asked)
    scenario = read_scenario(asked)
    chosen = load_strategy(strategy, scenario.cluster.gpus, scenario.workload)
    result = measure(scenario, chosen, events=False)
    found = goodput(result, reality)
    if as_json:
        print_json(
            described(scenario) | {"strategy": chosen.to_dict(), "infeasible": result.infeasible} | found.to_dict()
        )
    else:
        print_table(question(scenario), ("where the wall time goes", "share"), _rows(found))
        click.echo(f"{show(chosen)}\n{summary(found)}")
        for name, text in found.sources.items():
            click.echo(f"Input: {name} {text}")
        if result.infeasible:
            click.echo(f"This strategy {result.infeasible}.")
    return 1 if result.infeasible else 0


def read_reality(asked: dict[str, Any]) -> "Reality":
    """The inputs that were given; the others are published ones."""
    from moesim.goodput import Reality
    from moesim.units import bytes_per_s, seconds

    readers: dict[str, tuple[str, Callable[[Any], float]]] = {
        "gpu_mtbf_s": ("gpu_mtbf", seconds),
        "restart_s": ("restart", seconds),
        "write_bytes_per_s": ("write_bandwidth", bytes_per_s),
        "interval_s": ("checkpoint_interval", seconds),
        "slow_share": ("slow_nodes", float),
        "slowness": ("slowness", float),
        "deviation": ("jitter", float),
    }
    given = {name: read(asked[flag]) for name, (flag, read) in readers.items() if asked[flag] is not None}
    return Reality(**given)


def _rows(found: "Goodput") -> list[tuple[str, str]]:
    return [("useful", f"{found.goodput:.2%}"), *((cause, f"{share:.2%}") for cause, share in found.lost.items())]


def summary(found: "Goodput") -> str:
    """Two sentences."""
    from moesim.goodput import DAY_S
    from moesim.units import show_bytes, show_seconds

    steps = max(1, round(found.interval_s / found.real_step_s))
    return (
        f"Goodput {found.goodput:.1%}: a step of {show_seconds(found.step_s)} takes {show_seconds(found.real_step_s)} "
        f"with waits and stragglers, {found.tokens_per_s:,.0f} tokens/s over weeks.\n"
        f"An interruption every {found.mtbf_s / 3600.0:.3g} h ({DAY_S / found.mtbf_s:.2g} a day); write "
        f"{show_bytes(found.checkpoint_bytes)} in {show_seconds(found.write_s)} every {steps:,} steps "
        f"({show_seconds(found.interval_s)})."
    )
