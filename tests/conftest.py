"""Things that many tests share: a tiny model folder, a few rows, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny models gain nothing from more, and lose where cores are shared

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs and caches of tests out of the user's folders."""
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return SHARED
