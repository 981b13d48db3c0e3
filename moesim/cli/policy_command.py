"""``moesim policy``: the best parallelism, chunks and all-to-all of an expert layer at every load."""

from typing import TYPE_CHECKING, Any

import click

from moesim.cli.options import AS_JSON, with_options
from moesim.cli.output import check_folder, print_json, print_table
from moesim.errors import MoesimError

if TYPE_CHECKING:
    from moesim.adaptive import Policy

MOST_FACTORS = 256


@click.command("policy")
@click.argument("model")
@click.option("--cluster", "-c", required=True, help="Preset (moesim list clusters) or a YAML file.")
@click.option("--nodes", type=int, help="Nodes of the cluster.  [default: as the cluster says, presets 1]")
@click.option("--tokens-per-gpu", type=int, default=4096, show_default=True,
              help="Tokens that a GPU brings to the layer at a time: its micro-batch.")  # fmt: skip
@click.option("--capacity-factors", default="1:8", show_default=True,
              help="Loads: FROM:TO, FROM:TO:STEP, or a list as in 1,1.25,2.")  # fmt: skip
@click.option("--all-to-all", "algorithms", help="Names, separated by commas.  [default: all that send a fixed buffer]")
@click.option("--dtype", default="bf16", show_default=True, help="Of the experts' matrices.")
@click.option("--forward", is_flag=True, help="Forward pass only, as in serving.")
@click.option("--out", "folder", help="Folder for policy.json, policy.csv, static.csv and policy.png.")
@with_options(AS_JSON)
def command(model: str, cluster: str, folder: str | None, as_json: bool, **asked: Any) -> int:
    """Table of the best way to run MODEL's expert layer, by capacity bucket, and the regret of a static choice.

    A way is r (0: weights gathered, tokens stay; r: an expert cut into r parts, tokens sent r times), the chunks that
    overlap, and the all-to-all. All GPUs of the cluster are one expert-parallel world (Tutel, arXiv:2206.03382).
    """
    from moesim.api import policy

    out = check_folder(folder)
    found = policy(
        model,
        cluster,
        nodes=asked["nodes"],
        tokens_per_gpu=asked["tokens_per_gpu"],
        capacity_factors=read_factors(asked["capacity_factors"]),
        algorithms=tuple(asked["algorithms"].split(",")) if asked["algorithms"] else None,
        dtype=asked["dtype"],
        trains=not asked["forward"],
    )
    inputs = {
        "model": model, "cluster": found.cluster.name, "gpus": found.cluster.gpus, "tokens_per_gpu": found.layer.tokens,
        "dtype": found.layer.dtype, "passes": "forward" if asked["forward"] else "forward and backward",
    }  # fmt: skip
    document = {"inputs": inputs} | found.to_dict()
    if out is not None:
        from moesim.cli.files import write_policy

        write_policy(found, document, out)
    if as_json:
        print_json(document)
    else:
        _print(found, inputs)
    return 0


def read_factors(text: str) -> tuple[float, ...]:
    """``1:8`` -> 1, 2, …, 8; ``1:2:0.5`` -> 1, 1.5, 2; ``1,1.25`` -> 1, 1.25."""
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        first, last, step = (*(float(part) for part in text.split(":")), 1.0)[:3]
        count = int((last - first) / step + 1e-9) + 1
        if not (0 < first <= last and step > 0 and count <= MOST_FACTORS):
            raise ValueError(text)
    except (ValueError, OverflowError, ZeroDivisionError):
        remedy = f"write FROM:TO, FROM:TO:STEP or numbers with commas, at most {MOST_FACTORS} of them"
        raise MoesimError(f"--capacity-factors {text!r}: {remedy}") from None
    return tuple(first + step * number for number in range(count))


def _print(found: "Policy", inputs: dict[str, Any]) -> None:
    from moesim.units import show_seconds

    rows = [
        (
            f"{row['bucket']} ({row['capacity']} rows)",
            f"{row['capacity_factor']:g}",
            str(found.way(load)),
            show_seconds(row["seconds"]),
            f"{show_seconds(row['low_s'])} – {show_seconds(row['high_s'])}",
            f"{row['static_regret']:.1%}",
        )
        for load, row in enumerate(found.to_frame().to_dict(orient="records"))
    ]
    title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in inputs.items())
    columns = ("bucket", "capacity factor", "run", "layer", "90 % band", "best static loses")
    print_table(title, columns, rows)
    statics = found.statics()
    best, worst = found.ways[found.best_static].way, statics.iloc[-1]
    click.echo(f"Best static choice: {best}; over all loads it loses {statics.iloc[0]['regret']:.1%} to the table.")
    click.echo(f"The worst of {len(statics)} loses {worst['regret']:.0%}: r={worst['r']} {worst['all_to_all']}.")
    for reason, count in found.impossible.items():
        click.echo(f"Not possible ({count}): {reason}")
