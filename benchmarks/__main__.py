"""Run all benchmarks one after the other, then rewrite the tables of docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys

from . import tables
from .harness import ROOT, say

NAMES = (
    "start", "finetune", "predict", "tokens", "answers", "similarity", "translation", "chat", "packed", "frozen",
    "pretrain", "generate", "processes", "checkpoints", "ways", "exports", "writers", "edge", "web", "bundle",
    "engines", "serve", "client", "overload", "ray_serve", "retrieval", "newcomer", "plan", "image", "size",
)  # fmt: skip


def main() -> int:
    """Run each benchmark as a process of its own; one that fails does not stop the others."""
    failed = []
    for name in NAMES:
        say(f"== {name}")
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], cwd=ROOT).returncode:
            failed.append(name)
    say(f"docs/benchmarks.md: {', '.join(tables.update())}")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
