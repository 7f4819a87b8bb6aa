"""The probes agree with the machine, and say what exists when something does not."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from llmasos.core import hardware
from llmasos.errors import HardwareError, UsageError

CPU = torch.device("cpu")


def test_cores_are_at_least_one_and_at_most_what_the_affinity_mask_allows():
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= hardware.physical_cores() <= allowed


def test_a_smaller_affinity_mask_means_fewer_cores():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.physical_cores.__wrapped__() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("file", "texts", "expected"), [
    ("cpu.max", ["150000 100000", "max 100000"], 1.5),
    ("cpu.max", ["max 100000"], None),
    ("cpu.cfs_quota_us", ["300000"], 3.0),
    ("cpu.cfs_quota_us", ["-1"], None),
])  # fmt: skip
def test_a_cgroup_quota_of_either_version_is_read(monkeypatch, file, texts, expected):
    periods = {"cpu.cfs_period_us": ["100000"] if "cfs" in file else []}
    monkeypatch.setattr(hardware, "_cgroup", lambda _, name: iter({file: texts, **periods}.get(name, [])))
    assert hardware._cpu_quota() == expected


def test_a_cgroup_memory_limit_caps_total_and_available_memory(monkeypatch):
    content = {
        "memory.max": ["1000000000"],
        "memory.current": ["400000000"],
        "memory.stat": ["anon 300000000\ninactive_file 100000000"],
    }
    monkeypatch.setattr(hardware, "_cgroup", lambda _, name: iter(content.get(name, [])))
    assert hardware.memory_total() == 1_000_000_000
    assert hardware.memory_available() == 700_000_000


def test_the_huge_number_that_means_no_limit_is_no_limit(monkeypatch):
    monkeypatch.setattr(
        hardware, "_cgroup", lambda _, name: iter(["9223372036854771712"] * (name == "memory.limit_in_bytes"))
    )
    assert hardware._memory_limits() == []


def test_memory_numbers_are_ordered():
    assert 0 < hardware.resident_memory() <= hardware.memory_total()
    assert 0 < hardware.memory_available() <= hardware.memory_total()
    assert hardware.peak_resident_memory() >= hardware.resident_memory() * 0.9  # Pages may come between the two reads.


def test_the_peak_remembers_what_was_freed_and_can_be_reset():
    size = 300 * 2**20
    before = hardware.resident_memory()
    torch.ones(size // 4).sum()
    assert hardware.peak_resident_memory() >= before + 0.9 * size
    if not hardware.reset_peak():
        pytest.skip("this system cannot reset the peak")
    assert hardware.peak_resident_memory() < before + 0.9 * size


def test_disk_space_is_told_for_a_folder_that_does_not_exist_yet(tmp_path):
    assert hardware.disk_free(tmp_path / "not" / "yet") == pytest.approx(hardware.disk_free(tmp_path), rel=0.05)


def test_threads_are_set_and_default_to_the_environment_then_the_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert hardware.set_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert hardware.set_threads() == torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert hardware.set_threads() == torch.get_num_threads() == hardware.physical_cores()
    finally:
        torch.set_num_threads(before)


def test_auto_takes_an_accelerator_where_there_is_one():
    assert hardware.pick_device().type == (
        "cpu" if hardware.devices() == ["cpu"] else hardware.devices()[1].partition(":")[0]
    )
    assert hardware.pick_device("cpu") == CPU


def test_a_device_that_is_absent_is_an_error_that_says_what_exists():
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(HardwareError, match=f"{absent}.*which has cpu"):
        hardware.pick_device(absent)


def test_a_word_that_is_no_device_is_a_usage_error():
    with pytest.raises(UsageError, match="'gpu' is not a device"):
        hardware.pick_device("gpu")


@pytest.mark.parametrize(("speedup", "expected"), [(2.0, "bfloat16"), (1.0, "float32"), (0.2, "float32")])
def test_bfloat16_is_chosen_only_where_it_was_measured_to_be_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(hardware, "bf16_speedup", lambda _: speedup)
    precision, why = hardware.pick_precision("auto", CPU)
    assert precision == expected
    assert f"{speedup:.1f}x" in why


def test_a_precision_that_was_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(hardware, "bf16_speedup", lambda _: 0.3)
    assert hardware.pick_precision("float32", CPU)[0] == "float32"
    precision, why = hardware.pick_precision("bfloat16", CPU)
    assert precision == "bfloat16"
    assert "0.3x" in why


def test_a_device_without_bfloat16_refuses_it_and_auto_avoids_it(monkeypatch):
    monkeypatch.setattr(hardware, "_has_bf16", lambda _: False)
    assert hardware.pick_precision("auto", CPU)[0] == "float32"
    with pytest.raises(HardwareError, match="cannot compute bfloat16"):
        hardware.pick_precision("bfloat16", CPU)


def test_the_bfloat16_probe_measures_once_per_process():
    assert hardware.bf16_speedup("cpu") > 0
    assert hardware.bf16_speedup("cpu") == hardware.bf16_speedup("cpu")
    assert hardware.bf16_speedup.cache_info().misses == 1


def test_peaks_are_plausible_numbers():
    assert hardware.matmul_peak(torch.float32, repeats=1) > 1e8
    assert hardware.memory_bandwidth(repeats=1) > 1e8


def test_the_description_is_json_and_names_what_is_used():
    import json

    content = json.loads(json.dumps(hardware.describe()))
    assert content["device"] in ("cpu", *content["devices"])
    assert content["cores"] == hardware.physical_cores()


def test_no_cgroup_file_means_no_limit(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_a, **_k: (_ for _ in ()).throw(OSError()))
    assert hardware._cpu_quota() is None
    assert hardware._memory_limits() == []


# -- energy -----------------------------------------------------------------------------------------------


def zone(powercap: Path, folder: str, name: str, joules: float, most: float = 262_143.0) -> Path:
    """Write a power zone as Linux shows it: counters in microjoules."""
    path = powercap / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (path / "max_energy_range_uj").write_text(f"{int(most * 1e6)}\n")
    return path


def test_energy_is_that_of_packages_and_their_memory_and_nothing_twice(tmp_path):
    for name, folder in (("package-0", "intel-rapl:0"), ("core", "intel-rapl:0:0"), ("dram", "intel-rapl:0:1"),
                         ("package-1", "intel-rapl:1"), ("psys", "intel-rapl:2"),
                         ("package-0", "intel-rapl-mmio:0")):  # fmt: skip
        zone(tmp_path, folder, name, 100.0)
    meter = hardware.EnergyMeter(tmp_path)
    assert meter.read() == 0.0
    zone(tmp_path, "intel-rapl:0", "package-0", 130.0)
    zone(tmp_path, "intel-rapl:0:0", "core", 120.0)
    zone(tmp_path, "intel-rapl:0:1", "dram", 105.0)
    zone(tmp_path, "intel-rapl:1", "package-1", 102.5)
    zone(tmp_path, "intel-rapl:2", "psys", 150.0)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 130.0)
    assert meter.read() == pytest.approx(37.5)


def test_a_counter_that_begins_again_is_followed(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 990.0, most=1000.0)
    meter = hardware.EnergyMeter(tmp_path)
    for joules in (15.0, 900.0, 5.0):
        zone(tmp_path, "intel-rapl:0", "package-0", joules, most=1000.0)
        found = meter.read()
    assert found == pytest.approx(25 + 885 + 105)


def test_energy_that_nothing_tells_is_none(tmp_path):
    assert hardware.EnergyMeter(tmp_path / "nowhere").read() is None
    path = zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()  # unreadable, also for root
    assert hardware.EnergyMeter(tmp_path).read() is None


def test_gpus_count_where_pynvml_reads_them(tmp_path, monkeypatch):
    counters = {"a": 5000, "b": 7000}  # millijoules
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=lambda i: "ab"[i],
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: counters[gpu],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    zone(tmp_path, "intel-rapl:0", "package-0", 1.0)
    meter = hardware.EnergyMeter(tmp_path)
    counters.update(a=6500, b=7500)
    zone(tmp_path, "intel-rapl:0", "package-0", 4.0)
    assert meter.read() == pytest.approx(1.5 + 0.5 + 3.0)


# -- what is there, and what keeps torch from it --------------------------------------------------------


def card(root: Path, vendor: str, kind: str, number: int = 0) -> Path:
    folder = root / "sys" / "bus" / "pci" / "devices" / f"0000:00:0{number}.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")
    return root


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    """A system that is Linux, without NVIDIA's tool."""
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.mark.parametrize(("vendor", "kind", "expected"), [
    ("0x10de", "0x030200", [("CUDA", "NVIDIA card")]),
    ("0x1002", "0x120000", [("ROCm", "AMD card")]),
    ("0x8086", "0x030000", [("XPU", "Intel graphics")]),
    ("0x8086", "0x020000", []),
    ("0x1af4", "0x030000", []),
])  # fmt: skip
def test_graphics_are_read_from_the_bus(no_tools, tmp_path, vendor, kind, expected):
    assert hardware.graphics(card(tmp_path, vendor, kind)) == expected


