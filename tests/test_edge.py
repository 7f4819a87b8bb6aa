"""llmasos-edge: the same answers from the same folder, without torch and transformers."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLM, errors
from llmasos.cli._edge import main
from llmasos.core import bundle, plugins
from llmasos.edge import Model
from tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "pandas", "sklearn", "scipy", "huggingface_hub", "psutil")
TASKS = ("text-classification", "token-classification", "question-answering", "sentence-similarity", "fill-mask")
LONG = {
    "text-classification": {"text": "a good day " * 60},
    "token-classification": {"tokens": ["ask", "ida", "in", "rome"] * 60},
    "question-answering": {"question": "how many?", "context": "we saw 17 cats. no dogs today. " * 20},
    "sentence-similarity": {"anchor": "anvil " * 60, "positive": "你好 bicycle?"},
    "fill-mask": {"text": "1 abc[MASK]efg[MASK]ijk " * 20},
}

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in plugins.load("exporters", "edge").requires),
    reason="needs the extra onnx",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return, for a task, an artifact of a tiny tuned model, and rows to ask it; not to be changed."""

    @functools.cache
    def make(tag: str) -> tuple[Path, list[dict[str, Any]]]:
        kind = plugins.load("tasks", tag)
        task, rows = kind.sample()
        folder = tmp_path_factory.mktemp(tag)
        llm = LLM.from_pretrained(save_tiny(folder / "base", kind.auto_class, max_length=160))
        llm.finetune(
            task, rows, epochs=2, batch_size=8, learning_rate=2e-3, output=folder / "model", progress=False,
            allow_truncated=1.0, allow_unknown=1.0,
        )  # fmt: skip
        llm.export(folder / "edge", "edge", data=rows)
        asked = [{f.name: row[f.name] for f in task.fields if not f.is_answer and f.name in row} for row in rows[:6]]
        if tag == "fill-mask":
            asked = [{"text": row["text"].replace("f", "[MASK]")} for row in asked]
        return folder / "edge", [*asked, LONG[tag]]

    return make


@pytest.fixture
def copied(made: Any, tmp_path: Path) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(made("text-classification")[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the small distribution, as its wheel holds it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "b"), "build_py", "--build-lib",
               str(folder / "lib")]  # fmt: skip
    subprocess.run(command, cwd=ROOT / "edge", check=True, capture_output=True, text=True)
    return folder / "lib"


