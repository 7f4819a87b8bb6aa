"""Machines for rent: what a model does on them and costs, and prices of SkyPilot's catalogue."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmasos import LLM, instances, sizing
from llmasos.cli import main
from llmasos.core import hardware
from llmasos.core.errors import DataError, UsageError
from llmasos.devices import Device
from llmasos.instances import Instance, Prices, Reached
from tiny import save_tiny, save_tiny_bert

SHAPE = sizing.Shape(1_000_000, 500_000, 2, 32, 64, 4, 2, 8, 100, False)
AWS = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
GCP = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "matmul_peak", lambda *_, **__: 1e11)
    monkeypatch.setattr(hardware, "memory_bandwidth", lambda *_, **__: 1e10)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("instances") / "writer", "AutoModelForCausalLM")


@pytest.mark.parametrize("one", instances.prices().types, ids=lambda one: one.name)
def test_every_type_has_sound_numbers(one: Instance) -> None:
    device = one.device()
    assert (device.name, 0.01 < one.price < 100, 1 <= one.vcpus <= 256) == (one.name, True, True)
    assert device.rates["float32"] == min(device.rates.values())
    assert 1e9 < device.bandwidth < 1e13
    assert any(year in source for source in device.sources for year in map(str, range(2015, 2030)))


def test_prices_have_a_source_and_a_day(own: Path) -> None:
    found = instances.prices()
    assert found.date.startswith("20")
    assert "list prices" in found.source
    assert {one.cloud for one in found.types} == set(instances.REGIONS)


def offered(one: Instance, reached: Reached | None = None, precision: str = "float32") -> instances.Offer:
    def estimated(device: Device, runtime: float) -> sizing.Estimate:
        return sizing.estimate(SHAPE, device, precision, length=100, runtime=runtime)

    return instances.offer(one, Prices((one,), "a test", "2026-01-02"), estimated, reached)


CPU = Instance("m7i.large", "aws", "us-east-1", 2, 8, None, 0.36)


def test_a_million_cost_what_the_hours_for_them_cost() -> None:
    found = offered(CPU)
    rate = 1 * 3.2e9 * 64  # one core
    bound = rate / (100 * (2 * 500_000 + 4 * 2 * 4 * 8 * 100))
    assert found.expected == pytest.approx(sizing.SHARES["rows"] * bound)
    assert found.per_million == pytest.approx(0.36 / 3600 / found.expected * 1e6)
    assert (found.share_from, found.prices) == ("assumed", "a test, 2026-01-02")
    assert offered(replace(CPU, vcpus=8)).per_million == pytest.approx(found.per_million / 4)
    assert offered(replace(CPU, price=0.72)).per_million == pytest.approx(found.per_million * 2)


def test_a_small_machine_reads_what_its_cores_draw_and_a_large_one_what_its_socket_gives() -> None:
    halves, whole = CPU.device(), replace(CPU, name="m7a.large").device()
    assert (halves.bandwidth, whole.bandwidth) == (instances.DRAW, 2 * instances.DRAW)
    assert whole.rates["float32"] == 2 * 3.7e9 * 32
    assert replace(CPU, name="m7a.48xlarge", vcpus=192).device().bandwidth == 4.6e11


def test_what_this_machine_reached_counts_for_processors_of_the_same_arithmetic_alone() -> None:
    reached = Reached(0.2, "float32", sizing.SHARES["rows"])
    found = offered(CPU, reached)
    assert (found.share, found.share_from) == (0.2, "measured on this machine")
    assert found.expected == pytest.approx(offered(CPU).expected * 0.2 / sizing.SHARES["rows"])
    assert offered(CPU, reached._replace(computed_in="bfloat16")).share_from == "assumed"
    assert offered(replace(CPU, gpu="l4"), reached).share_from == "assumed"


def test_what_vector_units_reached_says_nothing_of_matrix_units() -> None:
    vectors = Reached(0.9, "bfloat16", sizing.SHARES["rows"])
    matrices = offered(CPU, vectors, "bfloat16")
    assert (matrices.share, matrices.share_from) == (sizing.MATRIX, "assumed")
    assert offered(replace(CPU, name="m7a.large"), vectors, "bfloat16").share == 0.9
    assert offered(CPU, vectors._replace(assumed=sizing.MATRIX), "bfloat16").share == 0.9


def test_a_server_takes_memory_of_a_processor_and_a_card_has_its_own() -> None:
    assert offered(CPU).memory_bytes > instances.SERVER
    assert not offered(replace(CPU, memory_gib=1)).fits
    card = offered(replace(CPU, gpu="l4", memory_gib=1))
    assert (card.fits, card.usable_bytes) == (True, pytest.approx(24e9 * 0.92))
    poor, rich = offered(CPU), offered(replace(CPU, price=9))
    assert instances.cheapest([offered(replace(CPU, memory_gib=1)), rich, poor])[:2] == [poor, rich]


def test_a_word_names_a_type_a_cloud_a_card_or_a_number_of_processors() -> None:
    types = instances.prices().types
    assert [one.name for one in instances.chosen("g5.xlarge", types)] == ["g5.xlarge"]
    assert {one.cloud for one in instances.chosen("azure", types)} == {"azure"}
    assert {one.gpu for one in instances.chosen("l4", types)} == {"l4"}
    assert {(one.vcpus, one.gpu) for one in instances.chosen("cpu8", types)} == {(8, None)}
    with pytest.raises(UsageError, match=r"did you mean 'g5.xlarge'"):
        instances.chosen("g5.xlarg", types)


def catalogue(folder: Path) -> Path:
    for version, price in (("v9", "1.0"), ("v10", "2.5")):
        aws = folder / version / "aws" / "vms.csv"
        aws.parent.mkdir(parents=True)
        aws.write_text(
            AWS + f"g5.xlarge,A10G,1.0,4.0,16.0,\"{{'Gpus': 1}}\",{price},,us-east-1,a\n"
            "g5.xlarge,A10G,1.0,4.0,16.0,,0.1,,eu-west-1,a\n"
            "m7i.large,,,2.0,8.0,,0.7,,eu-west-1,a\nm7i.large,,,2.0,8.0,,0.6,,eu-west-2,a\n"
            "g5.12xlarge,A10G,4.0,48.0,192.0,,5.0,,us-east-1,a\nz9.huge,,,2.0,8.0,,0.1,,us-east-1,a\n"
            "g5.xlarge,A10G,1.0,4.0,16.0,,,,us-east-1,b\n"
            "g5.xlarge,A10G,1.0,4.0,16.0,,0.2,0.9,us-east-1,c\n"  # a spot machine never costs more
        )
    gcp = folder / "v10" / "gcp" / "vms.csv"
    gcp.parent.mkdir()
    gcp.write_text(
        GCP + "a2-ultragpu-1g,12.0,170.0,,,,us-central1,a,1.0,\na2-ultragpu-2g,24.0,340.0,,,,us-central1,a,2.0,\n"
        ",,,A100-80GB,1.0,,us-central1,a,3.0,\n,,,A100-80GB,2.0,,us-central1,a,6.0,\n"
        "n2-standard-4,4.0,16.0,,,,us-central1,a,0.2,\n"
    )
    return folder


def test_prices_of_the_newest_catalogue_are_kept(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--prices", str(catalogue(own / "catalogs"))]) == 0
    assert "4 types from SkyPilot's catalogue of aws, gcp" in capsys.readouterr().err
    found = {one.name: one for one in instances.prices().types}
    assert {name: one.price for name, one in found.items()} == {
        "g5.xlarge": 2.5, "m7i.large": 0.6, "a2-ultragpu-1g": 4.0, "n2-standard-4": 0.2,
    }  # fmt: skip
    assert (found["m7i.large"].region, found["a2-ultragpu-1g"].gpu) == ("eu-west-2", "a100-80gb")


def test_a_folder_without_a_catalogue_and_a_damaged_one_are_told(own: Path) -> None:
    with pytest.raises(UsageError, match="holds no catalogue"):
        instances.refresh(own)
    path = catalogue(own / "catalogs") / "v10" / "aws" / "vms.csv"
    path.write_text("InstanceType,Price\ng5.xlarge,1\n")
    with pytest.raises(DataError, match="cannot be read as a catalogue"):
        instances.refresh(own / "catalogs")
    instances._kept().parent.mkdir(parents=True, exist_ok=True)
    instances._kept().write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        instances.prices()


def test_the_command_line_tells_the_cheapest_first(writer, own, slow, capsys) -> None:
    assert main(["plan", str(writer), "--max-length", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["offers"]
    assert [one["per_million"] for one in found] == sorted(one["per_million"] for one in found)
    assert {(one["length"], one["batch_size"], one["unit"]) for one in found} == {(32, 16, "tokens")}
    assert len(found) == len(instances.prices().types)
    assert main(["plan", str(writer), "--target", "l4", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 at once" in out
    assert ("g6.xlarge (aws)" in out, "m7i" in out, instances.prices().date in out) == (True, False, True)


def test_what_fits_nowhere_is_exit_code_1(writer, own, monkeypatch, capsys) -> None:
    monkeypatch.setattr(instances, "DRIVER", 1e15)
    assert main(["plan", str(writer), "--target", "g5.xlarge"]) == 1
    assert "too little" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "told"), [
    (["--target", "g5.xlarg"], "did you mean 'g5.xlarge'"),
    (["--target", "l4", "--epochs", "2"], "--epochs says nothing"),
    (["--target", "l4", "--max-length", "65"], "takes at most 64 tokens"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(writer, own, capsys, words, told) -> None:
    assert main(["plan", str(writer), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_processor_is_compared_by_what_this_machine_reached(writer, own, slow) -> None:
    found = LLM.from_pretrained(writer).offers("m7i.large", max_length=32, batch_size=2)
    assert found[0].share_from in ("measured on this machine", "assumed")  # a tiny model may stop writing at once
    assert found[0].batch_size == 2


def test_a_base_that_has_no_head_yet_is_compared_without_running_it(tmp_path, own, slow) -> None:
    found = LLM.from_pretrained(save_tiny_bert(tmp_path / "base")).offers("cpu2", max_length=32)
    assert {one.share_from for one in found} == {"assumed"}