def test_an_nvidia_card_has_its_name_from_its_driver_and_counts_once(no_tools, tmp_path):
    about = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:00:01.0" / "information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 33\n")
    assert hardware.graphics(card(tmp_path, "0x10de", "0x030200")) == [("CUDA", "NVIDIA A100-SXM4-40GB")]


def test_an_nvidia_card_that_only_the_tool_knows_is_found(no_tools, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    assert hardware.graphics(tmp_path) == [("CUDA", "NVIDIA GeForce RTX 4090")]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert hardware.graphics(tmp_path) == []


def test_a_card_that_the_build_of_torch_cannot_use_is_told_with_the_pip_line():
    why, (missing,) = hardware.explained(["cpu"], [hardware.Graphics("CUDA", "NVIDIA A100")], "CPU", "2.13.0+cpu")
    assert why == "NVIDIA A100 is there, but this torch is built for CPU, not for CUDA"
    assert missing.install.startswith("pip install --force-reinstall torch==2.13.0 ")
    seen = [hardware.Graphics("XPU", "Intel graphics"), hardware.Graphics("ROCm", "AMD card")]
    why, (missing,) = hardware.explained(["cpu"], seen, "CUDA 13.0", "2.13.0")
    assert "AMD card is there" in why
    assert "ROCm" in missing.install


def test_a_card_that_the_right_build_does_not_reach_lacks_a_driver():
    why, (missing,) = hardware.explained(["cpu"], [hardware.Graphics("CUDA", "NVIDIA A100")], "CUDA 13.0", "2.13.0")
    assert "does not reach it" in why
    assert "driver" in missing.what


def test_what_torch_reaches_is_used_and_no_card_means_the_processor():
    nvidia = hardware.Graphics("CUDA", "NVIDIA A100")
    why, missing = hardware.explained(["cpu", "cuda:0", "cuda:1"], [nvidia, nvidia], "CUDA 13.0", "2.13.0")
    assert "cuda:1 can be named" in why
    assert missing == []
    assert hardware.explained(["cpu"], [], "CPU", "2.13.0") == ("no accelerator was found", [])


def test_the_build_of_torch_is_named(monkeypatch):
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, None)
    monkeypatch.setattr(torch.version, "xpu", None, raising=False)
    assert hardware.torch_build() in ("CPU", "MPS")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert hardware.torch_build() == "CUDA 13.0"
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert hardware.torch_build() == "ROCm 7.1"


def test_an_array_arrives_on_its_device_whole():
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert torch.equal(hardware.to_device(values, "cpu"), torch.arange(6).view(2, 3))
    assert hardware.to_device(np.zeros(0), CPU).shape == (0,)
