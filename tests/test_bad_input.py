"""Bad input through the front door: the right error, a way out, and everything as it was before."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import torch

from llmasos import LLM, TextClassificationTask
from llmasos.core import hardware
from llmasos.errors import BundleError, DataError, LLMasOSError, NotFittedError, RemoteError, UsageError
from tiny import save_tiny_bert, tiny_tokenizer

TASK = TextClassificationTask()
GOOD = [(f"a {word} day {i}", word) for i in range(20) for word in ("good", "bad")]
ONCE = {"max_steps": 1, "threads": 1, "precision": "float32", "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "model"
    LLM.from_pretrained(base).finetune(TASK, GOOD, output=folder, **ONCE)
    return folder


@pytest.fixture(autouse=True)
def _one_core(monkeypatch):
    """Keep predictions, which set no thread count here, from waiting for other cores."""
    monkeypatch.setattr(hardware, "physical_cores", lambda: 1)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch) -> Callable[[], None]:
    """Run in an empty folder with a home of its own; say whether anything but the input is in either."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("LLMASOS_HOME", str(home))
    monkeypatch.chdir(here)

    def check() -> None:
        assert not list(here.glob("out*")) + list(here.glob(".out*"))
        assert not list((home / "runs").glob("*")) + list((home / "datasets").glob("*"))

    return check


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(kind: type[LLMasOSError], message: str, hint: str, act: Callable[[], Any]) -> LLMasOSError:
    """Call and expect exactly this kind of error, its words and its way out, the text starting with our sentence."""
    with pytest.raises(LLMasOSError) as caught:
        act()
    error = caught.value
    assert type(error) is kind, repr(error)
    assert re.search(message, str(error)), str(error)
    assert re.search(hint, error.hint or ""), error.hint
    assert error.exit_code == (1 if kind is RemoteError else 2)
    return error


def file(name: str, content: str | bytes) -> Path:
    path = Path(name).absolute()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows: list[tuple[Any, Any]]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


# -- rows for finetune ----------------------------------------------------------------------------------

