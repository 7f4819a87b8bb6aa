"""Ask the machine: cores, memory, disk, devices, and which number formats it computes fast.

The only place that does. Containers are believed rather than the host behind them: affinity masks and
cgroup limits (both versions) count. Speed is measured, never read from a list of processor names:
what a processor advertises and what the library underneath makes of it are two things.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .environment import asked_threads
from .errors import HardwareError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

BF16_PAYS = 1.2
"""How much faster than float32 bfloat16 must be measured before it is chosen."""


# -- processor ----------------------------------------------------------------------------------------


@cache
def physical_cores() -> int:
    """Count the physical cores that this process may use (affinity and cgroup quota respected)."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        # Two hardware threads of one core name the same siblings; a matrix product gains nothing from the second.
        cores = len({_siblings(cpu) for cpu in allowed})
    else:
        import psutil  # where it is not asked, it need not be there

        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))


def threads(count: int | None = None) -> int:
    """Return ``count``, else ``OMP_NUM_THREADS``, else one a core."""
    return count or asked_threads() or physical_cores()


def set_threads(count: int | None = None) -> int:
    """Let torch compute with so many ``threads``; return the number."""
    import torch

    count = threads(count)
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota() -> float | None:
    """Return the processors' worth of time that the cgroup grants, or None where it is not limited."""
    shares = []
    for text in _cgroup("cpu", "cpu.max"):  # version 2: "max 100000" or "200000 100000"
        quota, period = text.split()
        if quota != "max":
            shares.append(int(quota) / int(period))
    periods = list(_cgroup("cpu", "cpu.cfs_period_us"))
    for quota, period in zip(_cgroup("cpu", "cpu.cfs_quota_us"), periods, strict=False):
        if int(quota) > 0:
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _cgroup(controller: str, file: str) -> Iterator[str]:
    """Yield a cgroup file's content for this process's group and every group above it.

    In a container the path in ``/proc/self/cgroup`` may be the host's; then only the root is found,
    which is the container's own group.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        for folder in (path, *map(str, Path(path).parents)):
            try:
                yield (root / folder.lstrip("/") / file).read_text().strip()
            except OSError:
                continue


# -- memory and disk ----------------------------------------------------------------------------------


def memory_total() -> int:
    """Return the bytes of memory that this process could ever use: the machine's, or the cgroup's limit."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_memory_limits()])


def memory_available() -> int:
    """Return the bytes of memory that are free now, without swapping."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limits = _memory_limits()
    if not limits:
        return free
    # The tightest limit minus what this group uses; its page cache can be given back, so it is not in use.
    used = [int(text) for name in ("memory.current", "memory.usage_in_bytes") for text in _cgroup("memory", name)]
    cache = [int(line.split()[1]) for text in _cgroup("memory", "memory.stat") for line in text.splitlines()
             if line.split()[0] in ("inactive_file", "total_inactive_file")]  # fmt: skip
    in_use = (used[0] if used else resident_memory()) - (max(cache[:2], default=0) if used else 0)
    return max(0, min(free, min(limits) - in_use))


def _memory_limits() -> list[int]:
    texts = [text for name in ("memory.max", "memory.limit_in_bytes") for text in _cgroup("memory", name)]
    # Version 1 writes "no limit" as a huge number.
    return [int(text) for text in texts if text != "max" and int(text) < 2**60]


def resident_memory() -> int:
    """Return the bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def resident_memory_of(process: int) -> int:
    """Return the bytes of memory that another process and those below it hold now; none where it is gone."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process)
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += int(one.memory_info().rss)
    return total


def peak_resident_memory() -> int:
    """Return the most bytes of memory that this process has held, since its start or ``reset_peak``."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> bool:
    """Start ``peak_resident_memory`` afresh; return False where the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of Python, numpy or torch means that memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def free_memory(*, cycles: bool = True) -> None:
    """Give back what nobody refers to any more, also of an accelerator's memory.

    Looking for ``cycles`` of objects that refer to one another takes a third of a second.
    """
    import torch

    if cycles:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, unless it is told not to
        ctypes.CDLL(None).malloc_trim(0)
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def disk_free(path: str | Path) -> int:
    """Return the free bytes of the disk that ``path`` is, or would be, written to."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


