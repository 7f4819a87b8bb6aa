"""A tokenizer learned from texts writes any text, and a model from nothing goes with it and trains."""

from __future__ import annotations

import json

import pytest

from llmasos import LLM, LanguageModelingTask, MaskedLanguageModelingTask
from llmasos.cli import main
from llmasos.core.errors import DataError, UsageError
from llmasos.scratch import PRESETS, create, train_tokenizer

STORY = [f"The small cat {verb} the {thing} and the dog looked on." for verb in ("saw", "chased", "left", "found")
         for thing in ("ball", "mouse", "house", "river", "mountain")] * 4  # fmt: skip
TINY = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(STORY, 300, output=tmp_path_factory.mktemp("tokenizer") / "words").path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["a cat", "  two  spaces\n\nand lines\t", "北京 🙂 naïve Ω", "x" * 50, "1234567"])
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id


def test_words_of_the_texts_become_tokens(tokenizer):
    assert len(tokenizer) == 300
    assert len(tokenizer(" the small cat", add_special_tokens=False)["input_ids"]) == 3
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_the_same_texts_give_the_same_tokenizer(folder, tmp_path):
    again = train_tokenizer(STORY, 300, output=tmp_path / "again").path
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_lines_of_files_are_read_with_their_ends(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(STORY) + "\n")
    made = train_tokenizer([book, book], 300, output=tmp_path / "t")
    tokens = json.loads((made.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert any("ĊĊ" in token for token in tokens)  # two line ends in a row
    assert made.bytes_per_token > 1.5


def test_chat_tokens_are_single_and_end_answers(tmp_path):
    from transformers import AutoTokenizer

    path = train_tokenizer(STORY, 300, output=tmp_path / "t", chat_template="chatml", special_tokens=["<|tool|>"]).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for token in ("<|im_start|>", "<|im_end|>", "<|tool|>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_vocabulary_without_room_or_without_text_for_it_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the 256 bytes and 2 special tokens need more"):
        train_tokenizer(STORY, 200, output=tmp_path / "t")
    with pytest.raises(DataError, match=r"hold \d+ tokens, not 9000\nhint: vocab_size="):
        train_tokenizer(["abc"], 9000, output=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_folder_with_a_tokenizer_is_replaced_only_if_asked(tmp_path):
    train_tokenizer(STORY, 300, output=tmp_path / "t")
    with pytest.raises(UsageError, match="overwrite"):
        train_tokenizer(STORY, 310, output=tmp_path / "t")
    assert train_tokenizer(STORY, 310, output=tmp_path / "t", overwrite=True).size == 310


def test_a_model_from_nothing_learns_and_is_opened_by_transformers(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = LLM.from_config(TINY, tokenizer=folder)
    run = model.finetune(LanguageModelingTask(), STORY, epochs=2, batch_size=8, learning_rate=3e-3, max_length=64,
                         precision="float32", output=tmp_path / "m", progress=False)  # fmt: skip
    assert run.metrics["perplexity"] < 0.5 * 320
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "m").config
    assert (config.vocab_size, config.hidden_size) == (320, 32)


def test_weights_are_those_of_the_seed(folder, tmp_path):
    from safetensors.numpy import load_file

    one, same, other = (load_file(create(TINY, folder, seed=seed, output=tmp_path / name) / "model.safetensors")
                        for seed, name in ((1, "a"), (1, "b"), (2, "c")))  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    assert (one[name] == same[name]).all()
    assert (one[name] != other[name]).any()


def test_an_encoder_from_nothing_fills_masks(tmp_path):
    words = train_tokenizer(STORY, 300, output=tmp_path / "t", masked=True).path
    small = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip
    model = LLM.from_config(small, tokenizer=words)
    model.finetune(
        MaskedLanguageModelingTask(), STORY, epochs=1, learning_rate=3e-3, precision="float32", progress=False
    )
    assert len(model.predict("The small [MASK] saw").masks) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("llama-10n", "no configuration 'llama-10n'\nhint: did you mean 'llama-10m'"),
        ({**TINY, "model_type": "lama"}, "model_type='lama' is no architecture.*\nhint: did you mean 'llama'"),
        ({**TINY, "hiden_size": 3}, "llama has no option 'hiden_size'\nhint: did you mean 'hidden_size'"),
        ({**TINY, "vocab_size": 10}, "vocab_size=10, but the tokenizer has 300"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, config, message):
    with pytest.raises(UsageError, match=message):
        create(config, folder)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"llama-100m"}))
def test_presets_have_the_size_of_their_names(name):
    import torch
    from transformers import AutoConfig, AutoModel

    values = dict(PRESETS[name])
    ids = {name: 0 for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")}
    config = AutoConfig.for_model(values.pop("model_type"), **{"vocab_size": 8192, **ids, **values})
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    millions = int(name.split("-")[1].removesuffix("m"))
    assert 0.8 * millions < parameters / 1e6 < 1.4 * millions


def test_the_shell_makes_both(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("\n".join(STORY))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    assert main(["tokenizer", "train", "--data", "book.txt", "--vocab-size", "300", "--output", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 300
    assert main(["create", "tiny.json", "--tokenizer", "t", "--output", "m", "--seed", "3", "--json"]) == 0
    assert (tmp_path / "m" / "model.safetensors").is_file()
    assert main(["tokenizer", "teach", "--data", "book.txt", "--output", "t"]) == 2
