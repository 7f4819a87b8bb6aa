"""A tiny random BERT with a tokenizer of single letters, built in code: real, offline, and quick."""

from __future__ import annotations

import string
from pathlib import Path

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def save_tiny_bert(folder: Path, *, max_length: int = 64, letters: str = "") -> Path:
    """Write the model as a standard Hugging Face folder, without a task's head; it also knows these ``letters``."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer(max_length, letters)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=max_length, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny(folder: Path, auto_class: str, *, max_length: int = 64) -> Path:
    """Write a tiny model of the kind that a transformers Auto class opens, with a tokenizer of single letters."""
    import torch
    import transformers

    if auto_class not in _DECODERS:
        return save_tiny_bert(folder, max_length=max_length)
    tokenizer = tiny_tokenizer(max_length)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
               "eos_token_id": tokenizer.sep_token_id}  # fmt: skip
    torch.manual_seed(0)
    if auto_class == "AutoModelForCausalLM":
        config = transformers.LlamaConfig(**size, **special, intermediate_size=64, max_position_embeddings=max_length)
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_DECODERS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def tiny_tokenizer(max_length: int = 64, more: str = ""):
    """Return a WordPiece tokenizer whose pieces are single characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation + more
    pieces = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL)


def word_tokenizer(known: list[str], max_length: int = 64):
    """Return a tokenizer of whole words that knows only these."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: i for i, piece in enumerate((*SPECIAL.values(), *known))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL)