# -- energy -------------------------------------------------------------------------------------------


class EnergyMeter:
    """Joules that this machine's processors, their memory and its GPUs took since the meter was made.

    Everything that runs on the machine counts, not this process alone. Processors tell through Linux' powercap
    (RAPL), which often only root may read; NVIDIA's GPUs through NVML, where pynvml is installed.

    Args:
        powercap: the folder of Linux' power zones.
    """

    def __init__(self, powercap: Path = Path("/sys/class/powercap")) -> None:
        self._joules = 0.0
        self._zones = [folder for folder in sorted(powercap.glob("intel-rapl:*")) if _is_counted(folder)]
        self._gpus = _gpu_meters()
        self._last = self._readings()

    def read(self) -> float | None:
        """Return the joules so far, or None where nothing tells.

        Counters of processors begin again at zero after some hundred kilojoules, so that this must be called every
        few minutes for a right sum.
        """
        for name, (now, wraps_at) in (readings := self._readings()).items():
            before, _ = self._last.get(name, (now, wraps_at))
            self._joules += (now - before) % wraps_at if wraps_at else max(0.0, now - before)
        self._last |= readings
        return self._joules if self._last else None

    def _readings(self) -> dict[str, tuple[float, float]]:
        """Return each counter in joules, and where it begins again at zero (0: nowhere)."""
        found = {}
        for zone in self._zones:
            try:
                now, most = (int((zone / file).read_text()) for file in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            found[zone.name] = (now / 1e6, most / 1e6)
        for number, gpu in enumerate(self._gpus):
            found[f"gpu {number}"] = (gpu(), 0.0)
        return found


def _is_counted(zone: Path) -> bool:
    """Say whether no other zone has a power zone's energy too: cores are part of their package, which psys repeats."""
    try:
        return (zone / "name").read_text().strip().startswith(("package", "dram"))
    except OSError:
        return False


def _gpu_meters() -> list[Callable[[], float]]:
    """Return for each of NVIDIA's GPUs what reads its joules; none where pynvml or the driver is missing or too old."""
    try:
        import pynvml

        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        meters = [partial(_gpu_joules, gpu) for gpu in gpus]
        for meter in meters:
            meter()
    except Exception:  # pynvml is not there, or raises one of its own for a machine without driver
        return []
    return [*meters]


def _gpu_joules(gpu: Any) -> float:
    import pynvml

    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)  # millijoules since the driver was loaded


# -- devices and number formats -----------------------------------------------------------------------


def devices() -> list[str]:
    """Return what this torch can compute on here: ``["cpu"]``, ``["cpu", "cuda:0", "cuda:1"]``."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu", *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))] if kind else ["cpu"]


class Graphics(NamedTuple):
    """A graphics processor that the system knows of, whether or not torch reaches it.

    ``kind``: the build of torch that computes on it, "CUDA", "ROCm", "XPU" or "MPS"; ``name``: as the system has it.
    """

    kind: str
    name: str


def graphics(root: Path = Path("/")) -> list[Graphics]:
    """Return the graphics processors that the system shows; ``root`` holds its /proc and /sys.

    Nothing is asked of torch, which says nothing of a card that its build or a missing driver keeps it from.
    """
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [Graphics("MPS", "Apple GPU")]
    texts = (path.read_text() for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")))
    nvidia = [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line[:6] == "Model:"]
    found = [Graphics("CUDA", name) for name in nvidia or _nvidia_smi()]
    for card in sorted(root.glob("sys/bus/pci/devices/*")):
        vendor, kind = ((card / name).read_text().strip() for name in ("vendor", "class"))
        if vendor in _VENDORS and kind[:4] in ("0x03", "0x12") and not (found and vendor == "0x10de"):
            found.append(Graphics(*_VENDORS[vendor]))
    return found


_VENDORS = {
    "0x10de": ("CUDA", "NVIDIA card"),
    "0x1002": ("ROCm", "AMD card"),
    "0x8086": ("XPU", "Intel graphics"),
}
"""PCI's numbers of the makers; the classes 03 and 12 are display controllers and processing accelerators."""


