"""What a page downloads to ask a server: our TypeScript client beside OpenAI's own, bundled by the same command."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import child, harness
from .records import Column, Result, goal, middle

SDK = harness.ROOT / "sdks" / "typescript"
CLIENTS = harness.ROOT / "tests" / "clients"
ENTRIES = {"llmasos": SDK / "src" / "client" / "index.ts", "openai": CLIENTS / "node_modules" / "openai"}


def main() -> None:
    """Bundle both, once: nothing about it varies."""
    options = harness.parser(__doc__, seeds=1).parse_args()
    if options.child:
        bundle(options.child)
        return
    names = harness.chosen(list(ENTRIES), options.only)
    with harness.workspace() as work:
        runs = harness.measure([harness.child("bundle", name, work) for name in names], options.seeds, work)
    result = Result(
        name="bundle",
        title="A client in a page: one minified file",
        columns=[Column("gzipped_kb", "kB gzipped", 1), Column("kb", "kB", 1)],
        candidates=names,
        runs=runs,
        baseline="openai" if "openai" in names else None,
        goals=[goal("at most 20 kB gzipped", middle(runs, "llmasos", "gzipped_kb"), 20, least=False,
                    shown="{:.1f} kB")],
        notes=[f"`{_command()}`, with either client as its entry; kB are 1000 bytes, gzip at its best"],
    )  # fmt: skip
    harness.finish(result, options)


def bundle(name: str) -> None:
    """Bundle a client by the command of ours, and report its size."""
    if not (SDK / "node_modules").is_dir() or shutil.which("npx") is None:
        child.report({"missing": "sdks/typescript/node_modules: make test-web installs it"})
        return
    if not ENTRIES[name].exists():
        child.report({"missing": "tests/clients/node_modules: make test-clients installs it"})
        return
    with tempfile.TemporaryDirectory() as folder:
        entry, made = Path(folder) / "entry.js", Path(folder) / "made.js"
        entry.write_text(f"export * from {json.dumps(str(ENTRIES[name]))};\n", encoding="utf-8")
        words = shlex.split(_command().replace("src/client/index.ts", str(entry)))
        subprocess.run(["npx", *words, f"--outfile={made}"], cwd=SDK, check=True, capture_output=True)
        content = made.read_bytes()
    child.report({"gzipped_kb": len(gzip.compress(content, 9)) / 1e3, "kb": len(content) / 1e3})


def _command() -> str:
    """Return the command that bundles our client, but for where its result goes."""
    scripts = json.loads((SDK / "package.json").read_text(encoding="utf-8"))["scripts"]
    return " ".join(word for word in scripts["client"].split() if not word.startswith("--outfile="))


if __name__ == "__main__":
    main()
