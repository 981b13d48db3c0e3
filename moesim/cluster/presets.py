"""GPUs and clusters that moesim knows by name. Every figure is stated with its source.

Peaks are the vendors' data sheets (dense FLOP/s, bytes/s per GPU and direction). Bandwidths are what large
messages achieve, from published measurements:

* NVLink: busbw of NCCL alltoall inside one node (aiconfigurator-core 0.12.0, nccl-tests, Apache-2.0).
* NIC: ConnectX-7 at 400 Gb/s carries 46-49 GB/s (NCCL maintainers, nccl-tests issues 267 and 290) and
  47-48 GB/s in DeepEP low-latency at 2, 4 and 8 nodes: 48 of 50.
* Latency: send/recv intercepts of Vidur (microsoft/vidur 7d47513): H100 7.7 us inside a node, 19.9 us
across.
* Fabric: a leaf for each rail, as in NVIDIA's DGX SuperPOD reference architecture ("each group of 32 nodes is
  rail-aligned"). The networks of the PCIe boxes are assumptions, and so is peer access inside them.
* TPU v3: peaks of Google's documents; the bandwidth of a torus link is what GShard's all-to-all on 16 cores gives.
  No collective and no kernel was measured on it: it is there for exchanges over a torus.
"""

from dataclasses import replace
from typing import Final

from moesim.cluster.fabric import Fabric
from moesim.cluster.nouns import BasisName, Cluster, Gpu, Link, LinkKind
from moesim.units import GB, GIB, TB, TFLOPS, US

_SHEET: Final = "NVIDIA data sheet as collected in aiconfigurator-core 0.12.0 systems/*.yaml (Apache-2.0)"
_MB: Final = 2.0**20


def _gpu(
    name: str, architecture: str, memory: tuple[float, float], flops: dict[str, float], chip: tuple[int, int]
) -> Gpu:
    """GiB and TB/s of memory; dense TFLOP/s by dtype; SMs and MiB of L2."""
    return Gpu(
        name=name,
        architecture=architecture,
        memory_bytes=memory[0] * GIB,
        memory_bytes_per_s=memory[1] * TB,
        flops={dtype: rate * TFLOPS for dtype, rate in flops.items()},
        sms=chip[0],
        l2_bytes=chip[1] * _MB,
        source=f"{_SHEET}; SMs and L2: NVIDIA {architecture} architecture paper",
    )


_HOPPER_FLOPS: Final = {"bf16": 989.0, "fp8": 1978.0, "int8": 1978.0}

GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100", "ampere", (80, 2.039), {"bf16": 312.0, "int8": 624.0}, (108, 40)),
        _gpu("A30", "ampere", (24, 0.933), {"bf16": 165.0, "int8": 330.0}, (56, 24)),
        _gpu("L40S", "ada", (45, 0.864), {"bf16": 362.05, "fp8": 733.0, "int8": 733.0}, (142, 96)),
        _gpu("H100", "hopper", (80, 3.35), _HOPPER_FLOPS, (132, 50)),
        _gpu("H200", "hopper", (141, 4.8), _HOPPER_FLOPS, (132, 50)),
        _gpu("H800", "hopper", (80, 3.35), _HOPPER_FLOPS, (132, 50)),
        _gpu(
            "B200",
            "blackwell",
            (180, 7.7),
            {"bf16": 2250.0, "fp8": 4500.0, "int8": 4500.0, "fp4": 9000.0},
            (148, 126),
        ),
        _gpu(
            "GB200",
            "blackwell",
            (185, 8.0),
            {"bf16": 2500.0, "fp8": 5000.0, "int8": 5000.0, "fp4": 1e4},
            (148, 126),
        ),
        # dual-die, 160 SMs: NVIDIA, "Inside NVIDIA Blackwell Ultra" (2025); int8 was cut to a thirtieth
        _gpu(
            "B300",
            "blackwell",
            (268, 7.75),
            {"bf16": 2250.0, "fp8": 4500.0, "int8": 153.5, "fp4": 1.4e4},
            (160, 126),
        ),
        _gpu(
            "GB300",
            "blackwell",
            (277, 8.0),
            {"bf16": 2500.0, "fp8": 5000.0, "int8": 165.0, "fp4": 1.5e4},
            (160, 126),
        ),
    )
}

_NCCL: Final = "busbw of NCCL alltoall on 8 GPUs, aiconfigurator-core 0.12.0 (nccl-tests)"
_NDR_GB_S: Final = "46-49 GB/s of 50: NCCL maintainers, nccl-tests issues 267 and 290"
_VIDUR: Final = "latency: send/recv intercept, microsoft/vidur 7d47513"
_ASSUMED_NIC: Final = "92 % of the data sheet and the latency of H100's NICs assumed"


def _link(kind: LinkKind, gb_s: tuple[float, float], latency_us: float, basis: BasisName, source: str) -> Link:
    """``gb_s``: achieved and peak GB/s per GPU and direction."""
    return Link(
        kind=kind,
        latency_s=latency_us * US,
        bandwidth_bytes_per_s=gb_s[0] * GB,
        peak_bytes_per_s=gb_s[1] * GB,
        basis=basis,
        source=source,
    )


