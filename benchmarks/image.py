"""The server's image, really built and run: how large it is, and how soon it is ready.

buildah builds what ``llmasos deploy docker`` renders, without a daemon, over a base that debootstrap makes of Debian's
packages as the usual slim images are made; both need root, and programs of Debian. Packages come from where pip is told
that they come from. ``image`` is the rehearsal of that image: its own server on its own disk, which cannot be written;
``light`` is that of the image with ``llmasos-edge``, which serves the same model as an artifact for it.
``llmasos`` is the same server in this environment, and ``fastapi_pipeline`` the one that is usually written. A start is
from the process to the first answer that it is ready; files are in the system's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmasos.core.children import free_port

from . import child, data, harness
from .records import Column, Result, Run, goal, middle
from .serve import PIPELINE

IMAGES = ("image", "light")
CANDIDATES = (*IMAGES, "llmasos", "fastapi_pipeline")
PROGRAMS = ("buildah", "debootstrap", "tar")
BASES = {
    "build": "python3,python3-venv,python-is-python3,ca-certificates,binutils",
    "base": "python3,python-is-python3,ca-certificates",
}
"""Packages of what the image is built in, and of what it stands on."""
NEEDLESS = (*(f"usr/share/{name}" for name in ("doc", "man", "info", "locale")), "var/cache/apt", "var/lib/apt/lists")
"""What slim images leave out of Debian."""
PARTS = ("torch", "transformers", "sympy", "numpy", "numpy.libs", "networkx", "llmasos", "tokenizers", "uvloop",
         "onnxruntime", "llmasos_edge")  # fmt: skip
SERVED = {"image": "model", "light": "edge"}
"""What each image serves."""
ROWS = harness.ROOT / "src" / "llmasos" / "samples" / "support_en.jsonl"
TEXT = "I love this film."


def main() -> None:
    """Build, weigh and start, or be one of those that start."""
    parser = harness.parser(__doc__, seeds=5)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--root", type=Path, help="the files of image, instead of building it")
    parser.add_argument("--keep", type=Path, help="folder to build in, which stays")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work)))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        if options.model:
            (work / "model").symlink_to(options.model.resolve(), target_is_directory=True)
        else:
            harness.run_one(harness.child("image", "train", work), 0, work)
        runs, roots, took = list[Run](), dict[str, Path](), dict[str, float]()
        for name in (name for name in names if name in IMAGES):
            if name == "image" and options.root:
                roots[name] = options.root.resolve()
            elif lacks := lacking():
                runs.append(Run(name, 0, missing=lacks))
                continue
            else:
                began = time.perf_counter()
                if name == "light":
                    harness.run_one(harness.child("image", "export", work), 0, work)
                roots[name] = built(name, work, options.keep or work / "images")
                took[name] = time.perf_counter() - began
            (work / f"root-{name}").symlink_to(roots[name], target_is_directory=True)
        able = [name for name in names if name not in IMAGES or name in roots]
        runs += harness.measure([harness.child("image", name, work) for name in able], options.seeds, work)
        weights = {name: weighed(root) for name, root in roots.items()}
    harness.finish(result(names, runs, weights, took), options)


def lacking() -> str:
    """Return why no image can be built here."""
    if os.name != "posix" or os.geteuid() != 0:
        return "root"
    return ", ".join(name for name in PROGRAMS if shutil.which(name) is None)


# -- building -----------------------------------------------------------------------------------------


def built(name: str, work: Path, place: Path) -> Path:
    """Build the image of a model's server in a place; return the folder in which its files are mounted."""
    from llmasos import LLM

    place.mkdir(parents=True, exist_ok=True)
    for base, packages in BASES.items():
        if base not in _buildah(place, "images", "--format", "{{.Name}}"):
            _base(place, base, packages)
    context, model = place / f"context-{name}", (work / SERVED[name]).resolve()
    LLM.from_pretrained(model).deploy("docker", context, name="mine", overwrite=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(context)]
    if name == "light":
        _run([*pip, "--no-deps", str(harness.ROOT / "edge")])
        _run([*pip, "--no-deps", "--find-links", str(context), "-r", str(model / "requirements.txt")])
    else:
        _run([*pip, "--constraint", str(harness.ROOT / "constraints.txt"), f"{harness.ROOT}[serve]"])
    own = place / "pip.conf"  # all of them lie there
    own.write_text("[install]\nno-index = true\n", encoding="utf-8")
    _buildah(
        place, "build", "--isolation", "chroot", "--secret", f"id=pip,src={own}", "--tag", f"llmasos-{name}",
        "--skip-unused-stages=false",  # it does not see that a build argument names one
        "--build-context", f"model={model}",
        "--build-arg", "BUILD=localhost/build", "--build-arg", "BASE=localhost/base", str(context),
    )  # fmt: skip
    return Path(_buildah(place, "mount", _buildah(place, "from", f"llmasos-{name}"))).resolve()


