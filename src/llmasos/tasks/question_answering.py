"""Extractive question answering: the answer is a passage of the context, or there is none.

The model gives each token two logits: that the answer starts there, and that it ends there (Devlin et al. 2019,
section 4.2). A context longer than the model is read in windows that overlap, the question before each; the token
[CLS] of a window stands for "no answer here" (section 4.3). Probabilities are over all windows of a row together.
"""

from __future__ import annotations

import difflib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, shown
from .base import Encoding, Field, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

_LONGEST_ANSWER = 30  # tokens, as in the scripts of BERT; more where the training answers have more
_LEAST_CONTEXT = 16  # tokens of context that a window has, however long the question is
_HEAD = 3  # lines of a window's targets before the places of its tokens
_LAYOUT = '{"text": ["..."], "answer_start": [0]}'


@dataclass(frozen=True)
class Span:
    """One possible answer: ``context[start:end]``, and its probability."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        answer: the passage of the context, character by character; "" if there is no answer.
        score: its probability among all passages (and "no answer") of all windows.
        start, end: ``context[start:end] == answer``; None if there is no answer.
        no_answer_score: the probability that there is none; None for a model that always answers.
        n_best: the most likely passages, best first.
    """

    answer: str
    score: float
    start: int | None
    end: int | None
    no_answer_score: float | None
    n_best: tuple[Span, ...]

    def __str__(self) -> str:
        place = "" if self.start is None else f" [{self.start}:{self.end}]"
        return f"{self.answer or '(no answer)'}{place}  {self.score:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON types."""
        return {**asdict(self), "n_best": [asdict(span) for span in self.n_best]}


class _Window(NamedTuple):
    """A part of a context as the model sees it.

    ``null``: place of [CLS]; ``first``: place of the first context token; ``start``: which token of the whole
    context that is; ``total``: tokens of the whole context; ``spans``: first and last character of each context
    token here, (tokens, 2).
    """

    null: int
    first: int
    start: int
    total: int
    spans: NDArray[np.int32]

    def stored(self, answer: tuple[int, int] | None) -> NDArray[np.int32]:
        """Return the window with its answer, as tokens of the context, as lines of two numbers: see ``_HEAD``."""
        at = (self.null, self.null) if answer is None else [self.first + token - self.start for token in answer]
        head = np.asarray([at, (self.null, self.first), (self.start, self.total)], dtype=np.int32)
        return np.concatenate([head, self.spans])

    @classmethod
    def read(cls, lines: NDArray[np.int32]) -> _Window:
        """Undo ``stored``."""
        (null, first), (start, total) = lines[1:_HEAD].tolist()
        return cls(null, first, start, total, lines[_HEAD:])


