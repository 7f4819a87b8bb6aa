"""What translation and summarization share: a text in, another text out.

An encoder with a decoder reads the source, and its decoder is asked for each token of the target. A model
that only continues text (a decoder alone) reads both in one sequence, the source inside a prompt, and is
asked for the target's tokens only. Which of the two it is, the model says (``suited``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, shown
from .base import IGNORED, SETTLED, Encoding, Generation, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

SOURCE = "{source}"
"""Stands for the source text in a template."""


class Cut(NamedTuple):
    """Token ids, and how many more there were."""

    ids: list[int]
    cut: int


@dataclass(frozen=True)
class Written:
    """A text that the model wrote.

    ``tokens`` counts them; ``finish_reason`` is "stop", or "length" where the text was cut off.
    """

    text: str
    tokens: int
    finish_reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class SequenceTask(Task):
    """Write a text for a text. ``decoder_only`` and ``template`` are settled by the model if not given."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_metric: ClassVar[str] = "loss"
    output: ClassVar[str] = "vocabulary"
    generates: ClassVar[bool] = True
    cuts_prompts: ClassVar[bool] = True
    scores_answers: ClassVar[bool] = True

    template: str | None = None
    label_smoothing: float = 0.0
    decoder_only: bool = field(default=False, metadata=SETTLED)

    def __post_init__(self) -> None:
        if self.template is not None and self.template.count(SOURCE) != 1:
            raise UsageError(f"template={self.template!r}", hint=f"a text with {SOURCE} in it once")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UsageError(f"label_smoothing={self.label_smoothing}", hint="a share from 0 to below 1")
        if self.decoder_only:
            object.__setattr__(self, "auto_class", "AutoModelForCausalLM")

    # -- what a task adds -----------------------------------------------------------------------------

    @abstractmethod
    def texts_of(self, row: Row) -> tuple[str, list[str]]:
        """Return the source and the targets of a row (none without labels)."""

    @abstractmethod
    def default_template(self, config: Any) -> str:
        """Return what is put around a source where the user says nothing. ``config`` is the model's."""

    def check_languages(self, tokenizer: Any) -> None:
        """Refuse languages that the tokenizer does not know, and tell it which are meant."""

    # -- rows -----------------------------------------------------------------------------------------

    def suited(self, config: Any) -> Self:
        """Return the task as the model of this configuration needs it: with a decoder alone, or an encoder too."""
        decoder_only = not getattr(config, "is_encoder_decoder", False)
        task = replace(self, decoder_only=decoder_only)
        return task if self.template is not None else replace(task, template=task.default_template(config))

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Look the rows over: whether anything is to be learned from them.

        Raises:
            DataError: source and target are equal in more than half of the rows.
            UsageError: the tokenizer needs languages and was given none, or unknown ones.
        """
        if tokenizer is not None:
            self.check_languages(tokenizer)
        equal = total = 0
        for row in rows:
            source, targets = self.texts_of(row)
            total += 1
            equal += source.strip() in [target.strip() for target in targets]
        if 2 * equal > total:
            raise DataError(
                f"source and target are the same text in {equal} of {total} rows",
                hint="columns={...} names the two columns; a model trained on this learns to copy",
            )
        return self, [f"source and target are the same text in {equal} of {total} rows"] if equal else []

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise sources and targets, each of at most ``max_length`` tokens; with a decoder alone, both together.

        Of a source that is too long the end is cut, inside the template; every target ends with the token for
        the end. A row with several targets gives an example for each.
        """
        self.check_languages(tokenizer)
        encode = self._encode_joined if self.decoder_only else self._encode_apart
        pairs = [self.texts_of(row) for row in rows]
        return encode(pairs, tokenizer, max_length, labelled)

    def _encode_apart(
        self, pairs: list[tuple[str, list[str]]], tokenizer: Any, max_length: int, labelled: bool
    ) -> Encoding:
        sources = self._sources([source for source, _ in pairs], tokenizer, [max_length] * len(pairs))
        truncated = [source.cut for source in sources]
        if not labelled:
            return Encoding([_array(source.ids) for source in sources], None, truncated)
        places = [i for i, (_, targets) in enumerate(pairs) for _ in targets]
        targets = _targets([target for _, targets in pairs for target in targets], tokenizer, max_length)
        for place, target in zip(places, targets, strict=True):
            truncated[place] += target.cut
        return Encoding(
            [_array(sources[place].ids) for place in places],
            None,
            truncated,
            [np.asarray(target.ids, dtype=np.int64) for target in targets],
            places,
        )

    def _encode_joined(
        self, pairs: list[tuple[str, list[str]]], tokenizer: Any, max_length: int, labelled: bool
    ) -> Encoding:
        if not labelled:
            prompts = self._sources([source for source, _ in pairs], tokenizer, [max_length] * len(pairs))
            return Encoding([_array(prompt.ids) for prompt in prompts], None, [prompt.cut for prompt in prompts])
        places = [i for i, (_, targets) in enumerate(pairs) for _ in targets]
        sources = [pairs[place][0] for place in places]
        whole = self._sources(sources, tokenizer, [None] * len(sources))
        # a target that is too long may have half of the room at most, unless its source leaves more
        room = [max(max_length // 2, max_length - len(source.ids)) for source in whole]
        texts = [target for _, targets in pairs for target in targets]
        targets = [_ended(ids, tokenizer, most + 1) for ids, most in zip(_plain(texts, tokenizer), room, strict=True)]
        left = [max_length - (len(target.ids) - 1) for target in targets]
        prompts = self._sources(sources, tokenizer, left)
        ids, asked, truncated = [], [], [0] * len(pairs)
        for place, prompt, target in zip(places, prompts, targets, strict=True):
            # the last token, the end, is asked for and never read
            ids.append(_array([*prompt.ids, *target.ids[:-1]]))
            asked.append(np.asarray([IGNORED] * (len(prompt.ids) - 1) + target.ids, dtype=np.int64))
            truncated[place] += prompt.cut + target.cut
        return Encoding(ids, None, truncated, asked, places)

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens that the model is given for a row: what training gives it before the target."""
        self.check_languages(tokenizer)
        return self._sources([self.texts_of(row)[0]], tokenizer, [longest])[0].ids

    def _around(self, source: str, tokenizer: Any) -> str:
        text = (self.template or SOURCE).replace(SOURCE, source)
        if not self._is_chat(tokenizer):
            return text
        messages = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _is_chat(self, tokenizer: Any) -> bool:
        return self.decoder_only and bool(getattr(tokenizer, "chat_template", None))

    def _sources(self, sources: Sequence[str], tokenizer: Any, most: Sequence[int | None]) -> list[Cut]:
        """Tokenise sources in their template, shortening those that are longer than they may be."""
        ids = self._source_ids(sources, tokenizer)
        return [
            Cut(one, 0) if longest is None or len(one) <= longest
            else self._shortened(source, len(one), tokenizer, longest)
            for source, one, longest in zip(sources, ids, most, strict=True)
        ]  # fmt: skip

    def _source_ids(self, sources: Sequence[str], tokenizer: Any) -> list[list[int]]:
        texts = [self._around(source, tokenizer) for source in sources]
        ids = _ids(tokenizer, texts, add_special_tokens=not self._is_chat(tokenizer))
        end = tokenizer.eos_token_id
        if self.decoder_only and not self._is_chat(tokenizer):  # some tokenizers end every text
            ends = {end, tokenizer.sep_token_id} - {None}
            ids = [one[:-1] if len(one) > 1 and one[-1] in ends else one for one in ids]
        return ids

    def _shortened(self, source: str, whole: int, tokenizer: Any, longest: int) -> Cut:
        tokens = _ids(tokenizer, [source], add_special_tokens=False)[0]
        keep = len(tokens) - (whole - longest)
        while keep > 0:
            (ids,) = self._source_ids([_beginning(source, tokens, keep, tokenizer)], tokenizer)
            if len(ids) <= longest:
                return Cut(ids, whole - len(ids))
            keep -= len(ids) - longest
        raise UsageError(
            f"max_length leaves {longest} tokens for a source of {whole}, no more than its template takes",
            hint="a larger max_length or a shorter template",
        )

    def answer(self, row: Row, generation: Generation) -> Written:
        """Return what the model wrote."""
        del row
        return Written(generation.text.strip(), len(generation.tokens), generation.finish_reason)

    # -- numbers --------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those that need no text to be written: loss, perplexity and accuracy of single tokens."""
        return ("loss", "perplexity", "token_accuracy")

    def weight(self, batch: Batch) -> float:
        """The number of target tokens."""
        assert batch.targets is not None
        return float(np.count_nonzero(batch.targets != IGNORED))

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed cross entropy. outputs: logits, (target tokens, vocabulary)."""
        from ._losses import asked_targets, cross_entropy

        return cross_entropy(outputs, asked_targets(outputs, batch), smoothing=self.label_smoothing)

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Feed the scorer with single tokens."""
        del rows
        assert part.targets is not None
        scorer.add(outputs, (part.rows, part.targets[part.targets != IGNORED]))

    def score_answers(self, scorer: Scorer, answers: Sequence[Any], rows: Sequence[Row]) -> None:
        """Compare what the model wrote with the targets of the rows."""
        from ..metrics.texts import WrittenScorer

        assert isinstance(scorer, WrittenScorer)
        pairs = [self.texts_of(row) for row in rows]
        scorer.add_texts([answer.text for answer in answers], [t for _, t in pairs], [s for s, _ in pairs])


def text_problem(row: Row, field: str) -> Problem | None:
    """Return what is wrong with a text of a row, or None."""
    text = row.get(field)
    if not isinstance(text, str):
        return Problem(field, shown(text), "a string")
    return None if text.strip() else Problem(field, "an empty text", "some text", drop=True)


def _targets(texts: list[str], tokenizer: Any, longest: int) -> list[Cut]:
    """Tokenise targets as the tokenizer does it for its target language."""
    if not texts:
        return []
    whole = [list(ids) for ids in tokenizer(text_target=texts, truncation=False, verbose=False)["input_ids"]]
    end = _end(tokenizer)
    out = []
    for text, ids in zip(texts, whole, strict=True):
        full = _bounded(ids, end)
        if len(full) <= longest:
            out.append(Cut(full, 0))
            continue
        short = list(tokenizer(text_target=text, truncation=True, max_length=longest)["input_ids"])
        short = _bounded(short, end)
        short = short if len(short) <= longest else [*short[: longest - 1], end]
        out.append(Cut(short, len(full) - len(short)))
    return out


def _bounded(ids: list[int], end: int) -> list[int]:
    """Return a target with its end, and not begun by it: where one token is both, an answer would end at once."""
    ids = ids[1:] if ids[:1] == [end] and len(ids) > 1 else ids
    ended = ids[-1:] == [end] or (len(ids) > 2 and ids[-2] == end)  # in mBART's the language follows
    return ids if ended else [*ids, end]


def _plain(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return _ids(tokenizer, texts, add_special_tokens=False)


def _ended(ids: list[int], tokenizer: Any, longest: int) -> Cut:
    kept = ids[: longest - 1]
    return Cut([*kept, _end(tokenizer)], len(ids) - len(kept))


def _end(tokenizer: Any) -> int:
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise UsageError(
            "this tokenizer has no token for the end of a text", hint="a tokenizer with an eos_token, as writers have"
        )
    return int(end)


def _ids(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=add_special_tokens, truncation=False, verbose=False)
    return [list(ids) for ids in found["input_ids"]]


def _beginning(text: str, tokens: list[int], keep: int, tokenizer: Any) -> str:
    """Return the part of a text that its first tokens cover."""
    if not tokenizer.is_fast:
        return str(tokenizer.decode(tokens[:keep], skip_special_tokens=True))
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: spans[keep - 1][1]]


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)
