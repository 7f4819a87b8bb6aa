"""The one decoding loop: requests in, tokens chosen step by step, pieces of text and finished answers out.

A step is: the logits of all rows, what the request forbids or discounts, one choice a row, one forward. Whether
a choice is the likeliest token, a drawn one, or the best beams, is all that differs between the ways to
generate. Requests come and go at any step: a new one takes the row of one that has ended, and rows that nobody needs
leave once they are a quarter, so that nobody pays for them.
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
from .pieces import Chances, Done, Piece
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
    """What holds for a request, as for all others of its call.

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
    top_logprobs: int = 0


@dataclass
class Request:
    """One prompt, and how far its answer is."""

    index: int
    prompt: list[int]
    rules: Rules
    writer: Writer
    random: torch.Generator
    grammar: Grammar | None = None
    salt: str | None = None
    """With whom it may share what was read of a prompt before; None for nobody."""
    cached: int | None = None
    """Tokens of the prompt that had been read before; None where nothing is kept."""
    member: int = 0
    """Which model writes, where the decoder is of several."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[Chances] = field(default_factory=list)
    finish_reason: str = ""
    told: int = 0  # tokens whose text has been given away

    @property
    def history(self) -> list[int]:
        """What penalties and transformers' processors look at."""
        return [*(self.prompt if self.rules.start is None else self.rules.start), *self.tokens]


def generate(decoder: Decoder, requests: Sequence[Request]) -> Iterator[Piece | Done]:
    """Write answers to some requests of one call together; pieces come where a request's writer streams.

    An answer's tokens do not depend on the requests beside it.
    """
    if requests[0].rules.num_beams > 1:
        yield from _beams(decoder, requests, requests[0].rules)
        return
    running = Running(decoder)
    running.join(requests)
    while running.going:
        yield from running.step()


class Running:
    """Requests that are written to side by side.

    Those that are there together start from one token (``Rules.start``). Others can join where the decoder ``joins``,
    or once all have ended.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._rows: list[Request] = []
        self._logits = torch.empty(0)

    @property
    def joins(self) -> bool:
        """Whether others can join now."""
        return self.decoder.joins or not self.going

    @property
    def going(self) -> int:
        """How many requests have not ended."""
        return sum(not request.finish_reason for request in self._rows)

    def join(self, requests: Sequence[Request]) -> None:
        """Read the prompts of new requests, which are written to from the next step on."""
        prompts = [request.prompt for request in requests]
        room = max(request.rules.max_new_tokens for request in requests)
        salts = None if any(request.salt is None for request in requests) else [str(one.salt) for one in requests]
        self.decoder.members = [request.member for request in requests]
        if not self.going:
            start = requests[0].rules.start
            self.decoder.start = None if start is None else start[0]
            self._rows, self._logits = list(requests), self.decoder.begin(prompts, room, salts)
            return
        free = [row for row, request in enumerate(self._rows) if request.finish_reason]
        rows = [*free, *range(len(self._rows), len(self._rows) + len(requests))][: len(requests)]
        found = self.decoder.join(prompts, room, rows, salts)
        more = max(0, rows[-1] + 1 - len(self._rows))
        self._rows += requests[len(requests) - more :]
        self._logits = torch.cat([self._logits, self._logits.new_empty(more, self._logits.shape[1])])
        for row, request in zip(rows, requests, strict=True):
            self._rows[row] = request
        self._logits[torch.tensor(rows, device=found.device)] = found

    def step(self) -> Iterator[Piece | Done]:
        """Write one token to each request; one whose ``finish_reason`` was set from outside ends without an answer."""
        rows = self._rows
        tokens = _chosen(self._logits, rows)
        chances = self._logits.log_softmax(-1) if any(request.rules.logprobs for request in rows) else None
        for row, (request, token) in enumerate(zip(rows, tokens, strict=True)):
            if not request.finish_reason:
                yield from taken(request, token, None if chances is None else chances[row])
        going = [row for row, request in enumerate(rows) if not request.finish_reason]
        if not going:
            self._rows = []
            return
        if len(going) <= 0.75 * len(rows):
            self.decoder.select(torch.tensor(going, device=self._logits.device))
            self._rows, tokens = [rows[row] for row in going], [tokens[row] for row in going]
        self._logits = self.decoder.step(torch.tensor(tokens, device=self._logits.device))


def _chosen(logits: Tensor, rows: Sequence[Request]) -> list[int]:
    """Return one token for each row."""
    scores, ways = _lawful(logits, rows), dict[Sampling, list[int]]()
    for row, request in enumerate(rows):
        ways.setdefault(request.rules.sampling, []).append(row)
    out = [0] * len(rows)
    for way, here in ways.items():
        part = scores if len(ways) == 1 else scores[here]
        if way.temperature == 0.0:
            found = sampling.likeliest(part)
        else:
            found = sampling.drawn(sampling.filtered(part, way), [rows[row].random for row in here])
        for row, token in zip(here, found, strict=True):
            out[row] = token
    return out


def _lawful(scores: Tensor, rows: Sequence[Request]) -> Tensor:
    """Return the scores after penalties, the model's own rules and grammars."""
    penalties = [request.rules.sampling.repetition_penalty for request in rows]
    scores = sampling.penalized(scores, [r.history if p != 1.0 else () for r, p in zip(rows, penalties, strict=True)],
                                penalties)  # fmt: skip
    if any(request.rules.processors for request in rows):
        scores = torch.cat([_processed(s, r.history, r.rules) for s, r in zip(scores[:, None], rows, strict=True)])
    if all(request.grammar is None for request in rows):
        return scores
    allowed = torch.ones(scores.shape, dtype=torch.bool)
    for row, request in enumerate(rows):
        if request.grammar is not None and not request.finish_reason:
            allowed[row] = request.grammar.allowed(scores.shape[-1])
    return scores.masked_fill(~allowed.to(scores.device), NEVER)