@dataclass(frozen=True)
class QuestionAnsweringTask(Task):
    """Find the answer to a question in a context.

    Args:
        stride: tokens by which neighbouring windows of a long context overlap; at most half a window.
        unanswerable: whether a question may have no answer in its context; None infers it from the data.
        null_threshold: "no answer" is given where its score (sum of its two logits) is above that of the best
            answer by more than this; higher values answer more often.
        max_answer_length: the longest answer, in tokens; None takes the longest of the training data, at least 30.
        n_best: how many answers a prediction lists.
        score_by: how answers are compared: "words" (SQuAD), "characters" (CMRC 2018, for Chinese), or "auto"
            for characters where the training answers are Chinese.

    Example:
        >>> QuestionAnsweringTask(n_best=3).n_best
        3
    """

    tag: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    other_data: ClassVar[str] = "SQuAD's nested .json"
    default_metric: ClassVar[str] = "f1"
    output: ClassVar[str] = "token"
    undivided: ClassVar[str | None] = "context"
    scores_rows: ClassVar[bool] = True

    stride: int = 128
    unanswerable: bool | None = None
    null_threshold: float = 0.0
    max_answer_length: int | None = None
    n_best: int = 1
    score_by: str = "auto"

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise UsageError(f"stride={self.stride}", hint="tokens by which windows overlap, 0 or more")
        if self.n_best < 1:
            raise UsageError(f"n_best={self.n_best}", hint="1 or more answers")
        if self.max_answer_length is not None and self.max_answer_length < 1:
            raise UsageError(f"max_answer_length={self.max_answer_length}", hint="1 token or more")
        if not math.isfinite(self.null_threshold):
            raise UsageError(f"null_threshold={self.null_threshold}", hint="a finite number")
        if self.unanswerable not in (None, True, False):
            raise UsageError(f"unanswerable={self.unanswerable!r}", hint="true or false")
        if self.score_by not in ("auto", "words", "characters"):
            raise UsageError(f"score_by={self.score_by!r}", hint='"auto", "words" or "characters"')

    @classmethod
    def of_head(cls, config: Mapping[str, Any]) -> Self | None:
        """Return a reader that always answers: whether it was taught not to, its configuration doesn't say."""
        del config
        return cls(unanswerable=False)

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """A question, the context that it is about, and the answers with their places."""
        return (
            Field("question", ("question", "query"), doc="the question"),
            Field("context", ("context", "passage", "paragraph", "document", "text"), doc="the text with the answer"),
            Field(
                "answers",
                ("answers", "answer"),
                kind="json",
                answer=True,
                doc=f"{_LAYOUT}, places in characters; empty lists where there is no answer",
            ),
        )

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        for name in ("question", "context"):
            text = row.get(name)
            if not isinstance(text, str):
                return Problem(name, shown(text), "a string")
            if not text.strip():
                return Problem(name, f"an empty {name}", "some text", drop=True)
        return self._answers_problem(row.get("answers"), row["context"]) if labelled else None

    def _answers_problem(self, value: Any, context: str) -> Problem | None:
        answers = _answers(value)
        if answers is None:
            return Problem("answers", shown(value), _LAYOUT + _placed(value, context))
        if not answers and self.unanswerable is False:
            return Problem("answers", "no answer", "an answer (unanswerable=True allows questions without)")
        return next((p for p in (_answer_problem(text, at, context) for text, at in answers) if p), None)

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle from the rows whether questions may have no answer, how long answers are, and their language."""
        from ..metrics.answers import is_chinese

        total = without = chinese = 0
        longest: list[tuple[int, str]] = []
        for row in rows:
            texts = [text for text, _ in _answers(row["answers"]) or []]
            total, without = total + 1, without + (not texts)
            chinese += bool(texts) and is_chinese(texts[0])
            for text in texts:
                keep = heapq.heappush if len(longest) < 100 else heapq.heappushpop
                keep(longest, (len(text), text))
        if total == without:
            raise DataError("no question has an answer", hint="a model learns from questions that have one")
        most = _tokens([text for _, text in longest], tokenizer)
        notes = [f"{without} of {total} questions have no answer in their context"] if without else []
        if self.max_answer_length is not None and most > self.max_answer_length:
            limit = f"max_answer_length={self.max_answer_length}"
            notes.append(f"the longest answer has {most} tokens: {limit} rules it out")
        by = self.score_by if self.score_by != "auto" else ("words", "characters")[2 * chinese > total - without]
        if by != self.score_by and by == "characters":
            notes.append("the answers are Chinese: they are scored by characters, as CMRC 2018's script does")
        return replace(
            self,
            unanswerable=without > 0 if self.unanswerable is None else self.unanswerable,
            max_answer_length=max(_LONGEST_ANSWER, most) if self.max_answer_length is None else self.max_answer_length,
            score_by=by,
        ), notes

    # -- tokens -------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise question and context, a long context in windows; only a question can be cut.

        A window's targets say where the answer starts and ends and which characters its tokens stand for.
        """
        full = _tokenised(rows, tokenizer)
        types: list[NDArray[np.uint8]] | None = [] if "token_type_ids" in full else None
        ids, truncated, windows, places = list[NDArray[np.int32]](), list[int](), list[NDArray[np.int32]](), list[int]()
        problems: dict[int, Problem] = {}
        for i, row in enumerate(rows):
            pair = _Pair(full, i, max_length)
            answer = _answers(row["answers"]) if labelled else None
            tokens = pair.tokens(*answer[0]) if answer else None
            if answer and tokens is None:
                found = f"answer {answer[0][0]!r}, for which the tokenizer has no token"
                problems[i] = Problem("answers", found, "characters that the model knows")
                truncated.append(0)
                continue
            parts = pair.parts(self.stride)
            lost = _outside(tokens, parts) if tokens else 0
            truncated.append(pair.cut + lost)
            for start, stop in parts:
                kept = pair.kept(start, stop)
                ids.append(pair.ids[kept])
                if types is not None:
                    types.append(np.asarray(full["token_type_ids"][i], dtype=np.uint8)[kept])
                is_here = tokens is not None and start <= tokens[0] and tokens[1] < stop
                window = pair.window(ids[-1], start, stop, tokenizer.cls_token_id)
                windows.append(window.stored(tokens if is_here else None))
                places.append(i)
        return Encoding(ids, types, truncated, windows, places, problems)

    # -- numbers ------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> tuple[str, ...]:
        """F1 and exact match."""
        return ("f1", "exact_match")

    def head_config(self) -> dict[str, Any]:
        """Two outputs for each token: start and end."""
        return {"num_labels": 2}

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean of both cross entropies over the tokens of each window, summed over windows.

        Args:
            outputs: logits of start and end, (tokens, 2).
            batch: windows with their targets.
        """
        import torch
        from torch.nn import functional
        from torch.nn.utils.rnn import pad_sequence

        assert batch.targets is not None
        assert batch.target_lengths is not None
        heads = np.cumsum(batch.target_lengths, dtype=np.int64) - batch.target_lengths
        wanted = torch.from_numpy(batch.targets[heads].astype(np.int64)).to(outputs.device)  # (windows, 2)
        logits = outputs if outputs.dtype.itemsize >= 4 else outputs.float()
        parts = torch.tensor_split(logits, batch.offsets[1:-1].tolist())
        padded = pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)  # (windows, longest, 2)
        return functional.cross_entropy(padded, wanted, reduction="sum") / 2

    def weight(self, batch: Batch) -> float:
        """The number of windows."""
        return float(len(batch))

    def scorer(self) -> Scorer:
        """Return an empty scorer of answers."""
        from ..metrics.answers import AnswerScorer

        return AnswerScorer("characters" if self.score_by == "characters" else "words")

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Join the windows of each row into its answer, and compare that with the right ones."""
        from ..metrics.answers import Gold

        assert part.targets is not None
        assert part.target_offsets is not None
        targets = np.split(part.targets, part.target_offsets[1:-1])
        _, places = np.unique(part.rows, return_inverse=True)
        answers: Any = [answer.answer for answer in self._joined(outputs, targets, places.tolist(), rows)]
        gold: Any = [Gold([text for text, _ in _answers(row["answers"]) or []], row["context"]) for row in rows]
        scorer.add(answers, gold)

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Turn the logits of windows into one answer a row, cut from the context as it was given."""
        assert isinstance(encoding.targets, list)
        assert encoding.rows is not None
        return self._joined(outputs, encoding.targets, encoding.rows, rows)

    def _joined(
        self, outputs: Sequence[Any], targets: Sequence[Any], places: Sequence[int], rows: Sequence[Row]
    ) -> list[Answer]:
        windows: list[list[tuple[_Window, Any]]] = [[] for _ in rows]
        for place, lines, logits in zip(places, targets, outputs, strict=True):
            windows[place].append((_Window.read(lines), logits))
        return [self._answer(parts, row["context"]) for parts, row in zip(windows, rows, strict=True)]

    def _answer(self, windows: Sequence[tuple[_Window, Any]], context: str) -> Answer:
        scores, spans, null = _passages(windows, self.max_answer_length or _LONGEST_ANSWER)
        everything = np.append(scores.ravel(), null) if self.unanswerable else scores.ravel()
        top = everything.max(initial=-np.inf)
        whole = top + np.log(np.exp(everything - top).sum()) if np.isfinite(top) else 0.0
        best = tuple(_best(scores, spans, context, self.n_best, whole))
        no_answer = float(np.exp(null - whole)) if self.unanswerable else None
        # in logarithms, where a probability may have become 0
        if not best or (self.unanswerable and null - scores.max() > self.null_threshold):
            return Answer("", no_answer or 0.0, None, None, no_answer, best)
        first = best[0]
        return Answer(first.answer, first.score, first.start, first.end, no_answer, best)

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """A number in a sentence; in some there is none."""
        rows = []
        for i in range(24):
            number = str(10 + 3 * i)
            context = (f"{number} birds sit here", f"we saw {number} cats", "no dogs today", f"it took {number} days")[
                i % 4
            ]
            found = {"text": [number], "answer_start": [context.index(number)]} if number in context else {}
            answers = found or {"text": [], "answer_start": []}
            rows.append({"question": "how many?", "context": context, "answers": answers})
        return cls(), rows


def _tokenised(rows: Sequence[Row], tokenizer: Any) -> Any:
    """Tokenise questions with their whole contexts, with the characters of each token."""
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for",
            hint="a model with a fast tokenizer (tokenizer.json)",
        )
    return tokenizer(
        [row["question"] for row in rows], [row["context"] for row in rows],
        truncation=False, return_offsets_mapping=True, verbose=False,
    )  # fmt: skip


class _Pair:
    """One question with its whole context as tokens, of which windows are made."""

    def __init__(self, full: Any, row: int, max_length: int) -> None:
        sides = np.asarray([-1 if side is None else side for side in full.encodings[row].sequence_ids])
        self.ids = np.asarray(full["input_ids"][row], dtype=np.int32)
        self._context = np.flatnonzero(sides == 1)
        question = np.flatnonzero(sides == 0)
        places = max_length - int((sides == -1).sum())  # what the model's own tokens leave
        if places < 2:
            raise UsageError(
                f"max_length={max_length} leaves no place for a question and a context", hint="a larger max_length"
            )
        least = min(_LEAST_CONTEXT, places // 2, max(1, len(self._context)))
        self.cut = max(0, len(question) - (places - least))
        self._room = places - (len(question) - self.cut)
        dropped = question[len(question) - self.cut :]
        outer = np.setdiff1d(np.flatnonzero(sides != 1), dropped)
        border = self._context[0] if len(self._context) else len(sides)
        self._before, self._after = outer[outer < border], outer[outer > border]
        self._spans = np.asarray(full["offset_mapping"][row], dtype=np.int32).reshape(-1, 2)[self._context]

    def parts(self, stride: int) -> list[tuple[int, int]]:
        """Return the first context token of each window and the one behind its last."""
        total = len(self._context)
        overlap = min(stride, self._room // 2)
        starts = range(0, total - overlap, self._room - overlap) if total > self._room else [0]
        return [(start, min(start + self._room, total)) for start in starts]

    def kept(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the places, in the whole, of a window's tokens."""
        return np.concatenate([self._before, self._context[start:stop], self._after])

    def window(self, ids: NDArray[np.int32], start: int, stop: int, cls_id: int | None) -> _Window:
        """Describe a window."""
        null = np.flatnonzero(ids == cls_id)
        place = int(null[0]) if len(null) else 0
        return _Window(place, len(self._before), start, len(self._context), self._spans[start:stop])

    def tokens(self, text: str, at: int) -> tuple[int, int] | None:
        """Return the first and the last context token of an answer; None if it has no token."""
        first, last = at + len(text) - len(text.lstrip()), at + len(text.rstrip())
        inside = np.flatnonzero((self._spans[:, 1] > first) & (self._spans[:, 0] < last))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _outside(tokens: tuple[int, int], parts: Sequence[tuple[int, int]]) -> int:
    """Return how many tokens of an answer even the window with the most of them lacks."""
    first, last = tokens
    return last - first + 1 - max(min(stop, last + 1) - max(start, first) for start, stop in parts)


