"""App projects around a model. What can be compiled here is compiled and run: Kotlin's part without Android on a JVM
(java, a Kotlin compiler and Android's org.json), TypeScript by tsc. Skips saying so where a tool is absent.

Swift is not compiled anywhere here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import llmasos
from llmasos import LLM, TextClassificationTask, errors
from llmasos.core import bundle, plugins
from llmasos.data.batching import Batch
from tiny import save_tiny_bert, tiny_tokenizer
from writers import byte_tokenizer

HERE = Path(__file__).resolve().parent
PROJECTS = Path(llmasos.__file__).parent / "mobile"
APPS = ("android", "ios", "react-native")
ROWS = [{"text": f"a {word} day {i}", "label": word} for i in range(12) for word in ("good", "bad", "wet")]
slow = pytest.mark.slow
needs_executorch = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs executorch")


def tuned(folder: Path, task: Any, rows: Sequence[dict[str, Any]]) -> LLM:
    llm = LLM.from_pretrained(save_tiny_bert(folder / "base", max_length=96))
    llm.finetune(task, list(rows), epochs=30, batch_size=8, learning_rate=5e-3, output=folder / "model",
                 progress=False, allow_truncated=1.0, allow_unknown=1.0)  # fmt: skip
    return llm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return tuned(tmp_path_factory.mktemp("labels"), TextClassificationTask(), ROWS)


@pytest.fixture(scope="module")
def app(model: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an Android project; not to be changed."""
    if importlib.util.find_spec("executorch") is None:
        pytest.skip("needs executorch")
    path = tmp_path_factory.mktemp("android") / "app"
    model.export(path, "android", quantize="float32", data=ROWS)
    return path


# -- what a phone's app has no place for ----------------------------------------------------------------


@needs_executorch
@pytest.mark.parametrize("name", APPS)
def test_pairs_and_tags_are_refused_by_name(name: str) -> None:
    exporter, config = plugins.load("exporters", name), type("Config", (), {"model_type": "bert"})
    with pytest.raises(errors.UsageError, match="takes one text, and this model takes pairs"):
        exporter.check(TextClassificationTask(labels=["a", "b"], pairs=True), config, None)
    task, _ = plugins.load("tasks", "token-classification").sample()
    with pytest.raises(errors.UsageError, match=f"{name} holds no token-classification"):
        exporter.check(task, config, None)


@pytest.mark.parametrize("name", ["android", "ios"])
def test_a_tokenizer_that_the_app_lacks_is_refused_by_name(name: str) -> None:
    exporter = plugins.load("exporters", name)
    source = type("Source", (), {"tokenizer": byte_tokenizer()})
    with pytest.raises(errors.UsageError, match="its model is BPE") as caught:
        exporter.reader(source)
    assert "react-native" in caught.value.hint
    assert plugins.load("exporters", "react-native").reader(source) == {"before": [], "after": []}
    assert exporter.reader(type("Source", (), {"tokenizer": tiny_tokenizer()})) == {"before": [2], "after": [3]}


# -- the projects ---------------------------------------------------------------------------------------


def test_the_projects_are_well_formed() -> None:
    for path in PROJECTS.rglob("*.xml"):
        xml.parse(path)
    for path in PROJECTS.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    made = (PROJECTS / "ios" / "project.yml").read_text(encoding="utf-8").replace("@NAME@", "A name")
    assert yaml.safe_load(made.replace("@ID@", "id"))["targets"]["App"]["platform"] == "iOS"
    build = (PROJECTS / "android" / "app" / "build.gradle.kts").read_text(encoding="utf-8")
    assert "minSdk = 23" in build
    assert 'abiFilters += listOf("arm64-v8a", "x86_64")' in build
    assert "org.pytorch:executorch-android:" in build
    package = (PROJECTS / "ios" / "Package.swift").read_text(encoding="utf-8")
    assert all(f'"{name}"' in package for name in ("executorch", "backend_xnnpack", "kernels_optimized"))


