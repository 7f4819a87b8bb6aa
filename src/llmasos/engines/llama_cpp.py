"""llama.cpp: GGUF files on a processor, in C++.

Sequences are computed one after the other, each in a cache of its own, so that a row's numbers cannot depend on the
rows beside it. llama.cpp brings its own tokenizer; texts whose tokens are known are read with it before anything is
computed.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware, llama
from ..core.errors import BundleError, ParityError, UsageError
from ..data.batching import Batch
from ..tasks.base import IGNORED
from ._graph import unreadable
from ._writing import scored

_CHUNK = 512  # tokens that are read at once


class LlamaCppEngine:
    """Run a GGUF file: an ``Engine``, and a ``Stepper`` where its model writes; see ``base.py``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it; ``files``, ``precision`` and ``writes`` are read.
        pad_id, likeliest: not needed here.
        output: what the task reads (``Task.output``).
        threads: processor threads; one a core if None.

    Raises:
        MissingExtraError: llama.cpp is not installed.
        BundleError: it cannot read the file.
        ParityError: it makes other tokens of a text than the model's own tokenizer.
    """

    at_once = 1

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int = 0, output: str = "vocabulary",
        likeliest: int = 0, threads: int | None = None,
    ) -> None:  # fmt: skip
        del pad_id, likeliest
        self._library = llama.load()
        llama.silence(self._library)
        self._output = output
        self._threads = hardware.threads(threads)
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        path = folder / artifact["files"][0]
        self._model = self._library.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise unreadable(folder, "llama.cpp", ValueError("damaged, or of another version"))
        self._words = self._library.llama_model_get_vocab(self._model)
        self._size = int(self._library.llama_vocab_n_tokens(self._words))
        self._context: _Context | None = None
        self._rows: list[int] = []
        self._check_words(folder / artifact["files"][1])
        self.how = f"{artifact['precision']}, llama.cpp of llama-cpp-python {llama.version()}"

    # -- outputs --------------------------------------------------------------------------------------

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says.

        Raises:
            UsageError: pairs of texts, of which llama.cpp does not tell the second one apart.
        """
        if batch.types is not None and batch.types.any():
            raise UsageError("llama.cpp does not tell the texts of a pair apart", hint="export to another format")
        ids = np.split(batch.ids, batch.offsets[1:-1])
        if self._output != "vocabulary":
            return np.stack([self._pooled(one) for one in ids])
        assert batch.targets is not None
        lines = [self._scores(*both) for both in zip(ids, np.split(batch.targets, batch.offsets[1:-1]), strict=True)]
        return np.concatenate(lines)

    def _pooled(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the embedding of a sequence, or the logits of its row."""
        context = self._open(1, len(ids), embeds=True)
        context.read(ids.tolist(), 0, [])
        rank = self._output == "row"
        width = (self._library.llama_model_n_cls_out if rank else self._library.llama_model_n_embd)(self._model)
        values = self._library.llama_get_embeddings_seq(context.pointer, 0)
        return np.ctypeslib.as_array(values, (width,)).copy()

    def _scores(self, ids: NDArray[np.int32], targets: NDArray[Any]) -> NDArray[np.float32]:
        """Score what the targets of a sequence ask for."""
        places = np.flatnonzero(targets != IGNORED)
        context, out = self._open(1, len(ids)), np.zeros((len(places), 2), dtype=np.float32)
        for start in range(0, len(ids), _CHUNK):
            here = [place for place, at in enumerate(places) if start <= at < start + _CHUNK]
            logits = context.read(ids[start : start + _CHUNK].tolist(), 0, [int(places[p]) - start for p in here])
            for place, line in zip(here, logits, strict=True):
                out[place] = scored(line, int(targets[places[place]]))
        return out

    # -- writing --------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts; see ``Stepper``."""
        context = self._open(len(prompts), max(map(len, prompts)) + room)
        self._rows = list(range(len(prompts)))
        found = []
        for row, prompt in enumerate(prompts):
            for start in range(0, len(prompt), _CHUNK):
                part = list(prompt[start : start + _CHUNK])
                logits = context.read(part, row, [len(part) - 1])
            found.append(logits[0])
        return np.stack(found)

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row; see ``Stepper``."""
        assert self._context is not None
        return np.stack([self._context.read([int(token)], row, [0])[0] for token, row in zip(ids, self._rows)])

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows; see ``Stepper``."""
        assert self._context is not None
        wanted = [self._rows[int(row)] for row in rows]
        if len(wanted) > self._context.rows:  # beams: more sequences than there were prompts, which are read once more
            larger = _Context(self, len(wanted), self._context.length)
            for row, old in enumerate(wanted):
                ids = self._context.tokens[old]
                for start in range(0, len(ids), _CHUNK):
                    larger.read(ids[start : start + _CHUNK], row, [])
            self._context.close()
            self._context, self._rows = larger, list(range(len(wanted)))
            return
        self._rows = self._context.keep(wanted)

    def _open(self, rows: int, length: int, *, embeds: bool = False) -> _Context:
        """Return an empty context with room for so many sequences of such a length."""
        kept = self._context
        if kept is None or kept.rows != rows or not length <= kept.length <= 4 * max(length, 64):
            if kept is not None:
                kept.close()
            self._context = kept = _Context(self, rows, length, embeds=embeds)
        kept.clear()
        return kept

    def _check_words(self, path: Path) -> None:
        """Compare llama.cpp's tokenizer with the model's own."""
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            pairs = [(str(one["text"]), list(one["ids"])) for one in known]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged: {error!r}", hint="export the model again") from error
        for text, wanted in pairs:
            if (found := self.tokens(text)) != wanted:
                raise ParityError(
                    f"llama.cpp's tokenizer makes other tokens of {text[:60]!r}: {found[:12]}, not {wanted[:12]}",
                    hint="this tokenizer cannot be had in llama.cpp; export to another format",
                )

    def tokens(self, text: str) -> list[int]:
        """Return a text as tokens, with the special ones around it, by llama.cpp's own tokenizer."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self._library.llama_tokenize(self._words, data, len(data), room, len(room), True, True)
        return list(room[: max(0, count)])


class _Context:
    """Sequences side by side, each with its own cache: ``rows`` of them, of ``length`` tokens at most."""

    def __init__(self, engine: LlamaCppEngine, rows: int, length: int, *, embeds: bool = False) -> None:
        self._library, self._size = engine._library, engine._size
        self.rows, self.length = rows, length
        most = int(self._library.llama_max_parallel_sequences())
        if rows > most:
            raise UsageError(f"llama.cpp writes {most} texts side by side, not {rows}",
                             hint="a smaller batch_size, or fewer beams")  # fmt: skip
        params = self._library.llama_context_default_params()
        params.n_ctx = rows * (-(-length // 256) * 256)
        params.n_seq_max = rows
        params.n_batch = params.n_ubatch = length if embeds else min(length, _CHUNK)  # an encoder reads a text at once
        params.n_threads = params.n_threads_batch = engine._threads
        params.embeddings = embeds
        params.kv_unified = False
        self.pointer = self._library.llama_init_from_model(engine._model, params)
        if not self.pointer:
            raise BundleError(f"llama.cpp has no room for {rows} x {length} tokens", hint="a smaller batch_size")
        self._memory = self._library.llama_get_memory(self.pointer)
        self._batch = self._library.llama_batch_init(int(params.n_batch), 0, 1)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    def read(self, ids: Sequence[int], row: int, asked: Sequence[int]) -> list[NDArray[np.float32]]:
        """Append tokens to a sequence; return the logits after those of them that are asked for, by place."""
        batch, wanted = self._batch, set(asked)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = len(self.tokens[row]) + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = row
            batch.logits[place] = place in wanted
        if code := self._library.llama_decode(self.pointer, batch):
            raise BundleError(f"llama.cpp cannot compute {len(ids)} tokens (code {code})", hint="a shorter text")
        self.tokens[row] += ids
        return [
            np.ctypeslib.as_array(
                self._library.llama_get_logits_ith(self.pointer, place), (self._size,)
            ).copy() for place in asked
        ]  # fmt: skip

    def clear(self) -> None:
        """Forget all sequences."""
        if self._memory:
            self._library.llama_memory_clear(self._memory, False)
        self.tokens = [[] for _ in range(self.rows)]

    def keep(self, wanted: Sequence[int]) -> list[int]:
        """Keep these sequences, some of them several times; return where they are now."""
        free = [row for row in range(self.rows) if row not in set(wanted)]
        for row in free:
            self._library.llama_memory_seq_rm(self._memory, row, -1, -1)
        taken: set[int] = set()
        found = []
        for old in wanted:
            new = old
            if old in taken:
                new = free.pop()
                self._library.llama_memory_seq_cp(self._memory, old, new, -1, -1)
                self.tokens[new] = list(self.tokens[old])
            taken.add(new)
            found.append(new)
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self.pointer)


PLUGIN = LlamaCppEngine