LONG = [("x" * 80, "good"), ("x" * 100, "bad")]
WRONG_DATA: dict[str, tuple[Any, TextClassificationTask, str, str]] = {
    "no file": (lambda: "none.jsonl", TASK, r"no such file: .*none\.jsonl", "."),
    "no file, as a Path": (lambda: Path("none.jsonl"), TASK, r"no such file: .*none\.jsonl", "."),
    "an empty file": (lambda: file("in.jsonl", ""), TASK, r"in\.jsonl is empty", "."),
    "another encoding": (
        lambda: file("in.csv", "text,label\nfine,a\ncafé,a\n".encode("latin-1")),
        TASK, "line 3, byte 4: 0xe9 is not UTF-8", "save the file as UTF-8",
    ),
    "JSON broken on a line": (
        lambda: file("in.jsonl", lines(GOOD[:6]) + '{"text": \n' + lines(GOOD)),
        TASK, r"in\.jsonl, line 7: not JSON", ".",
    ),
    "no column for the label": (
        lambda: [{"text": text, "lable": label} for text, label in GOOD],
        TASK, "no column for label.*columns found: text, lable", "did you mean 'lable'.*columns=",
    ),
    "texts without labels": (lambda: [text for text, _ in GOOD], TASK, "no column for label", "columns="),
    "a label outside of those named": (
        lambda: [*GOOD, ("a fine day", "goood")],
        TextClassificationTask(labels=["good", "bad"]),
        r"1 row is wrong\n  <list>, row 41, field label: found 'goood', expected one of good, bad .*'good'", "correct",
    ),
    "one class only": (
        lambda: [(text, "good") for text, _ in GOOD], TASK, "every row has the same label: 'good'", "two classes",
    ),
    "labels named, one of them in the data": (
        lambda: [(text, "good") for text, _ in GOOD],
        TextClassificationTask(labels=["good", "bad"]), "every row has the same label: 'good'", "two classes",
    ),
    "only empty texts": (
        lambda: [(" ", label) for _, label in GOOD], TASK, "no row can be used: an empty text", 'columns={"text"',
    ),
    "more empty texts than allowed": (
        lambda: [*GOOD, ("", "good"), ("\n", "bad")], TASK,
        r"2 of 3\d rows .* would be left out|1 of \d+ rows .* would be left out", "allow_dropped=0",
    ),
    "texts longer than the model takes": (
        lambda: GOOD[:8] + LONG, TASK,
        r"would be cut to 64 tokens \(\d+ tokens lost, longest row (82|102)\); allowed are 1\.0%",
        r"max_length=(82|102).*allow_truncated=0\.",
    ),
    "fewer labels than announced": (
        lambda: [*GOOD, ("so so", "so so")], TextClassificationTask(num_labels=2),
        "num_labels=2, but the data has 3 labels: bad, good, so so", "num_labels=3",
    ),
    "more labels than announced": (
        lambda: GOOD, TextClassificationTask(num_labels=3),
        "num_labels=3, but the data has 2 labels: bad, good", r"num_labels=2, or labels=\[",
    ),
    "labels beyond their number": (
        lambda: [("a", 0), ("b", 1), ("c", 2)], TextClassificationTask(num_labels=2), "the data has 3 labels: 0, 1, 2",
        "num_labels=3",
    ),
    "words and numbers as labels": (
        lambda: file("in.jsonl", lines([("a", 1), ("b", "two")])), TASK, "row 2 .*found str 'two', expected an integer",
        ".",
    ),
    "a row that is None": (lambda: [*GOOD, None], TASK, "row 41: found nothing, expected a text", "correct"),
    "a text that is None": (
        lambda: [*GOOD, {"text": None, "label": "good"}], TASK, "row 41, field text: found nothing, expected a string",
        "correct",
    ),
    "a label that is None": (
        lambda: [*GOOD, ("a fine day", None)], TASK, "row 41, field label: found nothing, expected a string", "correct",
    ),
    "a text missing in a DataFrame": (
        lambda: pd.DataFrame({"text": ["a", None, "c"], "label": [0, 1, 1]}), TASK,
        "<DataFrame>, row 2, field text: found nothing", "correct",
    ),
    "a label for several": (
        lambda: GOOD, TextClassificationTask(multi_label=True), "found str 'good', expected a list of labels",
        "correct",
    ),
    "no rows": (lambda: [], TASK, "<list> has no rows", "at least one row"),
    "two rows, none to spare": (
        lambda: [("a", 0), ("b", 1)], TASK, "none of its 2 rows can be set aside for evaluation", "evaluation data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_DATA)
def test_data_that_cannot_be_learned_from_is_refused_and_leaves_nothing(case, base, nothing_left):
    make, task, message, hint = WRONG_DATA[case]
    data = make()
    before = content_of(base), content_of(Path())
    for output in ("out", None):
        llm = LLM.from_pretrained(base)
        refused(DataError, message, hint, lambda llm=llm, output=output: llm.finetune(
            task, data, output=output, progress=False))  # fmt: skip
        nothing_left()
        assert llm.task is None
    assert (content_of(base), content_of(Path())) == before


@pytest.mark.parametrize(
    ("eval_data", "message"),
    [
        ([("a day", "fine")], "row 1, field label: found 'fine', expected one of bad, good"),
        ([("", "good")], "no row can be used"),
        ([], "has no rows"),
        ("none.csv", "no such file"),
    ],
)
def test_wrong_evaluation_data_stops_before_any_training(base, nothing_left, eval_data, message):
    llm = LLM.from_pretrained(base)
    refused(DataError, message, ".", lambda: llm.finetune(TASK, GOOD, eval_data=eval_data, output="out", **ONCE))
    nothing_left()


def test_with_the_option_that_the_hint_names_the_same_rows_are_taken(base):
    rows, llm = [*GOOD, *LONG, ("", "good")], LLM.from_pretrained(base)
    options: dict[str, Any] = {}
    for name in ("allow_dropped", "allow_truncated"):
        error = refused(DataError, "would be", name, lambda: llm.finetune(
            TASK, rows, eval_data=GOOD, **options, **ONCE))  # fmt: skip
        options[name] = float(re.search(rf"{name}=([\d.]+)", error.hint)[1])
    run = llm.finetune(TASK, rows, eval_data=GOOD, **options, **ONCE)
    assert (run.ledger["dropped"], run.ledger["truncated"]) == (1, 2)


# -- options --------------------------------------------------------------------------------------------

WRONG_OPTIONS = {
    "unknown": ({"epoch": 3}, "no option 'epoch'", "did you mean 'epochs'"),
    "misspelt": ({"learning_rte": 1e-4}, "no option 'learning_rte'", "did you mean 'learning_rate'"),
    "of another library": ({"num_train_epochs": 3}, "no option 'num_train_epochs'", "known: epochs"),
    "too long for the model": ({"max_length": 65}, "max_length=65, but this model takes at most 64 tokens", "=64"),
    "no such metric": ({"metric": "acuracy"}, "metric='acuracy'", "did you mean 'accuracy'"),
    "a metric where less is better": ({"metric": "ece"}, "metric='ece' cannot pick", "accuracy"),
    "nothing to train": ({"eval_split": 1.0}, "eval_split=1.0 is out of range", "0.9"),
    "no such device": ({"device": "gpu"}, "device='gpu' is not a device", "cpu"),
    "no recipe": ({"config": "none.yaml"}, r"no such recipe: none\.yaml", "YAML"),
    "a column for no field": ({"columns": {"body": "text"}}, "'body', which is no field", "text"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_an_option_that_makes_no_sense_is_refused_and_leaves_nothing(case, base, nothing_left):
    options, message, hint = WRONG_OPTIONS[case]
    rows = [{"text": text, "label": label} for text, label in GOOD]
    for output in ("out", None):
        llm = LLM.from_pretrained(base)
        refused(UsageError, message, hint, lambda llm=llm, output=output: llm.finetune(
            TASK, rows, output=output, **{"progress": False, **options}))  # fmt: skip
        nothing_left()


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"batchsize": 3}, "no option 'batchsize'", "did you mean 'batch_size'"),
        ({"epochs": 3}, "no option 'epochs'", "known: batch_size"),
        ({"max_length": 100}, "max_length=100, but this model takes at most 64 tokens", "max_length=64"),
        ({"batch_size": 0}, "batch_size=0 is out of range", "at least 1"),
        ({"columns": {"body": "text"}}, "'body', which is no field", "text"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_wrong_options_of_prediction_are_refused(tuned, verb, options, message, hint):
    llm = LLM.from_pretrained(tuned)
    rows = [{"text": text, "label": label} for text, label in GOOD]
    refused(UsageError, message, hint, lambda: getattr(llm, verb)(rows, **options))


# -- outputs --------------------------------------------------------------------------------------------


def test_neither_finetune_nor_save_replaces_a_folder_unless_told(base, tuned):
    shutil.copytree(tuned, "mine")
    before = content_of(Path("mine"))
    for act in (
        lambda: LLM.from_pretrained(base).finetune(TASK, GOOD, output="mine", **ONCE),
        lambda: LLM.from_pretrained(tuned).save("mine"),
    ):
        refused(UsageError, "mine.* exists", "overwrite", act)
    assert content_of(Path("mine")) == before
    assert [path.name for path in Path().iterdir()] == ["mine"]


def test_even_told_to_overwrite_a_folder_that_is_no_model_stays(base, tuned):
    file_ = Path("thesis") / "chapter.txt"
    file_.parent.mkdir()
    file_.write_text("years of work")
    for act in (
        lambda: LLM.from_pretrained(base).finetune(TASK, GOOD, output="thesis", overwrite=True, **ONCE),
        lambda: LLM.from_pretrained(tuned).save("thesis", overwrite=True),
    ):
        refused(UsageError, "thesis", ".", act)
    assert content_of(Path()) == {"thesis/chapter.txt": b"years of work"}


def test_a_refused_finetune_that_should_overwrite_leaves_the_old_model(base, tuned):
    shutil.copytree(tuned, "mine")
    before = content_of(Path("mine"))
    refused(DataError, "same label", ".", lambda: LLM.from_pretrained(base).finetune(
        TASK, [("a", "b")] * 9, output="mine", overwrite=True, **ONCE))  # fmt: skip
    assert content_of(Path("mine")) == before
    assert [path.name for path in Path().iterdir()] == ["mine"]


def test_a_fitted_model_answers_as_before_after_a_finetune_that_was_refused(tuned):
    llm = LLM.from_pretrained(tuned)
    before, task = llm.predict("a good day"), llm.task
    for data, options in (([("a", "b")] * 9, {}), (GOOD, {"metric": "acuracy"}), (GOOD, {"epoch": 1})):
        with pytest.raises(LLMasOSError):
            llm.finetune(TASK, data, **{**ONCE, **options})
        assert llm.task == task
        assert llm.predict("a good day") == before


# -- models ---------------------------------------------------------------------------------------------


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_tensors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1.output" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


WRONG_MODELS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors", "safetensors"),
    "weights cut off": (truncate, r"model\.safetensors is cut off: \d+ bytes", "again"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"it has no config\.json", r"config\.json"),
    "weights as pickle": (pickle_only, r"only as pickle \(pytorch_model\.bin\)", "safetensors"),
    "code of its own": (
        lambda f: change_config(f, auto_map={"AutoModel": "evil.Model"}), "asks to run Python code", "built into",
    ),
    "some weights missing": (
        drop_tensors, r"lacks weights of the model itself: bert\.encoder\.layer\.1\.output", "fetch it again",
    ),
    "more layers than weights": (
        lambda f: change_config(f, num_hidden_layers=3), r"lacks weights .*layer\.2.* and \d+ more", "fetch it again",
    ),
    "fewer layers than weights": (
        lambda f: change_config(f, num_hidden_layers=1), r"layer\.1", "architecture",
    ),
    "weights of another width": (
        lambda f: change_config(f, hidden_size=64), "lacks weights of the model itself", "another architecture",
    ),
    "an unknown architecture": (
        lambda f: change_config(f, model_type="bertje"), r"config\.json .* cannot be opened: .*bertje", "supported",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("token*")], "tokenizer .* cannot be opened", "complete",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer .* cannot be opened", "complete",
    ),
    "more tokens than embeddings": (
        lambda f: tiny_tokenizer_with_more().save_pretrained(f), r"token", ".",
    ),
}  # fmt: skip


def tiny_tokenizer_with_more() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([word for text, _ in GOOD for word in text.split() if len(word) > 1])
    return tokenizer


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_model_folder_with_something_wrong_is_refused_whenever_it_is_noticed(case, base, nothing_left, tmp_path):
    damage, message, hint = WRONG_MODELS[case]
    shutil.copytree(base, tmp_path / "model")
    damage(tmp_path / "model")
    before = content_of(tmp_path / "model")
    refused(BundleError, message, hint, lambda: LLM.from_pretrained(tmp_path / "model").finetune(
        TASK, GOOD, output="out", **ONCE))  # fmt: skip
    nothing_left()
    assert content_of(tmp_path / "model") == before


def test_the_code_of_a_model_is_not_run(base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change_config(folder, auto_map={"AutoConfig": "evil.Config"}, model_type="evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BundleError):
        LLM.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content["task"].update(tag="summarize"), "summarize"),
        (lambda content: content["task"].pop("tag"), r"llmasos\.json"),
        (lambda content: content["task"].update(labels=["good", "bad", "more"]), r"llmasos\.json|labels"),
    ],
    ids=["a task that is not installed", "a task without its name", "labels that do not fit the weights"],
)
def test_a_manifest_that_makes_no_sense_is_refused(tuned, tmp_path, damage, message):
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    content = json.loads((folder / "llmasos.json").read_text())
    damage(content)
    (folder / "llmasos.json").write_text(json.dumps(content))
    with pytest.raises(LLMasOSError, match=message) as caught:
        LLM.from_pretrained(folder).predict("a good day")
    assert caught.value.hint


