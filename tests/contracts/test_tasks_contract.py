"""What every task promises, whatever it is for.

A new task is covered by its ``sample()`` alone. Variants of a task, under its tag in VARIANTS, are
pairs of a task and rows, and keep the same promises.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from llmasos import LLM
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import Projected
from llmasos.core import plugins
from llmasos.core.config import WriteConfig
from llmasos.data.batching import Batch, encoded, gather, split
from llmasos.data.dataset import read
from llmasos.data.encoding import Encoded, encode, flattened
from llmasos.engines.torch import TorchEngine
from llmasos.errors import DataError
from llmasos.evaluation import computed, evaluate, in_order, referenced
from llmasos.generation.generator import Generator
from llmasos.loading import load_model
from llmasos.metrics.base import LOWER_IS_BETTER
from llmasos.prediction import written
from llmasos.tasks.base import Row, Task
from tiny import save_tiny, word_tokenizer

NAMES = plugins.names("tasks")
LENGTH = 64


def _variants() -> dict[str, dict[str, tuple[Task, list[dict[str, Any]]]]]:
    from llmasos import SentenceSimilarityTask as Similarity
    from llmasos import TextClassificationTask as Classify

    _, rows = Classify.sample()
    several = [{**row, "label": [["praise"], ["complaint", "praise"], []][i % 3]} for i, row in enumerate(rows)]
    pairs = [{"text": "today", "text_pair": row["text"], "label": row["label"]} for row in rows]
    numbers = [{**row, "label": 7 * (row["label"] == "praise")} for row in rows]
    answers = Similarity.sample()[1]
    triplets = [{**row, "negative": answers[i - 1]["positive"]} for i, row in enumerate(answers)]
    scored = [{"anchor": "a" * 9, "positive": "a" * (i % 10) + "z" * 5, "score": i % 10} for i in range(24)]
    return {
        "sentence-similarity": {
            "symmetric": (Similarity(symmetric=True), answers),
            "triplets": (Similarity(), triplets),
            "scored": (Similarity(score_range=(0, 9)), scored),
            "scored in order": (Similarity(scored_loss="cosent"), scored),
        },
        "text-classification": {
            "several labels": (Classify(multi_label=True, threshold=0.3), several),
            "several weighted labels": (Classify(multi_label=True, class_weights={"praise": 3.0}), several),
            "several balanced labels": (Classify(multi_label=True, class_weights="balanced"), several),
            "pairs": (Classify(), pairs),
            "numbered labels": (Classify(class_weights={0: 2.0, 7: 0.5}), numbers),
            "balanced and smoothed": (Classify(class_weights="balanced", label_smoothing=0.1), rows[:-5]),
        },
        "token-classification": _tagged_variants(),
    }


def _tagged_variants() -> dict[str, tuple[Task, list[dict[str, Any]]]]:
    from llmasos import TokenClassificationTask as Tag

    _, rows = Tag.sample()
    text, spans = "ask ida in rome. " * 3, [{"start": 4, "end": 7, "label": "PER"}]
    texts = [
        {"text": f"{i} {text}", "spans": [{**spans[0], "start": 6 + i // 10, "end": 9 + i // 10}]} for i in range(12)
    ]
    raw = [{**row, "tags": [tag[2:] or tag for tag in row["tags"]]} for row in rows]
    return {
        "spans": (Tag(stride=8), texts),
        "raw tags, all subwords": (Tag(scheme="raw", label_all_subwords=True), raw),
    }


class Case(NamedTuple):
    """A task, settled, with its rows, encoded, and a tiny model with its head."""

    name: str
    task: Task
    rows: list[dict[str, Any]]
    tokenizer: Any
    model: Any
    data: Encoded

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def engine(self) -> TorchEngine:
        return TorchEngine(self.model, self.pad, output=self.task.output, speed="plain")

    def batch(self) -> Batch:
        """All examples, as an evaluation sees them: noise settled."""
        return self.task.noised(gather(self.data, np.arange(len(self.data))), np.random.default_rng(0))

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.task.loss(transformers_outputs(self.model, batch, self.pad, self.task.output), batch)


CASES = [(name, "sample") for name in NAMES] + [(tag, variant) for tag, v in _variants().items() for variant in v]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(task: type[Task]) -> Path:
        if task.auto_class not in made:
            made[task.auto_class] = save_tiny(tmp_path_factory.mktemp("tiny") / "model", task.auto_class)
        return made[task.auto_class]

    return folder


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}: {variant}" for name, variant in CASES])
def case(request: pytest.FixtureRequest, folders: Any) -> Case:
    name, variant = request.param
    task, rows = plugins.load("tasks", name).sample() if variant == "sample" else _variants()[name][variant]
    llm = LLM.from_pretrained(folders(type(task)))
    task, _ = task.fitted(rows, llm.tokenizer)
    data = encode(read(rows, task.fields), task, llm.tokenizer, LENGTH)
    model = load_model(llm.located.path, task, seed=3).model.eval()
    if task.needs_reference:
        data = referenced(TorchEngine(model, 0, output=task.output, speed="plain"), task, data)
    return Case(name, task, rows, llm.tokenizer, model, data)


def with_words(known: list[str], folder: Path, copy: Path) -> LLM:
    """Open a copy of a tiny model whose tokenizer knows only these words."""
    shutil.copytree(folder, copy)
    word_tokenizer(known).save_pretrained(copy)
    return LLM.from_pretrained(copy)


ONE_STEP = {"max_steps": 1, "precision": "float32", "threads": 1, "progress": False}


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_cannot_represent_the_text_is_refused_with_its_rate(name, folders, tmp_path):
    task, rows = plugins.load("tasks", name).sample()
    llm = with_words([], folders(type(task)), tmp_path / "model")
    with pytest.raises(DataError, match=r"no token for 100\.0% of the text .*, row \d+; allowed are") as caught:
        llm.finetune(task, rows, **ONE_STEP)
    assert "trained on this language" in caught.value.hint
    assert "or a larger allow_unknown" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_what_is_allowed_of_unknown_tokens_is_told_with_its_rate(name, folders, tmp_path):
    task, rows = plugins.load("tasks", name).sample()
    words = sorted(set(re.findall(r"\w+|[^\w\s]", json.dumps(rows))))
    llm, said = with_words(words[::2], folders(type(task)), tmp_path / "model"), []
    with pytest.raises(DataError, match=r"no token for .*; allowed are 0%"):
        llm.finetune(task, rows, eval_data=rows, allow_unknown=0.0, **ONE_STEP)
    run = llm.finetune(task, rows, eval_data=rows, allow_unknown=1.0, **ONE_STEP)
    assert [bool(UNKNOWN.search(note)) for note in run.notes].count(True) == 2  # training rows, validation rows
    llm.evaluate(rows, progress=said.append, threads=1, **WRITE.get(name, {}))
    assert any(UNKNOWN.search(getattr(event, "text", "")) for event in said)


UNKNOWN = re.compile(r"no token for [1-9]\d?\.\d% of the text")
WRITE = {name: {"max_new_tokens": 2} for name in NAMES if plugins.load("tasks", name).scores_answers}


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_knows_the_text_gives_no_note(name, folders):
    task, rows = plugins.load("tasks", name).sample()
    run = LLM.from_pretrained(folders(type(task))).finetune(task, rows, eval_data=rows, **ONE_STEP)
    assert not [note for note in run.notes if "no token for" in note]


def required_text(task: Task, row: Row) -> str | None:
    return next((f.name for f in task.fields if f.kind == "text" and not f.is_answer and row.get(f.name)), None)


def without_answers(task: Task, row: Row) -> dict[str, Any]:
    answers = {field.name for field in task.fields if field.is_answer}
    return {name: value for name, value in row.items() if name not in answers}


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_learns_the_sample(name, folders):
    task, rows = plugins.load("tasks", name).sample()
    llm = LLM.from_pretrained(folders(type(task)))
    run = llm.finetune(task, rows, eval_data=rows, epochs=20, batch_size=8, learning_rate=3e-3, dropout=0.0,
                       precision="float32", threads=1, evaluations=1, progress=False)  # fmt: skip
    reached, common = (values[task.default_metric] for values in (run.metrics, run.report.baseline))
    assert reached < 0.5 * common if task.default_metric in LOWER_IS_BETTER else reached >= 0.9 > common
    assert len(llm.predict([without_answers(task, row) for row in rows], threads=1)) == len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_found_under_its_tag(name):
    assert plugins.load("tasks", name).tag == name


def test_a_task_survives_being_stored(case):
    for task in (case.task, type(case.task).sample()[0]):  # with its labels settled, and before
        stored = task.to_dict()
        assert stored["tag"] == case.name
        for content in (stored, json.loads(json.dumps(stored))):
            back = type(task).from_dict(content)
            assert (back, back.to_dict()) == (task, stored)
    again = type(case.task).from_dict(json.loads(json.dumps(case.task.to_dict())))
    assert again.head_config() == case.task.head_config()
    for one, other in zip(
        *(flat(task.encode(case.rows, case.tokenizer, LENGTH)) for task in (again, case.task)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def flat(encoding: Any) -> list[Any]:
    return [*encoding.ids, *([] if encoding.targets is None else encoding.targets)]


def test_settling_a_task_twice_changes_nothing(case):
    assert case.task.fitted(case.rows, case.tokenizer)[0] == case.task


def test_good_rows_are_accepted_and_damaged_ones_named(case):
    assert [case.task.problem(row) for row in case.rows] == [None] * len(case.rows)
    for field in (field for field in case.task.fields if field.required):
        for value in (None, 1.5, {}):
            if field.kind == "number" and value == 1.5:
                continue
            assert case.task.problem({**case.rows[0], field.name: value}).field == field.name
        assert not case.task.problem({**case.rows[0], field.name: None}).drop
    assert case.task.problem(without_answers(case.task, case.rows[0]), labelled=False) is None


def test_an_empty_text_may_be_left_out(case):
    if text := required_text(case.task, case.rows[0]):
        assert case.task.problem({**case.rows[0], text: "  "}).drop


def test_encoding_keeps_to_max_length_and_loses_no_token_in_silence(case):
    full, short = (case.task.encode(case.rows, case.tokenizer, longest) for longest in (10_000, 24))
    assert set(full.truncated) == {0}
    assert max(len(ids) for ids in short.ids) <= 24
    assert all(ids.dtype == np.int32 for ids in short.ids)
    assert len(full.truncated) == len(short.truncated) == len(case.rows)
    rows = list(range(len(case.rows))) if short.rows is None else short.rows
    group = case.task.group
    kept = np.zeros(len(case.rows), dtype=int)
    np.add.at(kept, np.repeat(rows, group), [len(ids) for ids in short.ids])
    whole = np.zeros(len(case.rows), dtype=int)
    np.add.at(
        whole, np.repeat(range(len(case.rows)) if full.rows is None else full.rows, group), [len(i) for i in full.ids]
    )
    assert all(kept + np.asarray(short.truncated) >= whole)  # windows repeat some tokens, and the model's own
    if short.types is not None:
        assert [len(types) for types in short.types] == [len(ids) for ids in short.ids]


def test_a_row_is_encoded_alike_whatever_is_beside_it(case):
    together = case.task.encode(case.rows, case.tokenizer, 24)
    alone = [case.task.encode([row], case.tokenizer, 24) for row in case.rows]
    for one, other in zip([ids for e in alone for ids in e.ids], together.ids, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [e.truncated[0] for e in alone] == together.truncated


def test_the_summed_loss_of_a_batch_is_the_sum_of_its_parts(case):
    batch = case.batch()
    with torch.no_grad():
        whole = float(case.loss(batch))
        assert 0 < whole < np.inf
        assert case.task.weight(batch) > 0
        if case.task.joint:
            return
        for size in (1, 7):
            parts = split(batch, size)
            assert sum(float(case.loss(part)) for part in parts) == pytest.approx(whole, rel=1e-4)
            assert sum(case.task.weight(part) for part in parts) == pytest.approx(case.task.weight(batch))


def test_the_loss_falls_along_its_gradient_also_in_half_precision(case):
    batch = case.batch()
    with torch.no_grad():
        outputs = transformers_outputs(case.model, batch, case.pad, case.task.output)
        outputs = outputs.head(outputs.hidden) if isinstance(outputs, Projected) else outputs
    for dtype in (torch.float32, torch.bfloat16):
        given = outputs.detach().to(dtype).clone().requires_grad_()
        loss = case.task.loss(given, batch)
        loss.backward()
        assert (loss.ndim, loss.dtype, given.grad.dtype) == (0, torch.float32, dtype)
        small = 0.5 / max(1.0, float(given.grad.norm()))
        assert float(case.task.loss((given - small * given.grad).detach(), batch)) < float(loss.detach())


def test_there_is_one_answer_per_row_and_it_is_json(case):
    rows = [without_answers(case.task, row) for row in case.rows]
    answers = answers_of(case, rows)
    assert len(answers) == len(case.rows)
    for answer in answers:
        content = answer.as_dict()
        assert json.loads(json.dumps(content, allow_nan=False)).keys() == content.keys()


def answers_of(case: Case, rows: list[Any], scale: float = 1.0) -> list[Any]:
    if case.task.generates:
        settled = case.task.generation(case.tokenizer)
        first = {name: settled.pop(name) for name in ("first_token", "start_token") if name in settled}
        config = WriteConfig(**{**settled, "max_new_tokens": 4})
        return list(written(Generator(case.model, case.tokenizer, LENGTH), case.task, rows, config, first))
    encoding = case.task.encode(rows, case.tokenizer, LENGTH, labelled=False)
    part = flattened(encoding, case.task.group)
    outputs = in_order(case.task, part, ((b, scale * out) for b, out in computed(case.engine, part, 5)))
    return case.task.decode(outputs, encoding, rows)


def test_answers_of_extreme_outputs_stay_finite(case):
    for answer in answers_of(case, [without_answers(case.task, row) for row in case.rows], scale=1e4):
        json.dumps(answer.as_dict(), allow_nan=False)


def test_scores_are_finite_and_do_not_depend_on_the_batches(case):
    dataset = read(case.rows, case.task.fields)
    (loss, whole), (other, parts) = (
        evaluate(case.engine, case.task, case.data, dataset, batch_size=n) for n in (64, 5)
    )
    values = whole.values()
    assert case.task.default_metric in values
    assert set(case.task.metric_names) <= set(values)
    assert values == pytest.approx(parts.values(), rel=1e-4, abs=1e-6)
    if not case.task.joint:
        assert loss == pytest.approx(other, rel=1e-4)
    assert np.isfinite(list(values.values())).all()
    assert np.isfinite(list(whole.baseline().values())).all()
    report = whole.report(samples=50)
    assert report.rows == len(case.rows)
    json.dumps(report.as_dict(), allow_nan=False)
    assert all(low <= value <= high for value, low, high in report.metrics.values())


def test_examples_come_back_out_of_a_batch_as_they_went_in(case):
    batch = gather(case.data, np.arange(len(case.data)))
    order = np.argsort(batch.rows, kind="stable")
    again = gather(encoded(batch), order)
    assert sorted(again.lengths) == sorted(batch.lengths)
    part = case.data.part(1, 3)
    assert len(part) == 2
    np.testing.assert_array_equal(
        part.ids, case.data.ids[case.data.offsets[case.data.group] : case.data.offsets[3 * case.data.group]]
    )
