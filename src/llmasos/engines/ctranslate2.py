"""CTranslate2: encoder-decoder models that choose their tokens themselves, in C++, one call for a whole answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import MissingExtraError, UsageError
from ..data.batching import Batch
from ._graph import unreadable
from ._writing import AT_ONCE, score_targets, scored
from .base import Found, Search

COMPUTED = {
    "float32": ("float32",),
    "int8": ("int8_float32",),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
}
"""Precision of the weights -> what is computed in, the first that the processor can."""

PATIENCE = 4.0
"""Texts that must have ended, in beams, where the model asks for no early stopping. transformers then stops where no
beam can become better, which CTranslate2 does not know: of 80 uncertain sentences of a tiny T5, 69 came out alike with
a patience of 1, 77 with 2, and 80 with 4."""


class CTranslate2Engine:
    """Write with a CTranslate2 model; an ``Author`` and a ``Searcher``, see ``base.py``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it; ``files`` and ``precision`` are read.
        threads: processor threads; one a core if None.
        pad_id, output, likeliest: not needed here.

    Raises:
        MissingExtraError: CTranslate2 is not installed.
        BundleError: it cannot read the model.
    """

    at_once = 1
    searches = True

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int = 0, output: str = "vocabulary",
        likeliest: int = 0, threads: int | None = None,
    ) -> None:  # fmt: skip
        del pad_id, output, likeliest
        try:
            import ctranslate2
        except ImportError as error:
            raise MissingExtraError("a CTranslate2 model", install="'llmasos[ctranslate2]'") from error
        place, precision = (folder / artifact["files"][0]).parent, artifact["precision"]
        can = ctranslate2.get_supported_compute_types("cpu")
        computed = next((kind for kind in COMPUTED[precision] if kind in can), "float32")
        try:
            self._words: list[str] = json.loads((place / "shared_vocabulary.json").read_text(encoding="utf-8"))
            self._start: str = json.loads((place / "config.json").read_text(encoding="utf-8"))["decoder_start_token"]
            self._translator = ctranslate2.Translator(
                str(place), device="cpu", compute_type=computed, inter_threads=1,
                intra_threads=hardware.threads(threads),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise unreadable(folder, "CTranslate2", error) from error
        self._ids = {word: place for place, word in enumerate(self._words)}
        inside = "" if computed.startswith(precision) else f" weights, computed in {computed}"
        self.how = f"{precision}{inside}, CTranslate2 {ctranslate2.__version__}"

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Score the targets; see ``Engine``."""
        return score_targets(self, batch, encodes=True)

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Score one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def forced(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, start: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Score answers, through the steps by which they are written; see ``Author``."""
        self._check_start(start)
        out: list[NDArray[np.float32]] = []
        for begin in range(0, len(prompts), AT_ONCE):
            here = slice(begin, begin + AT_ONCE)
            out += self._forced(prompts[here], answers[here])
        return out

    def _forced(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        found = [np.zeros((len(answer), 2), dtype=np.float32) for answer in answers]
        most = max(map(len, answers))
        asked = [row for row, prompt in enumerate(prompts) if prompt and answers[row]]
        if not asked:
            return found
        results = self._translator.translate_batch(
            [self._said(prompts[row]) for row in asked], [self._said(answers[row]) for row in asked], beam_size=1,
            max_input_length=0, max_decoding_length=most, min_decoding_length=0, return_logits_vocab=True,
        )  # fmt: skip
        for row, result in zip(asked, results, strict=True):
            if not result.logits:  # it took the source for empty
                found[row][:, 0] = np.inf
                continue
            (logits,) = result.logits
            found[row][:] = [scored(np.asarray(line), token) for line, token in zip(logits, answers[row], strict=False)]
        return found

    def greedy(
        self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], *, first: int | None = None,
        start: int | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Write the likeliest tokens; see ``Author``."""
        return [one.tokens for one in self.search(prompts, Search(most, tuple(ends), first=first, start=start))]

    def search(self, prompts: Sequence[Sequence[int]], search: Search) -> list[Found]:
        """Write answers; see ``Searcher``."""
        self._check_start(search.start)
        # what is forced as the last token is no choice: it is left out, and so is the step
        most = search.most - (search.forced_end is not None)
        if most <= 0 or not prompts:
            return [Found([], False) for _ in prompts]
        results = self._translator.translate_batch(
            [self._said(prompt) for prompt in prompts],
            None if search.first is None else [self._said([search.first]) for _ in prompts],
            beam_size=search.beams, patience=1.0 if search.early_stopping else PATIENCE,
            length_penalty=search.length_penalty,
            repetition_penalty=search.repetition_penalty, no_repeat_ngram_size=search.no_repeat,
            suppress_sequences=[self._said(words) for words in search.never] or None,
            end_token=list(search.ends), return_end_token=True,  # so it counts in the length, as for transformers
            max_input_length=0, max_decoding_length=most, min_decoding_length=search.least,
            max_batch_size=search.at_once, batch_type="examples",
        )  # fmt: skip
        found = [[self._ids[word] for word in result.hypotheses[0]] for result in results]
        ends = frozenset(search.ends)
        return [Found(ids[:-1], True) if ids and ids[-1] in ends else Found(ids, False) for ids in found]

    def _said(self, ids: Sequence[int]) -> list[str]:
        return [self._words[i] for i in ids]

    def _check_start(self, start: int | None) -> None:
        if start is not None and self._words[start] != self._start:
            raise UsageError(
                f"this artifact begins every answer from {self._start!r}, not from {self._words[start]!r}",
                hint="export the model again for that language",
            )


PLUGIN = CTranslate2Engine
