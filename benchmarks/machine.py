"""What the machine is, and how fast it can be at best: the yardstick for the share of the peak."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "llmasos",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "openvino-genai",
    "ctranslate2",
    "nncf",
    "litgpt",
    "numpy",
)
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")


def describe() -> dict[str, Any]:
    """Return the processor, its cores, memory and operating system; nothing that names the host."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def has_bf16() -> bool:
    """Say whether the processor has units for bfloat16 products."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(describe()["instructions"]))


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peaks(size: int = 2048) -> dict[str, float]:
    """Measure the fastest matrix products and reading of memory that PyTorch reaches here.

    A processor that only emulates bfloat16 takes a minute for a product of full size: there a small one tells enough.

    Returns:
        ``bf16_gflops`` and ``fp32_gflops``: median of ``torch.mm`` on ``size``^3; ``read_gb_s``: a sum
        over 512 MB, far more than any cache holds.
    """
    import torch

    out = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for side in (size // 8, size):
            left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
            seconds = median_seconds(partial(torch.mm, left, right))
            out[f"{name}_gflops"] = 2 * side**3 / seconds / 1e9
            if seconds > 0.02:
                break
    block = torch.ones(128 * 1024 * 1024)
    out["read_gb_s"] = block.numel() * 4 / median_seconds(block.sum) / 1e9
    return out


def peak_memory_mb() -> float:
    """Return this process's largest resident memory so far (VmHWM on Linux), in megabytes."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def median_seconds(work: Callable[[], Any], repeats: int = 15) -> float:
    """Return how long some work takes, after three times to warm up."""
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
