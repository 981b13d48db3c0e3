"""What this machine is: its name, the facts of its data sheet, the libraries, the clocks.

A GPU that moesim.cluster knows, with as many SMs as there, has that data sheet. Another one has the device's
properties, and the measured rates where the properties do not say.
"""

import hashlib
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.options import slug
from moesim.cluster import GPUS
from moesim.errors import MoesimError

_SUFFIX: Final = re.compile(r"^(\d+GB|HBM\w*|SXM\d*|PCIe|PCIE|NVL\d*|Generation|Laptop)$")
_ARCHITECTURES: Final = {
    (7, 0): "volta", (7, 5): "turing", (8, 0): "ampere", (8, 6): "ampere", (8, 7): "ampere", (8, 9): "ada",
    (9, 0): "hopper", (10, 0): "blackwell", (10, 3): "blackwell", (12, 0): "blackwell",
}  # fmt: skip
# Dense bf16 FLOPs of one SM in one clock. NVIDIA architecture papers; others are taken at the measured rate.
_FLOPS_PER_CLOCK: Final = {(8, 0): 2048, (8, 6): 512, (8, 9): 1024, (9, 0): 4096}
_MEASURING: Final = (  # files that decide what a row says
    "attention", "bench", "case", "collectives", "copies", "expert_ffn", "gemm", "interference", "kernels", "launch",
    "loads", "peaks", "static_fp8", "timing", "torch_layer",
)  # fmt: skip
PROCESSES: Final = 2  # that a CPU is calibrated as: the ranks of its cluster
_DEFAULT_CACHE: Final = 32 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The device that is calibrated."""

    device: str  # "cuda" or "cpu"
    name: str  # of the profile
    full_name: str  # as the driver or the operating system says
    architecture: str
    memory_bytes: float
    memory_bytes_per_s: float | None  # None: take the measured rate
    flops: dict[str, float] | None  # None: take the measured rate
    sms: int
    l2_bytes: float
    source: str
    fp8: bool = False
    gpus: int = 1
    uuid: str = ""

    @property
    def slug(self) -> str:
        """The folder of the profile."""
        return slug(self.name)


def find_machine(device: str, name: str | None) -> Machine:
    """This machine's GPU or CPU; refuses a GPU that is not there."""
    if device == "cpu":
        return _cpu(name)
    if device != "cuda":
        raise MoesimError(f"--device {device}: choose cuda or cpu")
    require("torch")
    import torch

    if not torch.cuda.is_available():
        raise MoesimError(
            "no CUDA GPU found: run this on the machine to calibrate, or add --device cpu to measure this CPU"
        )
    require("triton")
    return _gpu(torch.cuda.get_device_properties(0), name, torch.cuda.device_count())


def this_device() -> str:
    """``cuda`` where torch finds a GPU, else ``cpu``."""
    require("torch")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require(package: str) -> None:
    """Refuse to measure without torch or triton."""
    if not present(package):
        raise MoesimError(f"{package} is not installed: pip install 'moesim[calibrate]', or torch and triton, first")


def present(package: str) -> bool:
    """Whether a package can be found, whatever its distribution is called; imports nothing."""
    return find_spec(package) is not None


