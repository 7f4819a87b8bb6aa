"""Write a model so that transformers opens it unchanged, and ``llmasos.json`` beside it.

``core/bundle.py`` decides how a folder takes its name; here is what goes into it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import __version__, golden
from .architectures._adapters import attached, described, load, write
from .core import bundle
from .core.errors import LLMasOSError
from .loading import longest_of, quiet, reads_alike
from .metrics.base import Report
from .tasks.base import Task


def save(
    path: Path, model: Any, tokenizer: Any, task: Task, origin: Mapping[str, Any], report: Report | None,
    metrics: Mapping[str, float],
) -> None:  # fmt: skip
    """Write a complete model folder into an existing folder: Hugging Face files, then ``llmasos.json``."""
    write_weights(model, path)
    adapter = attached(model)
    tokenizer.save_pretrained(path)
    for name, content in task.extra_files(model.config).items():
        (path / name).parent.mkdir(exist_ok=True)
        bundle.write_json(path / name, content)
    _write_golden(path, model, tokenizer, task)
    bundle.write_manifest(
        path,
        {
            "made_by": f"llmasos {__version__}",
            "task": task.to_dict(),
            "tokenizer": tokenizer_of(path, tokenizer, task),
            "metrics": dict(metrics),
            "report": None if report is None else report.as_dict(),
            **({} if adapter is None else {"adapter": described(adapter, model.config)}),
            **origin,
        },
    )


def _write_golden(path: Path, model: Any, tokenizer: Any, task: Task) -> None:
    """Write the golden rows; a model that cannot give any (of ten tokens at most, or not finite) is saved without."""
    with suppress(LLMasOSError):
        golden.make(model, task, tokenizer, longest_of(model.config, tokenizer)).write(path)


def tokenizer_of(path: Path, tokenizer: Any, task: Task) -> dict[str, Any]:
    """Return what a manifest says of a tokenizer: its contract, and what the light one makes of rows, by name.

    That is None where the light tokenizer does not read as the model's own does.
    """
    names = None
    with suppress(LLMasOSError):
        if (path / "config.json").is_file() and reads_alike(path, tokenizer, task):
            names = list(tokenizer.model_input_names)
    return {**tokenizer_contract(path, tokenizer), "light": names}


def tokenizer_contract(path: Path, tokenizer: Any) -> dict[str, Any]:
    """Return what must stay equal wherever the model runs: hashes, special ids and a few golden texts."""
    template = tokenizer.chat_template
    texts = ("Hello, world!", "你好，世界。", "A1-b2 ...")
    return {
        "files": {f.name: bundle.digest(f) for f in sorted(path.glob("*token*.json"))},
        "special_ids": {
            name: tokenizer.convert_tokens_to_ids(token)
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
        "golden": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts],
        "chat_template": hashlib.sha256(str(template).encode()).hexdigest() if template else None,
    }


def write_weights(model: Any, path: Path, state: dict[str, Any] | None = None) -> None:
    """Write the weights; ``state``: copies of them, while the trainer holds the model's own in its own way."""
    if attached(model) is not None:
        write(model, path)
        shutil.copymode(path / bundle.ADAPTER_CONFIG, path / bundle.ADAPTER)
        return
    with quiet():
        model.save_pretrained(path, state_dict=state)
    for file in bundle.weight_files(path):  # safetensors writes for its owner alone: a server reads as somebody else
        shutil.copymode(path / "config.json", path / file)


def read_weights(model: Any, path: Path) -> None:
    """Read the weights that ``write_weights`` wrote back into the same model."""
    from safetensors.torch import load_file

    if attached(model) is not None:
        load(model, path)
        return
    state: dict[str, Any] = {}
    for file in bundle.weight_files(path):
        state |= load_file(path / file)
    model.load_state_dict(state, strict=False)