_NVLINK3: Final = _link(
    "nvlink", (203, 300), 13.4, "published", f"NVLink3, 600 GB/s both ways; {_NCCL}; {_VIDUR}, DGX A100"
)
_NVLINK4: Final = _link(
    "nvlink", (320, 450), 7.7, "published",
    f"NVLink4, 900 GB/s both ways; {_NCCL}: 315-332 GB/s at 512 MiB; {_VIDUR}, DGX H100",
)  # fmt: skip
_NVLINK4_H800: Final = _link(
    "nvlink", (160, 200), 7.7, "published",
    "NVLink4 cut to 400 GB/s both ways; about 160 GB/s: DeepEP README; latency of DGX H100",
)  # fmt: skip
_NVLINK5: Final = _link(
    "nvlink",
    (563, 900),
    11.5,
    "published",
    f"NVLink5, 1800 GB/s both ways; {_NCCL}; latency: smallest messages",
)
_PCIE4: Final = _link(
    "pcie", (22, 32), 20.0, "published",
    "PCIe 4.0 x16; NCCL alltoall of 2 L40S, aiconfigurator-core 0.12.0 (nccl-tests); latency assumed",
)  # fmt: skip
_HDR: Final = _link(
    "nic", (23, 25), 19.9, "estimated",
    f"one ConnectX-6 (200 Gb/s) per GPU, DGX A100 data sheet; {_ASSUMED_NIC}",
)  # fmt: skip
_NDR: Final = _link(
    "nic", (48, 50), 19.9, "published",
    f"one ConnectX-7 (400 Gb/s) per GPU; {_NDR_GB_S}; {_VIDUR}, DGX H100 across nodes",
)  # fmt: skip
_XDR: Final = _link(
    "nic", (96, 100), 19.9, "estimated",
    f"one ConnectX-8 (800 Gb/s) per GPU, {_SHEET}; 96 % of it, as ConnectX-7, and the latency of H100's NICs assumed",
)  # fmt: skip
_TWO_200G: Final = _link(
    "nic", (5.75, 6.25), 19.9, "estimated", f"2 x 200 Gb/s a node assumed, shared by 8 GPUs; {_ASSUMED_NIC}"
)
_ONE_100G: Final = _link(
    "nic",
    (1.4375, 1.5625),
    19.9,
    "estimated",
    f"1 x 100 Gb/s a node assumed, shared by 8 GPUs; {_ASSUMED_NIC}",
)


_TPU_V3: Final = Gpu(  # one of the two cores of a chip
    name="TPUv3",
    architecture="tpu",
    memory_bytes=16 * GIB,
    memory_bytes_per_s=0.45 * TB,
    flops={"bf16": 61.5 * TFLOPS},
    sms=2,
    l2_bytes=16 * _MB,
    source="half a chip of cloud.google.com/tpu/docs/v3: 123 TFLOP/s, 32 GiB at 900 GB/s, two matrix units a core; "
    "vector memory of a core: Norrie et al., IEEE Micro 41(2), 2021",
)
# GShard (Lepikhin et al. 2020), fig. 9, 16 cores = 4 x 2 chips: 8 MiB a core in 286 us, 32 MiB in 1120 us. With d = 4
# places along the longest side a link carries d S / 8 of the S that a chip's two cores send:
#   latency    (4 x 286 - 1120) / 3 us             = 8 us
#   bandwidth  4/8 x 2 x 24 MiB / (1120 - 286) us  = 30.2 GB/s
_ICI3: Final = _link(
    "ici", (4 / 8 * 2 * 24 * _MB / 834e-6 / GB, 656 / 8), 8.0, "published",
    "656 Gb/s per link and direction: Jouppi et al., CACM 63(7), 2020; achieved and latency: all-to-all of 8 and "
    "32 MiB on 16 cores, GShard (Lepikhin et al. 2020) fig. 9, read from the picture",
)  # fmt: skip


def _carried(link: Link, from_what: str) -> Link:
    return replace(link, basis="estimated", source=f"carried over from {from_what}: {link.source}")


def _preset(name: str, gpu: str, gpus_per_node: int, links: tuple[Link, Link], nics: int) -> Cluster:
    scale_up, scale_out = links
    return Cluster(
        name=name,
        gpu=GPUS[gpu],
        nodes=1,
        gpus_per_node=gpus_per_node,
        scale_up=scale_up,
        scale_out=scale_out,
        nics_per_node=nics,
        source=f"GPU: {GPUS[gpu].source}; {scale_up.kind}: {scale_up.source}; nic: {scale_out.source}",
    )


CLUSTERS: Final = {
    cluster.name: cluster
    for cluster in (
        _preset("dgx-a100", "A100", 8, (_NVLINK3, _HDR), 8),
        _preset("dgx-h100", "H100", 8, (_NVLINK4, _NDR), 8),
        _preset("dgx-h200", "H200", 8, (_carried(_NVLINK4, "H100"), _NDR), 8),
        _preset("hgx-h800", "H800", 8, (_NVLINK4_H800, _NDR), 8),
        _preset("hgx-b200", "B200", 8, (_NVLINK5, _NDR), 8),
        _preset("gb200-nvl72", "GB200", 72, (_carried(_NVLINK5, "8 x B200"), _NDR), 72),
        _preset("hgx-b300", "B300", 8, (_carried(_NVLINK5, "8 x B200"), _XDR), 8),
        _preset("gb300-nvl72", "GB300", 72, (_carried(_NVLINK5, "8 x B200"), _XDR), 72),
        _preset("pcie-l40s", "L40S", 8, (_PCIE4, _TWO_200G), 2),
        _preset("pcie-a30", "A30", 8, (_carried(_PCIE4, "8 x L40S"), _ONE_100G), 1),
        Cluster(
            name="tpu-v3",
            gpu=_TPU_V3,
            nodes=1,
            gpus_per_node=2048,
            scale_up=_ICI3,
            fabric=Fabric(inside="torus", torus=(32, 32)),
            source=f"a pod of 32 x 32 chips of two cores; core: {_TPU_V3.source}; ici: {_ICI3.source}",
        ),
    )
}