def installed(package: str) -> str:
    """The version of an installed package, or an empty text; imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def identity(machine: Machine, seed: int) -> dict[str, str]:
    """What must be equal for two runs to be one profile."""
    gpu = machine.device == "cuda"
    kernels = sorted(_kernels_folder().glob("*.py")) if gpu else []
    code = [*kernels, *(Path(__file__).with_name(f"{name}.py") for name in _MEASURING)]
    return {
        "format": "1",
        "device": machine.full_name,
        "torch": installed("torch"),
        "triton": installed("triton") if gpu else "",
        "code": _hash(code),
        "seed": str(seed),
    }


def _kernels_folder() -> Path:
    """kernels/ of a checkout, or its copy in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "kernels"
    return inside if inside.is_dir() else package.parent / "kernels"


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def short_name(full: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``H100``, ``NVIDIA A100-SXM4-80GB`` -> ``A100``."""
    words = re.split(r"[\s-]+", full.removeprefix("NVIDIA "))
    return " ".join(word for word in words if not _SUFFIX.match(word)) or full


def _gpu(properties: Any, name: str | None, gpus: int) -> Machine:
    full, chip = str(properties.name), (int(properties.major), int(properties.minor))
    short = short_name(full)
    sms = int(properties.multi_processor_count)
    known = GPUS.get(short)
    facts: dict[str, Any] = {
        "device": "cuda", "full_name": full, "memory_bytes": float(properties.total_memory), "sms": sms,
        "fp8": chip >= (8, 9), "gpus": gpus, "uuid": str(getattr(properties, "uuid", "")),
    }  # fmt: skip
    if known is not None and known.sms == sms:
        return Machine(
            **facts, name=name or known.name, architecture=known.architecture,
            memory_bytes_per_s=known.memory_bytes_per_s, flops=known.flops, l2_bytes=known.l2_bytes,
            source=f"data sheet of {known.name}: {known.source}",
        )  # fmt: skip
    clock = float(getattr(properties, "clock_rate", 0)) * 1e3
    memory_clock, bus = (float(getattr(properties, x, 0)) for x in ("memory_clock_rate", "memory_bus_width"))
    peak = sms * clock * _FLOPS_PER_CLOCK.get(chip, 0)
    flops = {"bf16": peak} | ({"fp8": 2.0 * peak} if chip >= (8, 9) else {})
    bandwidth = 2.0 * memory_clock * 1e3 * bus / 8.0
    return Machine(
        **facts, name=name or (short if known is None else f"{short} {sms} SMs"),
        architecture=_ARCHITECTURES.get(chip, f"sm{chip[0]}{chip[1]}"),
        memory_bytes_per_s=bandwidth or None, flops=flops if peak else None,
        l2_bytes=float(getattr(properties, "L2_cache_size", 0) or _DEFAULT_CACHE),
        source="device properties; " + ("peaks from clocks" if peak and bandwidth else "peaks not stated are measured"),
    )  # fmt: skip


def _cpu(name: str | None) -> Machine:
    full = f"CPU {_cpu_model()}"
    return Machine(
        device="cpu", name=name or full, full_name=full, architecture="cpu", memory_bytes=_ram_bytes(),
        memory_bytes_per_s=None, flops=None, sms=process_cores(), l2_bytes=_last_cache(), gpus=PROCESSES,
        source="half of this CPU, as each of two processes has it; peaks as measured (large copy, large matmul)",
    )  # fmt: skip


def _cpu_model() -> str:
    text = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                text = line.partition(":")[2]
                break
    text = re.sub(r"\((R|TM|r|tm)\)|@.*|\bCPU\b|\bProcessor\b|\d+-Core", " ", text)
    return " ".join(text.split()) or "unknown"


def process_cores() -> int:
    """Physical cores of one of the processes that share this CPU."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    found = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        found.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(cpu))
    return max(len(found) // PROCESSES, 1)


def _last_cache() -> float:
    """Bytes of the last-level cache of the first core."""
    return max(_cache_sizes(), default=float(_DEFAULT_CACHE))


def _cache_sizes() -> list[float]:
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            text = path.read_text(encoding="ascii").strip()
            found.append(float(text.rstrip("KMG")) * {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}.get(text[-1], 1.0))
    return found


def _ram_bytes() -> float:
    """Of one of the processes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / PROCESSES
    except (ValueError, OSError, AttributeError):
        return 8.0 * 2**30


class Clocks:
    """What nvidia-smi says of the GPU while it works; nothing where it is absent."""

    def __init__(self, machine: Machine) -> None:
        program = shutil.which("nvidia-smi") if machine.device == "cuda" else None
        which = f"GPU-{machine.uuid.removeprefix('GPU-')}" if machine.uuid else "0"
        query = "--query-gpu=clocks.sm,clocks.mem,driver_version"
        self.command = [program, "-i", which, query, "--format=csv,noheader,nounits"] if program else []
        self.seen: list[tuple[float, float]] = []
        self.driver = ""

    def sample(self) -> None:
        """One look."""
        if not self.command:
            return
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            said = subprocess.check_output(self.command, text=True, timeout=5)
            sm, memory, self.driver = (part.strip() for part in said.splitlines()[0].split(","))
            self.seen.append((float(sm), float(memory)))

    def summary(self) -> dict[str, Any]:
        """MHz seen."""
        if not self.seen:
            return {}
        sms, memories = zip(*self.seen, strict=True)
        return {
            "sm_mhz": {"min": min(sms), "median": statistics.median(sms), "max": max(sms)},
            "memory_mhz": statistics.median(memories),
            "samples": len(self.seen),
        }