def _nvidia_smi() -> list[str]:
    """Ask NVIDIA's own tool, which also is there where a card is lent to a virtual machine (WSL)."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [line.partition(" (UUID")[0] for line in lines]


def torch_build() -> str:
    """Return what this torch was built for: "CPU", "CUDA 13.0", "ROCm 7.1", "XPU ..." or "MPS"."""
    import torch

    built = {"ROCm": torch.version.hip, "CUDA": torch.version.cuda, "XPU": getattr(torch.version, "xpu", None)}
    named = [f"{kind} {version}" for kind, version in built.items() if version]
    return named[0] if named else "MPS" if torch.backends.mps.is_built() else "CPU"


def explained(there: Sequence[str], seen: Sequence[Graphics], build: str, version: str) -> tuple[str, list[Missing]]:
    """Say why ``device="auto"`` takes what it takes, and what keeps torch from the cards that are there.

    Args:
        there: what torch reaches, as ``devices`` has it.
        seen: what the system shows.
        build: what torch was built for.
        version: torch's version.
    """
    if len(there) > 1:
        others = f"; {', '.join(there[2:])} can be named" if there[2:] else ""
        return f"torch reaches it, and an accelerator goes before the processor{others}", []
    if not seen:
        return "no accelerator was found", []
    cards = [card for card in seen if card.kind != "XPU"] or list(seen)  # graphics inside the processor come last
    card, number = cards[0], version.partition("+")[0]
    if build.partition(" ")[0] == card.kind:
        return f"{card.name} is there, and this torch is built for {build}, but does not reach it", [
            Missing(f"a driver that lets torch reach {card.name}", _DRIVERS[card.kind])
        ]
    return f"{card.name} is there, but this torch is built for {build}, not for {card.kind}", [
        Missing(f"torch for {card.kind} ({card.name})", _BUILDS[card.kind].format(version=number))
    ]


class Missing(NamedTuple):
    """Something that would be of use, and how to get it."""

    what: str
    install: str


_DRIVERS = {
    "CUDA": "install NVIDIA's driver for CUDA (nvidia-smi then lists the card); "
    "start a container with its GPUs; see that CUDA_VISIBLE_DEVICES does not hide it",
    "ROCm": "install AMD's ROCm driver (rocminfo then lists the card), and join the groups render and video",
    "XPU": "install Intel's GPU driver; torch computes on Arc, Data Center GPU Max and newer integrated graphics",
    "MPS": "macOS 14 or newer",
}
_BUILDS = {
    "CUDA": "pip install --force-reinstall torch=={version} (on Linux; elsewhere with the --index-url that "
    "pytorch.org/get-started names for CUDA)",
    "ROCm": "pip install --force-reinstall torch=={version} --index-url URL, the URL that pytorch.org/get-started "
    "names for ROCm",
    "XPU": "pip install --force-reinstall torch=={version} --index-url URL, the URL that pytorch.org/get-started "
    "names for XPU; it computes on Arc, Data Center GPU Max and newer integrated graphics",
    "MPS": "pip install --force-reinstall torch=={version}, in an arm64 Python",
}


def to_device(values: np.ndarray[Any, Any], device: torch.device | str) -> torch.Tensor:
    """Return an array as a tensor on a device.

    To a CUDA device it goes through pinned memory, so that this program goes on while it is copied. The allocator
    of pinned memory gives a block away again only after its copy.
    """
    import torch

    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device to compute on: with "auto" an accelerator if there is one, else the processor.

    Raises:
        UsageError: ``wanted`` is not the name of a device.
        HardwareError: this machine, or this build of torch, has no such device.
    """
    import torch

    there = devices()
    if wanted == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"device={wanted!r} is not a device", hint=f"auto, or one of {', '.join(there)}") from error
    if device.type == "cpu" or any(wanted in (name, name.partition(":")[0]) for name in there):
        return device
    raise HardwareError(
        f"device={wanted!r} is not on this machine, which has {', '.join(there)} (torch {torch.__version__})",
        hint="device=auto takes the best there is; a GPU that exists but is not listed needs another build of torch",
    )


