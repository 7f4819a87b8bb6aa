"""Preferences: the loss is that of the paper, against a reference that is computed once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from llmasos import LLM, PreferenceTask
from llmasos.architectures import _proof
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import find
from llmasos.core.errors import BundleError, DataError, UsageError
from llmasos.core.events import Phase
from llmasos.data.batching import gather
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.engines.torch import TorchEngine
from llmasos.evaluation import evaluate, referenced
from llmasos.loading import load_model
from llmasos.metrics.preference import PreferenceScorer
from llmasos.tasks.base import IGNORED
from tiny import save_tiny

ROWS = PreferenceTask.sample()[1]
QUICK = {
    "progress": False,
    "threads": 1,
    "precision": "float32",
    "batch_size": 8,
    "learning_rate": 3e-3,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("preference") / "tiny", "AutoModelForCausalLM")


@pytest.fixture(scope="module")
def case(folder):
    """A model, the task and encoded pairs of unequal length, with a reference of random numbers."""
    llm = LLM.from_pretrained(folder)
    task, _ = PreferenceTask().fitted(ROWS, llm.tokenizer)
    data = encode(read(ROWS[:5], task.fields), task, llm.tokenizer, 64)
    reference = np.random.default_rng(0).normal(-20, 3, (5, 2)).astype(np.float32)
    model = load_model(folder, task).model.double().eval()
    return task, dataclasses.replace(data, reference=reference), model


def by_hand(model, data, task) -> torch.Tensor:
    """Equation 7 of Rafailov et al. 2023, one sequence at a time, in float64."""
    sums = []
    for place in range(len(data.offsets) - 1):
        span = slice(data.offsets[place], data.offsets[place + 1])
        ids, targets = torch.from_numpy(data.ids[span].astype(np.int64)), torch.from_numpy(data.targets[span].copy())
        logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        asked = targets != IGNORED
        sums.append(logits[asked].gather(1, targets[asked][:, None]).sum())
    ratios = torch.stack(sums).view(-1, 2) - torch.from_numpy(data.reference).double()
    margin = task.beta * (ratios[:, 0] - ratios[:, 1])
    smooth = task.label_smoothing
    return (-(1 - smooth) * functional.logsigmoid(margin) - smooth * functional.logsigmoid(-margin)).sum()


@pytest.mark.parametrize("options", [{}, {"beta": 0.7}, {"label_smoothing": 0.2}])
def test_loss_and_gradient_are_those_of_the_formula_in_float64(case, options):
    task, data, model = dataclasses.replace(case[0], **options), case[1], case[2]
    batch = gather(data, np.arange(len(data)))
    parameters = list(model.parameters())
    loss = task.loss(transformers_outputs(model, batch, 0, "vocabulary"), batch)
    expected = by_hand(model, data, task)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_pairs_pass_the_packed_proof_and_score_as_unpacked(case):
    task, data, model = case[0], case[1], case[2]
    model = load_model_like(model)
    architecture, _ = find(model, "vocabulary")
    assert _proof.prove(model, architecture, gather(data, np.arange(5)), 0, "vocabulary", gradients=True).holds
    losses = [
        evaluate(TorchEngine(model, 0, output="vocabulary", speed=speed), task, data, batch_size=size)[0]
        for speed, size in (("auto", 2), ("plain", 5))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # sums in another order, float32


def load_model_like(model):
    import copy

    return copy.deepcopy(model).float()


def test_evaluation_and_training_compute_the_same_loss(case):
    task, data, model = case[0], case[1], load_model_like(case[2])
    engine = TorchEngine(model, 0, output="vocabulary", speed="plain")
    batch = gather(data, np.arange(5))
    loss, _ = evaluate(engine, task, data)
    trained = task.loss(transformers_outputs(model, batch, 0, "vocabulary"), batch)
    assert float(trained.detach()) / 5 == pytest.approx(loss, rel=1e-5)


def test_an_untrained_model_is_its_own_reference(case):
    task, data, model = case[0], case[1], load_model_like(case[2])
    engine = TorchEngine(model, 0, output="vocabulary", speed="plain")
    loss, scorer = evaluate(engine, task, referenced(engine, task, data))
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    assert scorer.values()["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_without_a_reference_nothing_is_scored(case):
    task, data, model = case[0], dataclasses.replace(case[1], reference=None), load_model_like(case[2])
    with pytest.raises(UsageError, match="reference"):
        evaluate(TorchEngine(model, 0, output="vocabulary", speed="plain"), task, data)


def test_only_answers_are_learned_and_prompts_are_the_same(case):
    _, data, _ = case
    sequences = [slice(data.offsets[i], data.offsets[i + 1]) for i in range(4)]
    first = [int(np.flatnonzero(data.targets[s] != IGNORED)[0]) for s in sequences]
    for chosen, rejected in ((0, 1), (2, 3)):
        assert first[chosen] == first[rejected]
        one, other = data.ids[sequences[chosen]], data.ids[sequences[rejected]]
        np.testing.assert_array_equal(one[: first[chosen] + 1], other[: first[chosen] + 1])


def test_rewards_are_scaled_by_beta():
    scorer = PreferenceScorer()
    scorer.add(np.asarray([[1.0, 0.5], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]]))
    values = scorer.values()
    assert values == {"reward_accuracy": 0.625, "reward_margin": 0.375, "chosen_reward": 1.5, "rejected_reward": 1.125}
    assert scorer.baseline()["reward_accuracy"] == 0.5
    low, high = scorer.report().metrics["reward_accuracy"][1:]
    assert low < 0.625 < high


def test_a_larger_beta_gives_larger_rewards(case):
    task, data, model = case[0], case[1], load_model_like(case[2])
    engine = TorchEngine(model, 0, output="vocabulary", speed="plain")
    margins = [
        evaluate(engine, dataclasses.replace(task, beta=beta), data)[1].values()["reward_margin"] for beta in (0.1, 0.4)
    ]
    assert margins[1] == pytest.approx(4 * margins[0])


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    events = []
    llm = LLM.from_pretrained(folder)
    output = tmp_path_factory.mktemp("tuned") / "model"
    options = {**QUICK, "progress": events.append}
    run = llm.finetune(
        PreferenceTask(beta=0.5), ROWS, eval_data=ROWS, epochs=6, evaluations=1, output=output, **options
    )
    return llm, run, output, events


def test_the_reference_is_computed_once_and_shown(tuned):
    phases = [event for event in tuned[3] if isinstance(event, Phase)]
    assert [(phase.name, phase.total) for phase in phases if phase.name == "reference"] == [("reference", 48)]


def test_a_tuned_model_prefers_what_was_chosen(tuned):
    run = tuned[1]
    assert run.metrics["reward_accuracy"] == 1.0
    assert run.metrics["chosen_reward"] > run.metrics["rejected_reward"]


def test_a_saved_model_is_scored_against_the_model_it_was(tuned):
    llm, run, output, _ = tuned
    for model in (llm, LLM.from_pretrained(output)):
        report = model.evaluate(ROWS, threads=1, precision="float32")
        assert report.metrics["reward_margin"].value == pytest.approx(run.metrics["reward_margin"], rel=1e-4)


def test_without_the_model_it_was_a_saved_model_is_not_scored(folder, tmp_path):
    import shutil

    base = shutil.copytree(folder, tmp_path / "base")
    LLM.from_pretrained(base).finetune(PreferenceTask(), ROWS, epochs=1, output=tmp_path / "out", **QUICK)
    shutil.rmtree(base)
    with pytest.raises(BundleError, match="before its training"):
        LLM.from_pretrained(tmp_path / "out").evaluate(ROWS, threads=1)


def test_a_plan_counts_the_reference(folder):
    plan = LLM.from_pretrained(folder).plan(PreferenceTask(), ROWS, threads=1)
    assert plan.phases["reference"] > 0


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        PreferenceTask(**options)


def test_whole_conversations_are_read_and_only_their_difference_is_learned(folder):
    tokenizer = LLM.from_pretrained(folder).tokenizer
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so"},
    ]
    good, bad = ([*talk, {"role": "assistant", "content": text}] for text in ("fine", "no"))
    row = {"chosen": good, "rejected": bad}
    task, _ = PreferenceTask().fitted([row], tokenizer)
    encoding = task.encode([row], tokenizer, 100)
    said = [tokenizer.decode(t[t != IGNORED]).replace(" ##", "") for t in encoding.targets]
    assert said == ["fine [SEP]", "no [SEP]"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "x", "chosen": "a"}, "rejected"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "chosen"),
        ({"chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "rejected"),
    ],
)
def test_a_damaged_pair_is_named(row, field):
    assert PreferenceTask().problem(row).field == field


def test_equal_answers_are_left_out_and_said(folder):
    rows = [*ROWS, {"prompt": "x", "chosen": "a", "rejected": "a"}]
    llm = LLM.from_pretrained(folder)
    with pytest.raises(DataError, match="the same answer as in chosen"):
        llm.finetune(PreferenceTask(), rows, eval_data=ROWS, epochs=1, **QUICK)
    run = llm.finetune(PreferenceTask(), rows, eval_data=ROWS, epochs=1, allow_dropped=0.1, **QUICK)
    assert run.ledger["dropped"] == 1


def test_a_pair_of_which_one_answer_is_cut_away_is_left_out(folder):
    tokenizer = LLM.from_pretrained(folder).tokenizer
    row = {"prompt": "hi " * 20, "chosen": "a", "rejected": "b"}
    task, _ = PreferenceTask().fitted([row], tokenizer)
    encoding = task.encode([row, ROWS[0]], tokenizer, 40)
    assert (encoding.rows, encoding.problems[0].drop) == ([1], True)


def test_an_adapter_is_merged_on_pairs_that_compare_with_the_model_before(folder):
    model = LLM.from_pretrained(folder)
    model.finetune(PreferenceTask(), ROWS, eval_data=ROWS, adapter="lora", epochs=1, **QUICK)
    found = model.merge(ROWS)
    assert found.before == pytest.approx(found.after, abs=1e-6)
    assert found.rows == len(ROWS)