def _passages(
    windows: Sequence[tuple[_Window, Any]], longest: int
) -> tuple[NDArray[np.float64], NDArray[np.int32], float]:
    """Score every passage of a context by the sum of its two logits, in its best window.

    Returns:
        Scores, (tokens, lengths), -inf where no window holds the passage; the characters of the tokens,
        (tokens, 2); and the score of "no answer", the lowest of all windows.
    """
    from ..metrics.base import finite

    total = windows[0][0].total
    longest = max(1, min(longest, total))
    scores = np.full((total, longest), -np.inf)
    spans = np.zeros((total, 2), dtype=np.int32)
    null = np.inf
    for window, raw in windows:
        logits = finite(raw)
        null = min(null, float(logits[window.null].sum()))
        starts, ends = logits[window.first : window.first + len(window.spans)].T
        ends = np.concatenate([ends, np.full(longest - 1, -np.inf)])
        here = slice(window.start, window.start + len(window.spans))
        spans[here] = window.spans
        if len(starts):
            sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)
            np.maximum(scores[here], sums, out=scores[here])
    return scores, spans, null


def _best(
    scores: NDArray[np.float64], spans: NDArray[np.int32], context: str, count: int, whole: float
) -> Iterable[Span]:
    """Yield the best different passages; ``whole`` is the logarithm of the sum over all."""
    flat = scores.ravel()
    many = min(len(flat), 8 * count + 8)  # some may be blank, or the same characters
    order = np.argpartition(-flat, many - 1)[:many] if many < len(flat) else np.arange(len(flat))
    seen: set[tuple[int, int]] = set()
    for place in order[np.argsort(-flat[order], kind="stable")].tolist():
        token, more = divmod(place, scores.shape[1])
        if flat[place] == -np.inf or len(seen) == count:
            return
        start, end = int(spans[token, 0]), int(spans[token + more, 1])
        text = context[start:end]
        start, text = start + len(text) - len(text.lstrip()), text.strip()
        if text and (start, start + len(text)) not in seen:
            seen.add((start, start + len(text)))
            yield Span(text, float(np.exp(flat[place] - whole)), start, start + len(text))


