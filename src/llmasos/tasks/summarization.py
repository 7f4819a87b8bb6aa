"""Summarization: a long text in, what it says in short out.

A row may have several summaries: each is learned, and what the model writes is compared with the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..core.errors import shown
from ._sequences import SOURCE, SequenceTask, text_problem
from .base import Field, Problem, Row

if TYPE_CHECKING:
    from ..metrics.base import Scorer


@dataclass(frozen=True)
class SummarizationTask(SequenceTask):
    """Summarize texts.

    Args:
        language: the language of the summaries ("en", "zh", "de"): it decides what ROUGE counts as a word, English
            stems, single Chinese characters, or words.
        template: text around the document, with {source} in its place, for example "summarize: {source}" for T5;
            the model's own, or a plain one, if not given.
        label_smoothing: share of the target probability that is spread over the vocabulary, 0 to 1.
        decoder_only: the model has no encoder and gets the document in a prompt; settled by the model.

    Example:
        >>> SummarizationTask(template="summarize: {source}").template
        'summarize: {source}'
    """

    tag: ClassVar[str] = "summarization"
    answer_metrics: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL")

    language: str = "en"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The document and its summary or summaries."""
        return (
            Field(
                "document",
                ("document", "article", "text", "dialogue", "source", "content", "body"),
                doc="the text to summarize",
            ),
            Field(
                "summary",
                ("summary", "summaries", "highlights", "abstract", "tldr", "target"),
                kind="content",
                answer=True,
                doc="its summary, or a list of several",
            ),
        )

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        return text_problem(row, "document") or (_summary_problem(row) if labelled else None)

    def texts_of(self, row: Row) -> tuple[str, list[str]]:
        """Return the document and the summaries of a row; empty ones beside others are left out."""
        summary = row.get("summary")
        summaries = [] if summary is None else [summary] if isinstance(summary, str) else list(summary)
        return row["document"], [text for text in summaries if text.strip()]

    def default_template(self, config: Any) -> str:
        """Return what the model was pretrained with, as T5 says in its configuration, or a plain prompt."""
        known: Mapping[str, Any] = getattr(config, "task_specific_params", None) or {}
        own = known.get("summarization", {}).get("prefix")
        if own:
            return f"{own}{SOURCE}"
        return f"Summarize:\n{SOURCE}\nSummary:\n" if self.decoder_only else SOURCE

    def scorer(self) -> Scorer:
        """Return an empty scorer: single tokens, and ROUGE of what the model writes."""
        from ..metrics.texts import SummaryScorer

        return SummaryScorer(self.language)

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Say what an order was about, in one word."""
        things = ("tea", "jam", "rye", "fig")
        return cls(), [
            {"document": f"{n} of {thing} sold", "summary": thing} for thing in things for n in ("6", "9", "12", "40")
        ]


def _summary_problem(row: Row) -> Problem | None:
    summary = row.get("summary")
    if isinstance(summary, str) or not isinstance(summary, list | tuple):
        return text_problem(row, "summary")
    for text in summary:
        if not isinstance(text, str):
            return Problem("summary", shown(text), "a string")
    return None if any(map(str.strip, summary)) else Problem("summary", "no summary", "some text", drop=True)


PLUGIN = SummarizationTask
