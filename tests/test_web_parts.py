"""What the TypeScript SDK does without a model (tokens, draws, chat templates, texts), in Node, as Python does it.

A second of Node, so it is in every run of the tests; ``test_web.py`` and ``test_web_writing.py`` have the models.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import AddedToken

import test_chat
import test_chat_templates as shapes
from browsers import SDK, in_node, needs_modules
from llmasos.generation import sampling
from llmasos.generation.generator import processors_of
from llmasos.generation.sampling import Sampling
from llmasos.generation.writer import Writer
from llmasos.tasks import _chat_template as templates
from llmasos.tasks._conversations import Wrong, conversation
from llmasos.tasks.base import SCRIPTS
from tiny import tiny_tokenizer
from writers import byte_tokenizer

TEXTS = [
    "a good day", "A GOOD day, isn't it?", "naïve café — 3.14 € (A1-b2)", "e\u0301te\u0301 d'or", "你好，世界 ok",
    "tab\tand\nline  end ",
    "\u200bhidden\u00ad soft", "🙂👍🏽 up", "Привет мир", "ﬁne Å ½", "[CLS] is a token", "word" * 60,
]  # fmt: skip


def special(tokenizer: Any) -> Any:
    """Return a tokenizer of the tokenizers library as transformers', with RoBERTa's special tokens."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
             "unk_token": "<unk>"}  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def roberta_tokenizer() -> Any:
    """Return byte-level BPE that puts a space before the first word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return special(made)


def unigram_tokenizer() -> Any:
    """Return pieces as SentencePiece makes them, of normalised text."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS[:3] * 4, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return special(made)


def write_cases(folder: Path, tokenizer: Any, longest: int = 24) -> None:
    """Write a tokenizer, and what it makes of texts."""
    tokenizer.save_pretrained(folder)
    cases = []
    for text in TEXTS:
        if "\u0301" in text and "NFKC" in tokenizer.backend_tokenizer.to_str():
            continue  # Python's place of a composed letter is its base alone, here it is the whole letter
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pair = tokenizer(text, "a second text", truncation="longest_first", max_length=longest)
        cases.append({
            "text": text, "ids": found["input_ids"], "words": [text[a:b].strip() for a, b in found["offset_mapping"]],
            "single": tokenizer(text, truncation=True, max_length=longest)["input_ids"], "longest": longest,
            "pair": {"ids": pair["input_ids"], "types": pair.get("token_type_ids")},
        })  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(cases))


KINDS = {
    "wordpiece": lambda: tiny_tokenizer(64, "é你世мир"), "bytes": lambda: byte_tokenizer((("a", "n"), ("an", "d"))),
    "roberta": roberta_tokenizer, "unigram": unigram_tokenizer,
}  # fmt: skip


def random_cases() -> list[dict[str, Any]]:
    seeds = (0, 1, 7, 123456789, 2**40 + 5)
    return [{"seed": seed, "numbers": [float(torch.rand((), generator=g, dtype=torch.float64)) for _ in range(700)]}
            for seed in seeds for g in [sampling.generator(seed)]]  # fmt: skip


DRAWS = [
    Sampling(1.0), Sampling(0.3), Sampling(1.7, top_p=0.8), Sampling(1.0, top_p=0.05), Sampling(1.0, top_k=5),
    Sampling(1.0, top_k=500), Sampling(0.9, min_p=0.1), Sampling(1.3, top_p=0.9, top_k=30, min_p=0.02),
]  # fmt: skip


def draw_cases() -> list[dict[str, Any]]:
    cases = []
    for seed, how in enumerate(DRAWS):
        logits = 3 * torch.randn((1, 300), generator=torch.Generator().manual_seed(seed))
        left, random = sampling.filtered(logits, how), sampling.generator(seed)
        cases.append({
            "how": vars(how), "seed": seed, "logits": logits[0].tolist(),
            "kept": [i for i, score in enumerate(left[0].tolist()) if score > sampling.NEVER],
            "tokens": [sampling.drawn(left, [random])[0] for _ in range(50)],
        })  # fmt: skip
    greedy = [0.5, 2.0, -1.0, 2.0]
    return [*cases, {"how": vars(Sampling(1.0)) | {"temperature": 0}, "seed": 0, "logits": greedy, "kept": [],
                     "tokens": [sampling.likeliest(torch.tensor([greedy]))[0]] * 2}]  # fmt: skip


FORBIDDEN: list[tuple[float, dict[str, Any]]] = [
    (1.0, {}), (1.25, {}), (1.0, {"no_repeat_ngram_size": 1}), (1.0, {"no_repeat_ngram_size": 2}),
    (1.0, {"no_repeat_ngram_size": 3}), (1.0, {"no_repeat_ngram_size": 9}), (1.0, {"suppress_tokens": [3, 9]}),
    (1.0, {"bad_words_ids": [[4], [1, 2, 5], [2, 6], [9, 6], [0], [1, 2, 3, 1, 2, 3, 1, 2, 7]]}),
    (1.25, {"no_repeat_ngram_size": 3, "suppress_tokens": [8], "bad_words_ids": [[2, 6]]}),
]  # fmt: skip


