"""The search finds what is better, gives up what is worse, and goes on where it was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from llmasos import LLM, MaskedLanguageModelingTask, TextClassificationTask
from llmasos.core.config import FinetuneConfig, TuneConfig, parse_duration
from llmasos.core.events import Evaluated, Step, Trial
from llmasos.core.storage import Storage
from llmasos.errors import MissingExtraError, RemoteError, TrainingError, UsageError
from llmasos.training.space import Dimension, default_space, parse_space
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
TRAIN = ROWS * 4
QUICK = {"batch_size": 8, "epochs": 3, "evaluations": 1, "dropout": 0.0, "threads": 1, "precision": "float32"}
BRIEF = {"epochs": 1, "eval_data": ROWS[:8]}  # for what does not depend on what is learned
RATES = {"learning_rate": [1e-9, 3e-3]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tuning") / "base")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Leave out the picture of each training, which takes longer than a tiny training; test_curves.py draws it."""
    monkeypatch.setattr("llmasos.training.curves.plot_curves", lambda *_: None)


def search(base: Path, output: Path, heard: list | None = None, **more):
    listener = (lambda _: None) if heard is None else heard.append
    given = {"space": RATES, "trials": 3, "eval_data": ROWS, "progress": listener, **QUICK, **more}
    llm = LLM.from_pretrained(base)
    return llm, llm.tune(TASK, TRAIN, output=output, **given)


# -- what is found ----------------------------------------------------------------------------------------


