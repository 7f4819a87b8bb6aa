"""Sentences per second of a MiniLM in a browser: an export to the web, run by headless Chromium on WebAssembly.

The model is trained once on SST-2 and exported in int8 and in float32. Each round opens a fresh browser, loads the
model (which checks its golden rows), warms up, and labels the validation rows by the SDK's ``classify``, tokenisation
included. One thread is what any host allows; several need two headers (COOP, COEP), which the exported page's service
worker sets.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Result, Run, goal, middle

SDK = harness.ROOT / "sdks" / "typescript"
PRECISIONS = {"int8": "int8-dynamic", "fp32": "float32"}
CANDIDATES = {"int8_1_thread": ("int8", False), "int8_threads": ("int8", True),
              "fp32_1_thread": ("fp32", False), "fp32_threads": ("fp32", True)}  # fmt: skip
WARM_UP = 64
PROGRAM = """
async ({ url, texts, warm }) => {
  const { LocalModel } = await import(url + "app/llmasos.js");
  const begun = performance.now();
  const model = await LocalModel.load(url, { device: "wasm" });
  const loaded = performance.now();
  await model.classify(warm);
  const start = performance.now();
  const found = await model.classify(texts);
  const seconds = (performance.now() - start) / 1000;
  return { labels: found.map(({ label }) => label), seconds, load: (loaded - begun) / 1000, threads: model.threads };
}
"""


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    options = parser.parse_args()
    if options.child:
        work = Path(options.work)
        child.report(train(work) if options.child == "train" else classify(options.child, work))
        return
    names = harness.chosen(list(CANDIDATES), options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        if options.model:
            (work / "model").symlink_to(options.model.resolve(), target_is_directory=True)
        run = harness.run_one(harness.child("web", "train", work), 0, work)
        if run.missing or run.error:
            raise SystemExit(f"export failed: {run.missing or run.error}")
        runs = harness.measure([harness.child("web", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    best = max(
        filter(None, (middle(runs, name, "sentences_per_second") for name in names if "int8" in name)), default=None
    )
    alone = middle(runs, "int8_1_thread", "sentences_per_second")
    return Result(
        name="web",
        title="Classifying SST-2 sentences in headless Chromium, on WebAssembly",
        columns=[
            Column("sentences_per_second", "sentences/s", 1),
            Column("threads", "threads", 0),
            Column("quality", "accuracy", 4),
            Column("load_seconds", "load and check, s", 1),
            Column("model_mb", "model, MB", 1),
        ],
        candidates=names,
        runs=runs,
        better="higher",
        goals=[
            goal("int8 at least 50 sentences a second", best, 50, shown="{:.0f} a second"),
            goal("int8 at least 50 sentences a second, one thread", alone, 50, shown="{:.0f} a second"),
        ],
        notes=["the runtime's files come from the disk of this machine: loading is without a network"],
    )


# -- the children -------------------------------------------------------------------------------------


def train(work: Path) -> dict[str, Any]:
    """Fine-tune a classifier unless one is given, and export it."""
    from llmasos import LLM, TextClassificationTask

    child.require("onnx", "onnxruntime")
    train_rows, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    if not (work / "model").exists():
        LLM.from_pretrained(data.MODEL).finetune(
            TextClassificationTask(num_labels=2), train_rows, eval_data=validation, output=work / "model",
            progress=False, epochs=1, learning_rate=5e-5,
        )  # fmt: skip
    for name, precision in PRECISIONS.items():
        LLM.from_pretrained(work / "model").export(work / name, "web", quantize=precision, data=validation)
    return {}


def classify(name: str, work: Path) -> dict[str, Any]:
    """Open a browser and let it label the validation rows."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not (SDK / "test" / "node_modules").is_dir():
        return {"missing": "Chromium" if browser is None else "playwright-core (make test-web)"}
    precision, isolated = CANDIDATES[name]
    train_rows, rows = (data.read(work / f"{split}.jsonl") for split in data.SPLITS)
    with serving(work / precision, isolated=isolated) as url:
        given = {
            "url": url,
            "texts": [row["text"] for row in rows],
            "warm": [row["text"] for row in train_rows[:WARM_UP]],
        }
        steps = [["goto", url + "empty.html"], ["run", f"({PROGRAM})({json.dumps(given)})"]]
        done = subprocess.run(
            ["node", "test/drive.mjs"], cwd=SDK, input=json.dumps({"browser": browser, "steps": steps}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    said = json.loads(done.stdout)
    if said["failure"]:
        raise SystemExit(said["failure"])
    found = said["results"][1]
    (graph,) = (work / precision / "onnx").glob("*.onnx")
    return {
        "sentences_per_second": len(rows) / found["seconds"],
        "seconds": found["seconds"],
        "threads": found["threads"],
        "quality": data.share(found["labels"], [row["label"] for row in rows]),
        "load_seconds": found["load"],
        "model_mb": graph.stat().st_size / 1e6,
    }


@contextmanager
def serving(folder: Path, *, isolated: bool) -> Iterator[str]:
    """Serve a folder; ``isolated``: with the headers that allow threads. An empty page is at empty.html."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    (folder / "empty.html").write_text("<!doctype html><title>benchmark</title>", encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


if __name__ == "__main__":
    main()
