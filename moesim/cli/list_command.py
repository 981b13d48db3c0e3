"""``moesim list``: what is there, with sources."""

from collections.abc import Callable
from typing import Any, Final

import click

from moesim.cli.options import AS_JSON, with_options
from moesim.cli.output import print_json, print_table
from moesim.errors import choice

Rows = list[dict[str, Any]]


def _models() -> Rows:
    from moesim.model import MODELS, active_parameters, parameters
    from moesim.units import show_count

    return [
        {
            "name": name,
            "parameters": show_count(parameters(model)),
            "active": show_count(active_parameters(model, embedding=bool(p and p.active_embedding))),
            "published": f"{p.total} / {p.active}" if p else "",
            "layers": len(model.layers),
            "experts": f"{model.moe.experts} top {model.moe.top_k}" if model.moe else "dense",
            "source": model.source,
        }
        for name, model in MODELS.items()
        for p in (model.published,)
    ]


def _clusters() -> Rows:
    from moesim.cluster import CLUSTERS

    return [
        {
            "name": name,
            "gpus": f"{c.gpus_per_node} x {c.gpu.name}",
            "memory": f"{c.gpu.memory_bytes / 1e9:.0f} GB",
            "in node": f"{c.scale_up.kind} {c.scale_up.bandwidth_bytes_per_s / 1e9:.0f} GB/s",
            "between nodes": f"{c.scale_out.bandwidth_bytes_per_s / 1e9:.0f} GB/s a GPU" if c.scale_out else "none",
            "source": c.source or c.gpu.source,
        }
        for name, c in CLUSTERS.items()
    ]


def _profiles() -> Rows:
    """What prices each GPU: those of the presets, and those that the user measured."""
    from moesim.cluster import GPUS
    from moesim.profile import load_profile, measured_gpus

    rows: Rows = []
    for name, gpu in ({one.name: one for one in measured_gpus()} | GPUS).items():
        for operation, tables in load_profile(gpu).tables.items():
            rows += [
                {
                    "gpu": name,
                    "operation": operation,
                    "rows": nearest.table.rows,
                    "from": nearest.gpu.name,
                    "basis": next(basis for basis, share in nearest.basis._asdict().items() if share),
                    "source": nearest.source,
                }
                for nearest in tables[:1]
            ]
        rows += _collectives(name)
    return rows


def _collectives(gpu: str) -> Rows:
    """The measured collectives of a GPU's node, if any."""
    from moesim.collectives import measured_rows

    found = measured_rows(gpu)
    if not found:
        return []
    first = found[0]
    source = f"{first['library']}: {first['source']}"
    return [
        {
            "gpu": gpu, "operation": "collectives", "rows": len(found), "from": gpu, "basis": first["basis"],
            "source": source,
        }
    ]  # fmt: skip


def _routing() -> Rows:
    from moesim.routing import ROUTINGS

    return [{"name": name, "what": what, "source": source} for name, (what, source) in ROUTINGS.items()]


def _all_to_all() -> Rows:
    from moesim.alltoall import ALGORITHMS

    return [{"name": name, "what": _first_line(module_of)} for name, module_of in ALGORITHMS.items()]


def _schedules() -> Rows:
    from moesim.schedule import SCHEDULES

    return [{"name": name, "what": _first_line(rule.order)} for name, rule in SCHEDULES.items()]


def _first_line(function: Callable[..., Any]) -> str:
    import sys

    return (sys.modules[function.__module__].__doc__ or "").splitlines()[0]


KINDS: Final[dict[str, Callable[[], Rows]]] = {
    "models": _models,
    "clusters": _clusters,
    "profiles": _profiles,
    "routing": _routing,
    "all-to-all": _all_to_all,
    "schedules": _schedules,
}


@click.command("list")
@click.argument("what")
@with_options(AS_JSON)
def command(what: str, as_json: bool) -> int:
    """List WHAT: models, clusters, profiles, routing, all-to-all or schedules."""
    if what not in KINDS:
        raise choice("list", what, list(KINDS))
    rows = KINDS[what]()
    if as_json:
        print_json(rows)
    else:
        print_table(what, list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    return 0
