"""Machines that clouds rent out: what they hold, what an hour costs, and what a model costs on them.

Prices are a table out of SkyPilot's catalogue (``instances.json``), or all of it that is known here, once it was read.
What a card can do is in ``devices.py``. Of the processors of clouds it stands here: from what the clouds say of them,
but where benchmarks have shown that nothing reaches it (matrix units), or that a small machine gets more than its part
(memory), from the benchmarks.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .core import atomic
from .core.environment import home
from .core.errors import BundleError, DataError, UsageError, did_you_mean
from .devices import Device, find

SERVER = 1_500_000_000
"""Bytes of a server before it has opened a model."""
DRIVER = 600_000_000
"""Bytes that CUDA takes of a card before there is a model."""
TOGETHER = 16
"""Rows or answers at once, where nothing is said: a server that is rented has more than one client."""
REGIONS = {"aws": "us-east-1", "azure": "eastus", "gcp": "us-central1"}
"""Of a catalogue, the regions whose prices are taken; where a type is not there, its cheapest."""
CARDS = {"T4": "t4", "L4": "l4", "A10G": "a10g", "A100-80GB": "a100-80gb", "H100": "h100"}
"""SkyPilot's names of cards, and those of ``devices``."""
INSIDE = {"g2-standard": "L4", "a2-ultragpu": "A100-80GB", "a3-highgpu": "H100"}
"""Types of Google's whose card is a line of its own in the catalogue, and costs besides."""


class Processor(NamedTuple):
    """A processor of a cloud.

    ``clock`` is in Hz with all cores at work, ``socket`` what all cores read, in bytes a second, ``threads`` the
    virtual processors that a core is sold as. ``rates`` are operations a cycle of a core.
    """

    what: str
    clock: float
    socket: float
    threads: int
    rates: dict[str, int]
    source: str


DRAW = 1.2e10
"""Bytes a second that a core reads: docs/benchmarks.md has 24 and 25 GB/s of two cores, on machines of clouds with
neighbours, of two makers. Its part of the socket, if all read at once, is half of that or less."""
_VNNI = {"float32": 64, "int8": 256}
_AMX = {"float32": 64, "bfloat16": 384, "int8": 768}
_REACHED = "of AMX what large products reached, six times float32 (docs/benchmarks.md, November 2026), int8 twice that"
PROCESSORS = {
    r"[mcr]7i\.": Processor("Intel Sapphire Rapids", 3.2e9, 3.07e11, 2, _AMX,
                            "AWS, M7i instances, August 2023 (3.2 GHz on all cores); Intel, Xeon 8488C: 48 cores, "
                            f"8 channels of DDR5-4800; {_REACHED}"),
    r"[mcr]7a\.": Processor("AMD Genoa", 3.7e9, 4.6e11, 1, {"float32": 32, "bfloat16": 64, "int8": 128},
                            "AWS, M7a instances, August 2023 (up to 3.7 GHz, a virtual processor is a core); AMD, EPYC "
                            "9R14: 96 cores, 12 channels of DDR5-4800, AVX-512 in two halves"),
    r"Standard_[DE]\d+s_v5": Processor("Intel Ice Lake", 3.5e9, 2.05e11, 2, _VNNI,
                                       "Microsoft, Dsv5 series, November 2021 (3.5 GHz on all cores); Intel, Xeon "
                                       "8370C: 32 cores, 8 channels of DDR4-3200"),
    r"n2-": Processor("Intel Cascade Lake", 3.4e9, 1.41e11, 2, _VNNI,
                      "Google, CPU platforms, 2020 (3.4 GHz on all cores); Intel: 28 cores, 6 channels of DDR4-2933"),
}  # fmt: skip
"""Processors by how the names of types begin."""


@dataclass(frozen=True)
class Instance:
    """A type of machine; ``price`` in US dollars an hour, ``gpu`` a name of ``devices`` or None."""

    name: str
    cloud: str
    region: str
    vcpus: float
    memory_gib: float
    gpu: str | None
    price: float

    def device(self) -> Device:
        """Return what computes there."""
        if self.gpu:
            return replace(find(self.gpu), name=self.name)
        found = _processor(self.name)
        if found is None:
            raise UsageError(f"nothing is known of the processor of {self.name}", hint="another type")
        cores = self.vcpus / found.threads
        return Device(
            self.name, f"{cores:g} cores of {found.what}", self.memory_gib * 2**30, 0.9,
            min(cores * DRAW, found.socket), {kind: cores * found.clock * rate for kind, rate in found.rates.items()},
            (found.source,), f"rates = cores x clock x operations a cycle; a core reads {DRAW / 1e9:g} GB/s, as cores "
            "of two machines of clouds did with their neighbours",
        )  # fmt: skip


