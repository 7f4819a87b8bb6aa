"""An adapter trains little, is stored small, opens on its own base only, and merges without losing anything."""

from __future__ import annotations

import json
import shutil
import sys

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from hub_server import Hub
from llmasos import LLM, TextClassificationTask, loading
from llmasos.architectures import _adapters, _proof
from llmasos.architectures.base import find
from llmasos.cli import main
from llmasos.core import plugins
from llmasos.core.config import FinetuneConfig
from llmasos.core.errors import BundleError, HardwareError, MissingExtraError, ParityError, UsageError
from llmasos.loading import load_model
from llmasos.saving import read_weights, write_weights
from llmasos.sources.base import locate
from llmasos.training import adapters, merging
from test_interface import OUTPUT, batch_of, build
from tiny import save_tiny, save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
TEXTS = [row["text"] for row in ROWS]
QUICK = {"epochs": 4, "batch_size": 8, "precision": "float32", "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("base") / "model")


def tuned(base, **options):
    model = LLM.from_pretrained(base)
    model.finetune(TASK, ROWS, eval_data=ROWS, **{"adapter": "lora", **QUICK, **options})
    return model


@pytest.fixture(scope="module", params=["lora", "dora"])
def adapted(request, base, tmp_path_factory):
    """A model with an adapter in memory, and its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "adapter"
    return tuned(base, adapter=request.param, output=folder), folder


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "adapter"
    tuned(base, output=path)
    return path


def scores(model, **options):
    return np.asarray([answer.score for answer in model.predict(TEXTS, precision="float32", threads=1, **options)])


# -- training ----------------------------------------------------------------------------------------------


def test_the_base_stays_as_it_was_and_the_head_learns(adapted, base):
    model = adapted[0].model
    before = load_file(base / "model.safetensors")
    own = {name.replace(".base_layer", ""): value for name, value in model.bert.named_parameters()}
    frozen = [name for name in before if "pooler" not in name]
    assert all(torch.equal(own[name], before[name]) for name in frozen)
    drawn = load_model(base, adapted[0].task, seed=0).model
    assert not torch.equal(model.classifier.weight, drawn.classifier.weight)
    assert not torch.equal(own["pooler.dense.weight"], before["pooler.dense.weight"])


def test_the_record_of_a_run_has_the_version_of_peft(folder):
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["versions"]["peft"] == peft.__version__


def test_an_adapter_is_saved_with_golden_rows(folder):
    assert LLM.from_pretrained(folder).verify().golden.relative < 1e-3


def test_it_learns(base):
    model = tuned(base, epochs=20, learning_rate=0.01)
    assert model.evaluate(ROWS, threads=1).metrics["accuracy"].value >= 0.9


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_every_task_can_have_an_adapter(name, tmp_path):
    task, rows = plugins.load("tasks", name).sample()
    llm = LLM.from_pretrained(save_tiny(tmp_path / "base", type(task).auto_class))
    run = llm.finetune(task, rows, eval_data=rows, adapter="lora", output=tmp_path / "adapter", max_steps=3, **QUICK)
    again = LLM.from_pretrained(tmp_path / "adapter").evaluate(rows, precision="float32", threads=1)
    # an evaluation may add the metrics of answers that are written
    assert {name: again.metrics[name].value for name in run.metrics} == pytest.approx(run.metrics, abs=1e-4)


def test_one_seed_gives_one_adapter_and_another_seed_another(base):
    one, same, other = (_adapters.state(tuned(base, seed=seed).model) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    first = next(name for name in one if "lora_A" in name)
    assert not torch.equal(one[first], other[first])


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ({"adapter_rank": 3}, lambda layer: layer.lora_A["default"].weight.shape[0] == 3),
        ({"adapter_rank": 4, "adapter_alpha": 2.0}, lambda layer: layer.scaling["default"] == 0.5),
        ({"adapter_rank": 4}, lambda layer: layer.scaling["default"] == 2.0),
        ({"adapter_dropout": 0.25, "dropout": 0.1}, lambda layer: layer.lora_dropout["default"].p == 0.25),
        ({"adapter": "dora"}, lambda layer: "default" in layer.lora_magnitude_vector),
        ({"adapter": "lora"}, lambda layer: "default" not in layer.lora_magnitude_vector),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_every_option_reaches_the_layers(base, option, seen):
    model = tuned(base, **{"epochs": 0.5, **option}).model
    assert seen(model.bert.encoder.layer[0].attention.self.query)


def test_targets_are_those_that_were_asked_for(base):
    model = tuned(base, epochs=0.5, adapter_targets="key, intermediate.dense").model
    assert changed(model) == {"attention.self.key", "intermediate.dense"}
    model = tuned(base, epochs=0.5, adapter_targets="all-linear").model
    assert changed(model) == {
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    }


def changed(model):
    names = (name for name, module in model.named_modules() if hasattr(module, "base_layer"))
    return {name.removeprefix("bert.encoder.layer.").partition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("kind", "head", "expected"),
    [
        ("bert", "token", ("query", "value")),
        ("roberta", "row", ("query", "value")),
        ("distilbert", "token", ("k_lin", "out_lin", "q_lin", "v_lin")),
        ("modernbert", "token", ("Wqkv",)),
        ("llama", "next", ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
        ("gpt2", "next", ("c_attn", "c_fc", "c_proj")),
    ],
)
def test_default_targets_fit_the_architecture(kind, head, expected):
    assert adapters._targets(build(kind, head), None, ("classifier", "lm_head")) == expected


def test_the_learning_rate_is_higher_than_for_all_weights(base, tmp_path):
    for name in ("none", "lora"):
        tuned(base, adapter=name, epochs=0.5, output=tmp_path / name)
    rates = [
        json.loads((tmp_path / name / "run" / "run.json").read_text())["config"]["learning_rate"]
        for name in ("none", "lora")
    ]
    assert rates[1] == pytest.approx(adapters.RATE * rates[0])


def test_a_plan_tells_what_is_trained_and_that_little_is_written(base):
    plans = [LLM.from_pretrained(base).plan(TASK, ROWS, adapter=name, epochs=1, threads=1) for name in ("none", "lora")]
    (choice,) = [choice for choice in plans[1].choices if choice.name == "adapter"]
    assert (choice.value, "parameters are trained" in choice.why) == ("lora", True)
    assert plans[1].disk_bytes < plans[0].disk_bytes


CASES = [("bert", "token"), ("bert", "masked"), ("roberta", "row"), ("modernbert", "row"), ("distilbert", "embedding"),
         ("llama", "next"), ("qwen3", "next"), ("gpt2", "next")]  # fmt: skip


@pytest.mark.parametrize(("kind", "head"), CASES)
@pytest.mark.parametrize("form", ["lora", "dora"])
def test_rows_run_packed_under_an_adapter_too(kind, head, form):
    model, output = build(kind, head), OUTPUT.get(head, head)
    excluded = ("classifier", "lm_head", "cls")
    targets = adapters._targets(model, None, excluded)
    _adapters.attach(model, _adapters.Adapter(form, 4, 8.0, 0.0, targets, "(classifier|lm_head|cls)(\\..*)?"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that the gradient of the other factor would be too
            torch.nn.init.normal_(parameter, std=0.1)
    architecture, reason = find(model, output)
    assert architecture is plugins.load("architectures", "interface"), reason
    proof = _proof.prove(model, architecture, batch_of([30, 22, 9, 8, 2]), 1, output, gradients=True)
    assert (proof.error, proof.holds) == ("", True), proof


def test_an_adapter_folder_goes_on_training(folder, base, tmp_path):
    model = LLM.from_pretrained(folder)
    before = _adapters.state(model.model)
    model.finetune(TASK, ROWS, eval_data=ROWS, adapter="lora", output=tmp_path / "more", **QUICK)
    after = load_file(tmp_path / "more" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora" in name)
    kept = json.loads((tmp_path / "more" / "llmasos.json").read_text())["adapter"]["base"]
    assert kept["ref"] == str(base)


def test_other_labels_give_an_adapter_folder_a_new_head(folder):
    model = LLM.from_pretrained(folder)
    rows = [{"text": text, "label": label} for text in TEXTS for label in ("a", "b", "c")]
    model.finetune(TextClassificationTask(), rows, adapter="lora", **{**QUICK, "epochs": 0.5})
    assert model.model.classifier.out_features == 3


def test_weights_in_memory_take_the_best_ones_back(adapted, tmp_path):
    model = adapted[0].model
    write_weights(model, tmp_path)
    kept = _adapters.state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    read_weights(model, tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in _adapters.state(model).items())


# -- the folder --------------------------------------------------------------------------------------------


def test_the_folder_answers_as_the_model_in_memory(adapted):
    model, path = adapted
    np.testing.assert_array_equal(scores(LLM.from_pretrained(path)), scores(model))


def test_the_folder_holds_the_adapter_and_not_the_base(adapted, base):
    _, path = adapted
    names = load_file(path / "adapter_model.safetensors")
    assert all("lora" in name or "classifier" in name or "pooler" in name for name in names)
    assert not (path / "model.safetensors").exists()
    content = json.loads((path / "llmasos.json").read_text())
    assert content["adapter"]["base"] | {"files": None} == {
        "ref": str(base), "revision": None, "source": "local", "precision": "float32", "files": None,
    }  # fmt: skip


def test_saving_an_opened_adapter_writes_the_same_adapter(adapted, tmp_path):
    _, path = adapted
    LLM.from_pretrained(path).save(tmp_path / "copy")
    one, other = (load_file(each / "adapter_model.safetensors") for each in (path, tmp_path / "copy"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_peft_opens_the_folder_and_gives_the_same(adapted, base):
    from peft import PeftModel

    model, path = adapted
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    theirs = PeftModel.from_pretrained(plain, path).eval()
    inputs = model.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        np.testing.assert_allclose(theirs(**inputs).logits, model.model.eval()(**inputs).logits, atol=1e-6)


def test_new_words_are_saved_with_the_adapter(base, tmp_path):
    model = LLM.from_pretrained(base)
    model.tokenizer.add_tokens(["number"])
    run = model.finetune(TASK, ROWS, eval_data=ROWS, adapter="lora", output=tmp_path / "words", **QUICK)
    assert any("1 new words" in note for note in run.notes)
    again = LLM.from_pretrained(tmp_path / "words")
    assert again.tokenizer.tokenize("a number") == ["a", "number"]
    np.testing.assert_array_equal(scores(again), scores(model))
    held = load_file(tmp_path / "words" / "adapter_model.safetensors")
    assert [value.shape[0] for name, value in held.items() if "trainable_tokens" in name] == [1]
    again.merge(ROWS)
    np.testing.assert_allclose(scores(again), scores(model), atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_of_a_decoder_are_read_and_written(tmp_path, tied):
    path = save_tiny(tmp_path / "base", "AutoModelForCausalLM")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["number"])
    located, task = locate(path), Written()
    adapters.fit(model, located, tokenizer, task, FinetuneConfig(adapter="lora"))
    rows = model.get_input_embeddings().weight.shape[0]
    logits = model(torch.tensor([[5, rows - 1]])).logits
    logits[0, -1, rows - 1].backward()
    grown = [name for name, p in model.named_parameters() if p.grad is not None and "trainable_tokens" in name]
    assert len(grown) == (1 if tied else 2)


class Written:
    output = "vocabulary"


# -- merging -----------------------------------------------------------------------------------------------


def test_a_merged_model_is_a_plain_one_that_answers_the_same(adapted, tmp_path):
    model, path = adapted
    other = LLM.from_pretrained(path)
    found = other.merge(ROWS)
    assert (found.rows, found.metric, found.before) == (len(ROWS), "accuracy", found.after)
    assert 0.0 < found.largest_change < 1e-4 * found.largest_output
    other.save(tmp_path / "plain")
    assert sorted(file.name for file in (tmp_path / "plain").glob("*.safetensors")) == ["model.safetensors"]
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    np.testing.assert_allclose(scores(LLM.from_pretrained(tmp_path / "plain")), scores(model), atol=1e-6)
    names = load_file(tmp_path / "plain" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_a_writer_writes_the_same_with_its_adapter_and_merged(tmp_path):
    task, rows = plugins.load("tasks", "text-generation").sample()
    path = save_tiny(tmp_path / "base", "AutoModelForCausalLM")
    LLM.from_pretrained(path).finetune(task, rows, eval_data=rows, adapter="lora", output=tmp_path / "lora", **QUICK)
    model = LLM.from_pretrained(tmp_path / "lora")
    plain = LLM.from_pretrained(path)
    how = {"max_new_tokens": 8, "temperature": 0.0, "precision": "float32"}
    texts = [each.generate("a good day", **how).text for each in (model, plain)]
    model.merge()
    assert model.generate("a good day", **how).text == texts[0] != texts[1]


def test_without_data_the_outputs_alone_are_compared(folder):
    found = LLM.from_pretrained(folder).merge()
    assert (found.before, found.after, found.rows) == (None, None, 0)
    assert found.largest_change < 1e-4 * found.largest_output


def test_a_merge_that_loses_is_refused_and_the_adapter_stays(folder, monkeypatch):
    def broken(model):
        _adapters.fold(model)
        for parameter in model.classifier.parameters():
            parameter.data.neg_()

    monkeypatch.setattr(merging, "fold", broken)
    model = LLM.from_pretrained(folder)
    before = scores(model)
    with pytest.raises(ParityError, match="changes an output by"):
        model.merge()
    own = [{"text": text, "label": answer.label} for text, answer in zip(TEXTS, model.predict(TEXTS), strict=True)]
    with pytest.raises(ParityError, match=r"loses 1 of accuracy \(1\.0000 to 0\.0000 on 24 rows\)"):
        model.merge(own)
    np.testing.assert_array_equal(scores(model), before)


def test_the_tolerance_decides_how_much_of_the_metric_may_go():
    lost = merging.Merge(1.0, 1.0, "accuracy", 0.90, 0.88, 100)
    merging._gate(lost, 0.02)
    with pytest.raises(ParityError, match=r"loses 0\.02 of accuracy \(0\.9000 to 0\.8800 on 100 rows\)"):
        merging._gate(lost, 0.01)
    with pytest.raises(ParityError, match="loses 1 of perplexity"):
        merging._gate(merging.Merge(1.0, 1.0, "perplexity", 9.0, 10.0, 100), 0.5)


def test_a_plain_model_has_nothing_to_merge(base):
    model = tuned(base, adapter="none", epochs=0.5)
    with pytest.raises(UsageError, match="no adapter to merge"):
        model.merge()


def test_a_negative_tolerance_is_refused(folder):
    with pytest.raises(UsageError, match=r"tolerance=-0\.1"):
        LLM.from_pretrained(folder).merge(tolerance=-0.1)


# -- what is refused ---------------------------------------------------------------------------------------


def test_an_adapter_is_refused_on_another_base(folder, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v + 1 for k, v in tensors.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match="trained on other weights"):
        scores(LLM.from_pretrained(folder, base=other))


def test_a_base_that_moved_is_named_and_can_be_given(base, tmp_path):
    here = shutil.copytree(base, tmp_path / "here")
    expected = scores(tuned(here, output=tmp_path / "adapter"))
    there = here.rename(tmp_path / "there")
    with pytest.raises(BundleError, match=f"needs its base model {here}") as caught:
        scores(LLM.from_pretrained(tmp_path / "adapter"))
    assert "base=" in caught.value.hint
    np.testing.assert_array_equal(scores(LLM.from_pretrained(tmp_path / "adapter", base=there)), expected)


def test_an_adapter_of_the_hub_brings_its_base_at_its_revision(base, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub(repos={"org/base": base}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        expected = scores(tuned("org/base", output=tmp_path / "adapter"))
    kept = json.loads((tmp_path / "adapter" / "llmasos.json").read_text())["adapter"]["base"]
    assert (kept["ref"], len(kept["revision"])) == ("org/base", 40)
    with Hub(repos={"org/base": base, "org/adapter": tmp_path / "adapter"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
        np.testing.assert_array_equal(scores(LLM.from_pretrained("org/adapter")), expected)


def test_a_base_for_a_plain_model_is_refused(base):
    with pytest.raises(UsageError, match="is no adapter"):
        LLM.from_pretrained(base, base=base)


def test_an_adapter_that_does_not_say_its_base_is_refused(folder, tmp_path):
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / "llmasos.json").unlink()
    with pytest.raises(BundleError, match="does not say which weights"):
        LLM.from_pretrained(foreign).finetune(TASK, ROWS, adapter="lora", **QUICK)


DAMAGE = ["lacks a tensor", "has another shape", "is cut off", "has no rank", "brings a pattern of its own"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused(folder, tmp_path, damage):
    from safetensors.torch import save_file

    path = shutil.copytree(folder, tmp_path / "damaged")
    file, config = path / "adapter_model.safetensors", path / "adapter_config.json"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    if damage == "is cut off":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "has no rank":
        config.write_text("{}")
    elif damage == "brings a pattern of its own":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"exclude_modules": "(a+)+b"}))
    else:
        value = tensors.pop(name)
        save_file(tensors if damage == "lacks a tensor" else tensors | {name: value[:2].clone()}, file)
    with pytest.raises(BundleError):
        scores(LLM.from_pretrained(path))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"adapter_rank": 4}, "adapter_rank=4 does nothing"),
        ({"adapter_alpha": 4.0}, r"adapter_alpha=4\.0 does nothing"),
        ({"adapter_dropout": 0.1}, r"adapter_dropout=0\.1 does nothing"),
        ({"adapter_targets": "query"}, "adapter_targets='query' does nothing"),
        ({"base_precision": "4bit"}, "base_precision='4bit' does nothing"),
        ({"adapter": "lora", "adapter_rank": 0}, "adapter_rank=0 is out of range"),
        ({"adapter": "lorra"}, "adapter='lorra'"),
    ],
    ids=str,
)
def test_options_that_would_do_nothing_are_refused(option, message):
    with pytest.raises(UsageError, match=message):
        FinetuneConfig.of(option)


def test_targets_that_match_nothing_name_those_that_exist(base):
    with pytest.raises(UsageError, match="no linear layer of this bert is named 'q_proj'") as caught:
        tuned(base, adapter_targets="query,q_proj")
    assert "all-linear, or some of dense, key, query, value" in caught.value.hint


def test_four_bits_without_a_gpu_are_refused_with_the_reason(base):
    with pytest.raises(HardwareError, match="needs a CUDA GPU") as caught:
        tuned(base, base_precision="4bit", device="cpu")
    assert "base_precision=float32" in caught.value.hint


def test_four_bits_need_bitsandbytes_and_are_nf4(monkeypatch):
    config, gpu = FinetuneConfig(adapter="lora", base_precision="4bit"), torch.device("cuda")
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *_: False)
    with pytest.raises(MissingExtraError, match="4bit"):
        adapters.loading_options(config, gpu)
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *_: True)
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda _: None)  # asks for the package's version
    asked = adapters.loading_options(config, gpu)["quantization_config"]
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (True, "nf4", True)


def test_an_adapter_that_goes_on_opens_its_base_as_asked(folder, monkeypatch):
    asked, opened = [], loading._opened
    monkeypatch.setattr(loading, "_opened", lambda *a: asked.append(a[-1]) or opened(*a[:-1], {}))
    loading.load_model(folder, LLM.from_pretrained(folder).task, quantization_config="four bits")
    assert asked == [{"quantization_config": "four bits"}]


def test_four_bits_are_not_asked_of_a_model_that_is_in_memory_already(folder):
    model = LLM.from_pretrained(folder)
    with pytest.raises(UsageError, match="the model in memory is in float32"):
        adapters.refuse_unsaved(model.model, FinetuneConfig(adapter="lora", base_precision="4bit"))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"adapter": "none"}, "adapter=none trains all weights"), ({"adapter": "dora"}, "adapter='dora'"),
     ({"adapter": "lora", "adapter_rank": 5}, "adapter_rank=5")],
)  # fmt: skip
def test_an_adapter_goes_on_only_as_what_it_is(folder, option, message):
    with pytest.raises(UsageError, match=message):
        LLM.from_pretrained(folder).finetune(TASK, ROWS, **QUICK, **option)


def test_an_adapter_on_weights_that_are_only_in_memory_is_refused(base):
    model = tuned(base, adapter="none", epochs=0.5)
    with pytest.raises(UsageError, match="trained in memory"):
        model.finetune(TASK, ROWS, adapter="lora", **QUICK)


def test_a_missing_peft_is_named_with_the_line_that_installs_it(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError) as caught:
        tuned(base)
    assert caught.value.hint == 'pip install "llmasos[adapters]"'


# -- the command line --------------------------------------------------------------------------------------


def test_the_verbs_take_an_adapter_folder(base, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    adapter, plain = str(tmp_path / "adapter"), str(tmp_path / "plain")
    words = ["--data", str(data), "--epochs", "1", "--threads", "1", "--adapter", "lora", "--adapter-rank", "2"]
    assert main(["finetune", str(base), *words, "--output", adapter, "--json"]) == 0
    assert main(["evaluate", adapter, "--data", str(data), "--threads", "1", "--json"]) == 0
    assert main(["predict", adapter, "a good day", "--threads", "1", "--json"]) == 0
    capsys.readouterr()
    assert main(["merge", adapter, "--output", plain, "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["before"], found["rows"]) == (found["after"], len(ROWS))
    assert main(["evaluate", plain, "--data", str(data), "--threads", "1", "--json"]) == 0
    assert main(["merge", plain, "--output", str(tmp_path / "again")]) == 2