def _base(work: Path, name: str, packages: str) -> None:
    """Make an image of Debian with some packages, of the suite and from where this machine's own come."""
    told = _run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]).splitlines()
    site, suite = next(line for line in told if "debian" in line).split()
    folder, archive = work / name, work / f"{name}.tar"
    cache = work / "debs"
    cache.mkdir(exist_ok=True)
    options = ["--variant=minbase", f"--include={packages}", f"--cache-dir={cache.resolve()}"]
    _run(["debootstrap", *options, suite, str(folder), site])
    for path in NEEDLESS:
        shutil.rmtree(folder / path, ignore_errors=True)
    _run(["tar", "-C", str(folder), "--exclude=./dev/*", "-cf", str(archive), "."])
    (work / f"{name}.build").write_text(f"FROM scratch\nADD {name}.tar /\n", encoding="utf-8")
    _buildah(work, "build", "--isolation", "chroot", "--tag", name, "--file", str(work / f"{name}.build"), str(work))
    shutil.rmtree(folder)
    archive.unlink()


def _buildah(work: Path, *words: str) -> str:
    """Run buildah with a storage of its own; return its last line."""
    place = ["--root", str(work / "storage"), "--runroot", str(work / "run"), "--storage-driver", "vfs"]
    return _run(["buildah", *place, *words])


def _run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip()


def weighed(root: Path) -> dict[str, float]:
    """Return the megabytes (10^6 bytes) of the image's files, and of its parts."""
    (packages,) = root.glob("opt/llmasos/lib/python3*/site-packages")
    whole = _size(root)
    parts = {name: _size(packages / name) for name in PARTS}
    inside = _size(root / "opt/llmasos")
    out = {"whole": whole, "Debian and Python": whole - inside, **parts}
    return {**out, "other packages": inside - sum(parts.values())}


def _size(folder: Path) -> float:
    """Return what files take, those with several names once; what is mounted over them is not theirs."""
    seen, total = set[tuple[int, int]](), 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return total / 1e6


# -- starting -----------------------------------------------------------------------------------------


def work_of(name: str, work: Path) -> dict[str, Any]:
    """Do one candidate's work."""
    if name in ("train", "export"):
        return {"train": train, "export": export}[name](work)
    if name in IMAGES:
        return rehearsed(name, work)
    if name == "llmasos":
        argv, path = ["-m", "llmasos", "serve", f"mine={work / 'model'}", "--threads", "2", "--port"], "/health/ready"
    else:
        argv, path = ["-c", PIPELINE, str(work / "model")], "/docs"
    with started(argv, path) as (port, ready):
        began = time.perf_counter()
        _ask(port, "/v1/classify", {"inputs": TEXT})
        return {"ready": ready, "first_ms": (time.perf_counter() - began) * 1000}


def train(work: Path) -> dict[str, Any]:
    """Tune MiniLM a little: how well does not matter here."""
    from llmasos import LLM, TextClassificationTask

    LLM.from_pretrained(data.MODEL).finetune(TextClassificationTask(), ROWS, epochs=1, seed=0, progress=False,
                                             output=work / "model")  # fmt: skip
    return {}


def export(work: Path) -> dict[str, Any]:
    """Make the artifact that llmasos-edge serves."""
    from llmasos import LLM

    LLM.from_pretrained(work / "model").export(work / "edge", "edge")
    return {}


def rehearsed(name: str, work: Path) -> dict[str, Any]:
    """Rehearse an image; its answers are compared with the golden rows on the way."""
    from llmasos import LLM

    root, model = str((work / f"root-{name}").resolve()), work / SERVED[name]
    found = LLM.from_pretrained(model).deploy("docker", rehearse=True, name="mine", root=root, progress=False)
    steps = {step.asked.partition(" within")[0]: step for step in found.steps}
    return {"ready": steps["ready"].seconds, "steps": {step.asked: step.seen for step in found.steps}}


@contextmanager
def started(argv: list[str], path: str) -> Iterator[tuple[int, float]]:
    """Start a server; give its port, and the seconds until a path was answered."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *argv, str(port)], stdout=log, stderr=log)
        try:
            while True:
                try:
                    _ask(port, path)
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(log.read().decode(errors="replace")[-2000:]) from None
                    time.sleep(0.01)
            yield port, time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


def _ask(port: int, path: str, body: dict[str, Any] | None = None) -> None:
    content = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        reply.read()


def result(names: list[str], runs: list[Run], weights: dict[str, dict[str, float]], took: dict[str, float]) -> Result:
    """Put the table together."""
    where = "image" if "image" in weights else "llmasos"
    ready = {name: middle(runs, name, "ready") for name in names}
    whole = weights.get("image", {}).get("whole")
    notes = []
    for name, sizes in weights.items():
        told = ", ".join(f"{part} {size:.0f}" for part, size in sizes.items() if size)
        notes.append(f"megabytes of the files of {name}: {told}")
    notes += [f"{name} was built in {seconds:.0f} s" for name, seconds in took.items()]
    return Result(
        name="image",
        title="The server's image, and its start with MiniLM",
        columns=[Column("ready", "seconds until ready"), Column("first_ms", "first answer after that, ms", 0)],
        candidates=names,
        runs=runs,
        baseline="fastapi_pipeline" if "fastapi_pipeline" in names else None,
        goals=[
            goal("files of the image without weights below 1 GB", whole, 1000, least=False, shown="{:.0f} MB"),
            goal(f"ready within 3 s of the process's start ({where})", ready.get(where), 3, least=False,
                 shown="{:.2f} s"),
        ],
        notes=notes,
        about={"megabytes": weights},
    )  # fmt: skip


if __name__ == "__main__":
    main()