class Reached(NamedTuple):
    """What this machine reached with a model: ``share`` of what its hardware allows, where ``assumed`` was expected."""

    share: float
    computed_in: str
    assumed: float


class Prices(NamedTuple):
    """Types with prices, where these are from, and of which day."""

    types: tuple[Instance, ...]
    source: str
    date: str


@dataclass(frozen=True)
class Offer:
    """What a model is expected to do on a type, and to cost.

    Args:
        instance: the type.
        fits: whether the model does, by ``memory_bytes`` of ``usable_bytes``.
        unit: what is counted, ``rows`` of ``length`` tokens or ``tokens`` written after ``length``.
        expected: of these a second, ``share`` of what the hardware allows; ``share_from`` says how that is known.
        bound_by: ``compute``, ``memory`` or ``launches``.
        per_million: US dollars for a million of them, on a machine that is always busy.
        prices: where the price is from, and its date.
    """

    instance: Instance
    fits: bool
    unit: str
    length: int
    batch_size: int
    precision: str
    memory_bytes: float
    usable_bytes: float
    expected: float
    bound_by: str
    share: float
    share_from: str
    per_million: float
    prices: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def prices() -> Prices:
    """Return the prices that were read last from a catalogue, or those that come with the package."""
    path = _kept()
    if not path.is_file():
        path = Path(__file__).with_name("instances.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Prices(tuple(Instance(**one) for one in content["types"]), content["source"], content["date"])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is damaged", hint="remove it, or read a catalogue again: --prices DIR") from error


def chosen(target: str | None, types: tuple[Instance, ...]) -> list[Instance]:
    """Return the types that a word names: one, a cloud's, those with a card, or ``cpu8``, all with 8 processors.

    Raises:
        UsageError: it names none; the nearest is suggested.
    """
    if target is None:
        return list(types)
    found = [one for one in types if target in (one.name, one.cloud, one.gpu)]
    if number := re.fullmatch(r"cpu(\d+)", target):
        found = [one for one in types if one.gpu is None and one.vcpus == int(number[1])]
    if not found:
        known = list(dict.fromkeys(filter(None, (word for one in types for word in (one.name, one.cloud, one.gpu)))))
        cpus = sorted({int(one.vcpus) for one in types if one.gpu is None})
        known += [f"cpu{count}" for count in cpus]
        raise UsageError(f"there is no type of machine {target!r} in the prices",
                         hint=f"{did_you_mean(target, known)}known: {', '.join(known)}")  # fmt: skip
    return found


def offers(target: str | None, estimated: Callable[[Device, float], Any], here: Callable[[], Any]) -> list[Offer]:
    """Return what a model does on all types that a word names, cheapest first; ``here`` is its ``Estimate`` here."""
    found = prices()
    types, reached = chosen(target, found.types), None
    if any(one.gpu is None for one in types):  # what a processor reaches says nothing of a card
        with suppress(BundleError):  # a base without the head that it is to have: nothing can be run yet
            told = here()
            reached = Reached(told.measured / told.bound, told.computed_in, told.share) if told.measured else None
    return cheapest([offer(one, found, estimated, reached) for one in types])


def offer(
    instance: Instance, found: Prices, estimated: Callable[[Device, float], Any], reached: Reached | None
) -> Offer:
    """Return what a model does on a type.

    Args:
        instance: the type.
        found: the prices that it is from.
        estimated: ``sizing.estimate`` of the model, of a device and the bytes that its server takes.
        reached: what this machine reached with the model; it counts for processors that compute it in the same format
            and by units of the same kind.
    """
    told = estimated(instance.device(), DRIVER if instance.gpu else SERVER)
    share, why = told.share, "assumed"
    alike = reached is not None and (reached.computed_in, reached.assumed) == (told.computed_in, told.share)
    if reached is not None and alike and instance.gpu is None:
        share, why = reached.share, "measured on this machine"
    expected = share * told.bound
    return Offer(
        instance, told.fits, told.unit, told.length, told.batch_size, told.precision, told.memory_bytes,
        told.usable_bytes, expected, told.bound_by, share, why, instance.price / (3600 * expected) * 1e6,
        f"{found.source}, {found.date}",
    )  # fmt: skip


