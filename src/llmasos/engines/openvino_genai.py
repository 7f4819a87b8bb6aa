"""OpenVINO GenAI: decoders in OpenVINO's format, tokens chosen and requests batched by its own scheduler, in C++.

The graph is the one that ``openvino.py`` steps through; here its attention is paged. Prompts come as tokens, so no
tokenizer of OpenVINO's is needed. Prompts that begin alike are read anew each time: its prefix cache does not tell
whose a prompt was, and by the time that an answer takes others could tell what was asked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import hardware
from ..core.errors import HardwareError, MissingExtraError, UsageError
from ._graph import extra, unreadable
from .base import Choice, News

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int4": "f32"}
"""What is computed in, and what keys and values are kept in: by itself it would take eight bits for them, and in
float32 the tokens would not be torch's."""

READ = 2048
"""Tokens that are computed in a step: so much of new prompts beside a token of each answer."""

_REASONS = {"STOP": "stop", "LENGTH": "length"}
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # it refuses a whole 1, which is the likeliest token


class OpenVinoGenAi:
    """Write with a decoder in OpenVINO's format: a ``Batcher``, see ``base.py``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it.
        threads: processor threads; one a core if None.
        rows: requests written to side by side.
        tokens: not needed.

    Raises:
        MissingExtraError: OpenVINO GenAI is not installed.
        UsageError: the model does not write.
        BundleError: it cannot read the graph.
    """

    batches = True
    takes = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, threads: int | None = None, rows: int = 32, tokens: int = 0
    ) -> None:
        del tokens  # what keys and values take grows with what is written
        if not artifact.get("writes"):
            raise UsageError(f"{folder} holds a model that writes no text", hint="--engine openvino answers with it")
        try:
            import openvino
            import openvino_genai
        except ImportError as error:
            raise MissingExtraError("OpenVINO GenAI", install=extra("openvino-genai")) from error
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        precision = PRECISIONS[artifact["precision"]]
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": hardware.threads(threads),
        }
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = rows, READ
        scheduler.cache_size = 0  # grows; the server bounds what is written side by side
        scheduler.enable_prefix_caching = False
        try:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", settings)
        except RuntimeError as error:
            raise unreadable(folder, "OpenVINO GenAI", error) from error
        version = openvino_genai.__version__.partition("-")[0]
        self.how = f"{artifact['precision']}, OpenVINO GenAI {version}, keys and values in {precision}"
        self._under_way: dict[int, Any] = {}

    def join(self, number: int, prompt: Sequence[int], choice: Choice) -> None:
        """Begin with a request."""
        ids = self._tensor(np.asarray([prompt], dtype=np.int64))
        try:
            self._under_way[number] = self._pipeline.add_request(number, ids, self._settings(choice))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"OpenVINO GenAI refuses the request: {reason}", hint="other options") from error

    def _settings(self, choice: Choice) -> Any:
        """Return how tokens are chosen, in its own words."""
        out = self._genai.GenerationConfig()
        out.max_new_tokens, out.stop_token_ids = choice.most, set(choice.ends)
        out.repetition_penalty = choice.repetition_penalty
        if choice.temperature > 0:
            out.do_sample, out.temperature = True, choice.temperature
            out.rng_seed = choice.seed
            out.top_p, out.min_p = choice.top_p, min(choice.min_p, _BELOW_ONE)
            if choice.top_k:
                out.top_k = choice.top_k
        return out

    def step(self) -> list[News]:
        """Compute a step of all requests."""
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        found = []
        for number, handle in list(self._under_way.items()):
            tokens: list[int] = []
            reason = ""
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    reason = _REASONS.get(output.finish_reason.name, reason)
            status = handle.get_status().name
            if status == "IGNORED":
                raise HardwareError("OpenVINO GenAI has no memory for more keys and values", hint="--max-cache-tokens")
            if tokens or status != "RUNNING":
                found.append(News(number, tokens, "" if status == "RUNNING" else reason or "stop"))
            if status != "RUNNING":
                del self._under_way[number]
        return found

    def drop(self, number: int) -> None:
        """Give up a request, and its keys and values."""
        if (handle := self._under_way.pop(number, None)) is not None:
            handle.cancel()
            if not self._under_way:  # or it would be held until others come
                self._pipeline.step()

    def close(self) -> None:
        """Give up all requests, and the memory."""
        for number in list(self._under_way):
            self.drop(number)
        del self._pipeline


PLUGIN = OpenVinoGenAi
