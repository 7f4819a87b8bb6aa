"""vLLM, where it is installed: its own server program, on the model's own folder, for the graphics processors it knows.

Prompts that begin alike are read anew each time: its prefix cache does not tell whose a prompt was.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from ..core.errors import UsageError
from ._supervised import Supervised
from .base import Choice, News

PROGRAM, MODEL = "vllm", "model"


class Vllm(Supervised):
    """Write with a model folder; see ``Supervised``.

    Args:
        folder: the model.
        artifact: ``precision``: what is computed in.
        threads, tokens: not used; it settles its own.
        rows: requests written to side by side.

    Raises:
        UsageError: vLLM is not installed.
        UnavailableError: it cannot open the model.
    """

    name = PROGRAM
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, threads: int | None = None, rows: int = 32,
        tokens: int = 0,
    ) -> None:  # fmt: skip
        del threads, tokens
        if (program := shutil.which(PROGRAM)) is None:
            raise UsageError(f"the program {PROGRAM} is not on the path", hint="install vLLM, or --engine torch")
        self._words = [
            program, "serve", str(folder), "--host", "127.0.0.1", "--served-model-name", MODEL,
            "--dtype", artifact["precision"], "--max-num-seqs", str(rows), "--no-enable-prefix-caching",
        ]  # fmt: skip
        version = next((one.version for one in metadata.distributions(name=PROGRAM)), "of another environment")
        self.how = f"{artifact['precision']}, vLLM {version}"
        super().__init__()

    def _command(self, port: int) -> list[str]:
        return [*self._words, "--port", str(port)]

    def _environment(self, key: str) -> dict[str, str]:
        return {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

    def _first(self, number: int, prompt: Sequence[int], choice: Choice) -> tuple[str, dict[str, Any]]:
        del number
        return "/v1/completions", {
            "model": MODEL,
            "prompt": list(prompt),
            "max_tokens": choice.most,
            "stop_token_ids": sorted(choice.ends),
            "temperature": choice.temperature,
            "top_p": choice.top_p,
            "top_k": choice.top_k or -1,
            "min_p": choice.min_p,
            "repetition_penalty": choice.repetition_penalty,
            "seed": choice.seed,
            "stream": True,
            "return_token_ids": True,
        }

    def _news(self, number: int, event: Mapping[str, Any]) -> tuple[News, None]:
        (said,) = event["choices"]
        reason = said.get("finish_reason") or ""
        return News(number, said.get("token_ids") or [], reason if reason in ("", "length") else "stop"), None


PLUGIN = Vllm