# -- answers as data has them -----------------------------------------------------------------------


def _answers(value: Any) -> list[tuple[str, int]] | None:
    """Return texts and places from SQuAD's layout, by columns or one by one; None if it is something else."""
    if isinstance(value, Mapping):
        texts, places = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            texts, places = [texts], [places]
    elif isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value):
        texts, places = [one.get("text") for one in value], [one.get("answer_start") for one in value]
    else:
        return None
    if not isinstance(texts, list | tuple) or not isinstance(places, list | tuple) or len(texts) != len(places):
        return None
    right = all(isinstance(text, str) and type(at) is int for text, at in zip(texts, places, strict=True))
    return list(zip(texts, places, strict=True)) if right else None


def _answer_problem(text: str, at: int, context: str) -> Problem | None:
    if not text.strip():
        return Problem("answers", "an empty answer", "some text (no answer at all: empty lists)")
    if not 0 <= at < len(context):
        found = f"answer_start {at} for {shown(text)} in a context of {len(context)} characters"
        return Problem("answers", found, "a place in the context" + _nearest(text, at, context))
    there = context[at : at + len(text)]
    if there != text:
        found = f"answer {shown(text)} at {at}, where the context has {there!r}"
        return Problem("answers", found, "the same text in both" + _nearest(text, at, context))
    return None