def _processed(scores: Tensor, history: Sequence[int], rules: Rules) -> Tensor:
    """Return the scores of a row after transformers' processors. (1, vocabulary)."""
    for process in rules.processors:
        scores = process(torch.tensor([list(history)], device=scores.device), scores)
    return scores


def taken(request: Request, token: int, chances: Tensor | None = None) -> Iterator[Piece | Done]:
    """Append a token to a request, and tell what became certain by it."""
    rules = request.rules
    last = len(request.tokens) + 1 >= rules.max_new_tokens
    complete = request.grammar is not None and request.grammar.take(token)
    ended = token in rules.ends
    if not ended:
        request.tokens.append(token)
        if chances is not None and rules.logprobs:
            request.logprobs.append(float(chances[token]))
            if rules.top_logprobs:
                best = chances.topk(min(rules.top_logprobs, len(chances)))
                request.likeliest.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    text, reason = "" if ended else request.writer.push(token), ""
    if complete:
        reason = "schema"
    elif request.writer.stopped:
        reason = "stop"
    elif ended:
        reason = "length" if last and token == rules.forced_end else "stop"
    elif last:
        reason = "length"
    yield from _told(request, text, reason)


def finished(request: Request, reason: str) -> Iterator[Piece | Done]:
    """End a request behind its last token, as an engine says that has ended it by itself."""
    return _told(request, "", reason)


def _told(request: Request, text: str, reason: str) -> Iterator[Piece | Done]:
    """Give away a text, and where there is a reason to end the answer."""
    request.finish_reason = reason
    if reason:
        text += request.writer.finish(request.tokens)
    if text and request.writer.streams:
        yield _piece(request, text)
    if reason:
        yield Done(request.index, _answer(request))


def _piece(request: Request, text: str) -> Piece:
    if not request.rules.logprobs:
        return Piece(request.index, text)
    new = slice(request.told, len(request.tokens))
    request.told = new.stop
    return Piece(request.index, text, request.tokens[new], request.logprobs[new], request.likeliest[new])


def _answer(request: Request) -> Generation:
    return Generation(
        text=request.writer.text,
        tokens=request.tokens,
        finish_reason=request.finish_reason,
        prompt_tokens=len(request.prompt),
        logprobs=request.logprobs if request.rules.logprobs else None,
        likeliest=request.likeliest if request.rules.top_logprobs else None,
        cached_tokens=request.cached,
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


def _beams(decoder: Decoder, requests: Sequence[Request], rules: Rules) -> Iterator[Piece | Done]:
    """Search the likeliest texts: ``num_beams`` of each request go on at every step."""
    decoder.start = None if rules.start is None else rules.start[0]
    decoder.members = [request.member for request in requests]
    logits = decoder.begin([request.prompt for request in requests], rules.max_new_tokens)
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
                yield _settled(search)
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
    penalty = rules.sampling.repetition_penalty
    scores = sampling.penalized(scores, histories if penalty != 1.0 else (), [penalty] * len(scores))
    if not rules.processors:
        return scores
    return torch.cat([_processed(s, h, rules) for s, h in zip(scores[:, None], histories, strict=True)])


def _settled(search: _Search) -> Done:
    best, request = search.found[0], search.request
    request.tokens, request.finish_reason = best.tokens, "stop" if best.ended else "length"
    request.writer.finish(best.tokens)
    return Done(request.index, _answer(request))
