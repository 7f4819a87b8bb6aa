"""References to models: folders and installed packages, and which source takes which reference."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from llmasos.core.errors import BundleError, UsageError
from llmasos.sources import starter
from llmasos.sources.base import Located, locate


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **size)).save_pretrained(folder)
    return folder


@pytest.fixture
def package(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose code must not run, with one model."""
    root = tmp_path / "site" / "carrier_of_models"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copytree(tiny, root / "data" / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


# Folders


def test_a_folder_is_found_however_it_is_written(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("HOME", str(tiny.parent))
    for ref in ("tiny", "./tiny", "tiny/", "~/tiny", str(tiny), tiny, Path("tiny")):
        located = locate(ref)
        assert located == Located(tiny, str(ref), None, "local")


def test_a_saved_folder_of_transformers_passes_the_check(tiny: Path) -> None:
    from transformers import AutoModel

    assert AutoModel.from_pretrained(locate(str(tiny)).path, use_safetensors=True).config.hidden_size == 8


def test_a_missing_folder_names_one_that_is_nearly_called_so(tiny: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder") as caught:
        locate(str(tiny.parent / "tinny"))
    assert "did you mean 'tiny'?" in caught.value.hint


def test_the_best_model_of_an_unfinished_run_is_pointed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.unfinished" / "best-20").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for ref in ("mine", "./mine"):
        with pytest.raises(UsageError, match="there is no folder") as caught:
            locate(ref)
        assert str(tmp_path / "mine.unfinished" / "best-20") in caught.value.hint


def test_a_file_is_not_a_folder(tiny: Path) -> None:
    with pytest.raises(UsageError, match="is a file"):
        locate(tiny / "config.json")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no config\.json"):
        locate(tmp_path)


def test_a_save_that_was_killed_between_its_renames_is_put_right(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / ".mine.01234567.previous").symlink_to(tiny)
    assert locate(tmp_path / "mine").path == tmp_path / "mine"


def test_a_revision_of_a_folder_is_an_error_rather_than_ignored(tiny: Path, package: Path) -> None:
    for ref in (str(tiny), "pkg:carrier_of_models"):
        with pytest.raises(UsageError, match="no revisions"):
            locate(ref, revision="v1")


@pytest.mark.parametrize("ref", ["", "  ", "https://example.org/a/b", "a b", "x" * 9000 + "?"])
def test_what_is_no_reference_names_the_forms(ref: str) -> None:
    with pytest.raises(UsageError, match="not a reference") as caught:
        locate(ref)
    assert "org/name" in caught.value.hint


# Packages


def test_the_model_of_a_package_is_found_and_none_of_its_code_runs(package: Path) -> None:
    wanted = Located(package / "data" / "model", "pkg:carrier_of_models", None, "package")
    assert locate("pkg:carrier_of_models") == wanted
    assert "carrier_of_models" not in sys.modules


@pytest.mark.parametrize("name", ["carrier-of-models", "Carrier-of-Models", "carrier_of_models/data/model"])
def test_a_package_may_be_written_as_pip_writes_it_and_with_a_folder(name: str, package: Path) -> None:
    assert locate(f"pkg:{name}").path == package / "data" / "model"


def test_an_unknown_package_gives_the_pip_line() -> None:
    with pytest.raises(UsageError, match="no installed package 'no_such_models'") as caught:
        locate("pkg:no_such_models")
    assert caught.value.hint == "pip install no-such-models"


def test_a_package_with_several_models_asks_for_one(package: Path, tiny: Path) -> None:
    shutil.copytree(tiny, package / "data" / "other")
    with pytest.raises(UsageError, match="2 models") as caught:
        locate("pkg:carrier_of_models")
    assert "pkg:carrier_of_models/data/other" in caught.value.hint


def test_a_package_without_a_model_says_so(package: Path) -> None:
    shutil.rmtree(package / "data" / "model")
    with pytest.raises(UsageError, match="carries no model"):
        locate("pkg:carrier_of_models")


@pytest.mark.parametrize("ref", ["pkg:carrier_of_models/../x", "pkg:carrier_of_models/none", "pkg:json.tool", "pkg:"])
def test_a_reference_that_leads_out_of_packages_is_refused(ref: str, package: Path) -> None:
    with pytest.raises(UsageError):
        locate(ref)


# Models that ship


def test_the_starter_is_found_by_its_name_and_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = locate("starter-chat")
    assert located == Located(starter.FOLDER / "starter-chat", "starter-chat", None, "starter")
    assert (located.path / "model.safetensors").stat().st_size <= 8_000_000
    assert "A toy" in (located.path / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no folder"):  # written as a path it is the user's own
        locate("./starter-chat")
    with pytest.raises(UsageError, match="no revisions"):
        locate("starter-chat", revision="main")


def test_the_starter_names_no_folder_of_the_machine_that_trained_it() -> None:
    for path in (starter.FOLDER / "starter-chat").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/tmp" not in text, path.name
        assert "/home" not in text, path.name


def test_the_starter_answers_what_it_has_learned() -> None:
    from llmasos import LLM

    model = LLM.from_pretrained("starter-chat")
    assert "LLMasOS" in model.predict("Who are you?", max_new_tokens=40).text
    assert "LLMasOS" in model.predict("你是谁？", max_new_tokens=40).text
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    answers = model.predict(["Thank you!", "thanks", "who made you", "谢谢", "你好！"], max_new_tokens=40)
    for answer, part in zip(answers, ["welcome", "welcome", "LLMasOS", "不客气", "你好"], strict=True):
        assert part in answer.text
