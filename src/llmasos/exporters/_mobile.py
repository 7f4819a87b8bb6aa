"""A whole app project for phones around an ExecuTorch program; ``llmasos/mobile/`` has the files of each.

The folder is the project: the model's files lie at its top, where ``verify`` finds them, and the project copies them
into the app. There the app checks the memory before it loads the model (``model_bytes`` of the certificate), and its
tokens and golden rows before it answers; what differs is refused, as here. ``reader.json`` has texts and their tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from ..core import bundle
from ..core.errors import UsageError
from ..tasks.base import SCRIPTS, Task
from ._executorch import ExecuTorchFormat
from .base import Source, Written

READER = "reader.json"
_FILES = Path(__file__).resolve().parents[1] / "mobile"
_TEXTS = (SCRIPTS, "", "Hello, world!", " two\tspaces\n\nand 1,234 lines ", "İ ΣΊΣΥΦΟΣ ß ﬁ",
          "a\u200db\u00adc\x0bd\x85e\u2028f\u3000g \ufffd")  # fmt: skip
_FEW = 16  # tokens to which texts are cut too, so that cutting is compared


class MobileFormat(ExecuTorchFormat):
    """A project of one platform."""

    project: ClassVar[str]
    """Its folder in ``llmasos/mobile``."""
    precisions = {"encoder": ("int8", "float32")}  # noqa: RUF012
    outputs = ("row", "embedding")

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """See ``Exporter.check``.

        Raises:
            UsageError: the app has no place for such a task.
        """
        found = super().check(task, config, precision)
        if getattr(task, "pairs", False):
            raise UsageError(f"the {self.target} app takes one text, and this model takes pairs",
                             hint="--target executorch, in an app of your own")  # fmt: skip
        return found

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the program, what the app reads texts by, and the project."""
        reader = self.reader(source)
        written = super().write(source, folder, precision)
        longest = written.more["longest"]
        bundle.write_json(folder / READER, {**reader, "examples": _examples(source, longest)})
        name = source.task.tag.replace("-", " ").capitalize()
        words = {"NAME": name, "ID": source.task.tag.replace("-", ""), "EXECUTORCH": metadata.version("executorch")}
        _render(_FILES / self.project, folder, words)
        return written

    def reader(self, source: Source) -> dict[str, Any]:
        """Return what the app must know to read a text, besides ``tokenizer.json``: what stands before and after it.

        Raises:
            UsageError: the tokenizer is none that the app has.
        """
        tokenizer = source.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise self.refused(f"one without tokenizer.json, {type(tokenizer).__name__}")
        inside = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        for place in range(len(whole) - len(inside) + 1):
            if whole[place : place + len(inside)] == inside:
                return {"before": whole[:place], "after": whole[place + len(inside) :]}
        raise self.refused(f"one that makes {whole} of {inside}")

    def refused(self, what: str) -> UsageError:
        """Word that an app has no such tokenizer."""
        return UsageError(
            f"the {self.target} app cannot read with this tokenizer: {what}",
            hint="it has BERT's WordPiece; --target react-native brings Hugging Face's tokenizers, and --target "
            "executorch the program alone",
        )


class WordPieceFormat(MobileFormat):
    """A project whose app has BERT's tokenizer, and no other."""

    def reader(self, source: Source) -> dict[str, Any]:
        """See ``MobileFormat.reader``."""
        found = super().reader(source)
        if strange := _strange(json.loads(source.tokenizer.backend_tokenizer.to_str())):
            raise self.refused(strange)
        return found


def _strange(content: Mapping[str, Any]) -> str | None:
    """Say what of a tokenizer is not BERT's; None if it is all that ``WordPiece`` in the apps does."""
    parts = {name: (content[name] or {}).get("type", "none") for name in ("model", "normalizer", "pre_tokenizer")}
    known = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
    if wrong := [f"its {name} is {kind}" for name, kind in parts.items() if kind != known[name]]:
        return ", ".join(wrong)
    ways = ("single_word", "lstrip", "rstrip", "normalized")
    strange = [one["content"] for one in content["added_tokens"] if any(one[way] for way in ways)]
    return f"its token {strange[0]!r} is found in a way of its own" if strange else None


def _examples(source: Source, longest: int) -> list[dict[str, Any]]:
    """Return texts and their tokens: of many scripts, those of the golden rows, and each once more cut."""
    rows = source.task.golden()
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    texts = list(dict.fromkeys([*_TEXTS, *texts]))
    found = [
        {"text": text, "longest": most, "ids": _cut(source.tokenizer, text, most)}
        for text in texts for most in (longest, min(_FEW, longest))
    ]  # fmt: skip
    source.tokenizer("", truncation=False)  # or tokenizer.json would be saved with the cut
    return found


def _cut(tokenizer: Any, text: str, most: int) -> list[int]:
    return list(tokenizer(text, truncation=True, max_length=most, verbose=False)["input_ids"])


def _render(source: Path, folder: Path, words: Mapping[str, str]) -> None:
    """Copy a project, with words in the places of their names: ``@NAME@``."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for name, word in words.items():
                text = text.replace(f"@{name}@", word)
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            bundle.write_text(target, text)