def _nearest(text: str, at: int, context: str) -> str:
    """Word where an answer, or what is most like it, is in the context."""
    before, after = context.rfind(text, 0, max(at, 0) + len(text)), context.find(text, max(at, 0))
    found = [place for place in (before, after) if place >= 0]
    if found:
        return f"; it is at {min(found, key=lambda place: abs(place - at))}"
    match = difflib.SequenceMatcher(None, context.lower(), text.lower(), autojunk=False).find_longest_match()
    start = max(0, match.a - match.b)
    near = context[start : start + len(text)]
    if difflib.SequenceMatcher(None, near.lower(), text.lower(), autojunk=False).ratio() < 0.5:
        return "; nothing in the context is like it"
    return f"; nearest match: {near!r} at {start}"


def _placed(value: Any, context: str) -> str:
    """Word the place of an answer that was given as plain text."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    places = [context.find(text) for text in texts if isinstance(text, str) and text]
    return f"; the text is at {places[0]}" if places and places[0] >= 0 else ""


def _tokens(texts: Sequence[str], tokenizer: Any) -> int:
    """Return how many tokens the longest text has; 0 without a tokenizer."""
    if tokenizer is None or not texts:
        return 0
    return max(map(len, tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]))


PLUGIN = QuestionAnsweringTask
