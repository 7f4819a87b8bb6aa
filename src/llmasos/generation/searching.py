"""Answers of an exported model whose runtime chooses the tokens itself, and whose search has fewer options than ours.

What cannot be honoured is refused. The model's own generation settings are handed to the runtime; see
``engines/base.py``'s ``Search``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ..core.config import GenerateConfig
from ..core.errors import UsageError
from ..engines.base import Found, Search, Searcher
from ..tasks.base import Generation
from .generator import Generator, check_fits, check_options
from .pieces import Done, Piece
from .writer import Writer


class Searching(Generator):
    """A model that writes, through a ``Searcher``.

    Args:
        model: what the files say of it: ``config``, ``generation_config``.
        tokenizer: the model's.
        limit: the most tokens that it can take.
        searcher: the runtime.
    """

    draws: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, limit: int, searcher: Searcher) -> None:
        super().__init__(model, tokenizer, limit)
        self._searcher = searcher

    @property
    def how(self) -> str:
        """In words: precision and runtime."""
        return self._searcher.how

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
        """Write answers; see ``Generator.pieces``.

        Raises:
            UsageError: as there, and for what the runtime does not know: draws, a schema, pieces of an answer.
        """
        check_options(config, stop, json_schema, logprobs, streams)
        given = {"temperature": config.temperature != 0.0, "json_schema": json_schema is not None, "stream": streams,
                 "top_logprobs": top_logprobs > 0}  # fmt: skip
        if wrong := next((name for name, is_given in given.items() if is_given), None):
            raise UsageError(
                f"{wrong} cannot be had from this model, whose runtime chooses the tokens itself ({self.how})",
                hint="leave it out, or open the model that it was exported from",
            )
        search = self._search(config, check_fits(prompts, config.max_new_tokens, self.limit, encodes=self.encodes),
                              first_token, start_token)  # fmt: skip
        found = self._searcher.search(prompts, search)
        for number, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
            answer = self._answer(prompt, one, stop)
            if logprobs:
                (scores,) = self._searcher.forced([prompt], [answer.tokens], start=start_token)
                answer = Generation(**{**vars(answer), "logprobs": [-float(score) for score in scores[:, 0]]})
            yield Done(number, answer)

    def _answer(self, prompt: Sequence[int], found: Found, stop: Sequence[str]) -> Generation:
        """Return what was written as text, up to a stop string."""
        writer, tokens = Writer(self.tokenizer, stop), found.tokens
        for place, token in enumerate(tokens):
            writer.push(token)
            if writer.stopped:
                tokens = tokens[: place + 1]
                break
        writer.finish(tokens)
        reason = "stop" if writer.stopped or found.ended else "length"
        return Generation(writer.text, tokens, reason, len(prompt))

    def _search(self, config: GenerateConfig, room: int, first: int | None, start: int | None) -> Search:
        """Return the search that the options and the model's own settings ask for."""
        settings = self.model.generation_config
        never = [tuple(word) for word in settings.bad_words_ids or () if set(word) - self.ends]
        return Search(
            most=room,
            ends=tuple(sorted(self.ends)),
            first=first if first is not None else settings.forced_bos_token_id,
            start=start,
            forced_end=settings.forced_eos_token_id,
            least=max(0, (settings.min_length or 0) - 1),  # transformers counts the start token
            never=(*never, *((token,) for token in settings.suppress_tokens or ())),
            no_repeat=settings.no_repeat_ngram_size or 0,
            repetition_penalty=config.repetition_penalty,
            beams=config.num_beams,
            length_penalty=1.0 if settings.length_penalty is None else float(settings.length_penalty),
            early_stopping=settings.early_stopping is True,
            at_once=config.batch_size,
        )