def test_a_saved_model_that_lost_its_head_does_not_answer_from_a_random_one(tuned, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(BundleError, "classifier", ".", lambda: LLM.from_pretrained(folder).predict("a good day"))


def test_a_hub_that_nobody_answers_for_names_the_ways_without_a_network(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        refused(RemoteError, r"no connection to 127\.0\.0\.1", r"pkg:NAME.*a folder", lambda: LLM.from_pretrained(
            "bert-base-uncased", cache_dir=tmp_path / "cache"))  # fmt: skip
        huggingface_hub.close_session()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# -- predictions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [
    lambda llm: llm.predict("a good day"),
    lambda llm: llm.predict([]),
    lambda llm: llm.evaluate(GOOD),
    lambda llm: llm.save("out"),
    lambda llm: llm.model,
], ids=["predict", "predict nothing", "evaluate", "save", "model"])  # fmt: skip
def test_without_a_task_there_is_nothing_to_ask(base, nothing_left, act):
    refused(NotFittedError, "has no task yet", "finetune it first", lambda: act(LLM.from_pretrained(base)))
    nothing_left()


WRONG_TEXTS: dict[str, tuple[Any, str, str]] = {
    "an empty text": ("", "row 1, field text: found an empty text", "fill or remove"),
    "blanks": (["fine", " \n"], "row 2, field text: found an empty text", "fill or remove"),
    "None among texts": (["fine", None], "row 2: found nothing, expected a text", "correct"),
    "None in a row": ([{"text": "fine"}, {"text": None}], "row 2, field text: found nothing", "correct"),
    "NaN in a DataFrame": (pd.DataFrame({"text": ["fine", np.nan]}), "row 2, field text: found nothing", "correct"),
    "a number": ([{"text": 5}], "row 1, field text: found int 5, expected a string", "correct"),
    "a number among texts": (["fine", 5], "row 2: found int 5, expected a text", "correct"),
    "no column for the text": ([{"txet": "fine"}], "no column for text", "did you mean 'txet'"),
    "an empty second text": ([{"text": "fine", "text_pair": ""}], "field text_pair: found an empty text", "fill"),
    "a file that is not there": ("none.jsonl", r"no such file: .*none\.jsonl", "."),
    "a Path that is not there": (Path("none.jsonl"), r"no such file: .*none\.jsonl", "."),
    "a file of another kind": (Path(__file__), "not known", r"\.jsonl"),
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_what_cannot_be_answered_is_named(case, tuned):
    data, message, hint = WRONG_TEXTS[case]
    llm = LLM.from_pretrained(tuned)

    def act() -> None:
        answers = llm.predict(data)
        list(answers if not hasattr(answers, "label") else [])

    refused(DataError, message, hint, act)


def test_a_number_is_no_data(tuned):
    refused(UsageError, "data is int 5", "a path, a list", lambda: LLM.from_pretrained(tuned).predict(5))


def test_a_stream_gives_the_good_blocks_and_then_names_the_bad_row_by_its_place(tuned):
    texts = ["fine"] * 70 + [""] + ["fine"] * 5
    answers, got = LLM.from_pretrained(tuned).predict(iter(texts), batch_size=4), []
    refused(DataError, "row 71, field text: found an empty text", "fill", lambda: got.extend(answers))
    assert 64 <= len(got) <= 70


WRONG_ROWS: dict[str, tuple[Any, str, str]] = {
    "no rows": ([], "has no rows", "at least one row"),
    "a label that the model does not know": (
        [("a day", "fine")], "row 1, field label: found 'fine', expected one of bad, good", "correct",
    ),
    "a number for a word": ([("a day", 1)], "field label: found 1, expected one of bad, good", "correct"),
    "no labels": (["a day"], "no column for label", "columns="),
    "None": ([("a day", "good"), None], "row 2: found nothing", "correct"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_cannot_be_scored_are_named(case, tuned):
    data, message, hint = WRONG_ROWS[case]
    refused(DataError, message, hint, lambda: LLM.from_pretrained(tuned).evaluate(data))


def test_the_way_out_that_an_evaluation_names_is_one_that_it_has(tuned):
    llm, rows = LLM.from_pretrained(tuned), [*GOOD[:9], ("", "good")]
    error = refused(DataError, "1 of 10 rows .* would be left out", "fill or remove", lambda: llm.evaluate(rows))
    named = dict(re.findall(r"(allow_\w+)=([\d.]+)", error.hint))
    assert llm.evaluate(rows if named else GOOD[:9], **named).rows == 9
