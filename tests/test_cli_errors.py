"""What the command line says when something is wrong: one clear error, the right exit code, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.cli import VERBS, main
from llmasos.cli.output import AsJson, show_json
from llmasos.errors import HardwareError
from tiny import save_tiny_bert


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"a {word} day {i}", "label": word} for i in range(12) for word in ("good", "bad")]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Call the command line; return its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return call


# -- usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "message", "hint"), [
    (["finetun"], "there is no verb 'finetun'", "did you mean 'finetune'?"),
    (["--jason"], "there is no option '--jason'", "known:"),
    (["finetune", "--epoch", "3"], "No such option: --epoch", "finetune --help"),
    (["finetune", "--data", "d.csv", "--output", "o"], "no model given", "MODEL"),
    (["finetune", "m", "--output", "o"], "no data given", "--data"),
    (["finetune", "m", "--data", "d.csv"], "no output folder given", "--output"),
    (["finetune", "m", "--data", "d.csv", "--epochs", "many"], "epochs='many' is not a number", "times that"),
    (["finetune", "m", "--data", "d.csv", "--schedule", "cosin"], "schedule='cosin'", "did you mean 'cosine'?"),
    (["finetune", "m", "--data", "d.csv", "--set", "epoch=3"], "no option 'epoch'", "did you mean 'epochs'?"),
    (["finetune", "m", "--data", "d.csv", "--set", "epochs"], "not key=value", "--set epochs=3"),
    (["finetune", "m", "--data", "d.csv", "--task", "text-clasification"], "no 'text-clasification'", "did you mean"),
    (["finetune", "m", "--data", "d.csv", "--num-labels", "two"], "num_labels='two' is not a whole", "num_labels=2"),
    (["finetune", "m", "--data", "d.csv", "--num-labels", "1"], "at least two classes", "num_labels=2"),
    (["finetune", "m", "--data", "d.csv", "--columns", "review"], "not FIELD=COLUMN", "text=review"),
    (["finetune", "m", "--data", "d.csv", "--config", "none.yaml"], "no such recipe", "YAML"),
    (["evaluate", "m"], "Missing option '--data'", "evaluate --help"),
    (["predict"], "Missing argument", "predict --help"),
    (["predict", "m", "text", "--data", "d.csv"], "both given", "one of them"),
    (["predict", "m", "text", "--output", "out.xls"], "not written", ".jsonl"),
    (["predict", "m", "text", "--output", "none/out.csv"], "does not exist", "make it"),
    (["predict", "m", "text", "--batch-size", "0"], "out of range", "at least 1"),
])  # fmt: skip
def test_wrong_usage_exits_with_2_and_says_what_to_do(run, words, message, hint):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert hint in err.partition("hint: ")[2]


def test_an_unknown_key_of_a_recipe_is_answered_with_the_nearest_known_one(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: m\ndata: d.csv\nlearning_rat: 1.0e-4\n")
    code, _, err = run("plan", "--config", "recipe.yaml")
    assert code == 2
    assert "did you mean 'learning_rate'?" in err


def test_bare_yes_and_no_as_labels_of_a_recipe_are_refused(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: m\ndata: d.csv\nlabels: [yes, no]\n")
    code, _, err = run("plan", "--config", "recipe.yaml")
    assert code == 2
    assert "labels: ['yes', 'no']" in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_examples(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert "Examples" in out
    assert f"llmasos {verb}" in out


def test_with_json_an_error_is_one_document_on_standard_output(run):
    code, out, err = run("finetune", "m", "--data", "d.csv", "--epochs", "many", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"] == {
        "type": "UsageError",
        "message": "epochs='many' is not a number",
        "hint": "times that every training row is seen",
    }


# -- input --------------------------------------------------------------------------------------------


def test_a_model_that_does_not_exist_is_bad_input(run, data):
    code, _, err = run("finetune", "./no-such-folder", "--data", data, "--output", "o")
    assert code == 2
    assert "error: " in err
    assert "no-such-folder" in err


def test_a_package_that_is_not_installed_gets_the_pip_line(run):
    code, _, err = run("quickstart", "--model", "pkg:no_such_model_package")
    assert code == 2
    assert "pip install no-such-model-package" in err


def test_wrong_rows_are_listed_with_file_row_and_field(run, model, tmp_path):
    rows = [{"text": "fine", "label": "a"}, {"text": "fine too", "label": "b"}, *[{"text": "x", "label": 1.5}] * 12]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("finetune", model, "--data", "bad.jsonl", "--output", "o", "--json")
    error = json.loads(out)["error"]
    assert (code, error["type"], error["count"], len(error["problems"])) == (2, "DataError", 12, 10)
    assert "bad.jsonl, row 3" in error["problems"][0]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("none.jsonl", None, "no such file"),
    ("empty.csv", b"", "empty"),
    ("latin.csv", "text,label\ncaf\xe9,a\n".encode("latin-1"), "not UTF-8"),
    ("broken.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "line 2"),
    ("columns.csv", b"a,b\n1,2\n", "column"),
    ("one.csv", b"text,label\n" + b"hello,same\n" * 20, "same label"),
    ("data.xlsx", b"PK", "not known"),
])  # fmt: skip
def test_unusable_data_exits_with_2_and_leaves_no_folder(run, model, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("finetune", model, "--data", name, "--output", "out")
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("out*"))


def test_an_output_that_exists_is_refused_before_any_work(run, model, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    code, _, err = run("finetune", model, "--data", data, "--output", "out")
    assert code == 2
    assert "exists" in err
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_the_quickstart_does_not_replace_what_it_did_not_make(run, model, tmp_path):
    (tmp_path / "quickstart-model").mkdir()
    (tmp_path / "quickstart-model" / "config.json").write_text("{}")
    code, _, err = run("quickstart", "--model", model)
    assert code == 2
    assert "no quickstart made it" in err


def test_a_predictions_file_that_exists_is_refused(run, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious")
    code, _, err = run("predict", "m", "text", "--output", "out.jsonl")
    assert code == 2
    assert "--overwrite" in err
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_a_model_without_a_task_cannot_predict(run, model):
    code, _, err = run("predict", model, "hello")
    assert code == 2
    assert "has no task yet" in err


# -- accidents ----------------------------------------------------------------------------------------


@pytest.fixture
def accident(monkeypatch):
    """Let the verb ``tasks`` end in any exception."""
    from llmasos.cli import tasks

    def arrange(error: BaseException) -> None:
        def run(*, as_json: AsJson = False) -> None:
            raise error

        monkeypatch.setattr(tasks, "run", run)

    return arrange


def test_an_unexpected_error_is_one_line_without_a_traceback(run, accident):
    accident(RuntimeError("first\nsecond"))
    code, out, err = run("tasks")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: unexpected RuntimeError: first second",
        "hint: run again with --debug, and report what it shows",
    ]


def test_debug_shows_the_traceback(run, accident):
    accident(RuntimeError("first"))
    code, _, err = run("tasks", "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in err


def test_a_failure_of_the_work_exits_with_1(run, accident):
    accident(HardwareError("no space left", hint="free some"))
    assert run("tasks") == (1, "", "error: no space left\nhint: free some\n")


def test_ctrl_c_with_nothing_saved_exits_with_130(run, accident):
    accident(KeyboardInterrupt())
    assert run("tasks") == (130, "", "interrupted; nothing was saved\n")
    code, out, _ = run("tasks", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (130, "Interrupted")


def test_a_reader_that_hangs_up_gets_no_complaint():
    code = "import sys; from llmasos.cli import main; sys.exit(main(['tasks', '--json']))"
    command = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{", "")


def test_numbers_that_json_does_not_know_become_null(capsys):
    show_json({"loss": float("nan"), "rows": [float("inf"), 1.5], (1): "key"})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [None, 1.5], "1": "key"}
