"""Token classification: a tag for every word, and from the tags the entities of a text.

Words go in and words come out. A word's tag is asked at its first sub-word; a text longer than the model takes is
read in overlapping windows, and each word is asked, in training as in answers, in the one window that shows most
of what is around it. So nothing is cut, and scores are over all words of the data.

With IOB2 tags (Ramshaw & Marcus 1995, in the form of Tjong Kim Sang 2002) the answer is the most probable
sequence among those that are well formed. It costs little, since most are well formed word by word, and gives
much: on WikiANN (MiniLM, one epoch, seed 0) an F1 of 0.745 instead of the 0.696 of each word's best tag.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, did_you_mean, shown
from ..metrics.base import finite
from ..metrics.entities import OUTSIDE, EntityScorer, Span, spans_of
from ._words import Pieces, joined, split_words, windows
from .base import IGNORED, SCRIPTS, Encoding, Field, Problem, Row, Task, labels_of

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

SCHEMES = ("IOB2", "IOB1", "raw")


@dataclass(frozen=True)
class Entity:
    """Neighbouring words of one type. ``start`` and ``end`` count characters, the others words; ends are behind.

    ``score`` is the mean of the words' scores.
    """

    label: str
    text: str
    start: int
    end: int
    start_word: int
    end_word: int
    score: float


@dataclass(frozen=True)
class TaggedWord:
    """A word, where it is in the text, its tag and the probability that the model gives to this tag."""

    text: str
    start: int
    end: int
    tag: str
    score: float


@dataclass(frozen=True)
class TokenClassification:
    """The answer for one text. All places are in ``text``: for a row of words, these with spaces between them."""

    text: str
    words: tuple[TaggedWord, ...]
    entities: tuple[Entity, ...]

    @property
    def tags(self) -> list[str]:
        """The tag of each word."""
        return [word.tag for word in self.words]

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        return {
            "text": self.text,
            "entities": [asdict(entity) for entity in self.entities],
            "words": [asdict(word) for word in self.words],
        }

    def __str__(self) -> str:
        """Return the entities in one line."""
        return ", ".join(f"{e.label}: {e.text} ({e.score:.3f})" for e in self.entities) or "(none)"


class _Words(NamedTuple):
    """The words of a row and where they are in its text."""

    words: list[str]
    text: str
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class TokenClassificationTask(Task):
    """Tag the words of texts, and find entities by their tags.

    Args:
        labels: the tags, in the order of the model's outputs; integers in the data are places in it. None
            infers them from the data.
        scheme: "IOB2" checks that every entity begins with B-; "IOB1" also takes I- for a beginning and turns
            the data into IOB2; "raw" takes tags as they are, equal neighbours being one entity.
        stride: tokens that neighbouring windows over a long text share; at most half a window.
        label_all_subwords: teach the tag on all sub-words of a word; answers are read from the first.

    Example:
        >>> TokenClassificationTask(labels=["O", "B-PER", "I-PER"]).scheme
        'IOB2'
    """

    tag: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    other_data: ClassVar[str] = "CoNLL files (.conll, .bio, .iob2); tags of words, or spans over a text"
    default_metric: ClassVar[str] = "f1"
    output: ClassVar[str] = "token"

    labels: Sequence[str] | None = None
    scheme: str = "IOB2"
    stride: int = 64
    label_all_subwords: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"scheme={self.scheme!r}", hint=f"{did_you_mean(self.scheme, SCHEMES)}one of {', '.join(SCHEMES)}"
            )
        if self.stride < 0:
            raise UsageError(f"stride={self.stride}", hint="a number of tokens, 0 or more")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
            self._check_labels(tuple(self.labels))

    @classmethod
    def of_head(cls, config: Mapping[str, Any]) -> Self | None:
        """Return a tagger by its tags, which need not be of IOB."""
        labels = [str(label) for label in labels_of(config)]
        try:
            return cls(labels=labels)
        except UsageError:
            return cls(labels=labels, scheme="raw") if len(set(labels)) == len(labels) > 1 else None

    def _check_labels(self, labels: tuple[str, ...]) -> None:
        if len(labels) < 2 or not all(isinstance(label, str) and label for label in labels):
            raise UsageError(f"labels={list(labels)!r}", hint="two tags or more, each a string")
        if len(set(labels)) < len(labels):
            raise UsageError(f"a tag is named twice in {', '.join(labels)}", hint="give each once")
        if self.scheme == "raw":
            return
        wrong = next((label for label in labels if not _is_iob(label)), None)
        begun = {label[2:] for label in labels if label.startswith("B-")}
        alone = next((label for label in labels if label.startswith("I-") and label[2:] not in begun), None)
        if wrong or alone or OUTSIDE not in labels:
            what = f"{wrong!r} is no IOB tag" if wrong else f"{alone!r} has no B-" if alone else "there is no 'O'"
            raise UsageError(f"labels: {what}", hint='["O", "B-PER", "I-PER", ...], or scheme="raw"')

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """Words with tags, or a text with spans."""
        return (
            Field("text", ("text", "sentence", "content"), required=False, doc="a text, where words are not given"),
            Field("spans", ("spans", "entities"), kind="json", required=False, answer=True,
                  doc='the entities of a text: {"start", "end", "label"}, in characters'),
            Field("tokens", ("tokens", "words"), kind="json", required=False,
                  doc="the words, a list; or one string with spaces between them"),
            Field("tags", ("tags", "ner_tags", "labels", "pos_tags"), kind="json", required=False, answer=True,
                  doc="a tag for each of the words"),
        )  # fmt: skip

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        found = self._words_problem(row)
        if found or not labelled:
            return found
        if row.get("tokens") is not None:
            return self._tags_problem(_listed(row["tokens"]), row.get("tags"))
        return self._spans_problem(row["text"], row.get("spans"))

    def _words_problem(self, row: Row) -> Problem | None:
        if row.get("tokens") is not None:
            words = _listed(row["tokens"])
            if not isinstance(words, list):
                return Problem("tokens", shown(row["tokens"]), "a list of words")
            wrong = next((i for i, word in enumerate(words) if not isinstance(word, str) or not word), None)
            if wrong is not None:
                return Problem("tokens", f"{shown(words[wrong])} as word {wrong + 1}", "a word")
            return None if words else Problem("tokens", "no words", "at least one word", drop=True)
        text = row.get("text")
        if not isinstance(text, str):
            field = "text" if "text" in row and "tokens" not in row else "tokens"
            return Problem(field, shown(text), "a list of words, or a text in the field text")
        return None if split_words(text) else Problem("text", "an empty text", "some text", drop=True)

    def _tags_problem(self, words: list[str], tags: Any) -> Problem | None:
        tags = _listed(tags)
        if not isinstance(tags, list):
            return Problem("tags", shown(tags), "a list with a tag for each word")
        if len(tags) != len(words):
            return Problem("tags", f"{len(tags)} tags", f"{len(words)}, one for each word")
        before = OUTSIDE
        for i, given in enumerate(tags):
            tag = self._named(given)
            expected = self._expected(tag, before)
            if expected:
                return Problem("tags", f"{given!r} at word {i + 1} ({shown(words[i])}) after {before!r}", expected)
            before = str(tag)
        return None

    def _expected(self, tag: Any, before: str) -> str | None:
        """Say what should be there instead of a tag, or None where it is right."""
        if isinstance(tag, int) and not isinstance(tag, bool):
            return "a tag, or labels=[...] that say what the numbers mean" if self.labels is None else \
                f"a number from 0 to {len(self.labels) - 1}"  # fmt: skip
        if not isinstance(tag, str) or not tag:
            return "a tag"
        if self.scheme != "raw" and not _is_iob(tag):
            return 'O, B-TYPE or I-TYPE (scheme="raw" takes other tags)'
        if self.scheme == "IOB2" and tag.startswith("I-") and before[2:] != tag[2:]:
            return f"'B-{tag[2:]}': an entity begins with B- (scheme=\"IOB1\" takes I- too)"
        return self._missing([tag])

    def _missing(self, tags: list[str]) -> str | None:
        """Say which tags there are, if one of these is not among them."""
        labels = self.labels
        wrong = None if labels is None else next((tag for tag in tags if tag not in labels), None)
        if labels is None or wrong is None:
            return None
        near = did_you_mean(wrong, labels).strip()
        known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
        return f"one of the tags {known}; {wrong} is not among them" + (f" ({near})" if near else "")

    def _named(self, tag: Any) -> Any:
        """Return the name of a numbered tag where labels say it; anything else as it is."""
        is_number = isinstance(tag, int) and not isinstance(tag, bool)
        return self.labels[tag] if is_number and self.labels is not None and 0 <= tag < len(self.labels) else tag

    def _spans_problem(self, text: str, spans: Any) -> Problem | None:
        if not isinstance(spans, list):
            return Problem("spans", shown(spans), "a list of spans (for words with tags, the field tokens)")
        places = split_words(text)
        starts, ends = {start for start, _ in places}, {end for _, end in places}
        behind = 0
        for span in sorted(spans, key=lambda span: _place(span)[0]):
            start, end = _place(span)
            if not (isinstance(span, Mapping) and 0 <= start < end and isinstance(_label(span), str) and _label(span)):
                return Problem("spans", shown(span), 'a span {"start": ..., "end": ..., "label": ...} in characters')
            if end > len(text):
                return Problem("spans", f"{start} to {end}", f"places inside the text of {len(text)} characters")
            what = f"{start} to {end} ({shown(text[start:end])})"
            said = span.get("text", span.get("value", text[start:end]))
            if said != text[start:end]:
                return Problem("spans", f"{what}, which should be {said!r}", "places counted in characters, from 0")
            if start < behind:
                return Problem("spans", f"{what}, overlapping the one before", "spans apart from each other")
            if start not in starts or end not in ends:
                return Problem("spans", what, self._nearest(text, start, end))
            words = sum(start <= place < end for place, _ in places)
            missing = self._missing(self._tagged([Span(str(_label(span)), 0, words)], words))
            if missing:
                return Problem("spans", f"the label {_label(span)!r}", missing)
            behind = end
        return None

    def _nearest(self, text: str, start: int, end: int) -> str:
        inside = [place for place in split_words(text) if place[0] < end and place[1] > start]
        if not inside:
            return "a span over words"
        first, last = inside[0][0], inside[-1][1]
        return f"borders of words, such as {first} to {last} ({shown(text[first:last])})"

    def _types(self) -> list[str]:
        """The entity types."""
        tags = [label for label in self._index if label != OUTSIDE]
        return list(dict.fromkeys(tag if self.scheme == "raw" else tag[2:] for tag in tags))

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the tags from the rows."""
        del tokenizer
        found: set[str] = set()
        for row in rows:
            found.update(self._tags(row, _words(row)))
        kinds = sorted({self._kind(tag) for tag in found} - {OUTSIDE})
        if not kinds or (self.scheme == "raw" and len(found) < 2):
            only = ", ".join(map(repr, sorted(found)))
            raise DataError(f"every word of the data has the tag {only}", hint="another is needed to learn from")
        notes = []
        if self.labels is None:
            shown_kinds = ", ".join(kinds[:10]) + (", ..." if len(kinds) > 10 else "")
            notes.append(f"{len(kinds)} types found in the data: {shown_kinds}")
        elif missing := [kind for kind in self._types() if kind not in kinds]:
            notes.append(f"no training row has an entity of type {', '.join(missing)}")
        return replace(self, labels=self.labels or self._inferred(kinds, found)), notes

    def _inferred(self, kinds: list[str], found: set[str]) -> tuple[str, ...]:
        """Return all tags of the types: also an I- that only other data may have."""
        if self.scheme == "raw":
            return (OUTSIDE, *kinds) if OUTSIDE in found else tuple(kinds)
        return (OUTSIDE, *(f"{begin}-{kind}" for kind in kinds for begin in "BI"))

    def _kind(self, tag: str) -> str:
        return tag if self.scheme == "raw" or tag == OUTSIDE else tag[2:]

    def _tags(self, row: Row, words: _Words) -> list[str]:
        """Return the right tag of each word of a good row."""
        if row.get("tokens") is None:
            kinds = [(*_place(span), str(_label(span))) for span in row["spans"]]
            starts = {start: i for i, (start, _) in enumerate(words.places)}
            ends = {end: i + 1 for i, (_, end) in enumerate(words.places)}
            return self._tagged([Span(kind, starts[a], ends[b]) for a, b, kind in kinds], len(words.words))
        tags = [str(self._named(tag)) for tag in _listed(row["tags"])]
        return self._tagged(spans_of(tags), len(tags)) if self.scheme == "IOB1" else tags

    def _tagged(self, spans: Iterable[Span], count: int) -> list[str]:
        """Write spans of words as tags."""
        tags = [OUTSIDE] * count
        for kind, start, end in spans:
            begun = self.scheme != "raw"
            tags[start:end] = [f"I-{kind}" if begun else kind] * (end - start)
            tags[start] = f"B-{kind}" if begun else kind
        return tags

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise words and lay them out in windows.

        Targets lie along the tokens: the tag's number at the first sub-word of each word that is asked in this
        window (0 where rows have no tags), ``IGNORED`` elsewhere; with ``label_all_subwords`` the further
        sub-words have theirs plus the number of labels, so that no score counts them.
        """
        read = [_words(row) for row in rows]
        pieces = Pieces(tokenizer)
        room = max_length - len(pieces.before) - len(pieces.after)
        ids, targets, places, truncated = [], [], [], []
        for i, (words, parts) in enumerate(zip(read, pieces.of(words.words for words in read))):
            numbers = self._numbers(self._tags(rows[i], words)) if labelled else np.zeros((len(parts), 2), np.int64)
            truncated.append(sum(max(0, len(part) - room) for part in parts))
            parts = [part[:room] for part in parts]
            for window in windows([len(part) for part in parts], room, self.stride):
                inside = parts[window.start : window.stop]
                ids.append(np.asarray([*pieces.before, *np.concatenate(inside), *pieces.after], dtype=np.int32))
                asked = self._asked(inside, numbers[window.start : window.stop], window.first - window.start,
                                    window.last - window.start)  # fmt: skip
                targets.append(np.pad(asked, (len(pieces.before), len(pieces.after)), constant_values=IGNORED))
                places.append(i)
        return Encoding(ids, None, truncated, targets, places)

    def _numbers(self, tags: list[str]) -> NDArray[np.int64]:
        """Return for each tag its number, and that of its further sub-words: an entity goes on inside a word."""
        index = self._index
        on = [index.get("I-" + tag[2:], index[tag]) if self.scheme != "raw" else index[tag] for tag in tags]
        return np.asarray([[index[tag] for tag in tags], on], dtype=np.int64).T

    def _asked(
        self, parts: list[NDArray[np.int32]], numbers: NDArray[np.int64], first: int, last: int
    ) -> NDArray[np.int64]:
        """Return the targets of a window's tokens, (tokens,)."""
        ends = np.cumsum([len(part) for part in parts])
        starts = ends - [len(part) for part in parts]
        out = np.full(ends[-1], IGNORED, dtype=np.int64)
        if self.label_all_subwords:
            for word in range(first, last):
                out[starts[word] : ends[word]] = numbers[word, 1] + len(self._index)
        out[starts[first:last]] = numbers[first:last, 0]
        return out

    # -- numbers ------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Scores of entities, and the share of words with the right tag."""
        return ("f1", "precision", "recall", "f1_macro", "token_accuracy")

    def head_config(self) -> dict[str, Any]:
        """Return the tags under transformers' own names."""
        return {
            "num_labels": len(self._index),
            "id2label": {i: label for label, i in self._index.items()},
            "label2id": dict(self._index),
        }

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross entropy summed over the tokens that are asked. outputs: logits, (tokens, labels)."""
        from torch.nn import functional

        logits = outputs if outputs.dtype.itemsize >= 4 else outputs.float()
        targets = batch.target_tensor(logits.device)
        targets = targets.where(targets == IGNORED, targets % len(self._index))
        return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    def weight(self, batch: Batch) -> float:
        """The number of tokens that are asked."""
        assert batch.targets is not None
        return float((batch.targets != IGNORED).sum())

    def scorer(self) -> Scorer:
        """Return an empty scorer of entities."""
        return EntityScorer(self._types())

    def score(self, scorer: Any, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Feed the scorer with the best tags of whole rows."""
        del rows
        assert part.targets is not None
        assert part.target_offsets is not None
        targets = np.split(part.targets, part.target_offsets[1:-1])
        given, wanted = [], []
        for logits, numbers in self._by_row(outputs, targets, part.rows):
            given.append(self._iob(self._best(_log_probabilities(logits))))
            wanted.append(self._iob(numbers))
        scorer.add(given, wanted)

    def _by_row(
        self, outputs: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]], rows: Sequence[int] | NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Join the windows of each row: logits, (words, labels), and targets, (words,), of its words in order."""
        borders = np.flatnonzero(np.diff(np.asarray(rows))) + 1
        for start, stop in zip([0, *borders], [*borders, len(rows)]):
            asked = [(t >= 0) & (t < len(self._index)) for t in targets[start:stop]]
            yield (
                np.concatenate([out[at] for out, at in zip(outputs[start:stop], asked)]),
                np.concatenate([t[at] for t, at in zip(targets[start:stop], asked)]),
            )

    def _iob(self, numbers: Iterable[int]) -> list[str]:
        """Name tags; raw ones as I-, of which equal neighbours are one entity."""
        labels = list(self._index)
        tags = [labels[number] for number in numbers]
        return [tag if tag == OUTSIDE else f"I-{tag}" for tag in tags] if self.scheme == "raw" else tags

    def _best(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the most probable sequence of tags in which each I- follows its own type (Viterbi 1967).

        scores: logarithms of probabilities, (words, labels).
        """
        best: NDArray[np.int64] = scores.argmax(axis=1)
        if self.scheme == "raw":
            return best
        costs = _transitions(tuple(self._index))
        if not costs[np.concatenate([[-1], best[:-1]]), best].any():
            return best  # what is best word by word and well formed is the best of all
        total, back = scores[0] + costs[-1], np.zeros(scores.shape, dtype=np.int64)
        for i in range(1, len(scores)):
            paths = total[:, None] + costs[:-1]  # (before, here)
            back[i] = paths.argmax(axis=0)
            total = paths.max(axis=0) + scores[i]
        best[-1] = total.argmax()
        for i in range(len(scores) - 1, 0, -1):
            best[i - 1] = back[i, best[i]]
        return best

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Turn logits of tokens into tagged words and entities."""
        assert isinstance(encoding.targets, list)
        assert encoding.rows is not None
        logits = self._by_row(outputs, encoding.targets, encoding.rows)
        return [self._answer(_words(row), _log_probabilities(out)) for row, (out, _) in zip(rows, logits)]

    def _answer(self, read: _Words, scores: NDArray[np.float64]) -> TokenClassification:
        best = self._best(scores)
        sure = np.exp(scores[np.arange(len(best)), best]).tolist()
        labels = list(self._index)
        words = tuple(
            TaggedWord(word, start, end, labels[number], score)
            for word, (start, end), number, score in zip(read.words, read.places, best, sure, strict=True)
        )
        entities = []
        for label, first, last in spans_of(self._iob(best)):
            start, end = words[first].start, words[last - 1].end
            score = sum(sure[first:last]) / (last - first)
            entities.append(Entity(label, read.text[start:end], start, end, first, last, score))
        return TokenClassification(read.text, words, tuple(entities))

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Names of people and of places, told apart by the word before them."""
        rows = []
        for i, name in enumerate(("ida", "omar", "li na", "zoe", "kofi", "ann", "raj", "mei", "tom", "eva")):
            person, place = name.split(), ("rome", "new york", "lima", "oslo", "san jose")[i % 5].split()
            ask = (["B-PER", "I-PER"][: len(person)], ["B-LOC", "I-LOC"][: len(place)])
            rows.append({"tokens": ["ask", *person, "in", *place], "tags": ["O", *ask[0], "O", *ask[1]]})
            rows.append({"tokens": ["in", *place, "ask", *person], "tags": ["O", *ask[1], "O", *ask[0]]})
        return cls(), rows

    def golden(self) -> list[dict[str, Any]]:
        """Return rows for comparisons; see ``Task.golden``."""
        _, rows = type(self).sample()
        return [*rows[:4], {"tokens": [word for row in rows for word in row["tokens"]]}, {"tokens": SCRIPTS.split()}]

    @property
    def _index(self) -> Mapping[str, int]:
        if self.labels is None:
            raise UsageError("the tags are not settled yet", hint="pass labels=[...], or fit the task on data first")
        return _numbered(tuple(self.labels))


