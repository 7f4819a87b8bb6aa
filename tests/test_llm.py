"""The front door, from a base model on a Hub to answers, and what lies in the folder in between."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from hub_server import Hub
from llmasos import LLM, TextClassificationTask
from llmasos.core import bundle, hardware
from llmasos.core.config import EvaluateConfig
from llmasos.engines import torch as torch_engine
from llmasos.errors import DataError, HardwareError, TruncatedWarning, UsageError
from tiny import SPECIAL, tiny_tokenizer

FAST = {"learning_rate": 5e-3, "progress": False}
LABELS = ("complaint", "praise")


@pytest.fixture(autouse=True, scope="module")
def _plain_machine():
    """One processor core and no accelerator, so that float32 is chosen and numbers agree wherever this runs."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "devices", lambda: ["cpu"])
        patch.setattr(hardware, "physical_cores", lambda: 1)
        patch.setattr(hardware, "bf16_speedup", lambda _: 1.0)
        yield
    torch.set_num_threads(before)


def rows_of(count, labels=LABELS, words=("bad", "good")):
    """Labelled texts of many lengths that one word decides."""
    return [(f"{words[i % 2]} {'so ' * (i * 7 % 13)}{i}", labels[i % 2]) for i in range(count)]


TEXTS = [text for text, _ in rows_of(75)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model as bert-base-uncased is on the Hub: pretraining heads on it, norms under their old names."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("base") / "bert-base-uncased"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], **SPECIAL,
    )  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {next((k.replace(a, b) for a, b in old.items() if a in k), k): v for k, v in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory) -> SimpleNamespace:
    """A model that has learned the two words: as finetune left it in memory, and the folder that it wrote."""
    llm = LLM.from_pretrained(base)
    folder = tmp_path_factory.mktemp("tuned") / "model"
    run = llm.finetune(TextClassificationTask(), rows_of(200), eval_data=rows_of(40), epochs=2, output=folder, **FAST)
    assert run.metrics["accuracy"] == 1.0
    return SimpleNamespace(llm=llm, run=run, folder=folder)


@pytest.fixture
def batches(monkeypatch) -> list[tuple[list[int], np.ndarray]]:
    """What runs through the engine: the lengths of each batch's rows and the logits."""
    seen: list[tuple[list[int], np.ndarray]] = []
    outputs = torch_engine.TorchEngine.outputs

    def spied(self, batch):
        out = outputs(self, batch)
        seen.append((batch.lengths.tolist(), out))
        return out

    monkeypatch.setattr(torch_engine.TorchEngine, "outputs", spied)
    return seen


def labels_of(predictions):
    return [prediction.label for prediction in predictions]


def scores_of(predictions):
    return np.asarray([list(prediction.scores.values()) for prediction in predictions])


# -- from the Hub to predictions ------------------------------------------------------------------------

FIXED_CODE = """\
from llmasos import LLM, TextClassificationTask
model = LLM.from_pretrained("bert-base-uncased")
task = TextClassificationTask(num_labels=2)
model.finetune(task, train_data, epochs=10)
predictions = model.predict(test_data)
"""


