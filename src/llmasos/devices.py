"""Devices that a model may run on: memory, bandwidth and arithmetic, each number with where it is from.

Numbers are what makers' own papers promise, or follow from them (then ``estimated`` says how); none was measured here
but those of ``2cpu-vm``. A rate is that of plain dense arithmetic: what sparsity would double is not counted, and nor
are neural processors, which the runtimes that llmasos exports for do not use by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .core import hardware
from .core.errors import UsageError, did_you_mean

HERE = "this-machine"


@dataclass(frozen=True)
class Device:
    """A device to run a model on.

    Args:
        name: how it is asked for.
        what: what it is.
        memory: bytes.
        usable: the share of the memory that a program can have; the rest is the system's. By experience.
        bandwidth: bytes a second between memory and arithmetic.
        rates: operations a second by number format; a product and its sum are two.
        sources: where the numbers are from, by name and date.
        estimated: which numbers follow from others, and how.
        launch: seconds from one kernel to the next where a processor launches them on a card; 0 elsewhere.
    """

    name: str
    what: str
    memory: float
    usable: float
    bandwidth: float
    rates: Mapping[str, float]
    sources: tuple[str, ...]
    estimated: str = ""
    aliases: tuple[str, ...] = field(default=())
    launch: float = 0.0

    def rate(self, precision: str) -> tuple[float, str]:
        """Return the operations a second at a precision, and the format that they are computed in."""
        wanted = {"int8-dynamic": "int8", "int4": "float16"}.get(precision, precision)
        kind = wanted if wanted in self.rates else "float32"
        return self.rates[kind], kind


_NEON = (
    "rates = cores x clock x operations a cycle: a 128-bit pipe multiplies and adds 4 float32, 8 float16 or 16 int8 "
    "numbers a cycle"
)
_LAUNCH = 1e-5
_LAUNCHED = (
    "10 microseconds from kernel to kernel: assumed, for NVIDIA measured 3.8 of a loop in C++ (Getting Started with "
    "CUDA Graphs, September 2019), and torch does more for each"
)
_TENSOR = f"the rate of its tensor cores for float16 also holds for bfloat16; {_LAUNCHED}"
_ORIN = f"dense int8 = half of the sparse rate, float16 half of that; float32 = cores x clock x 2; {_LAUNCHED}"


def _gpu(float32: float, half: float, int8: float) -> dict[str, float]:
    return {"float32": float32, "float16": half, "bfloat16": half, "int8": int8}


def _cpu(float32: float) -> dict[str, float]:
    return {"float32": float32, "float16": 2 * float32, "int8": 4 * float32}


TABLE = (
    Device(
        "pixel-8", "Google Pixel 8: the large and middle cores of Tensor G3", 8e9, 0.5, 51.2e9, _cpu(2.45e11),
        ("Google, Pixel 8 technical specifications, October 2023 (8 GB LPDDR5X, Tensor G3)",
         "PhoneArena, Tensor G3, October 2023 (1 Cortex-X3 at 2.91 GHz, 4 Cortex-A715 at 2.37 GHz, 4 Cortex-A510)",
         "Arm, Cortex-X3 and Cortex-A715 software optimization guides, 2022 (4 and 2 pipes of 128 bits)"),
        f"bandwidth = 64 bits at 6400 MT/s, the slower of what LPDDR5X runs at; {_NEON}; 1 x 2.91 GHz and 4 x 2.37 GHz",
    ),
    Device(
        "iphone-15", "Apple iPhone 15: the two performance cores of A16 Bionic", 6e9, 0.5, 51.2e9, _cpu(2.21e11),
        ("Apple, iPhone 15 technical specifications, September 2023 (A16 Bionic)",
         "CPU-Boss, Apple A16 Bionic, 2022 (2 cores at 3.46 GHz, up to 6 GB of LPDDR5 at 3200 MHz on 4 x 16 bits)"),
        f"memory is the most that A16 takes, Apple names none; bandwidth = 64 bits at 6400 MT/s; {_NEON}; 2 x 3.46 GHz "
        "with 4 pipes each, which nobody has published",
    ),
    Device(
        "raspberry-pi-5", "Raspberry Pi 5 with 8 GB: four Cortex-A76", 8e9, 0.85, 17.1e9, _cpu(1.54e11),
        ("Raspberry Pi Ltd, Raspberry Pi 5 product brief, 2023 (4 x 2.4 GHz, LPDDR4X-4267)",
         "Arm, Cortex-A76 software optimization guide, 2018 (2 pipes of 128 bits)"),
        f"bandwidth = 32 bits at 4267 MT/s; {_NEON}; 4 x 2.4 GHz with 2 pipes each",
    ),
    Device(
        "raspberry-pi-5-4gb", "Raspberry Pi 5 with 4 GB: four Cortex-A76", 4e9, 0.8, 17.1e9, _cpu(1.54e11),
        ("Raspberry Pi Ltd, Raspberry Pi 5 product brief, 2023 (4 x 2.4 GHz, LPDDR4X-4267)",
         "Arm, Cortex-A76 software optimization guide, 2018 (2 pipes of 128 bits)"),
        f"bandwidth = 32 bits at 4267 MT/s; {_NEON}; 4 x 2.4 GHz with 2 pipes each",
    ),
    Device(
        "jetson-orin-nano", "NVIDIA Jetson Orin Nano, 8 GB, at its first clocks", 8e9, 0.8, 68e9,
        _gpu(1.28e12, 1.0e13, 2.0e13),
        ("NVIDIA, Jetson Orin Nano series data sheet, 2023 (68 GB/s, 1,024 cores at 625 MHz, 40 sparse int8 TOPS)",),
        _ORIN, launch=_LAUNCH,
    ),
    Device(
        "jetson-orin-nano-super", "NVIDIA Jetson Orin Nano, 8 GB, at the clocks of JetPack 6.1", 8e9, 0.8, 102e9,
        _gpu(2.09e12, 1.67e13, 3.35e13),
        ("NVIDIA, Jetson Orin Nano Super Developer Kit data sheet, December 2024 (102 GB/s, 1,024 cores at 1,020 MHz, "
         "67 sparse int8 TOPS)",),
        _ORIN, launch=_LAUNCH,
    ),
    Device(
        "macbook-air-m2", "Apple M2 with 8 GB: its graphics processor", 8e9, 0.65, 100e9,
        {"float32": 3.6e12, "float16": 3.6e12},
        ("Apple, newsroom: Apple unveils M2, June 2022 (100 GB/s, 3.6 teraflops)",),
        "float16 at the rate of float32, since Apple names only that",
    ),
    Device(
        "2cpu-vm", "a virtual machine with two cores of a server's processor", 8e9, 0.9, 23e9,
        {"float32": 3.34e11, "bfloat16": 1.998e12},
        ("docs/benchmarks.md, November 2026: medians of products of 2048 x 2048 and of sums over 512 MB, on a machine "
         "with two cores and bfloat16 units",),
        "memory is what such machines are rented with",
    ),
    Device(
        "g4dn.xlarge", "AWS g4dn.xlarge: NVIDIA T4, 16 GB", 16e9, 0.92, 300e9,
        {"float32": 8.1e12, "float16": 6.5e13, "int8": 1.3e14},
        ("NVIDIA, T4 data sheet, 2019 (300 GB/s, 8.1 TFLOPS float32, 65 float16, 130 TOPS int8)",),
        f"other tables say 320 GB/s, its 256 bits at 10 GT/s: the data sheet's is the lower; {_LAUNCHED}",
        aliases=("t4",), launch=_LAUNCH,
    ),
    Device(
        "g5.xlarge", "AWS g5.xlarge: NVIDIA A10G, 24 GB", 24e9, 0.92, 600e9, _gpu(3.5e13, 7.0e13, 1.4e14),
        ("NVIDIA and AWS, A10G data sheet, February 2022 (600 GB/s, 35 TFLOPS float32, 70 float16, 140 TOPS int8)",),
        _TENSOR, aliases=("a10g",), launch=_LAUNCH,
    ),
    Device(
        "g6.xlarge", "AWS g6.xlarge: NVIDIA L4, 24 GB", 24e9, 0.92, 300e9, _gpu(3.03e13, 1.21e14, 2.42e14),
        ("NVIDIA, L4 data sheet, 2023 (300 GB/s, 30.3 TFLOPS float32, 242 float16 and 485 TOPS int8 with sparsity)",),
        f"dense = half of the sparse rate; {_TENSOR}", aliases=("l4",), launch=_LAUNCH,
    ),
    Device(
        "a100-80gb", "NVIDIA A100 SXM, 80 GB", 80e9, 0.95, 2.039e12, _gpu(1.95e13, 3.12e14, 6.24e14),
        ("NVIDIA, A100 80GB data sheet, 2021 (2,039 GB/s, 19.5 TFLOPS float32, 312 bfloat16, 624 TOPS int8)",),
        _TENSOR, launch=_LAUNCH,
    ),
    Device(
        "h100", "NVIDIA H100 SXM, 80 GB", 80e9, 0.95, 3.35e12, _gpu(6.7e13, 9.9e14, 1.98e15),
        ("NVIDIA, H100 data sheet, 2023 (3.35 TB/s, 67 TFLOPS float32, 1,979 bfloat16 and 3,958 TOPS int8 with "
         "sparsity)",),
        f"dense = half of the sparse rate; {_TENSOR}", launch=_LAUNCH,
    ),
)  # fmt: skip


def names() -> tuple[str, ...]:
    """Return the names of all devices, this machine last."""
    return (*(device.name for device in TABLE), HERE)


def is_known(name: str) -> bool:
    """Say whether a name is that of a device of the table, or of this machine."""
    return name == HERE or any(name in (device.name, *device.aliases) for device in TABLE)


def find(name: str, precision: str = "float32") -> Device:
    """Return a device; ``this-machine`` is measured, in seconds, and bfloat16 only where it is asked for.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    if name == HERE:
        return _here(precision)
    for device in TABLE:
        if name in (device.name, *device.aliases):
            return device
    raise UsageError(f"there is no device {name!r}", hint=f"{did_you_mean(name, names())}known: {', '.join(names())}")


def _here(precision: str) -> Device:
    import torch

    hardware.set_threads()
    kind = hardware.pick_device().type
    rates = {"float32": hardware.matmul_peak(torch.float32, kind, repeats=3)}
    if precision == "bfloat16":  # by smaller products: where it is emulated large ones take minutes
        rates[precision] = rates["float32"] * hardware.bf16_speedup(kind)
    total = hardware.memory_total() if kind == "cpu" else int(torch.cuda.get_device_properties(0).total_memory)
    return Device(
        HERE, f"this machine ({kind})", total, 0.9, hardware.memory_bandwidth(kind, repeats=3), rates,
        ("measured now: products of 2048 x 2048 and sums over an array larger than any cache",),
    )  # fmt: skip