def pick_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Choose the number format of the work, "float32" or "bfloat16", and say why.

    Raises:
        HardwareError: bfloat16 was asked for and the device cannot compute it.
    """
    if wanted == "float32":
        return "float32", "asked for"
    if not _has_bf16(device.type):
        if wanted == "bfloat16":
            raise HardwareError(f"{device} cannot compute bfloat16", hint="precision=auto, or precision=float32")
        return "float32", f"{device} has no bfloat16 units"
    if device.type == "cuda":
        return "bfloat16", "asked for" if wanted == "bfloat16" else "this GPU has bfloat16 units"
    speedup = bf16_speedup(device.type)
    measured = f"measured: bfloat16 products run at {speedup:.1f}x the speed of float32"
    if wanted == "bfloat16":
        return "bfloat16", f"asked for; {measured}"
    return ("bfloat16" if speedup >= BF16_PAYS else "float32"), measured


@cache
def bf16_speedup(device: str = "cpu") -> float:
    """Time a small product, shaped like those of a small encoder, in both formats; return float32 / bfloat16."""
    import torch

    rows, inner, outer = 512, 384, 1536
    pairs = {}
    for kind in (torch.float32, torch.bfloat16):
        ones = partial(torch.ones, dtype=kind, device=device)
        pairs[kind] = (ones(rows, inner), ones(inner, outer))
    best = dict.fromkeys(pairs, float("inf"))
    with torch.inference_mode():
        for _ in range(7):  # Alternating, and the best of each: a neighbour's load then hits both or neither.
            for kind, (left, right) in pairs.items():
                best[kind] = min(best[kind], _seconds(partial(torch.mm, left, right), device))
    return best[torch.float32] / best[torch.bfloat16]


def matmul_peak(dtype: torch.dtype, device: str = "cpu", *, repeats: int = 5) -> float:
    """Measure the matrix-product peak in FLOP/s: the best of some large square products."""
    import torch

    size = 2048 if device == "cpu" else 8192
    left = torch.randn(size, size, device=device).to(dtype)
    with torch.inference_mode():
        torch.mm(left, left)
        return float(2 * size**3 / min(_seconds(partial(torch.mm, left, left), device) for _ in range(repeats)))


def memory_bandwidth(device: str = "cpu", *, repeats: int = 5) -> float:
    """Measure how fast memory is read, in bytes/s: the best of some sums over an array larger than any cache."""
    import torch

    count = 2**26 if device != "cpu" else min(2**26, memory_available() // 32)
    array = torch.ones(count, device=device)
    with torch.inference_mode():
        array.sum()
        return float(4 * count / min(_seconds(array.sum, device) for _ in range(repeats)))


def _has_bf16(kind: str) -> bool:
    import torch

    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        return True  # In hardware or emulated: the measurement tells.
    try:
        torch.ones(1, dtype=torch.bfloat16, device=kind)
    except (RuntimeError, TypeError):
        return False
    return True


def _seconds(work: Callable[[], Any], device: str) -> float:
    import torch

    if device != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """Describe what times and rounding depend on, as JSON types; nothing is measured."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": physical_cores(),
        "memory_total": memory_total(),
    }


def describe() -> dict[str, Any]:
    """Describe the machine as JSON types, for ``llmasos doctor`` and for a run's record."""
    import torch

    there, seen, build = devices(), graphics(), torch_build()
    device = pick_device()
    device_why, missing = explained(there, seen, build, torch.__version__)
    precision, why = pick_precision("auto", device)
    return {
        **machine(),
        "hardware_threads": os.cpu_count(),
        "memory_available": memory_available(),
        "devices": {name: "processor" if name == "cpu" else _device_name(name) for name in there},
        "graphics": [f"{card.name} ({card.kind})" for card in seen],
        "device": str(device),
        "device_why": device_why,
        "device_missing": [missed._asdict() for missed in missing],
        "precision": precision,
        "precision_why": why,
        "bf16_speedup": round(bf16_speedup("cpu"), 2),
        "torch": torch.__version__,
        "torch_build": build,
    }


def _device_name(name: str) -> str:
    import torch

    kind = name.partition(":")[0]
    if kind == "cuda":
        return torch.cuda.get_device_name(name) + (", through ROCm" if torch.version.hip else "")
    return torch.xpu.get_device_name(name) if kind == "xpu" else {"mps": "Apple GPU"}.get(kind, kind)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
