"""A folder that runs without torch and transformers: ONNX, the tokenizer as one file, and what to install for it.

What runs it is ``llmasos-edge``, which reads with a tokenizer of its own; so that one is held against the model's here,
before anything is written.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from ..core.atomic import write_text
from ..core.errors import UsageError
from ..loading import reads_alike
from ._onnx import OnnxFormat
from .base import Source, Written

READ_ME = """\
{tag} model of LLMasOS, {precision}. It runs without torch and transformers:

    pip install --no-deps --no-compile -r requirements.txt
    llmasos-edge predict . {words}

In Python: from llmasos_edge import Model; Model.open(".").predict({row})
`llmasos-edge verify .` checks every file, and that the model answers here as it did where it was made.
`pip install llmasos-edge` works too; it brings what the tokenizers library would need to download models.
"""
PACKAGES = ("numpy", "tokenizers", "onnxruntime")


class EdgeFormat(OnnxFormat):
    """ONNX with its instructions, for llmasos-edge."""

    target = "edge"
    light = True
    precisions = {"encoder": OnnxFormat.precisions["encoder"]}  # noqa: RUF012

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the graph, ``README.txt`` and ``requirements.txt``.

        Raises:
            UsageError: the light tokenizer does not read as the model's does.
        """
        source.tokenizer.save_pretrained(folder)
        source.model.config.save_pretrained(folder)
        _check_tokenizer(source, folder)
        written = super().write(source, folder, precision)
        needed = [field.name for field in source.task.fields if not field.is_answer and field.required]
        words, row = ('"a text"', '"a text"') if len(needed) < 2 else ("--data FILE", str(dict.fromkeys(needed, "...")))
        said = READ_ME.format(tag=source.task.tag, precision=precision, words=words, row=row)
        write_text(folder / "README.txt", said)
        pins = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
        pins.append(f'psutil=={metadata.version("psutil")}; sys_platform != "linux"')
        write_text(folder / "requirements.txt", "\n".join([f"llmasos-edge=={_version()}", *pins, ""]))
        return written


def _check_tokenizer(source: Source, folder: Path) -> None:
    theirs = source.tokenizer
    if not getattr(theirs, "is_fast", False):
        raise UsageError(f"edge needs a fast tokenizer, and this is a {type(theirs).__name__}", hint="--target onnx")
    if not reads_alike(folder, theirs, source.task):
        raise UsageError("edge reads tokenizers by tokenizer.json, and this one does something besides",
                         hint="--target onnx runs with transformers' own")  # fmt: skip


def _version() -> str:
    from .. import __version__

    return __version__


PLUGIN = EdgeFormat()