def test_the_projects_travel_in_the_package() -> None:
    settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "mobile/**/*" in settings["package-data"]["llmasos"]


@slow
def test_the_folder_is_a_project_and_a_model_that_verifies(app: Path, model: LLM) -> None:
    names = {file.relative_to(app).as_posix() for file in app.rglob("*") if file.is_file()}
    assert {"model.pte", "tokenizer.json", "golden.json", "reader.json", "certificate.json", "settings.gradle.kts",
            "app/build.gradle.kts", "app/src/main/kotlin/app/llmasos/LocalModel.kt"} <= names  # fmt: skip
    texts = "".join(file.read_text(encoding="utf-8") for file in app.rglob("*") if file.suffix in (".kts", ".xml"))
    assert re.findall(r"@[A-Z]+@", texts) == []
    assert 'rootProject.name = "Text classification"' in texts
    found = LLM.from_pretrained(app).verify(ROWS)
    assert found.same_rows
    manifest = bundle.read_manifest(app)
    assert manifest is not None
    assert names - {"llmasos.json"} == set(manifest["files"])
    certificate = json.loads((app / "certificate.json").read_text())
    assert 0 < certificate["model_bytes"] < certificate["peak_bytes"]
    assert certificate["model_bytes"] > (app / "model.pte").stat().st_size
    reader = json.loads((app / "reader.json").read_text())
    assert [one["ids"] for one in reader["examples"]] == [
        model.tokenizer(one["text"], truncation=True, max_length=one["longest"])["input_ids"]
        for one in reader["examples"]
    ]
    assert json.loads((app / "tokenizer.json").read_text())["truncation"] is None


# -- Kotlin ---------------------------------------------------------------------------------------------

JARS = Path(os.environ.get("LLMASOS_KOTLIN", HERE.parent / "build" / "kotlin"))
"""Jars of a Kotlin compiler, with kotlin-stdlib; ``make test-mobile`` fetches them."""
JSON = Path(os.environ.get("LLMASOS_ANDROID_JSON", "/usr/share/java/json-android.jar"))
MAIN = PROJECTS / "android" / "app" / "src" / "main" / "kotlin" / "app" / "llmasos"