def test_the_better_of_two_rates_is_found_and_its_model_kept(base, tmp_path):
    llm, found = search(base, tmp_path / "best", seed=2)
    assert {trial.values["learning_rate"] for trial in found.trials} == {1e-9, 3e-3}
    assert found.best.values == {"learning_rate": 3e-3}
    assert (found.reason, len(found.trials), found.metric) == ("done", 3, "accuracy")
    again = LLM.from_pretrained(tmp_path / "best").evaluate(ROWS, precision="float32")
    assert again.metrics["accuracy"].value == found.best.value > 0.9
    assert llm.evaluate(ROWS, precision="float32").metrics["accuracy"].value == found.best.value
    assert not (tmp_path / "best.tuning").exists()
    written = json.loads((tmp_path / "best" / "run" / "tuning.json").read_text())
    assert written["best"]["values"] == {"learning_rate": 3e-3}
    assert (tmp_path / "best" / "run" / "tuning.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "best" / "run" / "run.json").read_text())["config"]["learning_rate"] == 3e-3


def test_a_metric_of_which_less_is_better_is_made_small(base, tmp_path):
    task, rows = MaskedLanguageModelingTask.sample()
    found = LLM.from_pretrained(base).tune(
        task, rows, eval_data=rows, space={"learning_rate": [1e-9, 1e-2]}, trials=3, seed=2, output=tmp_path / "best",
        progress=False, epochs=2, threads=1,
    )  # fmt: skip
    values = [(trial.value, trial.values["learning_rate"]) for trial in found.trials]
    assert found.metric == "pseudo_perplexity"
    assert (found.best.value, 1e-2) == min(values) < max(values)


def test_the_recipe_repeats_the_best_trial(base, tmp_path, monkeypatch):
    from llmasos.cli import main

    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["tune", base, "--data", "train.jsonl", "--label-smoothing", "0.1", "--output", "best", "--trials", "2",
             "--search", "learning_rate=1e-4..5e-3:log", "--eval-split", "0.4", "--epochs", "1"]  # fmt: skip
    words += [
        part for name, value in QUICK.items() if name != "epochs" for part in (f"--{name.replace('_', '-')}", value)
    ]
    assert main([str(word) for word in words]) == 0
    found = json.loads(Path("best/run/tuning.json").read_text())
    assert yaml.safe_load(Path("best/run/recipe.yaml").read_text())["label_smoothing"] == 0.1
    assert main(found["command"].split()[1:]) == 0
    runs = [json.loads(Path(name, "run", "run.json").read_text()) for name in ("best", "best-again")]
    assert runs[0]["result"]["metrics"] == runs[1]["result"]["metrics"]
    assert runs[0]["config"] == runs[1]["config"]


def test_a_trial_behind_the_median_is_pruned_and_its_training_closed(base, tmp_path, monkeypatch):
    monkeypatch.setattr("llmasos.training.study.STARTUP", 1)
    heard: list = []
    _, found = search(base, tmp_path / "best", heard, seed=5)
    assert [trial.values["learning_rate"] for trial in found.trials] == [3e-3, 3e-3, 1e-9]
    assert [trial.status for trial in found.trials] == ["complete", "complete", "pruned"]
    assert [len(trial.evaluations) for trial in found.trials] == [3, 3, 2]
    assert sum(isinstance(event, Evaluated) for event in heard) == 8
    _, full = search(base, tmp_path / "full", seed=5, prune="none")
    assert full.trials[2].values == found.trials[2].values
    assert [len(trial.evaluations) for trial in full.trials] == [3, 3, 3]


def test_a_trial_that_diverges_counts_and_the_search_goes_on(base, tmp_path):
    space = {"learning_rate": [1e30, 3e-3]}
    _, found = search(base, tmp_path / "best", space=space, seed=2, gradient_clip=0.0, **BRIEF)
    assert {trial.status for trial in found.trials} == {"complete", "diverged"}
    assert found.best.values == {"learning_rate": 3e-3}


def test_trials_begin_from_the_same_model_and_notes_are_said_once(base, tmp_path):
    heard: list = []
    _, found = search(
        base, tmp_path / "best", heard, space={"learning_rate": [3e-3, 2.9e-3]}, eval_data=None, eval_split=0.2
    )
    trials = [event for event in heard if isinstance(event, Trial)]
    assert [trial.status for trial in trials] == ["begun", "complete"] * 3
    assert sum("are set aside" in getattr(event, "text", "") for event in heard) == 1
    same = [t.evaluations for t in found.trials if t.values == found.trials[0].values]
    assert all(evaluations == same[0] for evaluations in same)


# -- an end before the end --------------------------------------------------------------------------------


CODE = """
import json, sys
from llmasos import LLM, TextClassificationTask
from llmasos.training import study
study.STARTUP = 1
task, rows = TextClassificationTask.sample()
given = json.loads(sys.argv[3])
LLM.from_pretrained(sys.argv[1]).tune(task, rows, output=sys.argv[2], eval_data=rows, **given)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    monkeypatch.setattr("llmasos.training.study.STARTUP", 1)
    space = {"learning_rate": "1e-5..1e-2:log", "batch_size": [4, 8]}
    given = {**QUICK, "space": space, "trials": 3, "epochs": 1}
    del given["batch_size"]
    output, folder = tmp_path / "best", tmp_path / "best.tuning"
    child = subprocess.Popen([sys.executable, "-c", CODE, str(base), str(output), json.dumps(given)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (under_way := list(folder.glob("trial-2.unfinished/run/metrics.jsonl"))) and child.poll() is None:
        time.sleep(0.005)
    assert under_way
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not output.exists()
    with (folder / "study.jsonl").open("a") as journal:
        journal.write('{"op_code": 6, "worker')  # the line that a kill broke off
    heard: list = []
    llm = LLM.from_pretrained(base)
    found = llm.tune(TASK, ROWS, output=output, eval_data=ROWS, progress=heard.append, **given)
    begun = [event.number for event in heard if isinstance(event, Trial) and event.status == "begun"]
    assert begun == list(range(begun[0], 4))
    assert begun[0] in (2, 3)
    counted = [trial for trial in found.trials if trial.status != "interrupted"]
    assert [trial.number for trial in counted] == [1, 2, 3]
    assert [trial.number for trial in found.trials if trial.status == "interrupted"] == [begun[0]]
    whole = LLM.from_pretrained(base).tune(
        TASK, TRAIN, output=tmp_path / "whole", eval_data=ROWS, progress=False, **given
    )
    assert [(t.values, t.value, t.status) for t in counted] == [(t.values, t.value, t.status) for t in whole.trials]


def test_ctrl_c_keeps_the_best_so_far_and_the_same_call_goes_on(base, tmp_path):
    def stop(event):
        if isinstance(event, Trial) and (event.number, event.status) == (3, "begun"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="best model so far is in") as stopped:
        search(base, tmp_path / "best", trials=4, progress=stop, **BRIEF)
    assert len(stopped.value.search.trials) == 3
    assert LLM.from_pretrained(tmp_path / "best").evaluate(ROWS).rows == len(ROWS)
    heard: list = []
    _, found = search(base, tmp_path / "best", heard, trials=4, **BRIEF)
    assert [event.number for event in heard if isinstance(event, Trial) and event.status == "begun"] == [3, 4]
    assert not (tmp_path / "best.tuning").exists()
    assert found.reason == "done"


def test_a_signal_during_a_training_ends_the_search(base, tmp_path):
    seen: list = []

    def press(event):
        seen.append(event)
        if isinstance(event, Step) and sum(isinstance(one, Trial) for one in seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="best model so far is in") as stopped:
        search(base, tmp_path / "best", progress=press, **BRIEF)
    assert [trial.status for trial in stopped.value.search.trials] == ["complete", "interrupted"]


def test_ctrl_c_before_any_trial_was_finished_leaves_the_search_to_go_on(base, tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="no trial was finished"):
        search(base, tmp_path / "best", progress=stop, **BRIEF)
    assert not (tmp_path / "best").exists()
    assert search(base, tmp_path / "best", space={"learning_rate": [1e-3, 3e-3]}, trials=1, **BRIEF)[1].reason == "done"


def test_the_time_limit_ends_the_search_with_what_was_found(base, tmp_path):
    start = time.monotonic()
    _, found = search(base, tmp_path / "best", trials=1000, within="3s", **BRIEF)
    assert time.monotonic() - start < 3 + 10  # a save on a busy machine included
    assert found.reason == "out of time"
    assert 0 < len(found.trials) < 1000
    with pytest.raises(TrainingError, match="no trial was finished"):
        search(base, tmp_path / "none", epochs=1000, within="0.3s")


# -- refusals ---------------------------------------------------------------------------------------------


def stopped_search(base: Path, output: Path, **more) -> None:
    def stop(event):
        if isinstance(event, Trial) and event.status == "complete":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(base, output, progress=stop, **BRIEF, **more)


def test_a_search_that_is_another_is_refused_until_overwritten(base, tmp_path):
    output = tmp_path / "best"
    stopped_search(base, output)
    changed = [({"epochs": 2}, "options: epochs"), ({"space": {"learning_rate": [1e-9, 1e-3]}}, "space"),
               ({"prune": "none"}, "prune"), ({"eval_data": ROWS[:-1]}, "validation data")]  # fmt: skip
    for more, word in changed:
        with pytest.raises(UsageError, match=f"another {word}"):
            search(base, output, **{**BRIEF, **more})
    assert search(base, output, **BRIEF, trials=1, seed=1, overwrite=True)[1].best.evaluations
    with pytest.raises(UsageError, match="exists already"):
        search(base, output)


def test_a_search_that_another_process_is_at_is_left_alone(base, tmp_path):
    from llmasos.core import atomic

    stopped_search(base, tmp_path / "best")
    with atomic.hold(tmp_path / "best.tuning"), pytest.raises(UsageError, match="another process"):
        search(base, tmp_path / "best", **BRIEF)


@pytest.mark.parametrize(("space", "message"), [
    (["learning_rat=1e-5..1e-4"], "did you mean 'learning_rate'"),
    (["metric=accuracy,f1_macro"], "not an option that is searched"),
    (["seed=1,2"], "not an option that is searched"),
    (["learning_rate=-1..1"], "learning_rate=-1.0 is out of range"),
    (["warmup=0..2"], "warmup=2.0 is out of range"),
    (["batch_size=1.5..4"], "batch_size='1.5' is not a whole number"),
    (["schedule=linear,round"], "schedule='round'"),
    (["schedule=linear..cosine"], "schedule has no range"),
    (["epochs=4..1"], "ends before it begins"),
    (["warmup=0..0.5:log"], "takes the logarithm of 0"),
    (["warmup=0..0.5:exp"], "is not LOW..HIGH"),
    (["epochs=3"], "leaves nothing to choose"),
    (["epochs=3,3"], "names a value twice"),
    (["epochs"], "is not OPTION=VALUES"),
    (["epochs=1,2", "epochs=2..3"], "searched twice"),
    (["dropout=0.1,0.2"], "is given"),
    (["adapter=none,lora", "adapter_rank=4,8"], "does nothing without an adapter"),
    ({"batch_size": 16}, "neither a range nor a list"),
    ([], "nothing to try"),
])  # fmt: skip
def test_a_space_that_makes_no_sense_is_refused(space, message):
    with pytest.raises(UsageError) as refused:
        parse_space(space, {"dropout": 0.1})
    assert re.search(message, str(refused.value)), str(refused.value)


def test_ranges_and_choices_have_the_types_of_their_options():
    parsed = parse_space(["learning-rate=1e-5..5e-4:log", "batch_size=8..32", "epochs=1..4", "warmup=0.0..0.2",
                          "trainable=all,last-1"], {})  # fmt: skip
    assert parsed == (
        Dimension("learning_rate", low=1e-5, high=5e-4, log=True),
        Dimension("batch_size", low=8, high=32, whole=True),
        Dimension("epochs", low=1.0, high=4.0, whole=True),
        Dimension("warmup", low=0.0, high=0.2),
        Dimension("trainable", choices=("all", "last-1")),
    )
    assert parse_space({"dropout": [None, 0.1], "batch_size": ["8", 16]}, {})[1].choices == (8, 16)


def test_the_default_space_leaves_out_what_is_given():
    assert parse_space(default_space(2e-4, {}), {})[0] == Dimension("learning_rate", low=5e-5, high=8e-4, log=True)
    assert set(default_space(2e-4, {"learning_rate": 1e-4, "batch_size": 8})) == {"warmup", "weight_decay"}


def test_a_search_without_validation_rows_or_from_a_tuned_model_is_refused(base, tmp_path):
    with pytest.raises(UsageError, match="validation rows"):
        search(base, tmp_path / "best", eval_data=None, eval_split=0.0)
    llm, _ = search(base, tmp_path / "one", trials=1, **BRIEF)
    with pytest.raises(UsageError, match="tuned in memory"):
        llm.tune(TASK, ROWS, output=tmp_path / "two")


def test_the_best_model_goes_to_a_url_when_the_search_is_over(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    url, heard = (tmp_path / "bucket").as_uri(), []

    def failing(*_):
        raise RemoteError("the storage is away", hint="wait")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", failing)
        with pytest.raises(RemoteError, match="away"):
            search(base, url, trials=1, **BRIEF)
    search(base, url, heard, trials=1, **BRIEF)
    assert not any(isinstance(event, Trial) for event in heard)  # what was found is only put there
    assert (tmp_path / "bucket" / "run" / "tuning.json").is_file()
    assert LLM.from_pretrained(url).evaluate(ROWS).rows == len(ROWS)
    with pytest.raises(UsageError, match=f"{url} exists already"):
        search(base, url, trials=1, **BRIEF)
    heard.clear()
    search(base, url, heard, trials=1, overwrite=True, **BRIEF)
    assert any(isinstance(event, Trial) for event in heard)
    with pytest.raises(UsageError, match="a search on a cluster with the output"):
        search(base, url, cluster="local")


def test_without_optuna_the_pip_line_is_told(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"llmasos\[tune\]"):
        search(base, tmp_path / "best")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), ("2h", 7200), ("1h30min", 5400), ("1.5h", 5400)]
)
def test_lengths_of_time_are_read(text, seconds):
    assert parse_duration("within", text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10m", "min", "0s", "-5s", "5 parsecs", "10min later"])
def test_words_that_are_no_length_of_time_are_refused(text):
    with pytest.raises(UsageError, match="is not a length of time"):
        TuneConfig(within=text)


def test_a_bad_search_on_the_command_line_exits_with_2(base, tmp_path, monkeypatch, capsys):
    from llmasos.cli import main

    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["tune", str(base), "--data", "train.jsonl"]
    for more in (["--output", "m", "--search", "epoch=1..2"], ["--output", "m", "--trials", "0"],
                 ["--output", "m", "--within", "soon"], [], ["--output", "m", "--prune", "hard"]):  # fmt: skip
        assert main([*words, *more]) == 2, more
    Path("recipe.yaml").write_text("trials: 1\nsearch:\n  batch-size: [4, 8]\noutput: m\nepochs: 1\n")
    assert main([*words, "--config", "recipe.yaml"]) == 0
    assert json.loads(Path("m/run/tuning.json").read_text())["space"] == {"batch_size": "4,8"}
    assert os.listdir("m/run").count("recipe.yaml") == 1
    assert FinetuneConfig().batch_size == 32
