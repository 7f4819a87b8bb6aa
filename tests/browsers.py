"""What tests of the web share: programs that may not be here, Node, a plain server, and a Chromium that is driven."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SDK = Path(__file__).resolve().parents[1] / "sdks" / "typescript"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SHADERS = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
           "--use-vulkan=swiftshader"]  # fmt: skip
WRONG = """
const make = globalThis.GPUDevice?.prototype.createShaderModule;
if (make) GPUDevice.prototype.createShaderModule = function (given) {
  globalThis.changed = (globalThis.changed ?? 0) + given.code.includes("inverseSqrt(");
  return make.call(this, { ...given, code: given.code.replaceAll("inverseSqrt(", "1.5 * inverseSqrt(") });
};
"""
"""A driver that computes wrong numbers."""


def needs(*programs: str) -> None:
    """Skip where a program is not here."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not here")


def needs_modules(folder: Path) -> None:
    needs("node", "npm")
    if not (folder / "node_modules").is_dir():
        pytest.skip(f"needs {folder.name}/node_modules: make test-web installs them")


class Files(http.server.SimpleHTTPRequestHandler):
    """The plainest of servers: no header but a type."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def driven(steps: list[list[Any]], *, phone: bool = False, **more: Any) -> list[Any]:
    """Let a fresh Chromium take these steps; return what each gave."""
    needs_modules(SDK / "test")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not here: apt-get install chromium")
    plan = {"browser": CHROMIUM, "phone": phone, "steps": steps, **more}
    done = subprocess.run(  # the driver bounds each step, and says which one hangs; this is for a driver that hangs
        ["node", "test/drive.mjs"], cwd=SDK, input=json.dumps(plan), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["failure"] is None, found
    assert [line for line in found["said"] if line.startswith("pageerror: ") or "Content Security Policy" in line] == []
    return list(found["results"])


def in_node(folder: Path, variable: str, *files: str) -> str:
    """Run the SDK's own tests in Node, which read a folder; return what they print."""
    command = ["node", "--test", "--test-reporter=spec", *(f"test/{name}.test.mjs" for name in files)]
    done = subprocess.run(command, cwd=SDK, capture_output=True, text=True, env={**os.environ, variable: str(folder)})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
