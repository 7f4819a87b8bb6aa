"""The Hub source against a real HTTP server on loopback, through the real huggingface_hub client."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file

from hub_server import Hub
from llmasos.core.errors import BundleError, LLMasOSError, RemoteError, UsageError
from llmasos.sources.base import Located, locate

MODEL = "org/tiny"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (folder / "README.md").write_text("# tiny")
    save_file({"weight": np.arange(60_000, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with Hub({MODEL: repo}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        huggingface_hub.close_session()  # its connections go to a server that ends here


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(cache: Path, **options: object) -> Located:
    return locate(MODEL, cache_dir=cache, **options)  # type: ignore[arg-type]


def test_a_model_is_downloaded_with_its_commit(hub: Hub, repo: Path, cache: Path) -> None:
    located = fetch(cache)
    assert located == Located(located.path, MODEL, hub.commit(MODEL), "hub")
    assert (located.path / "model.safetensors").read_bytes() == (repo / "model.safetensors").read_bytes()
    assert sorted(path.name for path in located.path.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]


def test_nothing_is_written_outside_of_the_cache(hub: Hub, cache: Path) -> None:
    before = set(cache.parent.rglob("*"))
    fetch(cache)
    new = set(cache.parent.rglob("*")) - before
    assert new
    assert all(path.is_relative_to(cache) for path in new)


def test_without_weights_only_the_small_files_come(hub: Hub, cache: Path) -> None:
    located = fetch(cache, weights=False)
    assert sorted(path.name for path in located.path.iterdir()) == ["config.json", "vocab.txt"]
    assert (fetch(cache).path / "model.safetensors").exists()


def test_a_second_call_downloads_nothing(hub: Hub, cache: Path) -> None:
    first = fetch(cache)
    hub.seen.clear()
    assert fetch(cache) == first
    assert [seen.path for seen in hub.seen] == [f"/api/models/{MODEL}"]


def test_a_cached_model_is_found_without_a_network(hub: Hub, cache: Path) -> None:
    first = fetch(cache)
    hub.stop()
    assert fetch(cache) == first
    assert fetch(cache, revision=first.revision) == first


def test_a_model_that_another_library_cached_is_found_without_a_network(hub: Hub, cache: Path) -> None:
    path = huggingface_hub.snapshot_download(MODEL, cache_dir=cache, endpoint=hub.url)
    hub.stop()
    assert fetch(cache).path == Path(path)


def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: Hub, repo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what it writes at once: 10 MB
    hub.cut["model.safetensors"] = 100_000
    located = fetch(cache)
    ranges = [seen.range for seen in hub.seen if seen.method == "GET" and seen.path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert len(ranges) == 2
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 100_000
    assert (located.path / "model.safetensors").read_bytes() == (repo / "model.safetensors").read_bytes()


def test_what_was_complete_before_a_failure_is_not_downloaded_again(hub: Hub, cache: Path) -> None:
    hub.altered.add("model.safetensors")
    with pytest.raises(BundleError):
        fetch(cache)
    hub.altered.clear()
    hub.seen.clear()
    fetch(cache)
    assert hub.downloads() == ["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_file_with_a_wrong_digest_is_refused_and_removed(name: str, hub: Hub, cache: Path) -> None:
    hub.altered.add(name)
    with pytest.raises(BundleError, match=f"{name} does not have the digest"):
        fetch(cache)
    assert not list(cache.rglob(name))
    assert not [path for path in cache.glob("*/blobs/*") if path.stat().st_size == (200_000 if "model" in name else 12)]


def test_a_file_of_the_wrong_size_is_refused(hub: Hub, cache: Path) -> None:
    hub.short.add("model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors does not have the digest"):
        fetch(cache)
    assert not list(cache.rglob("model.safetensors"))


def test_a_cached_file_that_was_cut_off_is_fetched_again(hub: Hub, repo: Path, cache: Path) -> None:
    weights = fetch(cache).path / "model.safetensors"
    weights.resolve().write_bytes(weights.read_bytes()[:1000])
    fetch(cache)
    assert weights.read_bytes() == (repo / "model.safetensors").read_bytes()


def test_a_new_revision_downloads_only_what_changed(hub: Hub, repo: Path, cache: Path) -> None:
    first = fetch(cache)
    (repo / "vocab.txt").write_text("[PAD]\n")
    hub.seen.clear()
    second = fetch(cache)
    assert second.revision != first.revision
    assert hub.downloads() == ["vocab.txt"]
    assert (first.path / "vocab.txt").read_text() != (second.path / "vocab.txt").read_text()


def test_other_libraries_find_the_model_in_the_same_cache(hub: Hub, cache: Path) -> None:
    located = fetch(cache)
    hub.stop()
    found = huggingface_hub.hf_hub_download(MODEL, "model.safetensors", cache_dir=cache, local_files_only=True)
    assert Path(found) == located.path / "model.safetensors"


def test_an_unknown_model_says_so_and_what_to_check(hub: Hub, cache: Path) -> None:
    with pytest.raises(UsageError, match="there is no model 'org/tni'") as caught:
        locate("org/tni", cache_dir=cache)
    assert "spelling" in caught.value.hint


def test_an_unknown_revision_says_so(hub: Hub, cache: Path) -> None:
    with pytest.raises(UsageError, match="no revision 'v9'"):
        fetch(cache, revision="v9")


def test_without_a_network_the_error_names_the_ways_that_need_none(hub: Hub, cache: Path) -> None:
    hub.stop()
    for revision in (None, "a" * 40):
        with pytest.raises(RemoteError, match="no connection to 127") as caught:
            fetch(cache, revision=revision)
        assert "pkg:NAME" in caught.value.hint


def test_a_server_that_fails_is_named_with_its_status(hub: Hub, cache: Path) -> None:
    hub.status[MODEL] = (500, "")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        fetch(cache)


@pytest.mark.parametrize("answer", [(401, "RepoNotFound"), (403, "GatedRepo"), (401, "")])
def test_a_private_model_asks_for_a_token_and_shows_none(
    answer: tuple[int, str], hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.status[MODEL] = answer
    with pytest.raises(RemoteError, match=MODEL) as caught:
        fetch(cache)
    assert "HF_TOKEN" in caught.value.hint
    assert "hf_secret" not in str(caught.value)
    assert hub.seen[0].authorization == "Bearer hf_secret"


def test_a_password_in_the_address_is_not_shown(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//user:geheim@"))
    with pytest.raises(LLMasOSError) as caught:
        locate("org/none", cache_dir=cache)
    assert "geheim" not in str(caught.value)


def test_a_model_with_pickles_only_is_refused_before_they_are_downloaded(hub: Hub, repo: Path, cache: Path) -> None:
    (repo / "model.safetensors").rename(repo / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"org/tiny has its weights only as pickle \(pytorch_model.bin\)"):
        fetch(cache)
    assert "pytorch_model.bin" not in hub.downloads()


def test_of_a_model_with_both_only_safetensors_are_downloaded(hub: Hub, repo: Path, cache: Path) -> None:
    shutil.copy(repo / "model.safetensors", repo / "pytorch_model.bin")
    shutil.copy(repo / "model.safetensors", repo / "consolidated.safetensors")
    (repo / "onnx").mkdir()
    shutil.copy(repo / "model.safetensors", repo / "onnx" / "model.safetensors")
    fetch(cache)
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors", "vocab.txt"]


def test_all_shards_of_a_large_model_are_downloaded(hub: Hub, repo: Path, cache: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (repo / "model.safetensors").rename(repo / names[0])
    save_file({"bias": np.zeros(3, dtype=np.float32)}, repo / names[1])
    index = {"weight_map": {"weight": names[0], "bias": names[1]}}
    (repo / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {path.name for path in fetch(cache).path.glob("*.safetensors")} == set(names)
    (repo / names[1]).unlink()
    with pytest.raises(BundleError, match=f"lacks 1 of 2 weight files: {names[1]}"):
        fetch(cache)


def test_a_model_with_its_own_code_is_refused_before_its_weights_come(hub: Hub, repo: Path, cache: Path) -> None:
    (repo / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Model"}}))
    (repo / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(BundleError, match="auto_map"):
        fetch(cache)
    assert not {"model.safetensors", "modeling.py"} & set(hub.downloads())


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_listing_that_leads_outside_is_refused(name: str, hub: Hub, cache: Path) -> None:
    hub.listed.append(name)
    with pytest.raises(BundleError, match="outside"):
        fetch(cache)
    assert not list(cache.parent.rglob("*evil.json"))


@pytest.mark.parametrize("tag", ["../../../evil", "/tmp/../../../evil", "x/../../../../evil"])
def test_a_header_that_leads_outside_writes_nothing_there(tag: str, hub: Hub, cache: Path) -> None:
    hub.tags["vocab.txt"] = tag.replace("/tmp/../../..", str(cache.parent))
    with contextlib.suppress(LLMasOSError):
        fetch(cache)
    assert not list(cache.parent.rglob("*evil*"))


def test_a_repository_without_a_configuration_is_not_a_model(hub: Hub, repo: Path, cache: Path) -> None:
    (repo / "config.json").unlink()
    with pytest.raises(BundleError, match=r"no config\.json"):
        fetch(cache)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        fetch(cache)


def test_no_progress_bar_is_drawn_where_there_is_no_terminal(
    hub: Hub, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(cache)
    assert capfd.readouterr() == ("", "")