def cheapest(found: list[Offer]) -> list[Offer]:
    """Return those that fit, cheapest for the work first, then those that do not."""
    return sorted(found, key=lambda one: (not one.fits, one.per_million))


# -- SkyPilot's catalogue -----------------------------------------------------------------------------


def refresh(folder: str | Path) -> Prices:
    """Take prices from SkyPilot's catalogue, ``~/.sky/catalogs`` or a part of it, and keep them on this machine.

    Raises:
        UsageError: there is no catalogue in it, or nothing that is known.
        DataError: a file of it cannot be read.
    """
    folder = Path(folder).expanduser()
    files = {cloud: path for cloud in REGIONS if (path := _newest(folder, cloud))}
    if not files:
        raise UsageError(f"{folder} holds no catalogue of SkyPilot's",
                         hint="~/.sky/catalogs, which `sky show-gpus` or `sky check` fills")  # fmt: skip
    types = [one for cloud, path in files.items() for one in _read(cloud, path)]
    if not types:
        raise UsageError(f"nothing in {folder} is known here", hint=f"known cards: {', '.join(CARDS)}")
    newest = max(path.stat().st_mtime for path in files.values())
    source = f"SkyPilot's catalogue of {', '.join(files)}"
    content = {"date": f"{datetime.fromtimestamp(newest, UTC):%Y-%m-%d}", "source": source,
               "types": [asdict(one) for one in types]}  # fmt: skip
    path = _kept()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, content)
    return prices()


def _kept() -> Path:
    return home() / "prices.json"


def _newest(folder: Path, cloud: str) -> Path | None:
    """Return the catalogue's file of a cloud, of its newest format: v10 comes after v9."""
    found = [*folder.glob(f"{cloud}/vms.csv"), *folder.glob(f"v*/{cloud}/vms.csv")]
    return max(found, key=lambda path: int(path.parts[-3][1:]) if path.parts[-3][1:].isdigit() else -1, default=None)


def _read(cloud: str, path: Path) -> Iterator[Instance]:
    """Yield the types of a cloud that are known here, each at the price of the cloud's region."""
    best: dict[str, Instance] = {}
    cards: dict[tuple[str, str], float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                price, name, region = row["Price"], row["InstanceType"], row["Region"]
                if not price or float(price) < float(row["SpotPrice"] or 0):  # the catalogue has such, which are wrong
                    continue
                card, count = row["AcceleratorName"] or None, float(row["AcceleratorCount"] or 0)
                if not name:
                    if card and count == 1:
                        cards[card, region] = min(float(price), cards.get((card, region), float("inf")))
                    continue
                inside = INSIDE.get(name.rpartition("-")[0]) if cloud == "gcp" else None
                if inside is not None and not _is_one(name):
                    continue
                if ((card or inside) and (card or inside) not in CARDS) or count > 1:
                    continue
                if not (card or inside) and _processor(name) is None:
                    continue
                one = Instance(name, cloud, region, float(row["vCPUs"]), float(row["MemoryGiB"]),
                               CARDS[card or inside or ""] if card or inside else None, float(price))  # fmt: skip
                if name not in best or _before(one, best[name], REGIONS[cloud]):
                    best[name] = one
    except (OSError, ValueError, LookupError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a catalogue: {error}", hint="fetch it anew, with sky check"
        ) from None
    names = {ours: theirs for theirs, ours in CARDS.items()}
    for one in best.values():
        apart = cloud == "gcp" and one.gpu is not None
        card_price = cards.get((names[one.gpu or ""], one.region)) if apart else 0.0
        if card_price is not None:
            yield replace(one, price=round(one.price + card_price, 5))


def _is_one(name: str) -> bool:
    """Say whether one of Google's types with a card inside has one of it: by name, or the smaller of G2."""
    size = name.rpartition("-")[2]
    return size == "1g" or (name.startswith("g2-") and size in ("4", "8", "12", "16", "32"))


def _before(one: Instance, other: Instance, region: str) -> bool:
    return (one.region != region, one.price) < (other.region != region, other.price)


def _processor(name: str) -> Processor | None:
    return next((found for begins, found in PROCESSORS.items() if re.match(begins, name)), None)
