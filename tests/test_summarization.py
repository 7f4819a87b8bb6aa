"""Summarization: several summaries a row, ROUGE as rouge-score computes it, words of other scripts."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmasos import LLM, SummarizationTask
from llmasos.core.errors import DataError
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.metrics.texts import SummaryScorer
from tiny import save_tiny, tiny_tokenizer

ROW = {"document": "the cat sat on the mat. it slept.", "summaries": ["a cat slept", "the cat sat"]}


def test_each_of_several_summaries_is_learned():
    task, tokenizer = SummarizationTask(), tiny_tokenizer()
    data = encode(read([ROW, {**ROW, "summaries": ["one", " "]}], task.fields), task, tokenizer, 64)
    assert data.rows.tolist() == [0, 0, 1]
    texts = [tokenizer.decode(data.targets[a:b], skip_special_tokens=True).replace(" ", "").replace("##", "")
             for a, b in zip(data.target_offsets, data.target_offsets[1:], strict=False)]  # fmt: skip
    assert texts == ["acatslept", "thecatsat", "one"]


@pytest.mark.parametrize("column", ["summary", "highlights", "tldr"])
def test_one_summary_may_be_a_text_that_looks_like_json(column):
    task = SummarizationTask()
    row = {"article": "a text", column: '["quoted"]'}
    (found,) = read([row], task.fields).rows([0])
    assert task.texts_of(found) == ("a text", ['["quoted"]'])


@pytest.mark.parametrize(
    ("summary", "drop"), [("", True), ([], True), ([" "], True), (None, False), (3, False), ([3], False)]
)
def test_rows_without_a_summary_are_named(summary, drop):
    problem = SummarizationTask().problem({"document": "a text", "summary": summary})
    assert (problem.field, problem.drop) == ("summary", drop)


def test_summaries_that_are_their_documents_are_refused():
    with pytest.raises(DataError, match="the same text in 3 of 3 rows"):
        SummarizationTask().fitted([{"document": "a", "summary": ["a", "b"]}] * 3)


def test_t5_s_own_prefix_is_taken_from_its_configuration():
    from transformers import LlamaConfig, T5Config

    config = T5Config(task_specific_params={"summarization": {"prefix": "summarize: "}})
    assert SummarizationTask().suited(config).template == "summarize: {source}"
    assert SummarizationTask(template="tl;dr {source}").suited(config).template == "tl;dr {source}"
    assert SummarizationTask().suited(LlamaConfig()).template.endswith("Summary:\n")


def scorer_of(written: list[str], wanted: list[list[str]], language: str = "en") -> SummaryScorer:
    scorer = SummaryScorer(language)
    scorer.add([np.asarray([[1.0, 0.0]])] * len(written), (list(range(len(written))), np.arange(len(written))))
    scorer.add_texts(written, wanted, ["The first sentence. The second."] * len(written))
    return scorer


def test_rouge_is_that_of_rouge_score_with_the_nearest_summary():
    written = ["the cats were sleeping", "a dog barked loudly at night"]
    wanted = [["a cat slept", "the cat was sleeping"], ["dogs bark at night"]]
    report = scorer_of(written, wanted).report(samples=100)
    library = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        rows = [library.score_multi(refs, text)[name].fmeasure for text, refs in zip(written, wanted, strict=True)]
        assert report.metrics[name].value == pytest.approx(np.mean(rows))
        assert "porter" in report.signatures[name]
    assert report.metrics["rouge1"].low < report.metrics["rouge1"].high


def test_the_baseline_is_the_first_sentence():
    assert scorer_of(["x"], [["The first sentence."]]).baseline()["rougeL"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("language", "text", "wanted", "value"),
    [("zh", "猫睡觉", "猫在睡觉", 6 / 7), ("de", "Größere Häuser", "größere Bäume", 0.5), ("en", "猫", "猫", 0.0)],
)
def test_words_are_those_of_the_language(language, text, wanted, value):
    scorer = scorer_of([text], [[wanted]], language)
    assert scorer.values()["rouge1"] == pytest.approx(value)
    assert ("porter" in scorer.signatures()["rouge1"]) == (language == "en")


def test_a_tiny_model_summarizes_and_is_scored(tmp_path):
    task, rows = SummarizationTask.sample()
    model = LLM.from_pretrained(save_tiny(tmp_path / "model", task.auto_class))
    model.finetune(task, rows, eval_data=rows, epochs=15, learning_rate=1e-2, batch_size=8, dropout=0.0, threads=1,
                   precision="float32", progress=False)  # fmt: skip
    assert model.predict("9 of tea sold", threads=1).text.replace(" ", "").replace("##", "") == "tea"
    assert set(model.evaluate(rows, threads=1).metrics) == {*task.metric_names, *task.answer_metrics}


@pytest.mark.data
def test_scitldr_is_read_with_all_its_summaries(shared_data):
    task = SummarizationTask()
    rows = read(shared_data / "scitldr" / "validation.jsonl", task.fields)
    found = [task.texts_of(row) for batch in rows.batches() for row in batch]
    assert len(found) == 618
    assert max(len(summaries) for _, summaries in found) > 1
    assert [task.problem(row) for row in rows.rows(range(50))] == [None] * 50
