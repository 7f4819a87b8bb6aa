"""Direct preference optimisation: raise the odds of the chosen answer over the rejected one (Rafailov et al. 2023).

The loss of a pair is -log sigmoid(beta ((log p(c) - log r(c)) - (log p(r) - log r(r)))), equation 7 there, p being
the model and r the model as it was: what r gives for each answer is computed once, before the training. With
label smoothing a share of the preferences counts as wrong (Mitchell 2023, "conservative DPO").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError
from . import _chat_template as chat
from ._conversations import PROMPT_FIELDS, Conversation, Wrong, conversation
from .base import IGNORED, Encoding, Field, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True)
class PreferenceTask(Task):
    """Prefer chosen answers to rejected ones, staying near the model as it was.

    Args:
        beta: how dear it is to leave the reference: small values let the model go further.
        label_smoothing: share of the pairs taken to be the wrong way round, 0 to below 0.5.
        chat_template: a Jinja template that replaces the model's own and is saved with it. A model that has none
            gets a plain one.
    """

    tag: ClassVar[str] = "preference"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    default_metric: ClassVar[str] = "reward_accuracy"
    output: ClassVar[str] = "vocabulary"
    group: ClassVar[int] = 2
    generates: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    label_smoothing: float = 0.0
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"beta={self.beta}", hint="a number above 0; 0.1 is usual")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise UsageError(f"label_smoothing={self.label_smoothing}", hint="a share from 0 to below 0.5")

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """A prompt, the answer that is better and the one that is worse."""
        docs = {"chosen": "the better answer: a text, or messages", "rejected": "the worse answer"}
        return (*PROMPT_FIELDS, *(Field(n, kind="content", answer=True, required=False, doc=docs[n]) for n in ANSWERS))

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        try:
            if not labelled:
                conversation(row, None)
                return None
            chosen, rejected = _both(row)
        except Wrong as wrong:
            return wrong.problem
        if chosen.messages == rejected.messages:
            return Problem("rejected", "the same answer as in chosen", "another one", drop=True)
        return None

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the chat template: the user's, the model's, or a plain one that is saved with the model."""
        del rows
        if tokenizer is None:
            return self, []
        template, notes = chat.settle_template(tokenizer, self.chat_template)
        return replace(self, chat_template=template), notes

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Render and tokenise both conversations of each row; those that are too long lose their end.

        A row of which one answer is lost altogether is left out.
        """
        if not labelled:
            return chat.encoded_prompts([_prompt(row) for row in rows], tokenizer, max_length, self.chat_template)
        rendered: list[chat.Example] = []
        problems: dict[int, Problem] = {}
        for i, row in enumerate(rows):
            try:
                rendered += [_single(one, tokenizer, self.chat_template) for one in _both(row)]
            except Wrong as wrong:
                problems[i] = wrong.problem
        places = [i for i in range(len(rows)) if i not in problems]
        whole = chat.tokenized(rendered, tokenizer)
        truncated, kept = [0] * len(rows), []
        for place, pair in zip(places, zip(whole[::2], whole[1::2], strict=True), strict=True):
            short = [one.shortened(max_length) for one in pair]
            if all(len(one.ids) for one in short):
                kept.append((place, short))
            else:
                problems[place] = chat.too_long(max_length)
                short = []
            truncated[place] = sum(len(one.ids) for one in pair) - sum(len(one.ids) for one in short)
        sequences = [one for _, short in kept for one in short]
        return Encoding(
            [one.ids for one in sequences],
            None,
            truncated,
            [one.targets for one in sequences],
            [place for place, _ in kept],
            problems,
        )

    # -- answers ------------------------------------------------------------------------------------

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens from which the answer is written.

        Raises:
            DataError: the prompt cannot be rendered.
        """
        del longest  # a conversation is not cut
        try:
            return chat.prompt_ids(_prompt(row), tokenizer, self.chat_template)
        except Wrong as wrong:
            raise DataError(str(wrong), hint="correct this row") from wrong

    # -- numbers ------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> tuple[str, ...]:
        """How often the chosen answer has the higher reward, and by how much on average."""
        return ("reward_accuracy", "reward_margin")

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed loss of the pairs. outputs: logits, (tokens asked, vocabulary)."""
        import torch

        from ._losses import asked_targets, log_probabilities

        each = log_probabilities(outputs, asked_targets(outputs, batch))
        owner = torch.from_numpy(_owners(batch)).to(each.device)
        sums = each.new_zeros(2 * len(batch)).index_add(0, owner, each).view(-1, 2)
        return self._loss(sums - torch.from_numpy(_reference(batch)).to(sums))

    def _loss(self, ratios: torch.Tensor) -> torch.Tensor:
        """ratios: log of the answers' probabilities over those of the reference, (pairs, 2)."""
        from torch.nn.functional import logsigmoid

        margin = self.beta * (ratios[:, 0] - ratios[:, 1])
        wrong = self.label_smoothing
        return -((1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)).sum()

    def weight(self, batch: Batch) -> float:
        """The number of pairs."""
        return float(len(batch))

    def measured(self, outputs: NDArray[np.float32], batch: Batch) -> tuple[float, float]:
        """Return the summed loss of an evaluated batch and its pairs. outputs: token scores, (tokens asked, 2)."""
        import torch

        sums = -np.bincount(_owners(batch), outputs[:, 0].astype(np.float64), 2 * len(batch)).reshape(-1, 2)
        return float(self._loss(torch.from_numpy(sums - _reference(batch)))), float(len(batch))

    def reference(self, outputs: Any, part: Encoded) -> NDArray[np.float32]:
        """Return the log probability of each answer under the untrained model, (pairs, 2)."""
        del part
        return _sums(outputs).astype(np.float32)

    def scorer(self) -> Scorer:
        """Return an empty scorer of rewards."""
        from ..metrics.preference import PreferenceScorer

        return PreferenceScorer()

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Give the rewards of each pair to the scorer."""
        del rows
        scorer.add(self.beta * (_sums(outputs) - _reference(part)), _reference(part))

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Polite answers are better than rude ones."""
        pairs = [("hi", "good day to you", "what do you want"), ("bye", "sleep well", "at last")]
        rows = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in pairs]
        return cls(), rows * 12