def alone(built: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code with the small distribution's package and without this one."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); sys.path.insert(0, sys.argv.pop(1))\n"
    command = [sys.executable, "-c", blocked + code, str(built), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=built)


@pytest.mark.slow
@pytest.mark.parametrize("tag", TASKS)
@pytest.mark.filterwarnings("ignore::llmasos.errors.TruncatedWarning")
def test_predictions_are_those_of_the_whole_package(tag: str, made: Any) -> None:
    path, rows = made(tag)
    model, llm = Model.open(path), LLM.from_pretrained(path)
    wanted = [one.as_dict() for one in llm.predict(rows)]
    assert [one.as_dict() for one in model.predict(rows)] == wanted
    assert [one.as_dict() for one in model.predict(iter(rows))] == wanted
    assert [model.predict(row).as_dict() for row in rows[:2]] == [llm.predict(row).as_dict() for row in rows[:2]]
    assert model.max_length == 160


@pytest.mark.slow
@pytest.mark.parametrize("tag", TASKS)
def test_the_small_distribution_answers_alike_and_needs_nothing_heavy(tag: str, made: Any, built: Path) -> None:
    path, rows = made(tag)
    code = (
        "import json, warnings; from llmasos_edge import Model; warnings.simplefilter('ignore')\n"
        "model = Model.open(sys.argv[1]); model.verify()\n"
        "print(json.dumps([one.as_dict() for one in model.predict(json.loads(sys.argv[2]))]))\n"
        "print(*{name.partition('.')[0] for name, module in sys.modules.items() if module is not None})"
    )
    done = alone(built, code, str(path), json.dumps(rows))
    assert done.returncode == 0, done.stderr
    said, loaded = done.stdout.splitlines()
    with pytest.warns() if tag == "text-classification" else _nothing():
        wanted = [one.as_dict() for one in Model.open(path).predict(rows)]
    assert json.loads(said) == json.loads(json.dumps(wanted))
    assert not {*HEAVY, "llmasos", "yaml", "typer", "rich", "fsspec"} & set(loaded.split())


def _nothing() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")


def test_its_command_answers_and_verifies(made: Any, built: Path) -> None:
    path, _ = made("text-classification")
    code = "from llmasos_edge.cli._edge import main; sys.exit(main())"
    done = alone(built, code, "predict", str(path), "a good day", "a bad day")
    assert done.returncode == 0, done.stderr
    wanted = [one.as_dict() for one in LLM.from_pretrained(path).predict(["a good day", "a bad day"])]
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted
    done = alone(built, code, "verify", str(path))
    assert (done.returncode, "golden rows" in done.stdout) == (0, True), done.stderr


def test_the_artifact_says_how_it_is_run(made: Any) -> None:
    path, _ = made("text-classification")
    read_me, pins = (path / "README.txt").read_text(), (path / "requirements.txt").read_text()
    assert "pip install --no-deps --no-compile -r requirements.txt" in read_me
    assert 'llmasos-edge predict . "a text"' in read_me
    assert [line.partition("==")[0] for line in pins.splitlines()] == [
        "llmasos-edge", "numpy", "tokenizers", "onnxruntime", "psutil",
    ]  # fmt: skip
    manifest = bundle.read_manifest(path)
    assert manifest is not None
    assert {"README.txt", "requirements.txt"} <= manifest["files"].keys()


def test_a_changed_file_is_found(copied: Path) -> None:
    Model.open(copied).verify()
    (copied / "README.txt").write_text("something else")
    with pytest.raises(errors.BundleError, match=r"changed: README\.txt"):
        Model.open(copied).verify()


def test_a_model_that_answers_otherwise_is_not_opened(copied: Path) -> None:
    content = json.loads((copied / "golden.json").read_text())
    content["examples"][0]["outputs"][0][0] += 1.0
    (copied / "golden.json").write_text(json.dumps(content))
    with pytest.raises(errors.ParityError, match="golden row"):
        Model.open(copied)


def test_a_tokenizer_that_reads_otherwise_is_not_opened(copied: Path) -> None:
    content = json.loads((copied / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (copied / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(errors.ParityError, match="becomes other tokens"):
        Model.open(copied)


def test_what_is_no_export_is_refused(made: Any, tmp_path: Path) -> None:
    path, _ = made("text-classification")
    with pytest.raises(errors.BundleError, match="is no exported model"):
        Model.open(path.parent / "model")
    with pytest.raises(errors.BundleError, match="is not a folder"):
        Model.open(tmp_path / "nowhere")


def test_a_longer_text_is_cut_and_told(made: Any) -> None:
    model = Model.open(made("text-classification")[0])
    with pytest.warns(errors.TruncatedWarning, match="1 text was cut to 8 tokens"):
        model.predict("a good day", max_length=8)
    with pytest.raises(errors.DataError, match="longer than 8 tokens"):
        model.predict(["a good day"], max_length=8, allow_truncated=0.0)
    with pytest.raises(errors.UsageError, match="takes 8 to 160"):
        model.predict("a", max_length=161)


def test_the_command_words_errors(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "nowhere"), "a"]) == 2
    assert "error: " in capsys.readouterr().err
    path = str(made("text-classification")[0])
    assert main(["predict", path, "a", "--data", "b.csv"]) == 2
    (tmp_path / "rows.jsonl").write_text('{"text": "a good day"}\n{"text": "a bad day"}\n')
    capsys.readouterr()
    assert main(["predict", path, "--data", str(tmp_path / "rows.jsonl"), "--batch-size", "1", "--threads", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_model_whose_tokenizer_is_read_otherwise_is_not_exported(made: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from llmasos.data import tokenizer

    light = tokenizer.opened

    def other(folder: Path) -> Any:
        found = light(folder)
        found.model_max_length = 12
        return found

    model = LLM.from_pretrained(made("text-classification")[0].parent / "model")
    monkeypatch.setattr(tokenizer, "opened", other)
    with pytest.raises(errors.UsageError, match=r"reads tokenizers by tokenizer\.json"):
        model.export(tmp_path / "out", "edge")
    assert not (tmp_path / "out").exists()


def test_a_model_that_writes_is_refused() -> None:
    exporter = plugins.load("exporters", "edge")
    assert set(exporter.precisions) == {"encoder"}


def test_a_kind_of_file_that_needs_more_is_told(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.open(made("text-classification")[0])  # tuning, which makes it, needs what is missing below
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.MissingExtraError, match="reading parquet"):
        list(model.predict(tmp_path / "rows.parquet"))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(errors.MissingExtraError, match="s3://"):
        list(model.predict("s3://bucket/rows.jsonl"))


def test_a_runtime_that_is_not_installed_is_named(made: Any, built: Path) -> None:
    code = "sys.modules['onnxruntime'] = None; from llmasos_edge.cli._edge import main; sys.exit(main())"
    done = alone(built, code, "verify", str(made("text-classification")[0]))
    assert (done.returncode, "pip install 'llmasos-edge[onnx]'" in done.stderr) == (2, True), done.stderr
