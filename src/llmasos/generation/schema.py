"""JSON that obeys a schema, enforced while it is written: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from ..core.errors import MissingExtraError, UsageError


class SchemaError(UsageError):
    """A schema that cannot be enforced."""


class JsonGrammar:
    """What one answer must still obey (``generation.Grammar``)."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def allowed(self, vocabulary: int) -> Any:
        """Return which tokens may come next, (vocabulary,)."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.zeros(vocabulary, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[:vocabulary]
        mask[: len(known)] = known
        return torch.from_numpy(mask)

    def take(self, token: int) -> bool:
        """Go on with a token; return whether the JSON is complete."""
        if token in self._ends:
            return True
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def json_grammar(schema: Any, tokenizer: Any, ends: frozenset[int], vocabulary: int) -> JsonGrammar:
    """Return a fresh grammar for one answer.

    Raises:
        MissingExtraError: llguidance is not installed.
        SchemaError: the schema cannot be enforced, or not with this tokenizer.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingExtraError("json_schema", install="'llmasos[generation]'") from error
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        json.loads(text)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"json_schema is not JSON: {error}", hint='for example {"type": "object"}') from error
    pieces = _pieces(tokenizer, tuple(sorted(ends)), vocabulary)
    try:
        # no spaces between tokens of JSON: a model could go on with them for ever
        grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        problem = LLMatcher.validate_grammar(grammar, pieces)
        matcher = LLMatcher(pieces, grammar)
        problem = problem or (matcher.get_error() if matcher.is_error() else "")
    except (ValueError, RuntimeError) as error:
        problem = str(error)
    if problem:
        raise SchemaError(
            f"json_schema cannot be enforced: {problem.splitlines()[0]}", hint="correct or simplify the schema"
        )
    return JsonGrammar(matcher, ends)


@lru_cache(maxsize=4)
def _pieces(tokenizer: Any, ends: tuple[int, ...], vocabulary: int) -> Any:
    """Return the tokenizer's pieces as llguidance needs them; making them takes up to a second."""
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends) or None)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise SchemaError(
            f"json_schema cannot be enforced with this tokenizer: {str(error).splitlines()[0]}",
            hint="it needs a fast tokenizer (tokenizer.json)",
        ) from error