def _prompt(row: Row) -> Conversation:
    return conversation(row, None)


def _both(row: Row) -> list[Conversation]:
    """Return the conversation with the chosen answer, and that with the rejected one.

    Only what comes after their common beginning is to be learned.
    """
    both = [conversation(row, name) for name in ANSWERS]
    pairs = zip(both[0].messages, both[1].messages, strict=False)
    common = next((i for i, (one, other) in enumerate(pairs) if one != other), len(both[0].messages))
    return [one._replace(learned=[i >= common and learn for i, learn in enumerate(one.learned)]) for one in both]


def _single(one: Conversation, tokenizer: Any, template: str | None) -> chat.Example:
    found = chat.examples(one, tokenizer, template)
    if len(found) > 1:
        raise Wrong(one.places[-1], "several answers that the chat template writes differently later on", "one answer")
    return found[0]


def _owners(batch: Batch) -> NDArray[np.int64]:
    """Return for each token that is asked for, in the batch's order, its answer: twice the pair, plus which."""
    assert batch.targets is not None
    assert batch.target_lengths is not None
    assert batch.places is not None
    answer = np.empty(len(batch.lengths), dtype=np.int64)
    answer[batch.places] = np.arange(len(batch.places))
    owners: NDArray[np.int64] = np.repeat(answer, batch.target_lengths)[batch.targets != IGNORED]
    return owners


def _sums(outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the log probability of each answer from the scores of its tokens, (pairs, 2)."""
    sums = np.asarray([one[:, 0].sum(dtype=np.float64) for one in outputs], dtype=np.float64)
    return -sums.reshape(-1, 2)


def _reference(data: Batch | Encoded) -> NDArray[np.float32]:
    if data.reference is None:
        raise UsageError(
            "the reference's log probabilities of these answers are missing",
            hint="the model before its preference training gives them: evaluation.referenced",
        )
    return data.reference


PLUGIN = PreferenceTask
