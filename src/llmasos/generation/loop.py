"""The one decoding loop: requests in, tokens chosen step by step, pieces of text and finished answers out.

A step is: the logits of all rows, what the request forbids or discounts, one choice a row, one forward. Whether
a choice is the likeliest token, a drawn one, or the best beams, is all that differs between the ways to
generate. Rows that have ended leave once they are a quarter, so that nobody pays for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..decoders.base import Decoder
from ..tasks.base import Generation
from . import sampling
from .sampling import NEVER, Sampling
from .writer import Writer

Processor = Callable[[Tensor, Tensor], Tensor]
"""One of transformers' logits processors: (rows, history), (rows, vocabulary) -> (rows, vocabulary)."""


class Grammar(Protocol):
    """What a text must obey, token by token."""

    def allowed(self, vocabulary: int) -> Tensor:
        """Return which tokens may come next, (vocabulary,), true where allowed."""

    def take(self, token: int) -> bool:
        """Go on with a token; return whether the text is complete."""


@dataclass(frozen=True)
class Rules:
    """What holds for all requests of a call.

    ``start``: ids that a writer's history begins with although they are no part of the prompt (the start token of
    an encoder-decoder model, whose history is not its prompt).
    """

    max_new_tokens: int
    ends: frozenset[int]
    sampling: Sampling = field(default_factory=Sampling)
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    start: tuple[int, ...] | None = None
    processors: tuple[Processor, ...] = ()
    forced_end: int | None = None
    logprobs: bool = False


@dataclass
class Request:
    """One prompt, and how far its answer is."""

    index: int
    prompt: list[int]
    writer: Writer
    random: torch.Generator
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""

    def history(self, rules: Rules) -> list[int]:
        """Return what penalties and transformers' processors look at."""
        return [*(self.prompt if rules.start is None else rules.start), *self.tokens]


class Piece(NamedTuple):
    """Text that has become certain."""

    number: int
    text: str


class Done(NamedTuple):
    """A finished answer."""

    number: int
    generation: Generation


def generate(decoder: Decoder, requests: Sequence[Request], rules: Rules) -> Iterator[Piece | Done]:
    """Write answers to some requests together; pieces come where a request's writer streams.

    An answer's tokens do not depend on the requests beside it.
    """
    decoder.start = None if rules.start is None else rules.start[0]
    logits = decoder.begin([request.prompt for request in requests], rules.max_new_tokens)
    if rules.num_beams > 1:
        yield from _beams(decoder, requests, rules, logits)
        return
    rows: list[Request] = list(requests)
    while True:
        tokens = _chosen(logits, rows, rules)
        chances = logits.log_softmax(-1) if rules.logprobs else None
        for row, (request, token) in enumerate(zip(rows, tokens, strict=True)):
            if not request.finish_reason:
                yield from _taken(request, token, rules, None if chances is None else float(chances[row, token]))
        going = [row for row, request in enumerate(rows) if not request.finish_reason]
        if not going:
            return
        if len(going) <= 0.75 * len(rows):
            decoder.select(torch.tensor(going, device=logits.device))
            rows, tokens = [rows[row] for row in going], [tokens[row] for row in going]
        logits = decoder.step(torch.tensor(tokens, device=logits.device))


def _chosen(logits: Tensor, rows: Sequence[Request], rules: Rules) -> list[int]:
    """Return one token for each row."""
    scores = _lawful(logits, rows, rules)
    if rules.sampling.temperature == 0.0:
        return sampling.likeliest(scores)
    return sampling.drawn(sampling.filtered(scores, rules.sampling), [request.random for request in rows])


def _lawful(scores: Tensor, rows: Sequence[Request], rules: Rules) -> Tensor:
    """Return the scores after penalties, the model's own rules and grammars."""
    scores = sampling.penalized(scores, _histories(rows, rules), rules.sampling.repetition_penalty)
    if rules.processors:
        scores = torch.cat([_processed(s, r, rules) for s, r in zip(scores[:, None], rows, strict=True)])
    if all(request.grammar is None for request in rows):
        return scores
    allowed = torch.ones(scores.shape, dtype=torch.bool)
    for row, request in enumerate(rows):
        if request.grammar is not None and not request.finish_reason:
            allowed[row] = request.grammar.allowed(scores.shape[-1])
    return scores.masked_fill(~allowed.to(scores.device), NEVER)


def _histories(rows: Sequence[Request], rules: Rules) -> list[list[int]]:
    return [r.history(rules) for r in rows] if rules.sampling.repetition_penalty != 1.0 else []


def _processed(scores: Tensor, request: Request, rules: Rules) -> Tensor:
    history = torch.tensor([request.history(rules)], device=scores.device)
    for process in rules.processors:
        scores = process(history, scores)
    return scores


