"""A web page that runs the model in the browser: a folder of files for any server, and for use without a network.

The graph lies where transformers.js expects it; beside it a page, a service worker that keeps everything on the device,
and ``LocalModel`` of the TypeScript SDK, for pages of your own. Wherever it is opened it first runs the golden rows.
``int8-dynamic`` is the default: the smallest download, and the fastest on WebAssembly.

A model that writes brings ``prompts.json`` too: prompts as Python renders, tokenises and reads them. The browser,
which has another Jinja and another tokenizer, must make the same of them before it answers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ..core import bundle
from ..core.errors import UsageError
from ..tasks._chat_template import prompt_ids, render
from ..tasks._conversations import Wrong, conversation
from ..tasks.base import SCRIPTS, Task
from . import _web_app
from ._onnx import OnnxFormat
from .base import Source, Written

PROMPTS = "prompts.json"
_TEXTS = ("Once upon a time", " two  spaces\n\nand lines ", SCRIPTS)
_CONVERSATIONS = tuple(
    [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    for roles, texts in (
        (("user",), ("Hello, who are you?",)),
        (("user",), (f"  {SCRIPTS}\n\n",)),
        (("system", "user"), ("You are brief.", "What's 1 + 1?")),
        (("user", "assistant", "user"), ("Hi!", 'Hello "you".\n', "<b>Bye</b> & {{ thanks }}")),
        (("system", "user", "assistant", "user", "assistant", "user"), ("Be kind.", *"abcd", "And then?")),
    )
)
"""Conversations of usual and unusual shape."""


class WebFormat(OnnxFormat):
    """A folder of static files with the model in it."""

    target = "web"
    programs = ("npm", "node")
    precisions = dict.fromkeys(("encoder", "decoder"), ("int8-dynamic", "float32", "float16"))
    outputs = ("row", "token", "embedding")

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """See ``Exporter.check``.

        Raises:
            HardwareError: the page must be built first, and there is no npm.
        """
        if not self.holds(type(task)):
            raise self.not_held(task, config)
        found = super().check(task, config, precision)
        _web_app.check()
        return found

    def holds(self, task: type[Task]) -> bool:
        """See ``Exporter.holds``; a page goes on with prompts of a chat, and not yet with plain texts alone."""
        return super().holds(task) and (task.generates or not task.writes())

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the graph and the page."""
        if not getattr(source.tokenizer, "is_fast", False):
            raise UsageError(
                f"a browser cannot read the tokenizer {type(source.tokenizer).__name__}",
                hint="a model with a fast tokenizer (tokenizer.json)",
            )
        app = _web_app.built()
        written = super().write(source, folder, precision)
        made = list(written.files)
        if source.task.generates:
            bundle.write_json(folder / PROMPTS, {"prompts": _prompts(source.tokenizer)})
            made.append(PROMPTS)
        shutil.copytree(app, folder, dirs_exist_ok=True)
        versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        (folder / "versions.json").unlink()
        _name(folder / "manifest.webmanifest", source.task)
        _number(folder / "sw.js", made, source)
        # what only WebGPU needs is fetched when it is needed, and all else beforehand
        later = sorted(f"app/{path.name}" for path in (folder / "app").glob("*.asyncify.*"))
        return Written(written.files, written.notes, more={**written.more, "later": later, "libraries": versions})


def _prompts(tokenizer: Any) -> list[dict[str, Any]]:
    """Return prompts: rendered (None where the template refuses), as tokens, and as these are read again."""
    found = [{"prompt": text, **_read(tokenizer, tokenizer(text)["input_ids"])} for text in _TEXTS]
    for messages in _CONVERSATIONS:
        whole = conversation({"messages": messages}, None)
        try:
            made = {"rendered": render(whole, tokenizer, ask=True), **_read(tokenizer, prompt_ids(whole, tokenizer))}
        except Wrong:
            made = {"rendered": None, **_read(tokenizer, [])}
        found.append({"prompt": messages, **made})
    return found


def _read(tokenizer: Any, ids: list[int]) -> dict[str, Any]:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return {"ids": ids, "text": text}


def _name(path: Path, task: Task) -> None:
    """Call the app by what it does."""
    content = json.loads(path.read_text(encoding="utf-8"))
    name = task.tag.replace("-", " ").capitalize()
    bundle.write_json(path, {**content, "name": name, "short_name": name})


def _number(path: Path, files: list[str], source: Source) -> None:
    """Give the service worker its version, by which a browser sees that there is another export."""
    folder, found = path.parent, hashlib.sha256()
    parts = [*files, *sorted(item.relative_to(folder).as_posix() for item in (folder / "app").iterdir()), "index.html"]
    for name in parts:
        found.update(f"{name} {bundle.digest(folder / name)}\n".encode())
    found.update(json.dumps(source.task.to_dict(), sort_keys=True).encode())
    found.update(source.tokenizer.backend_tokenizer.to_str().encode())
    found.update(str(source.tokenizer.chat_template).encode())
    text = path.read_text(encoding="utf-8")
    bundle.write_text(path, text.replace("{version}", found.hexdigest()[:16]))


PLUGIN = WebFormat()
