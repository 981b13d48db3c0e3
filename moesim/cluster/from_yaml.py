"""A user's own cluster from YAML: read safely, every key checked, quantities with their units.

name: lab
gpu: H200                 # a GPU that moesim knows, or all of it:
# gpu: {name: X1, architecture: hopper, memory: 96GiB, memory_bandwidth: 4TB/s, flops: {bf16: 700TFLOP/s},
#       sms: 132, l2: 50MiB, source: "..."}
nodes: 2
gpus_per_node: 8
scale_up:  {kind: nvlink, latency: 8us, bandwidth: 320GB/s, peak: 450GB/s, source: "nccl-tests, our machine"}
scale_out: {kind: nic, latency: 20us, bandwidth: 45GB/s, peak: 400Gb/s, source: "..."}   # per GPU
nics_per_node: 8
fabric: {between: tree, leaf_nodes: 16, oversubscription: 2}   # optional; docs/clusters.md has all its keys
memory_tiers:             # optional: a GPU's share of what is behind its memory; for moesim tiers
  cpu: {capacity: 250GB, bandwidth: 40GB/s, start: 10us, source: "..."}
  ssd: {capacity: 3.8TB, bandwidth: 6GB/s, start: 100us, source: "..."}   # optional
gpu_hour_price: 2.5       # optional, with its source
gpu_hour_price_source: "our invoice"
source: "who wrote this, from what"
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from moesim.cluster.fabric import Between, Degraded, DegradedKind, Fabric, Inside
from moesim.cluster.nouns import BasisName, Cluster, Gpu, Link, LinkKind
from moesim.cluster.presets import GPUS
from moesim.cluster.tiers import Tier, Tiers
from moesim.cluster.wiring import check_wires, read_wires
from moesim.errors import MoesimError, choice
from moesim.units import bytes_per_s, flops_per_s, seconds, size_bytes


def _with_unit(read: Callable[[str], float]) -> BeforeValidator:
    def parse(text: object) -> float:
        try:
            return read(str(text))
        except MoesimError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(parse)


_Seconds = Annotated[float, _with_unit(seconds)]
_Bytes = Annotated[float, _with_unit(size_bytes)]
_BytesPerS = Annotated[float, _with_unit(bytes_per_s)]
_FlopsPerS = Annotated[float, _with_unit(flops_per_s)]
_Count = Annotated[StrictInt, Field(ge=1)]
_Text = Annotated[str, Field(min_length=1)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _GpuKeys(_Keys):
    name: _Text
    architecture: _Text
    memory: _Bytes
    memory_bandwidth: _BytesPerS
    flops: dict[str, _FlopsPerS]
    sms: _Count
    l2: _Bytes
    source: _Text


class _LinkKeys(_Keys):
    kind: LinkKind
    latency: _Seconds
    bandwidth: _BytesPerS
    peak: _BytesPerS
    basis: BasisName = "estimated"
    source: _Text


class _TierKeys(_Keys):
    capacity: _Bytes
    bandwidth: _BytesPerS
    start: _Seconds
    source: _Text


class _TiersKeys(_Keys):
    cpu: _TierKeys
    ssd: _TierKeys | None = None


class _DegradedKeys(_Keys):
    link: DegradedKind
    node: StrictInt
    index: StrictInt | None = None
    share: float


class _FabricKeys(_Keys):
    inside: Inside = "switch"
    host_bandwidth: _BytesPerS | None = None
    torus: list[StrictInt] = []
    wires: _Text | None = None
    between: Between = "rail"
    leaf_nodes: StrictInt = 1
    oversubscription: float = 1.0
    ecmp: float = 1.0
    degraded: list[_DegradedKeys] = []


_BOXES: Final[dict[str, tuple[str, ...]]] = {"inside": ("switch", "mesh", "host")}  # nodes that have others beside them
_MEANT: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "between": _BOXES,
    "leaf_nodes": _BOXES | {"between": ("tree",)},
    "oversubscription": _BOXES | {"between": ("rail", "spine", "tree")},
    "ecmp": _BOXES | {"between": ("rail", "spine", "tree")},
}  # key: what the others must be for it to mean something


class _ClusterKeys(_Keys):
    name: _Text
    gpu: str | dict[str, Any]
    nodes: _Count = 1
    gpus_per_node: _Count
    scale_up: _LinkKeys
    scale_out: _LinkKeys | None = None
    nics_per_node: Annotated[StrictInt, Field(ge=0)] | None = None  # one per GPU where there is a scale_out link
    fabric: _FabricKeys = _FabricKeys()
    memory_tiers: _TiersKeys | None = None
    gpu_hour_price: Annotated[float, Field(gt=0)] | None = None
    gpu_hour_price_source: str = ""
    source: _Text


def read_cluster(path: Path) -> Cluster:
    """The cluster in one YAML file. MoesimError names the file, the key, the value and what to do."""
    keys = _checked(_ClusterKeys, _load(path), f"{path}: ")
    if keys.gpu_hour_price is not None and not keys.gpu_hour_price_source:
        raise MoesimError(f"{path}: gpu_hour_price {keys.gpu_hour_price} has no source: add gpu_hour_price_source")
    try:
        return Cluster(
            name=keys.name,
            gpu=_gpu(keys.gpu, path),
            nodes=keys.nodes,
            gpus_per_node=keys.gpus_per_node,
            scale_up=_link(keys.scale_up),
            scale_out=None if keys.scale_out is None else _link(keys.scale_out),
            nics_per_node=_nics(keys),
            fabric=_fabric(keys, path),
            tiers=_tiers(keys.memory_tiers),
            gpu_hour_price=keys.gpu_hour_price,
            gpu_hour_price_source=keys.gpu_hour_price_source,
            source=keys.source,
        )
    except MoesimError as error:
        raise MoesimError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _load(path: Path) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise MoesimError(f"cannot read the cluster file {path}: {error}; check the path") from None
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise MoesimError(f"{path} is not YAML: {line}; correct it") from None


class _Loader(yaml.SafeLoader):
    """Safe, and a key that is written twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_KeysT = TypeVar("_KeysT", bound=_Keys)


