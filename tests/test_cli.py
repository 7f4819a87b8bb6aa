"""The command line as a user has it: what each verb gives, what each flag does, and what pipes see."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmasos.cli import VERBS, command_of, examples_of, main
from llmasos.cli.options import argument_lines, settle
from llmasos.cli.output import show_table
from llmasos.core import plugins
from llmasos.core.config import ExportConfig, FinetuneConfig, PredictConfig, TuneConfig
from llmasos.tasks.text_classification import TextClassificationTask
from tiny import save_tiny, save_tiny_bert

LLMASOS = [sys.executable, "-m", "llmasos"]


class Places(NamedTuple):
    """A folder with a model, one tuned from it, and data."""

    folder: Path
    base: Path
    tuned: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("cli")
    base = save_tiny_bert(folder / "base")
    for name, count in (("train", 12), ("dev", 4), ("test", 4)):
        rows = [
            {"text": f"a {word} day {i} of {name}", "label": word} for i in range(count) for word in ("good", "bad")
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = "".join(f"a {word} day {i},{word}\n" for i in range(10) for word in ("good", "bad"))
    (folder / "my.csv").write_text("review,stars\n" + table)
    save_tiny(folder / "writer", "AutoModelForCausalLM")
    for output, *more in (["tuned"], ["adapter", "--adapter", "lora", "--max-steps", "1"]):
        words = ["finetune", base, "--data", folder / "train.jsonl", "--output", folder / output, *more]
        assert main([str(word) for word in words]) == 0
    return Places(folder, base, folder / "tuned")


@pytest.fixture
def run(places, capsys, monkeypatch, tmp_path):
    """Call the command line in a folder of its own; return its exit code, standard output and standard error."""
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "my.csv", "base", "tuned", "writer", "adapter"):
        (tmp_path / name).symlink_to(places.folder / name)
    monkeypatch.chdir(tmp_path)

    def call(*words: object, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return call


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def record(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "run", "run.json").read_text())  # type: ignore[no-any-return]


# -- what every verb has ----------------------------------------------------------------------------------


JSON_WORDS = {
    "quickstart": ["--data", "my.csv", "--columns", "text=review", "--columns", "label=stars", "--model", "./base"],
    "doctor": [],
    "tasks": [],
    "plan": ["base", "--data", "train.jsonl"],
    "finetune": ["base", "--data", "train.jsonl", "--output", "model", "--max-steps", "1"],
    "tune": ["base", "--data", "train.jsonl", "--output", "best", "--max-steps", "1", "--trials", "1"],
    "verify-resume": ["tuned", "--kills", "1", "--max-steps", "2"],
    "parity": ["base", "--data", "train.jsonl", "--frameworks", "jax", "--steps", "2"],
    "evaluate": ["tuned", "--data", "test.jsonl"],
    "predict": ["tuned", "a good day"],
    "data": ["show", "--data", "train.jsonl", "--model", "tuned"],
    "generate": ["writer", "a day", "--max-new-tokens", "2"],
    "tokenizer": ["train", "--data", "train.jsonl", "--vocab-size", "270", "--output", "own-tokenizer"],
    "create": ["writer/config.json", "--tokenizer", "writer", "--output", "own-model"],
    "merge": ["adapter", "--output", "merged"],
    "export": ["tuned", "--target", "onnx", "--data", "test.jsonl", "--output", "exported"],
    "verify": ["tuned"],
    "sign": ["adapter", "--new-key", "own.pem"],
    "pack": ["tuned", "--output", "packed.tar"],
    "pull": ["pack.tar", "--output", "pulled"],
    "push": ["tuned", "localhost:1/me/tuned:1"],
    "runs": ["list"],
    "chat": ["starter-chat"],
    "keys": ["list"],
    "deploy": ["docker", "tuned", "--render", "image"],
    "new": ["app", "my-desk", "--template", "support"],
}


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[pytest.mark.slow] * (verb in ("parity", "verify-resume"))) for verb in VERBS]
)
def test_with_json_standard_output_is_one_document(run, verb):
    if verb == "pull":
        assert run("pack", "tuned", "--output", "pack.tar")[0] == 0
    if verb == "push":
        pytest.skip("needs a registry, as in test_supply.py")
    if verb in ("serve", "mcp", "top"):
        pytest.skip("goes on until it is stopped, as in test_serving.py, or needs a server")
    code, out, _ = run(verb, *JSON_WORDS[verb], "--json", stdin="Hello\n" if verb == "chat" else None)
    assert code == 0
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize(("verb", "line"), [(verb, line) for verb in VERBS for line in examples_of(verb)])
def test_each_example_parses(verb, line):
    words = shlex.split(line.split("|")[-1].split(">")[0])
    assert words[:2] == ["llmasos", verb]
    command_of(verb).make_context(f"llmasos {verb}", words[2:]).close()


@pytest.mark.parametrize(("verb", "options", "without"), [
    ("finetune", (FinetuneConfig, TextClassificationTask), ()),
    ("plan", (FinetuneConfig, TextClassificationTask), ()),
    ("tune", (TuneConfig, FinetuneConfig, TextClassificationTask), ()),
    ("evaluate", (PredictConfig,), ()),
    ("predict", (PredictConfig,), ("allow_dropped",)),  # which speaks of labelled rows
    ("export", (ExportConfig,), ()),
])  # fmt: skip
def test_every_option_of_a_configuration_is_a_flag_with_its_help(verb, options, without):
    flags = {name: option for option in command_of(verb).params for name in option.opts}
    seen: set[str] = set()  # the search's own time limit goes before that of a training
    for option in options:
        for field in (field for field in fields(option) if field.name not in seen):
            seen.add(field.name)
            flag = flags.get(f"--{field.name.replace('_', '-')}")
            assert (flag is None) == (field.name in without), field.name
            assert flag is None or field.metadata.get("help", "") in flag.help


def test_the_help_of_a_verb_breaks_no_example_and_shows_no_type_of_ours(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = run("finetune", "--help")
    assert code == 0
    assert all(f"  {line}\n" in out for line in examples_of("finetune"))
    assert "<bool>" not in out


def test_the_help_of_a_flag_that_tasks_share_is_true_of_each(run):
    flags = {name: flag.help for flag in command_of("finetune").params for name in flag.opts}
    for tag in plugins.names("tasks"):
        for name, line in argument_lines(plugins.load("tasks", tag)).items():
            flag = flags.get(f"--{name.replace('_', '-')}")
            assert flag is None or line.rstrip(".") in flag.replace("\\[", "["), (tag, name)
    assert flags["--label-smoothing"].startswith("preference: share of the pairs taken to be the wrong way round")


@pytest.mark.parametrize("words", [["--task", "preference", "--help"], ["-h", "--task=preference"]])
@pytest.mark.parametrize("verb", ["finetune", "plan"])
def test_the_help_for_a_task_shows_its_options_alone(run, monkeypatch, verb, words):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(verb, *words)
    assert code == 0
    assert all(flag in out for flag in ("Options of preference", "--beta", "--label-smoothing", "--epochs", "--data"))
    assert "share of the pairs taken to be the wrong way round" in out
    assert not [flag for flag in ("--multi-label", "--stride", "spread over all classes") if flag in out]
    assert "--multi-label" in run(verb, "--help")[1]


# -- doctor, tasks ----------------------------------------------------------------------------------------


def test_the_doctor_names_machine_packages_and_what_is_used(run):
    code, out, _ = run("doctor")
    assert code == 0
    names = {line.split()[0] for line in out.splitlines() if line}
    assert {"llmasos", "processor", "memory", "graphics", "used", "torch", "transformers", "extras", "with"} <= names


def test_the_doctor_says_what_serves_each_kind_of_model_and_what_is_missing(run, monkeypatch):
    from llmasos.serving import facts

    far = facts.Fact("encoder", "far", "twice as fast")
    monkeypatch.setattr(facts, "FACTS", (far, *facts.FACTS))
    monkeypatch.setattr(facts, "ENGINES", {**facts.ENGINES, "far": facts.Way(requires=("no_such_one",), extra="far")})
    found = json.loads(run("doctor", "--json")[1])["serving"]
    assert set(found) == {"encoder", "decoder", "encoder-decoder"}
    assert found["encoder"].startswith("torch: ")
    assert "better with far (twice as fast), which lacks here: pip install 'llmasos[far]'" in found["encoder"]
    assert "encoder-decoder  served by torch: " in run("doctor")[1]


def test_the_doctor_tells_a_card_that_this_torch_cannot_use(run, monkeypatch):
    from llmasos.core import hardware

    monkeypatch.setattr(hardware, "devices", lambda: ["cpu"])
    monkeypatch.setattr(hardware, "torch_build", lambda: "CPU")
    monkeypatch.setattr(hardware, "graphics", lambda: [hardware.Graphics("CUDA", "NVIDIA A100")])
    code, out, _ = run("doctor")
    assert code == 0
    assert "cpu (NVIDIA A100 is there, but this torch is built for CPU" in out
    assert re.search(r"torch for CUDA \(NVIDIA A100\) +pip install --force-reinstall torch==", out)


def test_the_doctor_says_which_frameworks_and_extras_can_be_used(run, monkeypatch):
    from llmasos.cli import doctor

    found = {"jax": "0.10", "keras": "3.15", "keras-hub": "0.32", "peft": "0.21", "torch": "2.13"}
    monkeypatch.setattr(doctor, "_version", found.get)
    document = json.loads(run("doctor", "--json")[1])
    assert document["frameworks"]["tensorflow"] == {"tensorflow": None, "keras": "3.15", "keras-hub": "0.32"}
    out = run("doctor")[1]
    assert "with jax         can be used: jax 0.10, keras 3.15, keras-hub 0.32" in out
    assert "with tensorflow  cannot be used: tensorflow missing" in out
    assert 'pip install "llmasos[generation]"' in out
    assert 'pip install "llmasos[adapters]"' not in out


def test_the_doctor_says_how_many_threads_it_was_told_to_use(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "3 threads used (OMP_NUM_THREADS)" in run("doctor")[1]


def test_the_help_of_create_names_every_shape(run):
    from llmasos.scratch import PRESETS

    text = " ".join(run("create", "--help")[1].split())
    assert [name for name in PRESETS if name not in text] == []


def test_tasks_lists_fields_and_options(run):
    tasks = {task["name"]: task for task in json.loads(run("tasks", "--json")[1])["tasks"]}
    assert set(tasks) == set(plugins.names("tasks"))
    assert all(task["default_metric"] in task["metrics"] for task in tasks.values())
    assert {"pass@1", "pass@10"} <= set(tasks["code-generation"]["metrics"])
    assert {"spearman", "mrr", "accuracy"} <= set(tasks["sentence-similarity"]["metrics"])
    assert {"bleu", "chrf"} <= set(tasks["translation"]["metrics"])
    assert "CoNLL files" in tasks["token-classification"]["data"]
    assert all(".jsonl" in task["data"] for task in tasks.values())
    task = tasks["text-classification"]
    assert task["name"] == "text-classification"
    assert [field["name"] for field in task["fields"]] == ["text", "text_pair", "label"]
    assert task["options"].keys() == {field.name for field in fields(TextClassificationTask)}
    text = run("tasks")[1]
    assert all(name in text for name in ("text_pair", "multi_label", "review"))


# -- every task -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base(auto_class: str) -> Path:
        if auto_class not in made:
            made[auto_class] = save_tiny(tmp_path_factory.mktemp("base") / "model", auto_class)
        return made[auto_class]

    return base


@pytest.mark.parametrize("tag", plugins.names("tasks"))
def test_every_task_is_tuned_scored_and_asked(run, bases, tmp_path, tag):
    kind = plugins.load("tasks", tag)
    task, rows = kind.sample()
    for name, part in (("rows", rows), ("few", rows[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    short = ["--max-new-tokens", "2"] if task.generates else []
    words = ["finetune", bases(kind.auto_class), "--task", tag, "--data", "rows.jsonl", "--eval-data", "few.jsonl"]
    code, out, err = run(*words, "--output", "mine", "--max-steps", "1", "--threads", "1", "--json")
    assert code == 0, err
    assert task.default_metric in json.loads(out)["metrics"]
    assert record("mine")["task"]["tag"] == tag
    code, out, err = run("evaluate", "mine", "--data", "few.jsonl", *(short if task.scores_answers else []), "--json")
    assert code == 0, err
    tested = () if tag == "code-generation" else task.answer_metrics  # its sample has no tests to pass
    assert json.loads(out)["metrics"].keys() >= {*task.metric_names, *tested}
    code, out, err = run("predict", "mine", "--data", "few.jsonl", *short)
    assert code == 0, err
    assert len(lines(out)) == 3
    inputs = {field.name for field in task.fields if not field.is_answer} & rows[0].keys()
    assert all(answer.keys() > inputs for answer in lines(out))


# -- plan, finetune ---------------------------------------------------------------------------------------


def test_a_plan_shows_numbers_and_choices_and_writes_nothing(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, _ = run("plan", "base", "--data", "train.jsonl", "--eval-data", "dev.jsonl", "--batch-size", "6")
    assert code == 0
    assert "rows    24 to train on, 8 to validate" in out
    assert "steps   12" in out
    assert "learning_rate" in out
    assert sorted(tmp_path.iterdir()) == before


def test_the_finetune_of_the_readme_saves_a_model_that_answers(run):
    code, out, err = run("finetune", "base", "--task", "text-classification", "--data", "train.jsonl",
                         "--eval-data", "dev.jsonl", "--epochs", "3", "--output", "model")  # fmt: skip
    assert code == 0
    assert "accuracy" in out
    assert "model: model (3 steps in" in out
    assert "epoch 3: validation loss" in err
    (answer,) = lines(run("predict", "model", "a bad day")[1])
    assert answer["label"] in ("good", "bad")


def test_every_option_of_the_run_reaches_the_run(run):
    given = {
        "epochs": 2.0, "batch_size": 5, "learning_rate": 0.001, "schedule": "cosine", "warmup": 0.2,
        "weight_decay": 0.1, "layer_decay": 0.9, "gradient_clip": 0.5, "dropout": 0.2, "augment": 0.1,
        "max_length": 32, "max_steps": 3, "micro_batch_size": 2, "evaluations": 2, "metric": "f1_macro",
        "patience": 4, "eval_split": 0.25, "allow_truncated": 0.5, "allow_dropped": 0.4, "allow_unknown": 0.3,
        "precision": "float32", "speed": "plain", "device": "cpu", "seed": 7, "threads": 1, "adapter": "lora",
        "adapter_rank": 2, "adapter_alpha": 3.0, "adapter_dropout": 0.1, "adapter_targets": "query",
        "report_to": "tensorboard", "checkpoint_steps": 2, "checkpoint_minutes": 1.0, "keep_checkpoints": 3,
        "on_non_finite": "skip", "activation_cache": "off",
    }  # fmt: skip
    # not beside an adapter, not without a GPU, or tested where processes and clocks are
    others = {"trainable": "all", "framework": "torch", "base_precision": "float32", "backend": "auto", "within": None}
    known = {field.name for field in fields(FinetuneConfig)}
    assert given.keys() | others.keys() == known, "a new option belongs into this test"
    assert all(value != getattr(FinetuneConfig(), name) for name, value in given.items())
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, _, err = run("finetune", "base", "--data", "train.jsonl", "--output", "model", *flags)
    assert code == 0, err
    assert record("model")["config"] == given | others


@pytest.mark.parametrize(("words", "name", "value"), [
    (["--labels", "bad", "--labels", "good", "--label", "odd"], "labels", ["bad", "good", "odd"]),
    (["--labels", "good, bad"], "labels", ["good", "bad"]),
    (["--num-labels", "2"], "num_labels", 2),
    (["--class-weights", "balanced"], "class_weights", "balanced"),
    (["--class-weights", "{good: 2.0, bad: 1}"], "class_weights", [["good", 2.0], ["bad", 1]]),
    (["--label-smoothing", "0.1"], "label_smoothing", 0.1),
    (["--multi-label"], "multi_label", True),
    (["--multi-label", "--threshold", "0.3"], "threshold", 0.3),
    (["--pairs"], "pairs", True),
])  # fmt: skip
def test_every_option_of_the_task_reaches_the_task(words, name, value):
    with command_of("plan").make_context("plan", ["m", "--data", "d.csv", *words]) as context:
        given = {key: value for key, value in context.params.items() if value and key not in ("config", "settings")}
    given.pop("as_json", None)
    assert settle(given).task.to_dict()[name] == value


def test_labels_that_are_all_numbers_are_integers():
    assert settle({"model": "m", "data": "d", "labels": "0,1"}).task.to_dict()["labels"] == [0, 1]
    assert settle({"model": "m", "data": "d", "labels": ["01", "1"]}).task.to_dict()["labels"] == ["01", "1"]


def test_a_flag_wins_over_set_which_wins_over_the_recipe(run, tmp_path):
    recipe = "model: base\ndata: train.jsonl\nepochs: 1\nseed: 1\nbatch-size: 6\nlabels: [good, bad]\noutput: model\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    words = ["--set", "seed=2", "--set", "batch-size=7", "--set", "eval_data=dev.jsonl", "--seed", "3"]
    code, _, err = run("finetune", "--config", "recipe.yaml", *words)
    assert code == 0, err
    done = record("model")
    assert [done["config"][name] for name in ("epochs", "batch_size", "seed")] == [1.0, 7, 3]
    assert done["task"]["labels"] == ["good", "bad"]
    assert done["data"]["evaluation"]["rows"] == 8


def test_columns_name_the_fields_by_flag_set_and_recipe(run, tmp_path):
    plain = ["plan", "base", "--data", "my.csv", "--set", "max_steps=1", "--json"]
    assert run(*plain)[0] == 2
    assert run(*plain, "--columns", "text=review", "--columns", "label=stars")[0] == 0
    (tmp_path / "recipe.yaml").write_text("columns:\n  text: review\n  label: stars\n")
    assert run(*plain, "--config", "recipe.yaml")[0] == 0


def test_an_existing_model_is_replaced_only_with_overwrite(run):
    words = ["finetune", "base", "--data", "train.jsonl", "--output", "model", "--max-steps", "1"]
    assert run(*words)[0] == 0
    assert run(*words, "--seed", "1")[0] == 2
    assert record("model")["seed"] == 0
    assert run(*words, "--seed", "1", "--overwrite")[0] == 0
    assert record("model")["seed"] == 1


def test_a_revision_is_asked_of_the_source(run):
    code, _, err = run("finetune", "base", "--data", "train.jsonl", "--output", "model", "--revision", "v1")
    assert code == 2
    assert "base has no revisions" in err


def test_the_loss_of_a_run_that_blows_up_exits_with_1(run):
    code, _, err = run("finetune", "base", "--data", "train.jsonl", "--output", "model", "--learning-rate", "1e30",
                       "--gradient-clip", "0", "--epochs", "9")  # fmt: skip
    assert code == 1
    assert err.splitlines()[-2].startswith("error: ")


# -- evaluate ---------------------------------------------------------------------------------------------


def test_an_evaluation_shows_metrics_classes_and_confusions(run):
    code, out, _ = run("evaluate", "tuned", "--data", "test.jsonl")
    assert code == 0
    assert out.startswith("8 rows of test.jsonl\n")
    for words in ("95 % interval", "baseline", "f1_macro", "precision", "actual (down), predicted (across)"):
        assert words in out


def test_an_evaluation_as_json_has_intervals_and_baseline(run):
    document = json.loads(run("evaluate", "tuned", "--data", "test.jsonl", "--json")[1])
    assert document["rows"] == 8
    assert document["metrics"]["accuracy"].keys() == {"value", "low", "high"}
    assert document["baseline"]["accuracy"] == 0.5


def test_an_evaluation_takes_columns(run):
    assert run("evaluate", "tuned", "--data", "my.csv")[0] == 2
    assert run("evaluate", "tuned", "--data", "my.csv", "--columns", "text=review", "--columns", "label=stars")[0] == 0


def test_an_evaluation_leaves_out_as_many_rows_as_allowed(run, tmp_path):
    (tmp_path / "gap.csv").write_text("text,label\ngood,good\nbad,bad\n ,bad\n")
    assert run("evaluate", "tuned", "--data", "gap.csv")[0] == 2
    code, out, _ = run("evaluate", "tuned", "--data", "gap.csv", "--allow-dropped", "0.5")
    assert (code, out.splitlines()[0]) == (0, "2 rows of gap.csv")


@pytest.mark.parametrize(("verb", "flag", "value"), [
    (verb, *case)
    for verb in ("evaluate", "predict")
    for case in (("--batch-size", "0"), ("--max-length", "7"), ("--max-length", "65"), ("--allow-truncated", "2"),
                 ("--precision", "half"), ("--speed", "warp"), ("--device", "abacus"), ("--threads", "0"))
])  # fmt: skip
def test_each_option_of_prediction_is_heard(run, verb, flag, value):
    code, _, err = run(verb, "tuned", "--data", "test.jsonl", flag, value)
    assert code == 2
    assert value in err
    assert flag.removeprefix("--").replace("-", "_") in err or flag == "--device"


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_cut_texts_stop_the_work_when_none_may_be_cut(run, verb):
    words = [verb, "tuned", "--data", "test.jsonl", "--max-length", "8"]
    assert run(*words)[0] == 0
    code, _, err = run(*words, "--allow-truncated", "0")
    assert code == 2
    assert "8 tokens" in err


# -- predict ----------------------------------------------------------------------------------------------


def test_the_same_answers_come_for_arguments_standard_input_and_a_file(run, tmp_path):
    texts = ["a good day", "a bad day, 中文", "-5 degrees"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, out, err = run("predict", "tuned", "--", *texts)
    answers = lines(out)
    assert (code, err) == (0, "loading tuned\n")
    assert [answer["text"] for answer in answers] == texts
    assert all(answer.keys() == {"text", "label", "score", "scores"} for answer in answers)
    others = [run("predict", "tuned", stdin="\n".join(texts))[1], run("predict", "tuned", "--data", "texts.jsonl")[1]]
    for other in others:
        assert [answer["label"] for answer in lines(other)] == [answer["label"] for answer in answers]


def test_nothing_on_standard_input_gives_no_answer(run):
    assert run("predict", "tuned", stdin="")[:2] == (0, "")
    assert json.loads(run("predict", "tuned", "--json", stdin="")[1])["predictions"] == []


def test_answers_as_json_are_in_the_order_of_the_texts(run):
    document = json.loads(run("predict", "tuned", "--data", "test.jsonl", "--json")[1])
    rows = lines(Path("test.jsonl").read_text())
    assert [answer["text"] for answer in document["predictions"]] == [row["text"] for row in rows]
    assert document["model"] == "tuned"


def test_a_pipe_through_real_processes(places):
    command = f"printf 'a good day\\na bad day\\n' | {shlex.join(LLMASOS)} predict {shlex.quote(str(places.tuned))}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert [answer["text"] for answer in lines(done.stdout)] == ["a good day", "a bad day"]
    assert done.stderr == f"loading {places.tuned}\n"


def test_on_a_terminal_answers_are_readable(run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    label, score, text = run("predict", "tuned", "a good day")[1].strip().split("  ")
    assert label in ("good", "bad")
    assert text == "a good day"
    assert 0.0 < float(score) < 1.0


@pytest.mark.parametrize(("name", "separator"), [("out.csv", ","), ("out.tsv", "\t")])
def test_a_table_of_answers_has_text_label_and_score(run, tmp_path, name, separator):
    code, out, err = run("predict", "tuned", "--data", "test.jsonl", "--output", name)
    assert (code, out) == (0, "")
    assert "8 predictions in" in err
    header, *rows = (tmp_path / name).read_text().splitlines()
    assert header.split(separator) == ["text", "label", "score"]
    assert len(rows) == 8


def test_an_output_is_summed_up_as_json(run):
    document = json.loads(run("predict", "tuned", "--data", "test.jsonl", "--output", "out.jsonl", "--json")[1])
    assert (document["output"], document["rows"], sum(document["labels"].values())) == ("out.jsonl", 8, 8)
    assert len(lines(Path("out.jsonl").read_text())) == 8


def test_a_failure_on_the_way_leaves_the_old_output_whole_and_no_other(run, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious\n")
    (tmp_path / "late.jsonl").write_text('{"text": "fine"}\n' * 200 + '{"text": 5}\n')
    words = ["predict", "tuned", "--output", "out.jsonl", "--overwrite"]
    code, _, err = run(*words, "--data", "late.jsonl")
    assert code == 2
    assert "row 201" in err
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    assert not list(tmp_path.glob(".out*"))
    assert run(*words, "--data", "test.jsonl")[0] == 0
    assert len(lines((tmp_path / "out.jsonl").read_text())) == 8


def test_a_prediction_takes_the_column_of_the_text(run):
    assert run("predict", "tuned", "--data", "my.csv", "--columns", "text=stars")[0] == 0
    answers = lines(run("predict", "tuned", "--data", "my.csv", "--columns", "text=stars")[1])
    assert {answer["text"] for answer in answers} == {"good", "bad"}


# -- quickstart -------------------------------------------------------------------------------------------


OWN = ["quickstart", "--data", "my.csv", "--columns", "text=review", "--columns", "label=stars", "--model", "./base"]


def test_the_three_commands_that_the_quickstart_prints_work_when_copied(run, tmp_path):
    (tmp_path / "my-model").mkdir()  # a name that is taken is not proposed
    code, out, err = run(*OWN)
    assert code == 0
    assert "Answers for texts that were not trained on" in out
    assert "The plan:" in err
    predict, plan, finetune = out.split("To try next:")[1].strip().splitlines()
    assert " predict quickstart-model 'a " in predict
    assert finetune.endswith("--output my-model-2")
    done = subprocess.run(["bash", "-c", predict], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(lines(done.stdout))) == (0, 1), done.stderr
    for command in (plan, finetune):
        words = shlex.split(command)
        assert run(*words[words.index("plan" if command == plan else "finetune") :])[0] == 0
    assert (tmp_path / "my-model-2" / "llmasos.json").is_file()


def test_the_quickstart_replaces_its_own_model_and_others_only_when_told(run, tmp_path):
    assert run(*OWN)[0] == 0
    assert run(*OWN)[0] == 0
    (tmp_path / "quickstart-model" / "run" / "quickstart.json").unlink()
    code, _, err = run(*OWN)
    assert code == 2
    assert "--overwrite" in err
    assert run(*OWN, "--overwrite")[0] == 0


def test_the_quickstart_says_what_it_did_as_json(run):
    document = json.loads(run(*OWN, "--output", "mine", "--json")[1])
    assert document["path"] == "mine"
    assert document["plan"]["rows"] + document["plan"]["evaluation_rows"] == 20
    assert document["ledger"]["rows"] == 16
    assert len(document["predictions"]) == 4
    assert len(document["next"]) == 3


# -- tables -----------------------------------------------------------------------------------------------


def test_wide_characters_keep_a_table_straight(capsys):
    show_table([("中文", "1"), ("a", "22")], right=(1,))
    assert capsys.readouterr().out == "中文   1\na     22\n"


def test_on_a_narrow_terminal_the_last_column_is_broken_below_itself(capsys, monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    show_table([("name", "a long sentence that needs two lines")])
    assert capsys.readouterr().out == "name  a long sentence that\n      needs two lines\n"
