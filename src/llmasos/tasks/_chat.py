"""Chat: learn the assistant's answers in conversations, written as the model's own chat template has them.

The loss is the cross entropy of the next token, on answers only (their end-of-turn token included): a model that
is to answer need not learn to ask. Rows of all usual layouts are read (``_conversations.py``) and what is to be
learned is found by rendering (``_chat_template.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.errors import DataError
from . import _chat_template as chat
from ._conversations import PROMPT_FIELDS, Wrong, conversation
from .base import IGNORED, Encoding, Field, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer


@dataclass(frozen=True)
class ChatTask(Task):
    """Answer as the assistant of a conversation.

    Args:
        chat_template: a Jinja template that replaces the model's own and is saved with it. A model that has none
            gets a plain one.

    Example:
        >>> task = ChatTask()
        >>> task.problem({"messages": [{"role": "user", "content": "Hello"}]}).expected
        'an answer of the assistant at the end'
    """

    tag: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    other_data: ClassVar[str] = (
        "OpenAI messages (with tools), prompt and completion, Alpaca and ShareGPT, told by columns"
    )
    default_metric: ClassVar[str] = "perplexity"
    output: ClassVar[str] = "vocabulary"
    generates: ClassVar[bool] = True

    chat_template: str | None = None

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """A prompt with its answer, or whole conversations."""
        return (
            *PROMPT_FIELDS,
            Field(
                "messages",
                ("messages", "conversations", "conversation", "dialogue"),
                kind="json",
                required=False,
                doc="a whole conversation: a list of role and content, or of from and value",
            ),
            Field(
                "completion",
                ("completion", "response", "output", "answer"),
                kind="content",
                required=False,
                answer=True,
                doc="the answer to the prompt: a text, or messages",
            ),
        )

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        try:
            conversation(row, "completion" if labelled else None)
        except Wrong as wrong:
            return wrong.problem
        return None

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the chat template: the user's, the model's, or a plain one that is saved with the model."""
        del rows
        if tokenizer is None:
            return self, []
        template, notes = chat.settle_template(tokenizer, self.chat_template)
        return replace(self, chat_template=template), notes

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Render and tokenise conversations; those that are too long lose their end.

        A row gives one example; where the template writes earlier answers differently, one for each answer. An
        example that loses all of its answers goes, and a row that loses all of its examples is left out. Without
        labels, rows are encoded up to where the model is to answer.
        """
        if not labelled:
            prompts = [conversation(row, None) for row in rows]
            return chat.encoded_prompts(prompts, tokenizer, max_length, self.chat_template)
        rendered, problems = self._rendered(rows, tokenizer)
        places = [i for i, of_row in enumerate(rendered) for _ in of_row]
        whole = chat.tokenized([one for of_row in rendered for one in of_row], tokenizer)
        short = [one.shortened(max_length) for one in whole]
        truncated = [0] * len(rows)
        for place, one, left in zip(places, whole, short, strict=True):
            truncated[place] += len(one.ids) - len(left.ids)
        kept = [(place, one) for place, one in zip(places, short, strict=True) if len(one.ids)]
        gone = set(places) - {place for place, _ in kept}
        return Encoding(
            [one.ids for _, one in kept],
            None,
            truncated,
            [one.targets for _, one in kept],
            [place for place, _ in kept],
            problems | dict.fromkeys(sorted(gone), chat.too_long(max_length)),
        )

    def _rendered(self, rows: Sequence[Row], tokenizer: Any) -> tuple[list[list[chat.Example]], dict[int, Problem]]:
        rendered: list[list[chat.Example]] = []
        problems: dict[int, Problem] = {}
        for i, row in enumerate(rows):
            try:
                rendered.append(chat.examples(conversation(row), tokenizer, self.chat_template))
            except Wrong as wrong:
                problems[i] = wrong.problem
                rendered.append([])
        return rendered, problems

    # -- answers ------------------------------------------------------------------------------------

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens from which the answer is written: the conversation, and the prompt for the assistant.

        A conversation that ends in an answer is asked for it again.

        Raises:
            DataError: the conversation cannot be rendered.
        """
        del longest  # a conversation is not cut
        try:
            return chat.prompt_ids(conversation(row, None), tokenizer, self.chat_template)
        except Wrong as wrong:
            raise DataError(str(wrong), hint="correct this row") from wrong

    # -- numbers ------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All are over the tokens of answers."""
        return ("loss", "perplexity", "token_accuracy")

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed cross entropy of the answers' tokens. outputs: logits, (tokens asked, vocabulary)."""
        from ._losses import asked_targets, cross_entropy

        return cross_entropy(outputs, asked_targets(outputs, batch))

    def weight(self, batch: Batch) -> float:
        """The number of tokens asked for."""
        assert batch.targets is not None
        return float(np.count_nonzero(batch.targets != IGNORED))

    def scorer(self) -> Scorer:
        """Return an empty scorer of tokens."""
        from ..metrics.tokens import TokenScorer

        return TokenScorer()

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Count the tokens of answers."""
        from ..metrics.tokens import TokenScorer

        del rows
        assert isinstance(scorer, TokenScorer)
        assert part.targets is not None
        scorer.add(outputs, part.rows, targets=part.targets[part.targets != IGNORED])

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Two greetings, each with its answer."""
        answers = {"hi": "what a fine day", "bye": "sleep well, my dog"}
        return cls(), [{"prompt": prompt, "completion": answer} for prompt, answer in answers.items()] * 12
