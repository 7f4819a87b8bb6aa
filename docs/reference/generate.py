"""Write the reference pages from the code: ``python docs/reference/generate.py``. A test holds them current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from llmasos.cli import VERBS
from llmasos.core.config import Config, FinetuneConfig, PredictConfig

HERE = Path(__file__).resolve().parent
MADE = "<!-- made by docs/reference/generate.py -->"


def options() -> str:
    """Return the page of all options."""
    parts = [f"# Options\n\n{MADE}\n\nThe same names are Python keywords, YAML keys and, with dashes, flags."]
    parts.append(_table("finetune and plan", FinetuneConfig))
    parts.append(_table("predict and evaluate", PredictConfig))
    return "\n\n".join(parts) + "\n"


def _table(title: str, kind: type[Config]) -> str:
    lines = [f"## {title}", "", "| option | default | what it does |", "|---|---|---|"]
    for item in fields(kind):
        choices = item.metadata["choices"]
        said = item.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        lines.append(f"| `{item.name}` | `{item.default}` | {said} |")
    return "\n".join(lines)


def cli() -> str:
    """Return the page of all verbs: what ``--help`` prints."""
    parts = [f"# Command line\n\n{MADE}"]
    for words in ([], *([verb] for verb in VERBS)):
        shown = f"llmasos {' '.join(words)}".strip()
        parts.append(f"## {shown}\n\n```text\n{_help(words)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(words: list[str]) -> str:
    plain = {**os.environ, "COLUMNS": "110", "TERMINAL_WIDTH": "110", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "llmasos", *words, "--help"]
    text = subprocess.run(call, env=plain, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"\x1b\[[\d;]*m", "", text).replace("python -m llmasos", "llmasos")
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


PAGES = {"options.md": options, "cli.md": cli}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