def _taken(request: Request, token: int, rules: Rules, chance: float | None) -> Iterator[Piece | Done]:
    """Append a token to a request, and tell what became certain by it."""
    last = len(request.tokens) + 1 >= rules.max_new_tokens
    complete = request.grammar is not None and request.grammar.take(token)
    ended = token in rules.ends
    if not ended:
        request.tokens.append(token)
        if chance is not None:
            request.logprobs.append(chance)
    text = "" if ended else request.writer.push(token)
    if complete:
        request.finish_reason = "schema"
    elif request.writer.stopped:
        request.finish_reason = "stop"
    elif ended:
        request.finish_reason = "length" if last and token == rules.forced_end else "stop"
    elif last:
        request.finish_reason = "length"
    if request.finish_reason:
        text += request.writer.finish(request.tokens)
    if text and request.writer.streams:
        yield Piece(request.index, text)
    if request.finish_reason:
        yield Done(request.index, _answer(request, rules))


def _answer(request: Request, rules: Rules) -> Generation:
    return Generation(
        text=request.writer.text,
        tokens=request.tokens,
        finish_reason=request.finish_reason,
        prompt_tokens=len(request.prompt),
        logprobs=request.logprobs if rules.logprobs else None,
    )


# -- beams --------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    score: float
    tokens: list[int]
    ended: bool


@dataclass
class _Search:
    """The beams of one request, as transformers searches them."""

    request: Request
    beams: list[list[int]]
    scores: Tensor  # (beams,)
    found: list[_Found] = field(default_factory=list)
    improvable: bool = True
    over: bool = False

    def advance(self, chances: Tensor, rules: Rules) -> tuple[list[int], list[int]]:
        """Go one token further. chances: (beams, vocabulary) -> the beams gone on with, and their new tokens."""
        count, vocabulary = chances.shape
        best = (self.scores[:, None] + chances).reshape(-1).topk(max(2, 1 + len(rules.ends)) * count)
        length = len(self.beams[0]) + 1
        last = length >= rules.max_new_tokens
        going: list[tuple[float, int, int]] = []
        closed = not self.improvable or (self._full(count) and rules.early_stopping is True)
        for place, (score, at) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(at, vocabulary)
            ended = token in rules.ends
            if not ended and not last:
                going.append((score, beam, token))
            elif place < count and not closed:
                tokens = [*self.beams[beam], *([] if ended else [token])]
                forced = last and token == rules.forced_end
                self.found.append(_Found(score / length**rules.length_penalty, tokens, ended and not forced))
        self.found = sorted(self.found, key=lambda found: -found.score)[:count]
        if last or not going:
            self.over = True
            return [0] * count, [0] * count
        going = (going + [going[-1]] * count)[:count]
        self.beams = [[*self.beams[beam], token] for _, beam, token in going]
        self.scores = self.scores.new_tensor([score for score, _, _ in going])
        self._look_ahead(length, count, rules)
        return [beam for _, beam, _ in going], [token for _, _, token in going]

    def _look_ahead(self, length: int, count: int, rules: Rules) -> None:
        """Stop where no beam can become better than what was found."""
        if rules.early_stopping == "never" and rules.length_penalty > 0:
            length = rules.max_new_tokens
        hope = float(self.scores[0]) / length**rules.length_penalty
        self.improvable &= not self._full(count) or hope > self.found[-1].score
        self.over = not self.improvable or (self._full(count) and rules.early_stopping is True)

    def _full(self, count: int) -> bool:
        return len(self.found) == count


def _beams(decoder: Decoder, requests: Sequence[Request], rules: Rules, logits: Tensor) -> Iterator[Piece | Done]:
    """Search the likeliest texts: ``num_beams`` of each request go on at every step."""
    count, device = rules.num_beams, logits.device
    first = torch.full((count,), -1e9, device=device)
    first[0] = 0.0
    searches = [_Search(request, [[] for _ in range(count)], first.clone()) for request in requests]
    rows = torch.arange(len(requests), device=device).repeat_interleave(count)
    decoder.select(rows)
    logits = logits[rows]
    while True:
        scores = _beam_scores(logits.log_softmax(-1), searches, rules)
        sources: list[int] = []
        tokens: list[int] = []
        going = []
        for number, search in enumerate(searches):
            at = number * count
            beams, new = search.advance(scores[at : at + count], rules)
            if search.over:
                yield _settled(search, rules)
                continue
            going.append(search)
            sources += [at + beam for beam in beams]
            tokens += new
        if not going:
            return
        searches = going
        if sources != list(range(len(logits))):
            decoder.select(torch.tensor(sources, device=device))
        logits = decoder.step(torch.tensor(tokens, device=device))


def _beam_scores(scores: Tensor, searches: Sequence[_Search], rules: Rules) -> Tensor:
    start = [list(s.request.prompt if rules.start is None else rules.start) for s in searches]
    histories = [[*begin, *beam] for begin, search in zip(start, searches, strict=True) for beam in search.beams]
    scores = sampling.penalized(scores, histories, rules.sampling.repetition_penalty)
    if not rules.processors:
        return scores
    out = []
    for row, history in zip(scores[:, None], histories, strict=True):
        for process in rules.processors:
            row = process(torch.tensor([history], device=scores.device), row)
        out.append(row)
    return torch.cat(out)


def _settled(search: _Search, rules: Rules) -> Done:
    best, request = search.found[0], search.request
    request.tokens, request.finish_reason = best.tokens, "stop" if best.ended else "length"
    request.writer.finish(best.tokens)
    return Done(request.index, _answer(request, rules))
