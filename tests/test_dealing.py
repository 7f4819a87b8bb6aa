"""Reading and tokenising that is dealt out to a Ray cluster gives what one process gives, to the byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmasos import LanguageModelingTask, TextClassificationTask
from llmasos.cli import main
from llmasos.cluster import connected
from llmasos.core.config import FinetuneConfig
from llmasos.core.errors import DataError
from llmasos.core.events import result_of
from llmasos.data import dealing, encoding
from llmasos.loading import load_tokenizer
from llmasos.sources.base import locate
from llmasos.training.cluster import _dealer
from llmasos.training.prepare import prepare
from llmasos.training.request import Request
from tiny import save_tiny_bert

CONFIG = FinetuneConfig(max_length=48, allow_truncated=1.0, allow_dropped=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("dealing") / "base")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH", 50)
    monkeypatch.setattr(encoding, "_FEW", 0)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with connected("local", 2) as ray:
            yield ray


def shards(folder: Path, wrong: bool = False) -> Path:
    """Write some hundred rows into four files: empty, doubled, contradictory and too long ones among them."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"text": f"row number {i} {'very ' * (i % 23)}long", "label": f"l{i % 3}"} for i in range(330)
    ]
    for at in (7, 120, 201):
        rows[at]["text"] = " "
    rows[90]["text"] = rows[300]["text"] = rows[4]["text"]
    if wrong:
        rows[150]["label"] = rows[250]["label"] = None
    for number, start in enumerate((0, 40, 180, 320)):
        stop = (40, 180, 320, 330)[number]
        text = "".join(json.dumps(row) + "\n" for row in rows[start:stop])
        (folder / f"part-{number}.jsonl").write_text(text)
    return folder


def prepared(base: Path, data: Any, folder: Path, task: Any = None) -> dict[str, bytes]:
    """Prepare data, and return all files that this wrote."""
    (folder / "scratch").mkdir(parents=True)
    request = Request(locate(base), load_tokenizer(base), None, task or TextClassificationTask(), data)
    result_of(prepare(request, CONFIG, folder=folder, scratch=folder / "scratch"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_training_on_a_cluster_reads_a_folder_as_one_without(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "data")
    words = ["finetune", str(base), "--max-length", "48", "--allow-truncated", "1", "--allow-dropped", "1",
             "--max-steps", "2", "--threads", "1", "--dropout", "0", "--precision", "float32"]  # fmt: skip
    assert main([*words, "--data", "data", "--output", "one"]) == 0
    more = ["--data", f"file://{tmp_path}/data/part-*.jsonl", "--output", "two", "--cluster", "local", "--nproc", "2"]
    assert main([*words, *more]) == 0
    one, two = (json.loads((tmp_path / name / "run" / "run.json").read_text()) for name in ("one", "two"))
    assert two["data"] == one["data"]
    assert two["ledgers"] == one["ledgers"]
    ledgers = [(tmp_path / name / "run" / "ledger.jsonl").read_bytes() for name in ("one", "two")]
    assert ledgers[0] == ledgers[1]
    assert two["asked"]["data"] == f"file://{tmp_path}/data/part-*.jsonl"


@pytest.mark.slow
def test_what_is_dealt_out_comes_back_in_order_from_other_processes(ray):
    def where(number: int) -> Iterator[tuple[int, int]]:
        yield number, os.getpid()

    with dealing.by(_dealer(ray)):
        found = list(dealing.dealt(where, range(20)))
        assert {pid for _, pid in dealing.dealt(where, [1], here=True)} == {os.getpid()}
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {pid for _, pid in found}
    assert list(dealing.dealt(where, [5])) == [(5, os.getpid())]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "list", "lines"])
def test_arrays_ledgers_and_fingerprints_are_those_of_one_process(ray, base, tmp_path, kind):
    data: Any = shards(tmp_path / "data")
    task = None
    if kind == "list":
        data = [json.loads(line) for path in sorted(data.iterdir()) for line in path.read_text().splitlines()]
    if kind == "lines":
        task = LanguageModelingTask()
        for path in data.iterdir():
            path.rename(path.with_suffix(".txt"))
    one = prepared(base, data, tmp_path / "one", task)
    dealer, dealt = _dealer(ray), []

    def noted(work: Any, parts: Any) -> Iterator[Any]:
        dealt.append(work.func.__name__ if isinstance(work, partial) else work.__name__)
        yield from dealer(work, parts)

    with dealing.by(noted):
        two = prepared(base, f"file://{data}" if kind == "files" else data, tmp_path / "two", task)
    assert {"scratch/train/ids.bin", "scratch/train/arrays.json", "ledger.jsonl", "scratch/prepared.json"} <= set(one)
    assert two == one
    assert dealt == ["parts_of"] * (kind != "list") + ["_computed"] * 2
    if kind != "lines":
        told = json.loads(one["scratch/prepared.json"])["ledgers"]["train"]
        assert all(told[name] for name in ("truncated", "dropped", "duplicates", "contradictory"))


@pytest.mark.slow
def test_wrong_rows_are_told_as_by_one_process(ray, base, tmp_path):
    data = shards(tmp_path / "data", wrong=True)
    with pytest.raises(DataError) as one:
        prepared(base, data, tmp_path / "one")
    with pytest.raises(DataError) as two, dealing.by(_dealer(ray)):
        prepared(base, data, tmp_path / "two")
    assert str(two.value) == str(one.value)
    assert "row 151 (part-1.jsonl, line 111)" in str(one.value)
    (data / "part-2.jsonl").write_bytes(b'{"text": "\xff"}')
    with (
        pytest.raises(DataError, match=r"^part-2\.jsonl, line 1, byte 11: 0xff is not UTF-8"),
        dealing.by(_dealer(ray)),
    ):
        prepared(base, data, tmp_path / "three")