@pytest.fixture
def hub(base, tmp_path, monkeypatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with Hub({"bert-base-uncased": base}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        huggingface_hub.close_session()


def test_the_five_lines_of_the_readme_work_as_they_stand(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"{word} {i}", label) for i in range(70) for word, label in zip(("bad", "good"), LABELS)]
    space = {"train_data": rows[:120], "test_data": [text for text, _ in rows[120:]]}
    exec(FIXED_CODE, space)
    assert labels_of(space["predictions"]) == [label for _, label in rows[120:]]
    model = space["model"]
    assert model.task.labels == LABELS
    saved = json.loads((model.save("mine") / "llmasos.json").read_text())
    assert saved["base"] == {"ref": "bert-base-uncased", "revision": hub.commit("bert-base-uncased"), "source": "hub"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "mine"]  # nothing else was written here


def test_the_five_lines_are_those_of_the_readme():
    assert FIXED_CODE in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


# -- predict --------------------------------------------------------------------------------------------


def test_one_text_gives_one_prediction_with_all_probabilities(tuned):
    answer = tuned.llm.predict("good 7")
    assert answer.label == "praise"
    assert tuple(answer.scores) == LABELS
    assert answer.score == answer.scores["praise"] == max(answer.scores.values())
    assert sum(answer.scores.values()) == pytest.approx(1.0)


def test_a_list_gives_a_list_in_its_own_order(tuned):
    answers = tuned.llm.predict(TEXTS)
    assert isinstance(answers, list)
    assert labels_of(answers) == [label for _, label in rows_of(75)]
    alone = [tuned.llm.predict(text) for text in TEXTS[:5]]
    np.testing.assert_allclose(scores_of(alone), scores_of(answers[:5]), atol=1e-5)


def write(folder, kind):
    frame = pd.DataFrame({"text": TEXTS})
    path = folder / f"in.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


FORMS = {
    "tuple": lambda _: tuple(TEXTS),
    "rows": lambda _: [{"text": text} for text in TEXTS],
    "labelled rows": lambda _: rows_of(75),
    "columns": lambda _: {"text": TEXTS},
    "DataFrame": lambda _: pd.DataFrame({"text": TEXTS, "label": "praise"}, index=range(100, 175)),
    "iterator": lambda _: iter(TEXTS),
    "generator of rows": lambda _: ({"text": text} for text in TEXTS),
    "path": lambda folder: write(folder, "jsonl"),
    "str path": lambda folder: str(write(folder, "csv")),
    "parquet": lambda folder: write(folder, "parquet"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_texts_gets_the_same_answers(tuned, tmp_path, form):
    data = FORMS[form](tmp_path)
    answers = tuned.llm.predict(data)
    assert isinstance(answers, list) == (not isinstance(data, Iterator | Path | str))
    np.testing.assert_allclose(scores_of(answers), scores_of(tuned.llm.predict(TEXTS)), atol=1e-6)


def test_a_column_of_another_name_is_mapped(tuned):
    frame = pd.DataFrame({"text": ["bad"] * 3, "remark": ["good 1", "bad 2", "good 3"]})
    assert labels_of(tuned.llm.predict(frame, columns={"text": "remark"})) == ["praise", "complaint", "praise"]


def test_an_endless_generator_is_answered_as_it_comes(tuned):
    taken = []

    def texts():
        for i in itertools.count():
            taken.append(i)
            yield TEXTS[i % 75]

    answers = tuned.llm.predict(texts(), batch_size=4)
    assert taken == []
    assert labels_of(itertools.islice(answers, 10)) == [label for _, label in rows_of(10)]
    assert len(taken) <= 65


@pytest.mark.parametrize("block", [4, 10, 4096])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_labels_do_not_depend_on_batches_or_blocks(tuned, monkeypatch, batch_size, block):
    expected = tuned.llm.predict(TEXTS * 2, batch_size=7)
    monkeypatch.setattr("llmasos.prediction.BLOCK", block)
    answers = tuned.llm.predict(TEXTS * 2, batch_size=batch_size)
    assert labels_of(answers) == labels_of(expected)
    np.testing.assert_allclose(scores_of(answers), scores_of(expected), atol=1e-5)


def test_nothing_to_answer_is_an_empty_list(tuned):
    assert tuned.llm.predict([]) == []
    assert list(tuned.llm.predict(iter([]))) == []


# -- evaluate -------------------------------------------------------------------------------------------


def test_evaluation_is_scikit_learn_on_the_predictions(tuned):
    from sklearn import metrics

    rows = [(text, LABELS[(i // 3) % 2]) for i, text in enumerate(TEXTS)]  # many are wrong on purpose
    report = tuned.llm.evaluate(rows)
    actual, found = [label for _, label in rows], labels_of(tuned.llm.predict(rows))
    values = {name: metric.value for name, metric in report.metrics.items()}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(actual, found, average="macro", zero_division=0)
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(actual, found))
    assert values["mcc"] == pytest.approx(metrics.matthews_corrcoef(actual, found))
    assert [values[f"{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    assert report.confusion.matrix == metrics.confusion_matrix(actual, found, labels=LABELS).tolist()
    assert 0.2 < values["accuracy"] < 0.8


def test_evaluation_gives_what_the_run_reported(tuned):
    values = {name: metric.value for name, metric in tuned.llm.evaluate(rows_of(40)).metrics.items()}
    assert values == pytest.approx(tuned.run.metrics, abs=1e-5)


# -- the folder -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tuned, tmp_path_factory) -> Path:
    return tuned.llm.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(tuned, saved, request) -> Path:
    return {"finetune": tuned.folder, "save": saved}[request.param]


both = pytest.mark.parametrize("folder", ["finetune", "save"], indirect=True)


@both
def test_transformers_opens_the_folder_unchanged_and_gives_equal_logits(tuned, folder, caplog, capfd):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    assert "newly initialized" not in capfd.readouterr().err
    assert not any(info.values())
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(scores_of(tuned.llm.predict(TEXTS)), logits.softmax(-1), atol=1e-5)
    assert [model.config.id2label[int(i)] for i in logits.argmax(1)] == labels_of(tuned.llm.predict(TEXTS))


@both
def test_opened_again_the_model_answers_the_same(tuned, folder):
    again = LLM.from_pretrained(folder)
    np.testing.assert_allclose(scores_of(again.predict(TEXTS)), scores_of(tuned.llm.predict(TEXTS)), atol=1e-6)
    assert again.task == tuned.llm.task


@both
def test_the_manifest_tells_task_base_data_and_metrics(tuned, folder, base):
    content = json.loads((folder / "llmasos.json").read_text())
    assert content["format"] == 1
    assert content["task"]["tag"] == "text-classification"
    assert content["task"]["labels"] == list(LABELS)
    assert content["base"] == {"ref": str(base), "revision": None, "source": "local"}
    assert {name: part["rows"] for name, part in content["data"].items()} == {"train": 200, "evaluation": 40}
    assert content["metrics"] == tuned.run.metrics
    assert content["report"] == tuned.run.report.as_dict()
    assert content["max_length"] == 64
    golden = content["tokenizer"]["golden"]
    assert [tiny_tokenizer()(item["text"])["input_ids"] for item in golden] == [item["ids"] for item in golden]


@both
def test_the_manifest_names_exactly_the_files_of_the_model_with_their_digests(folder):
    files = json.loads((folder / "llmasos.json").read_text())["files"]
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(name for name in there if name != "llmasos.json" and not name.startswith("run/"))
    bundle.verify(folder)


def test_a_copy_saved_from_an_opened_folder_keeps_metrics_and_origin(saved, tmp_path):
    copy = LLM.from_pretrained(saved).save(tmp_path / "copy")
    first, second = (json.loads((path / "llmasos.json").read_text()) for path in (saved, copy))
    assert {k: second.get(k) for k in ("metrics", "base", "data", "max_length", "task")} == {
        k: first[k] for k in ("metrics", "base", "data", "max_length", "task")
    }


def test_the_names_of_the_labels_are_in_the_configuration(tuned):
    config = json.loads((tuned.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "complaint", "1": "praise"}
    assert config["label2id"] == {"complaint": 0, "praise": 1}
    assert config["problem_type"] == "single_label_classification"


def test_labels_that_are_integers_stay_integers_on_disk_and_back(base, tmp_path):
    llm = LLM.from_pretrained(base)
    llm.finetune(TextClassificationTask(), rows_of(96, labels=(20, 10)), epochs=2, output=tmp_path / "m", **FAST)
    again = LLM.from_pretrained(tmp_path / "m")
    for model in (llm, again):
        answer = model.predict("bad 3")
        assert (answer.label, type(answer.label)) == (20, int)
        assert list(answer.scores) == [10, 20]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "10", "1": "20"}


def test_without_an_output_the_model_stays_in_memory_and_the_records_go_home(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    run = LLM.from_pretrained(base).finetune(TextClassificationTask(), rows_of(40), max_steps=1, **FAST)
    assert run.output is None
    assert run.path.parent == tmp_path / "home" / "runs"
    assert [path.name for path in run.path.iterdir()] == ["run"]
    assert (run.path / "run" / "run.json").is_file()


# -- several labels, pairs ------------------------------------------------------------------------------


def test_several_labels_at_once_from_rows_to_an_opened_folder(base, tmp_path):
    words = {"refund": "money", "parcel": "post"}
    subsets = [(), ("money",), ("post",), ("money", "post")]
    rows = [(f"{i} " + " ".join(w for w, n in words.items() if n in s), list(s)) for i in range(40) for s in subsets]
    llm = LLM.from_pretrained(base)
    task = TextClassificationTask(multi_label=True, threshold=0.4)
    run = llm.finetune(task, rows, eval_data=rows[:40], epochs=8, output=tmp_path / "m", **FAST)
    assert run.metrics["f1_micro"] > 0.9
    again = LLM.from_pretrained(tmp_path / "m")
    answers = again.predict([text for text, _ in rows[:12]])
    assert answers == llm.predict([text for text, _ in rows[:12]])
    for answer, (_, labels) in zip(answers, rows):
        assert answer.labels == tuple(name for name, p in answer.scores.items() if p >= 0.4)
        assert answer.score == answer.scores[answer.label] == max(answer.scores.values())
        assert set(answer.labels) == set(labels)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.problem_type, config.id2label) == ("multi_label_classification", {0: "money", 1: "post"})


PAIRS = [(f"good {i}", f"{word} {i}", name) for i in range(60) for word, name in zip(("bad", "good"), LABELS)]


@pytest.fixture(scope="module")
def paired(base, tmp_path_factory) -> LLM:
    """A model for pairs of which the second text decides."""
    llm = LLM.from_pretrained(base)
    folder = tmp_path_factory.mktemp("paired") / "model"
    run = llm.finetune(TextClassificationTask(), PAIRS, eval_data=PAIRS[:20], epochs=6, output=folder, **FAST)
    assert run.metrics["accuracy"] == 1.0
    return LLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "form",
    [
        lambda pairs: [{"text": a, "text_pair": b} for a, b in pairs],
        lambda pairs: {"text": [a for a, _ in pairs], "text_pair": [b for _, b in pairs]},
        lambda pairs: pd.DataFrame(pairs, columns=["premise", "hypothesis"]),
        lambda pairs: [((a, b), "label to ignore") for a, b in pairs],
        lambda pairs: [((a, b),) for a, b in pairs],
        lambda pairs: [(a, b, None) for a, b in pairs],
        lambda pairs: iter([{"sentence1": a, "sentence2": b} for a, b in pairs]),
    ],
    ids=["rows", "columns", "DataFrame", "nested", "nested alone", "triples", "iterator"],
)
def test_pairs_are_answered_by_both_texts_in_every_form(paired, form):
    pairs = [("good 1", "bad 1"), ("good 1", "good 1"), ("good 3", "bad 5")]
    assert labels_of(paired.predict(form(pairs))) == ["complaint", "praise", "complaint"]


def test_a_model_for_pairs_never_answers_about_the_first_text_alone(paired):
    row = {"text": "good 1", "text_pair": "bad 1"}
    with contextlib.suppress(DataError):  # to refuse what may mean (text, label) is as good
        answers = paired.predict([tuple(row.values())])
        np.testing.assert_allclose(scores_of(answers), scores_of(paired.predict([row])), atol=1e-6)


def test_one_row_as_the_guide_writes_it_gives_one_prediction(paired):
    assert paired.predict({"text": "good 1", "text_pair": "bad 1"}).label == "complaint"


def test_pairs_are_scored_as_transformers_scores_them(paired):
    pairs = [(a, b) for a, b, _ in PAIRS[:8]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(paired.located.path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(paired.located.path)
    inputs = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    assert inputs["token_type_ids"].max() == 1
    with torch.no_grad():
        wanted = model(**inputs).logits.softmax(-1)
    rows = [{"text": a, "text_pair": b} for a, b in pairs]
    np.testing.assert_allclose(scores_of(paired.predict(rows)), wanted, atol=1e-5)


# -- tuning on ------------------------------------------------------------------------------------------

STILL = {**FAST, "learning_rate": 1e-9, "max_steps": 1}  # so that what comes out is what went in


def drawn(notes):
    return [note for note in notes if "new weights" in note]


@pytest.fixture(params=["in memory", "saved"])
def fitted(request, tuned, base, tmp_path_factory) -> LLM:
    """A model that knows LABELS, in both states in which finetune can meet one."""
    if request.param == "saved":
        return LLM.from_pretrained(tuned.folder)
    llm = LLM.from_pretrained(tuned.folder)
    llm.finetune(TextClassificationTask(), rows_of(40), **STILL)
    return llm


def test_with_the_same_labels_training_goes_on_from_the_head_that_is_there(fitted, tuned):
    run = fitted.finetune(TextClassificationTask(labels=LABELS), rows_of(40), **STILL)
    assert drawn(run.notes) == []
    np.testing.assert_allclose(scores_of(fitted.predict(TEXTS)), scores_of(tuned.llm.predict(TEXTS)), atol=1e-4)


def test_the_same_labels_found_in_the_data_keep_the_head_too(fitted, tuned):
    run = fitted.finetune(TextClassificationTask(), rows_of(40), **STILL)
    assert drawn(run.notes) == []
    np.testing.assert_allclose(scores_of(fitted.predict(TEXTS)), scores_of(tuned.llm.predict(TEXTS)), atol=1e-4)


@pytest.mark.parametrize("given", [True, False], ids=["given", "found in the data"])
def test_other_labels_get_a_new_head_and_it_is_said(fitted, tuned, tmp_path, given):
    task = TextClassificationTask(labels=["x", "y"] if given else None)
    run = fitted.finetune(task, rows_of(40, labels=("x", "y")), output=tmp_path / "m", seed=1, **STILL)
    assert drawn(run.notes) == ["new weights for classifier: they learn from your data"]
    assert fitted.task.labels == ("x", "y")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "x", "1": "y"}
    assert not np.allclose(scores_of(fitted.predict(TEXTS)), scores_of(tuned.llm.predict(TEXTS)), atol=1e-2)


@pytest.mark.parametrize("given", [True, False], ids=["given", "found in the data"])
def test_more_labels_than_before_get_a_head_of_their_size(fitted, given):
    rows = [*rows_of(40), *[(f"so so {i}", "neither") for i in range(20)]]
    labels = ["complaint", "neither", "praise"]
    run = fitted.finetune(TextClassificationTask(labels=labels if given else None), rows, **STILL)
    assert drawn(run.notes)
    assert fitted.model.config.num_labels == 3
    assert len(fitted.predict("good 1").scores) == 3


def test_the_same_labels_in_another_order_get_a_new_head(fitted):
    run = fitted.finetune(TextClassificationTask(labels=LABELS[::-1]), rows_of(40), **STILL)
    assert drawn(run.notes)
    assert tuple(fitted.predict("good 1").scores) == LABELS[::-1]


def test_a_model_that_was_tuned_on_answers_from_its_new_weights(base):
    llm = LLM.from_pretrained(base)
    llm.finetune(TextClassificationTask(labels=LABELS), rows_of(40), **STILL)
    before = scores_of(llm.predict(TEXTS))
    llm.finetune(TextClassificationTask(labels=LABELS), rows_of(96), epochs=2, **FAST)
    assert not np.allclose(scores_of(llm.predict(TEXTS)), before, atol=1e-2)


# -- every option of prediction -------------------------------------------------------------------------


@pytest.fixture(params=["predict", "evaluate"])
def ask(request, tuned):
    """Run texts through either verb with options."""

    def call(texts, **options):
        llm = LLM.from_pretrained(tuned.folder)
        if request.param == "predict":
            return llm.predict(texts, progress=lambda _: None, **options)
        return llm.evaluate([(text, "praise") for text in texts], **{"allow_truncated": 1.0, **options})

    call.verb = request.param
    return call


def batch_size(ask, batches, _):
    ask(TEXTS[:7], batch_size=3)
    assert [len(lengths) for lengths, _ in batches] == [3, 3, 1]


def max_length(ask, batches, _):
    ask(["good" * 9], max_length=11)
    ask(["goodgoodg"])
    assert batches[0][0] == [11]
    np.testing.assert_array_equal(batches[0][1], batches[1][1])


def allow_truncated(ask, batches, _):
    texts = ["good"] * 3 + ["good" * 9]
    ask(texts, max_length=11, allow_truncated=0.25)
    with pytest.raises(DataError, match="11 tokens") as caught:
        ask(texts, max_length=11, allow_truncated=0.24)
    assert "allow_truncated" in caught.value.hint


def precision(ask, batches, _):
    for name in ("float32", "bfloat16"):
        ask(TEXTS[:4], precision=name)
    gap = np.abs(batches[0][1] - batches[1][1]).max()
    assert 1e-5 < gap < 0.1 * np.abs(batches[0][1]).max()


def speed(ask, batches, monkeypatch):
    calls, pack = [], torch_engine.pack
    monkeypatch.setattr(torch_engine, "pack", lambda *arguments: calls.append(1) or pack(*arguments))
    ask(TEXTS[:4], speed="plain")
    assert calls == []
    ask(TEXTS[:4], speed="auto")
    assert calls == [1]


def device(ask, batches, _):
    with pytest.raises(HardwareError, match="device='meta'"):
        ask(TEXTS[:4], device="meta")
    with pytest.raises(UsageError, match="device='gpu'"):
        ask(TEXTS[:4], device="gpu")


def threads(ask, batches, _):
    before = torch.get_num_threads()
    try:
        for count in (2, 1):
            ask(TEXTS[:4], threads=count)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def allow_dropped(ask, batches, _):
    if ask.verb == "predict":  # every text gets an answer there, or an error
        with pytest.raises(UsageError, match="allow_dropped"):
            ask(["good 1"], allow_dropped=0.5)
        return
    with pytest.raises(DataError, match="left out"):
        ask(["good 1", ""])
    assert ask(["good 1", ""], allow_dropped=0.5).rows == 1


OPTIONS = {check.__name__: check for check in (
    batch_size, max_length, allow_truncated, allow_dropped, precision, speed, device, threads
)}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_of_prediction_and_evaluation_does_something(name, ask, batches, monkeypatch):
    OPTIONS[name](ask, batches, monkeypatch)


def test_prediction_says_how_many_texts_it_cut(tuned):
    texts, events = ["good 1", "good" * 9, "good" * 8], []
    with pytest.warns(TruncatedWarning, match=r"2 texts were cut to 11 tokens \(50 tokens were not seen\).*row 2"):
        tuned.llm.predict(texts, max_length=11)
    with pytest.warns(TruncatedWarning, match="1 text was cut"):
        tuned.llm.predict(texts[1], max_length=11)
    tuned.llm.predict(texts, max_length=11, progress=events.append)
    assert [event.level for event in events] == ["warning"]


@pytest.mark.parametrize("verb", ["predict", "embed"])
@pytest.mark.parametrize("kind", [str, list, iter], ids=["a text", "a list", "an iterator"])
def test_the_warning_of_cut_texts_points_at_the_line_that_asked(tuned, verb, kind):
    ask, texts = getattr(tuned.llm, verb), "good" * 9 if kind is str else kind(["good" * 9])
    with pytest.warns(TruncatedWarning) as caught:
        assert [*ask(texts, max_length=11)] if kind is iter else ask(texts, max_length=11) is not None
    (line,) = {warning.filename for warning in caught}
    assert line == __file__


def test_no_option_of_prediction_is_without_its_test():
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(EvaluateConfig)}


def test_one_model_may_change_its_options_from_call_to_call(tuned):
    exact = scores_of(tuned.llm.predict(TEXTS, precision="float32"))
    rough = scores_of(tuned.llm.predict(TEXTS, precision="bfloat16"))
    plain = scores_of(tuned.llm.predict(TEXTS, precision="float32", speed="plain"))
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.1)
    np.testing.assert_allclose(plain, exact, atol=1e-5)
    np.testing.assert_array_equal(scores_of(tuned.llm.predict(TEXTS, precision="float32")), exact)


def test_an_evaluation_says_how_many_rows_it_cut_and_left_out(tuned):
    events = []
    rows = [("good" * 9, "praise"), ("", "praise"), ("good 1", "praise")]
    tuned.llm.evaluate(rows, max_length=11, allow_dropped=0.5, progress=events.append)
    said = [event.text for event in events if hasattr(event, "text")]
    assert said == ["1 of 3 rows are cut to 11 tokens", "1 of 3 rows are left out"]
