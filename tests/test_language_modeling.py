"""Language modeling: every token of every document is foretold once, and documents never see each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers

from llmasos import LLM, LanguageModelingTask
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import Snapshot, find, pack
from llmasos.core.errors import UsageError
from llmasos.data.batching import gather
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.data.files import Record
from llmasos.data.lines import joined
from llmasos.engines.torch import TorchEngine
from llmasos.evaluation import evaluate
from llmasos.metrics.tokens import TokenScorer
from tiny import save_tiny, tiny_tokenizer

DOCUMENTS = ["one two three four five six seven", "a short one", "and the last of them all"]
TASK = LanguageModelingTask()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", TASK.auto_class)


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def encoded(rows, length=10):
    return encode(read(rows, TASK.fields), TASK, tiny_tokenizer(), length)


def test_each_token_of_a_document_is_a_target_once_and_the_end_is_the_last():
    tokenizer = tiny_tokenizer()
    data = encoded(DOCUMENTS)
    for i, text in enumerate(DOCUMENTS):
        (sequences,) = np.nonzero(data.rows == i)
        targets = np.concatenate([data.targets[data.offsets[s] : data.offsets[s + 1]] for s in sequences])
        assert targets.tolist() == tokenizer(text)["input_ids"][1:]
        assert targets[-1] == tokenizer.sep_token_id
    assert data.lengths.max() == 10
    assert set(data.lengths[np.diff(data.rows, append=-1) == 0]) == {10}  # only the last sequence is shorter


def test_a_sequence_goes_on_where_the_one_before_was_cut():
    data = encoded(DOCUMENTS[:1])
    first, second = (data.ids[data.offsets[i] : data.offsets[i + 1]] for i in (0, 1))
    assert data.targets[data.offsets[1] - 1] == second[0]
    np.testing.assert_array_equal(data.targets[: len(first) - 1], first[1:])


def test_documents_packed_together_score_as_alone(model):
    data = encoded(DOCUMENTS, 64)
    engine = TorchEngine(model, 0, output="vocabulary")
    together = engine.outputs(gather(data, np.arange(3)))
    order = gather(data, np.arange(3)).rows
    alone = np.concatenate([engine.outputs(gather(data, np.asarray([i]))) for i in order])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert engine.how == "float32, packed forward of architectures/llama"


def test_the_loss_is_that_of_transformers_own_formula(model):
    data = encoded(["one two three"], 64)
    batch = gather(data, np.asarray([0]))
    ids = torch.as_tensor([*batch.ids.tolist(), int(batch.targets[-1])])[None]
    own = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
    packed = find(model, "vocabulary")[0].forward(model, Snapshot(torch.float32), "vocabulary")(
        pack(batch, "cpu", "vocabulary")
    )
    for outputs in (packed, transformers_outputs(model, batch, 0, "vocabulary")):
        assert TASK.loss(outputs, batch).item() == pytest.approx(own.item(), rel=1e-5)
    assert TASK.weight(batch) == len(batch.ids)


def test_metrics_are_the_formulas_over_all_tokens(model):
    rows = read(DOCUMENTS, TASK.fields)
    data = encode(rows, TASK, tiny_tokenizer(), 10)
    loss, scorer = evaluate(TorchEngine(model, 0, output="vocabulary"), TASK, data, rows)
    values, total = scorer.values(), loss * len(data.targets)
    assert values["loss"] == pytest.approx(loss)
    assert values["perplexity"] == pytest.approx(math.exp(loss))
    assert values["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(map(len, DOCUMENTS)))
    assert scorer.report(50).rows == 3


def test_the_baseline_is_the_entropy_of_the_tokens(model):
    rows = read(DOCUMENTS, TASK.fields)
    data = encode(rows, TASK, tiny_tokenizer(), 64)
    scorer = evaluate(TorchEngine(model, 0, output="vocabulary"), TASK, data, rows)[1]
    share = np.unique(data.targets, return_counts=True)[1] / len(data.targets)
    assert scorer.baseline()["loss"] == pytest.approx(-(share * np.log(share)).sum())
    assert scorer.baseline()["token_accuracy"] == pytest.approx(share.max())


def test_a_scorer_keeps_its_size_and_its_sums_with_many_rows():
    scorer, rng = TokenScorer(bytes=True), np.random.default_rng(0)
    for _ in range(4):
        outputs = [np.c_[rng.random(2), [1.0, 0.0]] for _ in range(4000)]
        scorer.add(outputs, np.arange(4000), np.full(4000, 3))
    assert scorer._blocks._sums.shape == (10_000, 4)
    assert scorer.values()["token_accuracy"] == 0.5
    report = scorer.report(100)
    assert report.rows == 16_000
    assert report.metrics["loss"].low < 0.5 < report.metrics["loss"].high


def test_lines_of_a_file_are_one_text_with_its_line_ends(tmp_path):
    text = "First line.\n\n  indented\nlast\n"
    (tmp_path / "a.txt").write_text(text)
    rows = read(tmp_path / "a.txt", TASK.fields)
    assert rows.rows([0]) == [{"line": text}]
    data = encode(rows, TASK, tiny_tokenizer(), 64)
    assert tiny_tokenizer().sep_token_id not in data.targets  # the text does not end where a piece does


def test_lines_are_documents_where_columns_say_so(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    rows = read(tmp_path / "a.txt", TASK.fields, columns={"text": "line"})
    assert [row["text"] for row in rows.rows(range(3))] == ["one", "", "two"]
    assert rows.where(2) == "a.txt, row 3 (line 3)"


def test_pieces_end_at_a_blank_line_or_when_twice_as_long():
    lines = ["aaaa", "bbbb", "", "cccc", "dddd", "eeee", "ffff", "gg"]
    records = (Record({"line": line}, number) for number, line in enumerate(lines, 1))
    pieces = list(joined(records, "line", 8))
    assert [piece.values["line"] for piece in pieces] == ["aaaa\nbbbb\n\n", "cccc\ndddd\neeee\nffff\n", "gg\n"]
    assert [piece.line for piece in pieces] == [1, 4, 8]


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.sep_token = None
    with pytest.raises(UsageError, match="no token for the end"):
        TASK.fitted([{"text": "abc"}], tokenizer)


def test_a_text_is_scored_as_a_whole_whatever_max_length(folder):
    llm = LLM.from_pretrained(folder)
    llm.task = TASK
    text = "one two three four five six seven"
    whole = llm.predict(text, precision="float32", threads=1)
    assert whole.tokens == len(tiny_tokenizer()(text)["input_ids"]) - 1
    assert whole.perplexity == pytest.approx(math.exp(whole.loss))
    assert whole.bits_per_byte == pytest.approx(whole.loss * whole.tokens / math.log(2) / len(text))
    assert llm.predict(text, precision="float32", threads=1, max_length=8).tokens == whole.tokens


def test_continued_pretraining_lowers_the_perplexity_of_its_text(folder):
    llm = LLM.from_pretrained(folder)
    rows = [f"one two {word} one two {word}" for word in ("six", "ten")] * 8
    run = llm.finetune(TASK, rows, eval_data=rows, epochs=6, batch_size=4, learning_rate=3e-3, evaluations=1,
                       precision="float32", threads=1, progress=False)  # fmt: skip
    assert run.metrics["perplexity"] < 0.5 * run.report.baseline["perplexity"] or run.metrics["token_accuracy"] > 0.6
    assert run.report.metrics["bits_per_byte"].value > 0


@pytest.mark.data
def test_shakespeare_is_read_whole(shared_data):
    path = shared_data / "tinyshakespeare" / "input.txt"
    rows = read(path, TASK.fields)
    pieces = [row["line"] for batch in rows.batches() for row in batch]
    assert "".join(pieces) == path.read_text()
    assert {4096 <= len(piece) < 3 * 4096 for piece in pieces[:-1]} == {True}
