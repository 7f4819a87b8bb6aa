"""What every source promises, whatever it fetches from.

A source takes part through a function ``publish_<name>`` here (dashes as underscores), which offers
a folder in the source's own way, offline, and returns the reference to it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hub_server import Hub
from llmasos.core import plugins
from llmasos.core.bundle import check_folder
from llmasos.core.errors import BundleError, LLMasOSError
from llmasos.sources.base import Source, locate

NAMES = plugins.names("sources")


def publish_local(folder: Path, _: pytest.MonkeyPatch, __: ExitStack) -> str:
    return str(folder)


def publish_package(folder: Path, patch: pytest.MonkeyPatch, _: ExitStack) -> str:
    site = folder.parent / "site"
    shutil.copytree(folder, site / "contract_carrier" / "model")
    patch.syspath_prepend(str(site))
    return "pkg:contract_carrier"


def publish_storage(folder: Path, _: pytest.MonkeyPatch, __: ExitStack) -> str:
    return f"file://{folder}"


def publish_hub(folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> str:
    import huggingface_hub
    import huggingface_hub.constants

    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("HF_ENDPOINT", stack.enter_context(Hub({"org/contract": folder})).url)
    stack.callback(huggingface_hub.close_session)
    return "org/contract"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "origin" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"weight": np.zeros(10, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(params=NAMES)
def publish(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    offer = globals().get(f"publish_{request.param.replace('-', '_')}")
    if offer is None:
        pytest.skip(f"no publish_{request.param} in this file")
    with ExitStack() as stack:
        yield lambda folder: offer(folder, monkeypatch, stack)


def test_a_good_model_arrives_checked(publish: Callable[[Path], str], model: Path, tmp_path: Path) -> None:
    ref = publish(model)
    located = locate(ref, cache_dir=tmp_path / "cache")
    check_folder(located.path)
    assert (located.ref, located.source in NAMES) == (ref, True)
    assert (located.path / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_only_the_cache_is_written(publish: Callable[[Path], str], model: Path, tmp_path: Path) -> None:
    ref = publish(model)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    locate(ref, cache_dir=tmp_path / "cache")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert after == before


def test_the_weights_can_be_left_out(publish: Callable[[Path], str], model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"damaged")
    located = locate(publish(model), cache_dir=tmp_path / "cache", weights=False)
    check_folder(located.path, weights=False)


@pytest.mark.parametrize("fault", ["pickle", "code", "cut off"])
def test_an_unsafe_or_damaged_model_is_refused(
    fault: str, publish: Callable[[Path], str], model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    if fault == "pickle":
        weights.rename(model / "pytorch_model.bin")
    elif fault == "code":
        (model / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "m.M"}}))
    else:
        weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BundleError) as caught:
        locate(publish(model), cache_dir=tmp_path / "cache")
    assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_a_source_has_its_own_place_in_the_order(name: str) -> None:
    orders = [plugins.load("sources", other).order for other in NAMES]
    assert orders.count(plugins.load("sources", name).order) == 1


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_taken_or_refused_with_an_error_of_ours(name: str, tmp_path: Path) -> None:
    source: Source = plugins.load("sources", name)
    for text in ("", "\0", "a\nb", "//", "pkg:..", "~no_such_user/x", "../" * 99, "é", "C:\\x", "-x"):
        if source.matches(text):
            with pytest.raises(LLMasOSError) as caught:
                source.fetch(text, revision=None, cache_dir=tmp_path / "cache")
            assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_loading_a_source_imports_no_heavy_library(name: str) -> None:
    code = (
        f"import sys; from llmasos.core import plugins; plugins.load('sources', {name!r});"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'transformers', 'huggingface_hub', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