def forbidden_cases() -> list[dict[str, Any]]:
    history, ends = [1, 2, 3, 1, 2], frozenset({0})
    logits = torch.randn((1, 12), generator=torch.Generator().manual_seed(3))
    cases = []
    for penalty, settings in FORBIDDEN:
        model = SimpleNamespace(
            generation_config=transformers.GenerationConfig(**settings), device="cpu",
            config=SimpleNamespace(is_encoder_decoder=False),
        )  # fmt: skip
        scores = sampling.penalized(logits, [history], [penalty])
        for process in processors_of(model, ends, 20, None):
            scores = process(torch.tensor([history]), scores)
        kept = [score if score > sampling.NEVER else None for score in scores[0].tolist()]
        cases.append({"logits": logits[0].tolist(), "history": history, "penalty": penalty, "settings": settings,
                      "ends": list(ends), "scores": kept})  # fmt: skip
    return cases


TALKS = [
    shapes.turns("Hi"), shapes.turns(f" {SCRIPTS}\n\n", "Yo", "So?"), shapes.turns("Hi", system="Be brief."),
    shapes.turns("Hi", "<think>hm</think>\n\nYo", "So?", system='Say "yes".'), shapes.turns("Hi", developer="Be kind."),
    {"messages": [*shapes.turns("2+2?", "ask-b")["messages"], {"role": "tool", "content": "four"}]},
]  # fmt: skip
SHAPES = ("DATED", "THINKS", "MERGES", "CHANNELS", "LATE", "OPEN")


def template_cases(folder: Path) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in shapes.MARKS])
    tokenizer.save_pretrained(folder)
    known = {name: getattr(shapes, name) for name in SHAPES}
    known |= {name: getattr(test_chat, name) for name in ("CHATML", "NO_SYSTEM", "DROPS_SYSTEM", "PROMPT_THINKS")}
    known |= {"plain": templates.plain_template(tokenizer)}
    known |= {path.stem: path.read_text(encoding="utf-8") for path in shapes.stock()}
    cases = []
    for name, template in known.items():
        tokenizer.chat_template = template
        for row in TALKS:
            whole = conversation(row, None)
            try:
                templates.prompt_ids(whole, tokenizer)
                text = templates.render(whole, tokenizer, ask=True)
            except Wrong:
                text = None
            cases.append({"name": name, "template": template, "messages": whole.messages, "text": text})
    content, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    return {"content": content, "config": config, "cases": cases}


def pieces_tokenizer() -> Any:
    """Return characters, with bytes for unknown ones, and a mark for spaces, as Llama 2 has them."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helowrdaé.", "lo", "▁w"]
    bpe = models.BPE({name: i for i, name in enumerate(names)}, [("l", "o"), ("▁", "w")], byte_fallback=True,
                     unk_token="<unk>", fuse_unk=True)  # fmt: skip
    made = Tokenizer(bpe)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


SPELLED = ("hello world.", SCRIPTS, "  two\n\nlines ", "👍🏽👍🏽 hello", "")
STOPS: tuple[list[str], ...] = ([], ["wor"], ["lo w", "o"], ["👍🏽 h", "\n\n"], ["nothing of this"])


def text_cases(folder: Path) -> list[dict[str, Any]]:
    found = []
    for name, tokenizer in (("spelled", byte_tokenizer((("l", "l"), ("e", "ll")))), ("pieces", pieces_tokenizer())):
        tokenizer.save_pretrained(folder / name)
        cases = []
        for text in SPELLED:
            tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for stop in STOPS:
                writer, pieces = Writer(tokenizer, stop, streams=True), []
                for token in tokens:
                    pieces.append(writer.push(token))
                    if writer.stopped:
                        break
                pieces.append(writer.finish(tokens))
                cases.append({"tokens": tokens, "stop": stop, "pieces": pieces, "text": writer.text,
                              "stopped": writer.stopped})  # fmt: skip
        found.append({"tokenizer": name, "cases": cases})
    return found


def test_what_needs_no_model_is_as_in_python(tmp_path: Path) -> None:
    needs_modules(SDK)
    sources = [str(path.relative_to(SDK)) for path in SDK.rglob("src/**/*.ts")]
    bundler = [str(SDK / "node_modules" / ".bin" / "esbuild"), "--outdir=dist", "--outbase=src", "--target=es2022"]
    subprocess.run([*bundler, "--log-level=error", *sources], cwd=SDK, check=True)
    made = {"random": random_cases(), "draws": draw_cases(), "forbidden": forbidden_cases(),
            "templates": template_cases(tmp_path / "marks"), "texts": text_cases(tmp_path),
            "tokenizers": list(KINDS)}  # fmt: skip
    for name, tokenizer in KINDS.items():
        write_cases(tmp_path / name, tokenizer())
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert "skipped 0" in in_node(tmp_path, "LLMASOS_CASES", "words", "parts")
