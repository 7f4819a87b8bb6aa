"""Options are held to one set of rules, whether they come from Python, YAML or the shell."""

from __future__ import annotations

import dataclasses

import pytest

from llmasos.core.config import FinetuneConfig, PredictConfig, parse_settings, read_recipe
from llmasos.core.environment import home
from llmasos.errors import UsageError

CONFIGS = [FinetuneConfig, PredictConfig]


def words(error: pytest.ExceptionInfo[UsageError]) -> str:
    return str(error.value)


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_pass_their_own_checks_and_survive_a_round_trip(config):
    assert config.of(config().to_dict()) == config()


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_has_a_help_line(config):
    assert all(field.metadata["help"] for field in dataclasses.fields(config))


def test_an_unknown_option_is_an_error_with_the_nearest_known_one():
    with pytest.raises(UsageError) as error:
        FinetuneConfig.of({"epoch": 3})
    assert "no option 'epoch'" in words(error)
    assert "did you mean 'epochs'?" in words(error)


def test_words_from_the_shell_become_the_options_types():
    config = FinetuneConfig.of({"epochs": "2.5", "batch_size": "16", "learning_rate": "3e-5", "schedule": "cosine"})
    assert (config.epochs, config.batch_size, config.learning_rate, config.schedule) == (2.5, 16, 3e-5, "cosine")


@pytest.mark.parametrize("word", ["none", "None", "null", ""])
def test_a_word_for_nothing_is_none_where_none_is_allowed(word):
    assert FinetuneConfig.of({"learning_rate": word}).learning_rate is None


def test_none_is_refused_where_a_value_is_needed():
    with pytest.raises(UsageError, match="epochs=None is not a number"):
        FinetuneConfig.of({"epochs": None})


@pytest.mark.parametrize(("values", "message"), [
    ({"epochs": "three"}, "epochs='three' is not a number"),
    ({"batch_size": "2.5"}, "batch_size='2.5' is not a whole number"),
    ({"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
    ({"batch_size": True}, "batch_size=True is not a whole number"),
    ({"epochs": True}, "epochs=True is not a number"),
    ({"batch_size": 0}, "batch_size=0 is out of range"),
    ({"warmup": 1.5}, "warmup=1.5 is out of range"),
    ({"epochs": -1}, "epochs=-1.0 is out of range"),
    ({"epochs": float("nan")}, "epochs=nan is not a number"),
    ({"epochs": "inf"}, "epochs=inf is not a number"),
    ({"learning_rate": [1e-4]}, "learning_rate=[0.0001] is not a number"),
    ({"device": 3}, "device=3 is not a word"),
    ({"metric": ["f1"]}, "metric=['f1'] is not a word"),
])  # fmt: skip
def test_a_wrong_value_is_named_with_what_was_expected(values, message):
    with pytest.raises(UsageError) as error:
        FinetuneConfig.of(values)
    assert words(error).startswith(message)
    assert "hint:" in words(error)


def test_a_word_outside_the_choices_is_answered_with_the_nearest_choice():
    with pytest.raises(UsageError) as error:
        FinetuneConfig.of({"schedule": "cosin"})
    assert "did you mean 'cosine'?" in words(error)
    assert "linear, cosine, constant" in words(error)


def test_the_same_checks_hold_for_the_constructor():
    with pytest.raises(UsageError, match="out of range"):
        FinetuneConfig(batch_size=0)
    with pytest.raises(UsageError, match="not a number"):
        FinetuneConfig(epochs="3")


def test_a_whole_float_is_taken_as_a_whole_number():
    assert FinetuneConfig.of({"batch_size": 16.0}).batch_size == 16


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    config = FinetuneConfig.of({"batch_size": np.int64(8), "epochs": np.float32(0.5)})
    assert (config.batch_size, config.epochs) == (8, 0.5)
    assert type(config.batch_size) is int


def test_a_recipe_is_read_as_a_mapping(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 2\nlearning_rate: 3e-5\nlabels: [a, b]\n# a comment\n")
    assert read_recipe(path) == {"epochs": 2, "learning_rate": "3e-5", "labels": ["a", "b"]}  # YAML 1.1 wants 3.0e-5.
    assert FinetuneConfig.of({"learning_rate": read_recipe(path)["learning_rate"]}).learning_rate == 3e-5


def test_an_empty_recipe_sets_nothing(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing yet\n")
    assert read_recipe(path) == {}


@pytest.mark.parametrize(("content", "message"), [
    (b"epochs: [1\n", "is not YAML"),
    (b"\xff\xfe\x00", "is not YAML"),
    (b"- epochs\n", "holds a list"),
    (b"!!python/object/apply:os.system ['true']\n", "is not YAML"),
])  # fmt: skip
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    assert message in words(error)
    assert len(words(error).splitlines()) == 2


def test_a_recipe_that_is_not_there_or_is_a_folder_is_an_error(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match=r"recipe"):
            read_recipe(path)


def test_settings_are_split_at_the_first_equals_sign():
    assert parse_settings(["epochs=3", "eval-split = 0.2", "device=a=b"]) == {
        "epochs": "3",
        "eval_split": "0.2",
        "device": "a=b",
    }


@pytest.mark.parametrize("setting", ["epochs", "=3", " = "])
def test_a_setting_without_key_and_value_is_refused(setting):
    with pytest.raises(UsageError, match="not key=value"):
        parse_settings([setting])


def test_the_home_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("LLMASOS_HOME")
    assert home().name == "llmasos"
