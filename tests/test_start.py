"""Starting is instant: heavy libraries are imported where they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn", "matplotlib", "huggingface_hub", "pyarrow", "numpy")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running ``code``."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.__stderr__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_heavy():
    assert not modules_after("import llmasos, llmasos.errors").intersection(HEAVY)


@pytest.mark.parametrize("word", ["--help", "--version", "finetun"])
def test_help_version_and_a_mistyped_verb_import_nothing_heavy(word):
    loaded = modules_after(f"import contextlib, io; from llmasos.cli import main\n"
                           f"with contextlib.redirect_stderr(io.StringIO()): main([{word!r}])")  # fmt: skip
    assert not loaded.intersection({*HEAVY, "pydantic"})


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_do_not_even_load_rich(word):
    assert not modules_after(f"from llmasos.cli import main; main([{word!r}])").intersection({"rich", "typer"})


def test_a_verbs_help_does_without_torch():
    loaded = modules_after("from llmasos.cli import main; main(['finetune', '--help'])")
    assert not loaded.intersection({"torch", "transformers", "datasets", "sklearn", "huggingface_hub"})


def test_a_wrong_option_is_refused_before_torch_is_loaded():
    code = (
        "import contextlib, io; from llmasos.cli import main\n"
        "with contextlib.redirect_stderr(io.StringIO()):\n"
        "    assert main(['finetune', 'm', '--data', 'd.csv', '--output', 'o', '--epochs', 'many']) == 2"
    )
    assert "torch" not in modules_after(code)


def test_every_public_name_resolves():
    import llmasos

    for name in llmasos.__all__:
        assert getattr(llmasos, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = llmasos.Nothing


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "llmasos", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("llmasos ")