def kotlin(output: Path, *files: Path) -> str:
    """Compile Kotlin; return the class path to run it with."""
    if shutil.which("java") is None:
        pytest.skip("needs java")
    jars = sorted(JARS.rglob("*.jar"))
    compiler = [jar for jar in jars if re.search(r"kotlin-(jupyter-kernel.*-all|compiler)", jar.name)]
    library = [jar for jar in jars if re.fullmatch(r"kotlin-stdlib-[\d.]+.*\.jar", jar.name)]
    if not compiler or not library:
        pytest.skip(f"needs a Kotlin compiler in {JARS}: make test-mobile fetches one")
    if not JSON.is_file():
        pytest.skip(f"needs Android's org.json, {JSON}: Debian has it in libandroid-json-org-java")
    path = f"{library[0]}:{JSON}"
    command = ["java", "-cp", ":".join(map(str, jars)), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib",
               "-no-reflect", "-cp", path, "-d", str(output), *map(str, files)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return f"{path}:{output}"


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that runs the app's model on an export, with the numbers that ExecuTorch gave."""
    path = kotlin(tmp_path_factory.mktemp("classes"), *(MAIN / f"{name}.kt" for name in
                  ("Errors", "WordPiece", "LocalModel")), HERE / "kotlin" / "Check.kt")  # fmt: skip

    def run(folder: Path, numbers: dict[str, Any], texts: Sequence[str], free: int = 1 << 40) -> dict[str, Any]:
        recorded = folder.parent / "numbers.json"
        recorded.write_text(json.dumps(numbers))
        done = subprocess.run(["java", "-cp", path, "app.llmasos.CheckKt", str(folder), str(recorded), str(free),
                               *texts], capture_output=True, text=True, check=True)  # fmt: skip
        return dict(json.loads(done.stdout))

    return run


def recorded(folder: Path, texts: Sequence[str]) -> dict[str, list[float]]:
    """Return what ExecuTorch's own runtime gives for the golden rows and for texts, by their tokens."""
    llm = LLM.from_pretrained(folder)
    artifact = bundle.artifact_of(bundle.read_manifest(folder))
    assert artifact is not None
    assert llm.task is not None
    engine = plugins.load("engines", "executorch")(folder, artifact, output=llm.task.output)
    golden = json.loads((folder / "golden.json").read_text())
    rows = [ids for example in golden["examples"] for ids in example["ids"]]
    rows += [llm.tokenizer(text, truncation=True, max_length=artifact["longest"])["input_ids"] for text in texts]
    return {",".join(map(str, ids)): engine.outputs(one_row(ids)).ravel().tolist() for ids in rows}


def one_row(ids: Sequence[int]) -> Batch:
    return Batch(np.asarray(ids, dtype=np.int32), None, np.asarray([len(ids)], dtype=np.int32), np.arange(1))


@slow
def test_all_of_the_app_compiles_against_the_signatures_that_it_uses(tmp_path: Path) -> None:
    kotlin(tmp_path, *MAIN.glob("*.kt"), *(HERE / "kotlin" / "stubs").glob("*.kt"))
    assert (tmp_path / "app" / "llmasos" / "MainActivity.class").is_file()


TEXTS = ["A GOOD dáy", "[MASK] bad, wet; 好", "wet " * 60]


@slow
def test_kotlin_answers_as_the_model_does(app: Path, model: LLM, checked: Any, tmp_path: Path) -> None:
    found = checked(shutil.copytree(app, tmp_path / "app"), recorded(app, TEXTS), TEXTS)
    assert found["apart"] <= 1e-3
    wanted = [model.predict(text, allow_truncated=1.0, progress=lambda event: None).scores for text in TEXTS]
    for one, two in zip(found["answers"], wanted, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


@slow
def test_kotlin_refuses_other_numbers_other_tokens_and_too_little_memory(
    app: Path, checked: Any, tmp_path: Path
) -> None:
    folder, numbers = shutil.copytree(app, tmp_path / "app"), recorded(app, [])
    needed = json.loads((app / "certificate.json").read_text())["model_bytes"]
    assert checked(folder, numbers, [], needed)["opened"] is True
    found = checked(folder, numbers, [], needed - 1)
    assert (found["error"], found["opened"]) == ("MemoryError", False)
    shifted = {ids: [value + 0.1 * (place == 0) for place, value in enumerate(row)] for ids, row in numbers.items()}
    assert checked(folder, shifted, [])["error"] == "ParityError"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = checked(folder, numbers, [])
    assert (found["error"], found["opened"]) == ("ParityError", False)
    assert "other tokens" in found["reason"]


# -- TypeScript -----------------------------------------------------------------------------------------

MODULES = Path(os.environ.get("LLMASOS_REACT_NATIVE", HERE.parent / "build" / "react-native")) / "node_modules"
"""What the React Native project depends on; ``make test-mobile`` installs it."""


@slow
def test_the_react_native_project_has_the_types_of_what_it_uses(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (MODULES / "typescript").is_dir():
        pytest.skip(f"needs node and {MODULES}: make test-mobile installs them")
    project = shutil.copytree(PROJECTS / "react-native", tmp_path / "project")
    (project / "node_modules").symlink_to(MODULES)
    command = ["node", str(MODULES / "typescript" / "bin" / "tsc"), "--noEmit"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
    (project / "src" / "wrong.ts").write_text('import { nlp } from "react-native-executorch";\nnlp.loadTokenizer(1);\n')
    assert subprocess.run(command, cwd=project, capture_output=True, check=False).returncode != 0
