"""Tiny random models that write, and a tokenizer of bytes, built in code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

END, PAD, START = 256, 257, 258


def byte_tokenizer(pairs: tuple[tuple[str, str], ...] = ()):
    """Return a byte-level tokenizer: 256 bytes, an end, padding, a start token, and merges of some pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    vocab = {letters[byte]: byte for byte in range(256)}
    special = {"eos_token": "<end>", "pad_token": "<pad>", "bos_token": "<start>"}
    vocab |= {token: 256 + number for number, token in enumerate(special.values())}
    vocab |= {a + b: 259 + number for number, (a, b) in enumerate(pairs)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(pairs)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


def tiny_writer(kind: str, *, limit: int = 128, spread: float = 0.25, seed: int = 0):
    """Return a tiny random model of a family; wide weights, so that its choices are clear."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    common = {"vocab_size": 259, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    llama = {**common, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": limit, "head_dim": 16}  # fmt: skip
    model = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "qwen2": lambda: t.Qwen2ForCausalLM(
            t.Qwen2Config(**{k: v for k, v in llama.items() if k != "head_dim"} | {"vocab_size": 260})
        ),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**llama)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**llama, sliding_window=None)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**common, n_embd=32, n_layer=2, n_head=2, n_positions=limit)),
        **{kind: partial(_bart, kind, {**common, "max_position_embeddings": limit}) for kind in BARTS},
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(**common, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=PAD)
        ),
        "marian": lambda: t.MarianMTModel(
            t.MarianConfig(
                **common,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_position_embeddings=limit,
                decoder_start_token_id=PAD,
                forced_eos_token_id=END,
            )
        ),
    }[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread)
    return model


BARTS = {
    "bart": ("Bart", {"forced_bos_token_id": START, "forced_eos_token_id": END}),
    "mbart": ("MBart", {"forced_bos_token_id": 70, "forced_eos_token_id": END}),  # a language
    "m2m100": ("M2M100", {"max_position_embeddings": 512}),  # it counts positions from the padding id on
}
"""Kind -> how transformers calls it, and what its answers begin and end with; its decoder starts from the end token."""


def _bart(kind: str, common: dict):
    import transformers

    name, forced = BARTS[kind]
    config = getattr(transformers, f"{name}Config")(
        **common | forced, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=END,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def save_writer(folder: Path, kind: str = "llama", **options) -> Path:
    """Write such a model with the tokenizer as a standard Hugging Face folder."""
    tiny_writer(kind, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