@cache
def _numbered(labels: tuple[str, ...]) -> Mapping[str, int]:
    return {label: i for i, label in enumerate(labels)}


@cache
def _transitions(labels: tuple[str, ...]) -> NDArray[np.float64]:
    """Return 0 where a tag (column) may follow another (line; the last: the beginning), else minus infinity."""
    before = [*labels, OUTSIDE]
    return np.asarray([[0.0 if b[:2] != "I-" or a[2:] == b[2:] else -np.inf for b in labels] for a in before])


def _log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of the tags' probabilities, (words, labels)."""
    exact = finite(logits)
    exact = exact - exact.max(axis=1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(axis=1, keepdims=True)))


def _words(row: Row) -> _Words:
    """Return the words of a good row."""
    if row.get("tokens") is None:
        text = row["text"]
        places = split_words(text)
        return _Words([text[start:end] for start, end in places], text, places)
    words = _listed(row["tokens"])
    return _Words(words, *joined(words))


def _listed(value: Any) -> Any:
    """Return a list; words in one string are parted by spaces."""
    return value.split() if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _place(span: Any) -> tuple[int, int]:
    """Return where a span begins and ends; (-1, -1) where it does not say."""
    if not isinstance(span, Mapping):
        return -1, -1
    places = span.get("start"), span.get("end")
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
    return places if whole else (-1, -1)  # type: ignore[return-value]


def _label(span: Mapping[str, Any]) -> Any:
    return next((span[name] for name in ("label", "type", "entity") if name in span), None)


def _is_iob(tag: str) -> bool:
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


PLUGIN = TokenClassificationTask
