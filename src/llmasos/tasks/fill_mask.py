"""Masked language modeling: hidden tokens of plain text, as pretraining or to make an encoder know a domain.

The recipe is BERT's (Devlin et al. 2019): of 15 % of the tokens, 80 % are shown as the mask, 10 % as some other
token and 10 % as they are, and all of them are asked for. In training every step masks anew (RoBERTa, Liu et al.
2019). For evaluation the mask of a sequence is drawn from its own content, so that it is the same in every
evaluation, whatever is beside it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError
from ..metrics.tokens import TokenScorer
from ._vocabulary import PlainTextTask, border_of, cut, encoding, text_of, tokens_of
from .base import IGNORED, SETTLED, Encoding, Row

if TYPE_CHECKING:
    from ..data.batching import Batch

MASK = "[MASK]"
"""What a text may say for the mask, whatever the model's own word for it."""


@dataclass(frozen=True)
class Filling:
    """A token for a masked place, and its probability."""

    token: str
    score: float


@dataclass(frozen=True)
class FilledText:
    """The text with the likeliest token in each masked place, and for each place the likeliest tokens."""

    text: str
    masks: tuple[tuple[Filling, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON types."""
        return {"text": self.text, "masks": [[asdict(filling) for filling in place] for place in self.masks]}

    def __str__(self) -> str:
        places = (", ".join(f"{filling.token} {filling.score:.3f}" for filling in place) for place in self.masks)
        return " | ".join(places) or f"(no {MASK} in the text)"


class Vocabulary(NamedTuple):
    """What masking has to know of a tokenizer.

    ``continuing``: for whole words, one bit for each token, whether it goes on with a word, in base 64.
    """

    size: int
    mask: int
    special: tuple[int, ...]
    continuing: str = ""


@dataclass(frozen=True)
class MaskedLanguageModelingTask(PlainTextTask):
    """Learn to fill in hidden tokens of documents or of running text.

    Args:
        mask_rate: share of the tokens that are asked for.
        whole_words: hide all pieces of a word together.
        top_k: how many tokens a prediction gives for each mask.
        vocabulary: what the tokenizer's vocabulary looks like; settled by ``fitted``.
    """

    tag: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    default_metric: ClassVar[str] = "pseudo_perplexity"
    most_unknown: ClassVar[float] = 0.01

    mask_rate: float = 0.15
    whole_words: bool = False
    top_k: int = 5
    vocabulary: Vocabulary | None = field(default=None, metadata=SETTLED)

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_rate < 1.0:
            raise UsageError(f"mask_rate={self.mask_rate}", hint="a share above 0 and below 1; 0.15 is usual")
        if self.top_k < 1:
            raise UsageError(f"top_k={self.top_k}", hint="at least 1")

    @property
    def likeliest(self) -> int:
        """As many as a prediction gives."""
        return self.top_k

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the vocabulary."""
        del rows
        if tokenizer is None:
            return self, []
        if tokenizer.mask_token_id is None:
            raise UsageError(
                "this tokenizer has no mask token", hint="an encoder such as BERT; or --task language-modeling"
            )
        special = tuple(sorted(set(tokenizer.all_special_ids)))
        continuing = _continuing(tokenizer) if self.whole_words else ""
        vocabulary = Vocabulary(len(tokenizer), tokenizer.mask_token_id, special, continuing)
        return replace(self, vocabulary=vocabulary), []

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Cut each text into sequences, each with the tokenizer's special tokens around it.

        Labelled ones are masked for an evaluation; training masks them anew. The others are asked for their masks.
        """
        border = border_of(tokenizer)
        room = max_length - len(border.before) - len(border.after)
        if not labelled:
            rows = [{"text": _with_mask_of(tokenizer, text_of(row))} for row in rows]
        ids, targets, owners = [], [], []
        for place, tokens in enumerate(tokens_of(rows, tokenizer)):
            for part in cut(np.asarray(tokens, dtype=np.int32), room):
                whole = np.asarray([*border.before, *part, *border.after], dtype=np.int32)
                shown, asked = self._settled_mask(whole) if labelled else (whole, _asked(whole, tokenizer))
                ids.append(shown)
                targets.append(asked)
                owners.append(place)
        return encoding(ids, targets, owners, len(rows), context=None if labelled else tokenizer)

    def _settled_mask(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Mask a sequence by lots drawn from its content."""
        seed = hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest()
        return self._masked(ids, np.random.default_rng(int.from_bytes(seed, "little")))

    def noised(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with other tokens masked."""
        assert batch.targets is not None
        whole = np.where(batch.targets == IGNORED, batch.ids, batch.targets).astype(np.int32)
        parts = [self._masked(part, rng) for part in np.split(whole, batch.offsets[1:-1])]
        ids, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        return replace(batch, ids=ids, targets=targets)

    def _masked(self, ids: NDArray[np.int32], rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return a sequence as it is shown, and what is asked: at least one token of it, if it has any."""
        vocabulary = self._known
        targets = np.full(len(ids), IGNORED, dtype=np.int64)
        places = np.flatnonzero(~_is_special(vocabulary)[ids])
        if not len(places):
            return ids, targets
        wanted = max(1, round(self.mask_rate * len(places)))
        if self.whole_words:
            chosen = _words(places, _bits(vocabulary)[ids[places]], wanted, rng)
        else:
            chosen = rng.choice(places, wanted, replace=False)
        targets[chosen] = ids[chosen]
        shown, lot = ids.copy(), rng.random(len(chosen))
        shown[chosen[lot < 0.8]] = vocabulary.mask
        others = chosen[lot >= 0.9]
        shown[others] = rng.choice(_plain_ids(vocabulary), len(others))
        return shown, targets

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss, its exponential, and accuracy, over the masked tokens."""
        return ("loss", "pseudo_perplexity", "token_accuracy")

    def scorer(self) -> TokenScorer:
        """Return an empty scorer."""
        return TokenScorer(perplexity="pseudo_perplexity")

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Name the likeliest tokens of each mask, in the order of the text."""
        assert encoding.rows is not None
        masks: list[list[tuple[Filling, ...]]] = [[] for _ in rows]
        for place, one in zip(encoding.rows, outputs, strict=True):
            masks[place] += [_fillings(line, encoding.context) for line in one]
        tokenizer = encoding.context
        return [_filled(_with_mask_of(tokenizer, text_of(row)), tokenizer, found) for row, found in zip(rows, masks)]

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON types."""
        content = super().to_dict()
        if self.vocabulary is not None:
            content["vocabulary"] = {**self.vocabulary._asdict(), "special": list(self.vocabulary.special)}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild a task from what ``to_dict`` gave."""
        known = content.get("vocabulary")
        task = super().from_dict({k: v for k, v in content.items() if k != "vocabulary"})
        return replace(task, vocabulary=known and Vocabulary(**{**known, "special": tuple(known["special"])}))

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """The alphabet, so that a hidden letter is known from its place and its neighbours."""
        return cls(), [{"text": f"{number} abcdefghijklmnopqrstuvwxyz"} for number in range(48)]

    @property
    def _known(self) -> Vocabulary:
        if self.vocabulary is None:
            raise UsageError("the vocabulary is not settled yet", hint="fit the task with the model's tokenizer first")
        return self.vocabulary


@functools.lru_cache(maxsize=8)
def _is_special(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    table = np.zeros(vocabulary.size, dtype=np.bool_)
    table[list(vocabulary.special)] = True
    return table


@functools.lru_cache(maxsize=8)
def _plain_ids(vocabulary: Vocabulary) -> NDArray[np.int64]:
    return np.flatnonzero(~_is_special(vocabulary))


@functools.lru_cache(maxsize=8)
def _bits(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    packed = np.frombuffer(base64.b64decode(vocabulary.continuing), dtype=np.uint8)
    return np.unpackbits(packed, count=vocabulary.size).astype(np.bool_)


def _continuing(tokenizer: Any) -> str:
    """Say of each token whether it goes on with a word, by the sign that its kind of tokenizer sets.

    Raises:
        UsageError: its tokens do not show where words begin.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if any(token.startswith("##") for token in tokens):
        continues = [token.startswith("##") for token in tokens]
    else:
        sign = next((sign for sign in ("\u2581", "\u0120") if any(token.startswith(sign) for token in tokens)), None)
        if sign is None:
            raise UsageError("whole_words: the tokens of this tokenizer do not show where words begin",
                             hint="leave whole_words out")  # fmt: skip
        continues = [not token.startswith(sign) for token in tokens]
    return base64.b64encode(np.packbits(np.asarray(continues, dtype=np.bool_)).tobytes()).decode()


def _words(
    places: NDArray[np.int64], continues: NDArray[np.bool_], wanted: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose whole words of together at most ``wanted`` tokens, but at least one word."""
    begins = ~continues | (np.diff(places, prepend=-2) > 1)
    word = np.cumsum(begins) - 1
    order = rng.permutation(int(word[-1]) + 1)
    total = np.cumsum(np.bincount(word)[order])
    chosen = order[: max(1, int(np.searchsorted(total, wanted, side="right")))]
    return places[np.isin(word, chosen)]


def _with_mask_of(tokenizer: Any, text: str) -> str:
    """Write ``MASK`` as the tokenizer does."""
    own = tokenizer.mask_token
    return text if own in text else text.replace(MASK, own)


def _asked(ids: NDArray[np.int32], tokenizer: Any) -> NDArray[np.int64]:
    mask = tokenizer.mask_token_id
    return np.where(ids == mask, mask, IGNORED).astype(np.int64)


def _fillings(line: NDArray[np.float32], tokenizer: Any) -> tuple[Filling, ...]:
    """Read what an engine says of a place: its score for the mask itself, then ids and log probabilities."""
    ids, scores = np.split(line[2:], 2)
    tokens = [tokenizer.decode([int(i)]).strip() for i in ids]
    return tuple(Filling(token, math.exp(score)) for token, score in zip(tokens, scores.tolist(), strict=True))


def _filled(text: str, tokenizer: Any, masks: Sequence[tuple[Filling, ...]]) -> FilledText:
    parts = text.split(tokenizer.mask_token)
    found = [place[0].token if place else tokenizer.mask_token for place in masks]
    words = [*found, *[tokenizer.mask_token] * (len(parts) - 1 - len(found)), ""]
    whole = "".join(part + word for part, word in zip(parts, words, strict=True))
    return FilledText(whole, tuple(masks))


PLUGIN = MaskedLanguageModelingTask
