"""``moesim tiers``: experts in CPU memory and on SSD."""

from typing import TYPE_CHECKING, Any

import click

from moesim.cli.options import AS_JSON, SCENARIO, described, read_scenario, with_options
from moesim.cli.output import print_json, print_table

if TYPE_CHECKING:
    from moesim.cluster import Cluster
    from moesim.tiers import Offload, Tiers


@click.command("tiers")
@with_options(*SCENARIO)
@click.option("--strategy", "-s", required=True, help="'dp=8 ep=8 …', a YAML file, or a plan.json.")
@click.option("--slots", type=int, default=2, show_default=True, help="Layers of experts in GPU memory.")
@click.option("--cached", type=float, default=1.0, show_default=True, help="Share of the experts in CPU memory.")
@click.option("--hit-rate", type=float, help="Share of fetched bytes found in CPU memory.  [default: drawn]")
@click.option("--cpu-memory", help="Of one GPU, as in 250GB.  [default: the preset's]")
@click.option("--cpu-bandwidth", help="To one GPU while all load, as in 40GB/s.  [default: the preset's]")
@click.option("--ssd", help="Of one GPU, as in 3.8TB; 0B for none.  [default: the preset's]")
@click.option("--ssd-bandwidth", help="Of one GPU while all read, as in 6GB/s.  [default: the preset's]")
@AS_JSON
def command(strategy: str, slots: int, cached: float, hit_rate: float | None, as_json: bool, **asked: Any) -> int:
    """Keep MODEL's experts outside GPU memory: what each tier must hold, and what a layer hides of its fetching.

    Layers of experts are fetched into slots on the GPU while earlier ones compute (SE-MoE, arXiv:2205.10034).
    """
    from moesim.report import question
    from moesim.strategy import load_strategy, show
    from moesim.tiers import offload

    scenario = read_scenario(asked)
    tiers = read_tiers(scenario.cluster, asked)
    chosen = load_strategy(strategy, scenario.cluster.gpus, scenario.workload)
    found = offload(scenario, chosen, tiers, slots=slots, cached=cached, hit=hit_rate)
    if as_json:
        sources = {"cpu": tiers.cpu.source, "ssd": tiers.ssd.source if tiers.ssd else "none"}
        print_json(described(scenario) | {"strategy": chosen.to_dict(), "sources": sources} | found.to_dict())
    else:
        print_table(question(scenario), ("bytes over the cluster", "needed", "there", ""), _capacities(found))
        print_table(
            f"a MoE layer with {slots} slots", ("pass", "layer", "fetch", "gather", "with fetching", "hidden from"),
            _passes(found),
        )  # fmt: skip
        click.echo("\n".join([show(chosen), *lines(found, tiers)]))
    return 1 if found.why_not else 0


def read_tiers(cluster: "Cluster", asked: dict[str, Any]) -> "Tiers":
    """The preset of the cluster, with what was given."""
    from moesim.tiers import tiers_of
    from moesim.units import bytes_per_s, size_bytes

    def read(name: str, take: Any) -> Any:
        return None if asked[name] is None else take(asked[name])

    return tiers_of(
        cluster,
        cpu_bytes=read("cpu_memory", size_bytes),
        cpu_bytes_per_s=read("cpu_bandwidth", bytes_per_s),
        ssd_bytes=read("ssd", size_bytes),
        ssd_bytes_per_s=read("ssd_bandwidth", bytes_per_s),
    )


def _capacities(found: "Offload") -> list[tuple[str, ...]]:
    from moesim.units import show_bytes

    rows = zip(("GPU memory", "CPU memory", "SSD"), found.needed, found.available, strict=True)
    return [
        (name, show_bytes(want), show_bytes(have), "fits" if want <= have else "too small") for name, want, have in rows
    ]


def _passes(found: "Offload") -> list[tuple[str, ...]]:
    from moesim.units import show_seconds

    return [
        (
            name, show_seconds(seconds), show_seconds(found.fetch_s), show_seconds(found.gather_s),
            f"{show_seconds(found.steady_s[name])} ({found.slowdown[name]:.2f} x)",
            "no hit rate" if (least := found.knee[name]) is None else f"a hit rate of {least:.0%}",
        )
        for name, seconds in found.layer_s.items()
    ]  # fmt: skip


def lines(found: "Offload", tiers: "Tiers") -> list[str]:
    """What the tables do not say."""
    from moesim.units import show_bytes, show_seconds

    told = [
        f"Hit rate {found.hit_rate:.1%}; {found.active_share:.1%} of the experts get tokens in a micro-batch.",
        f"A layer fetches {show_bytes(found.expert_bytes)} at once; its {found.launches} matrices one by one would "
        f"take {show_seconds(found.unfused_s)}.",
        f"GPU memory saved: {show_bytes(found.saved_bytes)}, {1.0 - found.slots / found.moe_layers:.0%} of experts.",
        f"CPU: {tiers.cpu.bytes_per_s / 1e9:.3g} GB/s a GPU; {tiers.cpu.source}",
    ]
    if tiers.ssd is not None:
        told.append(f"SSD: {tiers.ssd.bytes_per_s / 1e9:.3g} GB/s a GPU; {tiers.ssd.source}")
    if found.update_s:
        told.append(f"The optimizer's states from SSD and back: {show_seconds(found.update_s)} a step, not hidden.")
    return told if found.why_not is None else [*told, f"Does not fit: {found.why_not}"]
