"""From prompts to answers: prompts as tokens, checked against the model's limit, decoded in batches.

A ``Generator`` holds one opened model and its proven decoder. ``loop.py`` is the loop; here is what comes
before it (the chat template, room for the answer, the model's own settings) and the order of the answers after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from ..architectures._adapters import share
from ..core.config import GenerateConfig
from ..core.errors import TooLongError, UsageError
from ..decoders._exported import Exported
from ..decoders._plain import start_of
from ..decoders.base import Decoder, open_decoder, open_together
from ..engines._writing import Stepping, author_of
from ..engines.base import Author, Batcher, Searcher, Stepper
from ..loading import load_config, longest_input
from ..tasks.base import Generation
from . import sampling
from .loop import Processor, Request, Rules, generate
from .pieces import Done, Piece
from .sampling import Sampling
from .writer import Writer


class Generator:
    """A model that writes.

    ``draws``: whether it can take another token than the likeliest.

    Args:
        model: a transformers model, in float32, on its device.
        tokenizer: the model's.
        limit: the most tokens that it can take.
        precision: "float32" or "bfloat16".
        speed: "auto" or "plain" (transformers' own forward always).
        decoder: what writes, where it is not the model itself.
    """

    draws: ClassVar[bool] = True

    def __init__(
        self, model: Any, tokenizer: Any, limit: int, *, precision: str = "float32", speed: str = "auto",
        decoder: Decoder | None = None,
    ) -> None:  # fmt: skip
        if not model.can_generate():
            raise UsageError(
                f"a {type(model).__name__} writes no text",
                hint="generate needs a decoder-only or an encoder-decoder model with its language head",
            )
        self.model, self.tokenizer, self.limit = model, tokenizer, limit
        self.encodes = bool(model.config.is_encoder_decoder)
        self.ends = ends_of(model, tokenizer)
        self.dtype, self._speed = getattr(torch, precision), speed
        self._decoder = decoder
        self._member = 0  # of the decoder's models

    @property
    def how(self) -> str:
        """In words: precision and path, with the reason; known after the first answer."""
        return self._decoder.how if self._decoder else "not yet known"

    def tokens(self, prompt: Any, tools: Any = None) -> list[int]:
        """Return a prompt as tokens: a text, or messages, with ``tools`` on offer, through the model's chat template.

        Raises:
            UsageError: it is neither, or the template refuses the messages.
        """
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
            # some tokenizers end every text, and after its end a text does not go on
            return ids[:-1] if not self.encodes and len(ids) > 1 and ids[-1] in self.ends else ids
        if not is_messages(prompt):
            raise UsageError(
                f"a prompt is a {type(prompt).__name__}", hint="a text, or a list of {role, content} messages"
            )
        from ..tasks import _chat_template
        from ..tasks._conversations import Wrong, asked

        if not self.tokenizer.chat_template:
            raise UsageError("this model has no chat template", hint="pass the whole prompt as a text")
        try:
            return _chat_template.prompt_ids(asked(list(prompt), tools), self.tokenizer)
        except Wrong as wrong:
            raise UsageError(f"the messages cannot be rendered: {wrong}", hint="correct the messages") from wrong

    def answers(self, prompts: Sequence[Sequence[int]], config: GenerateConfig, **more: Any) -> list[Generation]:
        """Write an answer to each prompt, in order; arguments as for ``pieces``."""
        found = {one.number: one.generation for one in self.pieces(prompts, config, **more) if isinstance(one, Done)}
        return [found[index] for index in range(len(prompts))]

    def pieces(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerateConfig,
        *,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        streams: bool = False,
        first_token: int | None = None,
        start_token: int | None = None,
    ) -> Iterator[Piece | Done]:
        """Write answers, those of about equally long prompts together.

        Args:
            prompts: token ids.
            config: how.
            stop: strings that end an answer.
            json_schema: what an answer must obey, as a dict or as JSON.
            logprobs: whether the probabilities of the tokens are wanted.
            top_logprobs: of so many likeliest tokens at each place, too.
            streams: whether text is wanted as it comes.
            first_token: what an encoder-decoder model must begin with.
            start_token: what its decoder starts from, if it is not the model's own.

        Raises:
            UsageError: options that exclude each other, or a prompt that does not fit.
        """
        requests = self.requests(
            prompts, config, stop=stop, json_schema=json_schema, logprobs=logprobs, top_logprobs=top_logprobs,
            streams=streams, first_token=first_token, start_token=start_token,
        )  # fmt: skip
        requests.sort(key=lambda request: -len(request.prompt))
        for begin in range(0, len(requests), config.batch_size):
            part = requests[begin : begin + config.batch_size]
            yield from generate(self.decoder(part), part)

    def requests(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerateConfig,
        *,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        streams: bool = False,
        first_token: int | None = None,
        start_token: int | None = None,
    ) -> list[Request]:
        """Return what the decoding loop is given, in order; arguments and errors as for ``pieces``."""
        check_options(config, stop, json_schema, logprobs, streams)
        room = check_fits(prompts, config.max_new_tokens, self.limit, encodes=self.encodes)
        rules = replace(self._rules(config, room, first_token, start_token), logprobs=logprobs or top_logprobs > 0,
                        top_logprobs=top_logprobs)  # fmt: skip
        copies: Counter[tuple[int, ...]] = Counter()
        requests = []
        for index, prompt in enumerate(prompts):
            key = tuple(prompt)
            requests.append(
                Request(
                    index=index,
                    prompt=list(prompt),
                    rules=rules,
                    writer=Writer(self.tokenizer, stop, streams=streams),
                    random=sampling.generator(config.seed, copies[key]),
                    grammar=None if json_schema is None else self._grammar(json_schema),
                    member=self._member,
                )
            )
            copies[key] += 1
        return requests

    def decoder(self, requests: Sequence[Request]) -> Decoder:
        """Return what writes, proven on these requests if it is the first time."""
        return self.opened([request.prompt for request in requests])

    def opened(self, prompts: Sequence[Sequence[int]]) -> Decoder:
        """Return what writes, proven on these prompts if it is the first time."""
        if self._decoder is None:
            self._decoder = open_decoder(self.model, self.dtype, prompts, speed=self._speed)
        return self._decoder

    @property
    def models(self) -> list[Any]:
        """The transformers models that compute: a copy in another precision too, once it is open."""
        copied = getattr(self._decoder, "model", self.model)
        return [self.model] if copied is self.model else [self.model, copied]

    def author(self, prompts: Sequence[Sequence[int]]) -> Author:
        """Return what writes as golden rows ask for it."""
        return author_of(Stepping(self.opened(prompts), self._member))

    def writes_beside(self, other: Generator) -> bool:
        """Say whether the texts of both can be written side by side."""
        return self is other or (self._decoder is not None and self._decoder is other._decoder)

    def close(self) -> None:
        """End what computes, where that is a process or holds memory of its own."""

    def _grammar(self, json_schema: Any) -> Any:
        from .schema import json_grammar

        return json_grammar(json_schema, self.tokenizer, self.ends, int(self.model.config.vocab_size))

    def _rules(self, config: GenerateConfig, room: int, first: int | None, start: int | None) -> Rules:
        settings = self.model.generation_config
        start = start_of(self.model) if start is None else start
        return Rules(
            max_new_tokens=room,
            ends=self.ends,
            sampling=Sampling(config.temperature, config.top_p, config.top_k, config.min_p, config.repetition_penalty),
            num_beams=config.num_beams,
            length_penalty=1.0 if settings.length_penalty is None else float(settings.length_penalty),
            early_stopping=settings.early_stopping or False,
            start=(start,) if self.encodes else None,
            processors=processors_of(self.model, self.ends, room, first),
            forced_end=settings.forced_eos_token_id if self.encodes else None,
        )


def opened(model: Any, tokenizer: Any, folder: Path, config: GenerateConfig) -> Generator:
    """Return the generator of a model, on the device and in the precision that the options ask for."""
    from ..core import hardware

    hardware.set_threads(config.threads)
    device = hardware.pick_device(config.device)
    precision, _ = hardware.pick_precision(config.precision, device)
    limit = longest_input(folder, tokenizer)
    return Generator(model.to(device).eval(), tokenizer, limit, precision=precision, speed=config.speed)


def join(generators: Sequence[Generator], prompts: Sequence[Sequence[int]]) -> None:
    """Let models over the same weights write side by side, where that is proven on these prompts.

    One that cannot, such as a DoRA, writes by itself, as if it were alone.
    """
    first = generators[0]
    found = open_together([one.model for one in generators], first.dtype, prompts) if first._speed == "auto" else None
    if found is not None:
        for member, place in enumerate(found.places):
            generators[place]._decoder, generators[place]._member = found.decoder, member
    first.opened(prompts)
    for one in generators[1:]:
        one.opened(prompts)
        share(one.models[-1], first.models[-1])  # copies in another precision too


class _Files:
    """What a ``Generator`` asks of a model, from the files of an artifact."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        from transformers import GenerationConfig

        self.config = load_config(folder)
        has_own = (folder / "generation_config.json").exists()
        found = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig.from_model_config(self.config)
        self.generation_config = found

    def can_generate(self) -> bool:
        """Say that it writes."""
        return True


def of_artifact(folder: Path, stepper: Stepper | Searcher | Batcher, tokenizer: Any, limit: int) -> Generator:
    """Return the generator of a model that another runtime computes: step by step, answer by answer, or as it likes."""
    if getattr(stepper, "batches", False):
        from .relayed import Relayed

        return Relayed(_Files(folder), tokenizer, limit, cast("Batcher", stepper))
    if getattr(stepper, "searches", False):
        from .searching import Searching

        return Searching(_Files(folder), tokenizer, limit, cast("Searcher", stepper))
    stepper = cast("Stepper", stepper)
    decoder = Exported(stepper, getattr(stepper, "how", ""))
    return Generator(_Files(folder), tokenizer, limit, decoder=decoder)


def write(
    generator: Generator, prompt: Any, config: GenerateConfig, *, stop: str | Sequence[str], stream: bool, **more: Any
) -> Any:
    """Write on from a prompt or from several; arguments and answers are those of ``LLM.generate``."""
    single = isinstance(prompt, str) or is_messages(prompt)
    if stream and not single:
        raise UsageError("stream=True takes one prompt", hint="call it once for each prompt")
    prompts = [generator.tokens(one) for one in ([prompt] if single else prompt)]
    more["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if stream:
        pieces = generator.pieces(prompts, config, streams=True, **more)
        return (piece.text for piece in pieces if isinstance(piece, Piece))
    answers = generator.answers(prompts, config, **more)
    return answers[0] if single else answers


def is_messages(prompt: Any) -> bool:
    """Say whether this is one conversation: a list of messages, each with a role."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(message, Mapping) and "role" in message for message in prompt)
    )


def check_options(config: GenerateConfig, stop: Sequence[str], schema: Any, logprobs: bool, streams: bool) -> None:
    """Refuse what would do nothing, or not what it says."""
    if any(not word for word in stop):
        raise UsageError("an empty stop string would end every answer at once", hint="leave it out")
    if config.num_beams > 1:
        given = {
            "temperature": config.temperature != 0.0,
            "stop": bool(stop),
            "json_schema": schema is not None,
            "logprobs": logprobs,
            "stream": streams,
        }
        wrong = next((name for name, is_given in given.items() if is_given), None)
        if wrong:
            raise UsageError(f"num_beams={config.num_beams} does not go together with {wrong}", hint="num_beams=1 does")


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids after which the model has ended: those of its settings, its tokenizer and its chat template."""
    from ..tasks._chat_template import stop_ids

    ends: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ends |= set(value) if isinstance(value, list | tuple) else {value} - {None}
    if tokenizer.chat_template:
        ends |= set(stop_ids(tokenizer))
    return frozenset(int(end) for end in ends)


def ends_in(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return the ids after which the model of an artifact has ended; see ``ends_of``."""
    return ends_of(_Files(folder), tokenizer)


def processors_of(model: Any, ends: frozenset[int], max_new_tokens: int, first: int | None) -> tuple[Processor, ...]:
    """Return what the model's own generation settings ask for beyond the choice of tokens, by transformers' classes."""
    import transformers as t

    settings, encodes = model.generation_config, bool(model.config.is_encoder_decoder)
    device = str(model.device)
    found: list[Any] = []
    if size := settings.no_repeat_ngram_size:
        found.append(t.NoRepeatNGramLogitsProcessor(size))
    if words := settings.bad_words_ids:
        found.append(t.NoBadWordsLogitsProcessor(words, list(ends) or None))
    if encodes and settings.min_length and ends:
        found.append(t.MinLengthLogitsProcessor(settings.min_length, list(ends), device=device))
    first = first if first is not None else settings.forced_bos_token_id
    if encodes and first is not None:
        found.append(t.ForcedBOSTokenLogitsProcessor(first))
    if encodes and (end := settings.forced_eos_token_id) is not None:
        found.append(t.ForcedEOSTokenLogitsProcessor(1 + max_new_tokens, end, device=device))
    if tokens := settings.suppress_tokens:
        found.append(t.SuppressTokensLogitsProcessor(tokens, device=device))
    return tuple(found)


def check_fits(prompts: Sequence[Sequence[int]], room: int | None, limit: int, *, encodes: bool) -> int:
    """Return how many tokens each answer may have: ``room``, or up to 256 that fit.

    Raises:
        UsageError: a prompt is empty.
        TooLongError: a prompt leaves no such room, with the numbers.
    """
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    used = len(prompts[longest])
    if any(not prompt for prompt in prompts):
        raise UsageError(f"prompt {[bool(p) for p in prompts].index(False) + 1} is empty", hint="give it some text")
    left = limit if encodes else limit - used
    wanted = 1 if room is None else room
    if used > limit or wanted > left:
        told = f"a prompt of {used} tokens" + ("" if encodes else f" + max_new_tokens={wanted}")
        text = told if used > limit or not encodes else f"max_new_tokens={wanted}"
        raise TooLongError(
            f"prompt {longest + 1} does not fit: {text} > {limit}, the model's limit"
            if text is told else f"{text} > {limit}, the model's limit",
            hint=f"max_new_tokens={left}" if left > 0 and used <= limit else "a shorter prompt",
        )  # fmt: skip
    return min(256, left) if room is None else room