def _checked(model: type[_KeysT], raw: object, where: str) -> _KeysT:
    if not isinstance(raw, dict):
        raise MoesimError(f"{where}{raw!r} is not a mapping: write {', '.join(model.model_fields)}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = min(found, key=lambda each: each["type"] != "extra_forbidden")  # a typo explains what is missing
        raise MoesimError(where + _one_line(first["type"], first, model)) from None


def _one_line(what: str, error: Any, model: type[_Keys]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if what == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        return f"{key}: {choice('key', str(error['loc'][-1]), known)}"
    if what == "missing":
        return f"{key} is missing: add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if what == "value_error" else f"{key} {error['input']!r}: {message}"


def _known_keys(model: type[_Keys], parents: tuple[str | int, ...]) -> list[str]:
    inner: dict[str, type[_Keys]] = {
        "scale_up": _LinkKeys, "scale_out": _LinkKeys, "fabric": _FabricKeys, "degraded": _DegradedKeys,
        "memory_tiers": _TiersKeys, "cpu": _TierKeys, "ssd": _TierKeys,
    }  # fmt: skip
    named = [part for part in parents if isinstance(part, str)]  # without the numbers of a list
    return list((inner[named[-1]] if named else model).model_fields)


def _nics(keys: _ClusterKeys) -> int:
    """As stated; left out, one per GPU where there is a link between nodes."""
    if keys.nics_per_node is not None:
        return keys.nics_per_node
    return 0 if keys.scale_out is None else keys.gpus_per_node


def _fabric(keys: _ClusterKeys, path: Path) -> Fabric:
    stated = keys.fabric
    _check_meant(stated)
    wires = () if stated.wires is None else read_wires(path.parent / stated.wires)
    if wires:
        check_wires(wires, keys.gpus_per_node)
    return Fabric(
        inside=stated.inside,
        host_bytes_per_s=stated.host_bandwidth,
        torus=tuple(stated.torus),
        wires=wires,
        between=stated.between,
        leaf_nodes=stated.leaf_nodes,
        oversubscription=stated.oversubscription,
        ecmp=stated.ecmp,
        degraded=tuple(
            Degraded(link=slow.link, node=slow.node, index=slow.index, share=slow.share) for slow in stated.degraded
        ),
    )


def _check_meant(stated: _FabricKeys) -> None:
    """Refuse a key that nobody would read, and a tree of which nobody knows the leaves."""
    for key in (key for key in _MEANT if key in stated.model_fields_set):
        for other, values in _MEANT[key].items():
            found = getattr(stated, other)
            if found not in values:
                raise MoesimError(
                    f"fabric.{key} {getattr(stated, key)} with {other}: {found}: "
                    f"it is for {other}: {', '.join(values)}; leave it out"
                )
    if stated.between == "tree" and "leaf_nodes" not in stated.model_fields_set:
        raise MoesimError("fabric.leaf_nodes is missing: between: tree needs it, the nodes below one leaf switch")


def _gpu(stated: str | dict[str, Any], path: Path) -> Gpu:
    if isinstance(stated, str):
        if stated not in GPUS:
            raise MoesimError(f"{path}: gpu: {choice('GPU', stated, list(GPUS))}, or describe it as a mapping")
        return GPUS[stated]
    keys = _checked(_GpuKeys, stated, f"{path}: gpu.")
    return Gpu(
        name=keys.name,
        architecture=keys.architecture,
        memory_bytes=keys.memory,
        memory_bytes_per_s=keys.memory_bandwidth,
        flops=keys.flops,
        sms=keys.sms,
        l2_bytes=keys.l2,
        source=keys.source,
    )


def _tiers(keys: _TiersKeys | None) -> Tiers | None:
    return None if keys is None else Tiers(cpu=_tier(keys.cpu), ssd=None if keys.ssd is None else _tier(keys.ssd))


def _tier(keys: _TierKeys) -> Tier:
    return Tier(capacity_bytes=keys.capacity, bytes_per_s=keys.bandwidth, start_s=keys.start, source=keys.source)


def _link(keys: _LinkKeys) -> Link:
    return Link(
        kind=keys.kind,
        latency_s=keys.latency,
        bandwidth_bytes_per_s=keys.bandwidth,
        peak_bytes_per_s=keys.peak,
        basis=keys.basis,
        source=keys.source,
    )
