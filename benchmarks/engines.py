"""What runs a model quickest here: each engine with each kind of model, tokens in, without HTTP and tokenising.

An encoder (a MiniLM classifier) computes 1, 8 and 32 rows of 16, 128 and 512 tokens; a decoder (the 30M Llama of
``writers``) reads prompts of 64 and 512 tokens and writes 32 more, greedily, 1, 8 and 32 at once; an encoder-decoder
(marian-7m) translates 1, 8 and 32 sentences greedily and with 4 beams. Every engine opens the same trained model, or
what was exported from it through the gate, as the server does: one that gives other answers to golden rows is refused.

So that it ends in time: after one call to warm up, the best of up to three counts, but none begins later than three
seconds after the first, and a first one of five seconds counts itself; exports are scored on 100 rows; the translator
learns from 2,000 pairs; one round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import child, contest, data, harness, predict, translation, writers
from .exports import exported, format_of, lacking
from .records import Column, Result, Run

SIZES = (1, 8, 32)
LENGTHS, PROMPTS, BEAMS, NEW = (16, 128, 512), (64, 512), (1, 4), 32
ROUNDS, SECONDS, LONG = 3, 3.0, 5.0
PAIRS, GATE = 2000, 100
ENGINES = {
    "encoder": ("torch:float32", "torch:bfloat16", "onnxruntime:float32", "onnxruntime:int8", "openvino:float32",
                "openvino:bfloat16", "openvino:int8"),
    "decoder": ("transformers:bfloat16", "torch:float32", "torch:bfloat16", "onnxruntime:float32", "openvino:float32",
                "openvino:bfloat16", "openvino-genai:float32", "openvino-genai:bfloat16", "openvino-genai:int8",
                "llama-cpp:f16", "llama-cpp:q8_0", "llama-server:f16", "llama-server:q8_0"),
    "translator": ("torch:float32", "torch:bfloat16", "onnxruntime:float32", "ctranslate2:float32",
                   "ctranslate2:int8"),
}  # fmt: skip
COLUMNS = {"source": "en", "target": "de"}
SETTINGS = {"encoder": LENGTHS, "decoder": PROMPTS, "translator": BEAMS}
Call = Callable[[int, int], int]
"""What does a setting's work for so many rows; it returns how many rows, or tokens, it did."""
WORDS = {"encoder": "rows of {} tokens", "decoder": "prompts of {} tokens", "translator": "{} beams"}


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__, seeds=1)
    parser.add_argument("--data", type=Path, default=data.SST2, help="folder of SST-2")
    parser.add_argument("--stories", type=Path, default=writers.STORIES, help="folder of TinyStories")
    parser.add_argument("--pairs", type=Path, default=translation.CONTEST.source, help="folder of Multi30k")
    for kind in ENGINES:
        parser.add_argument(f"--{kind}", type=Path, help=f"a tuned {kind} to use instead of training one")
    parser.add_argument("--step", default="measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, _, engine = options.child.partition(":")
        child.report(CHILDREN[options.step](kind, engine, Path(options.work), options.rows))
        return
    names = harness.chosen([f"{kind}:{engine}" for kind in ENGINES for engine in ENGINES[kind]], options.only)
    runs = [Run(name, 0, missing=lacks) for name in names if (lacks := lacking(name.partition(":")[2]))]
    here = [name for name in names if name not in {run.candidate for run in runs}]
    with harness.workspace() as work:
        prepare(work, options, {name.partition(":")[0] for name in here})
        exports = dict.fromkeys(opens(name) for name in here if not opens(name).endswith(":model"))
        made = [harness.child("engines", name, work, "--step", "export") for name in exports]
        refused = {run.candidate: run for run in harness.measure(made, 1, work) if run.missing or run.error}
        runs += [replace(refused[opens(name)], candidate=name) for name in here if opens(name) in refused]
        able = [harness.child("engines", name, work, *trial(options)) for name in here if opens(name) not in refused]
        runs += harness.measure(able, options.seeds, work)
    harness.finish(result(runs, names), options)


def opens(name: str) -> str:
    """Return what a candidate opens: KIND:FORMAT:PRECISION, or KIND:model."""
    kind, _, engine = name.partition(":")
    return f"{kind}:{format_of(engine) or 'model'}"


def trial(options: argparse.Namespace) -> list[str]:
    """Return what a child is told of a trial run."""
    return ["--rows", str(options.rows)] if options.rows else []


def prepare(work: Path, options: Any, kinds: set[str]) -> None:
    """Write the rows of each kind of model that is measured, and train it unless one is given."""
    for kind in sorted(kinds):
        place, given = work / kind, getattr(options, kind)
        place.mkdir()
        if kind == "encoder":
            data.prepare(options.data, place, None)
        elif kind == "decoder":
            writers.prepare(options.stories, place, writers.ROWS)
        else:
            contest.unpack(options.pairs, place, translation.ROWS)
        if given:
            (place / "model").symlink_to(given.resolve(), target_is_directory=True)
        else:
            training = harness.child("engines", f"{kind}:", work, "--step", "train", *trial(options))
            run = harness.run_one(training, 0, work)
            harness.say(f"{kind} trained in {run.values['process_seconds']:.0f} s")
            if run.error:
                raise SystemExit(run.error)


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together: a row for each engine and setting."""
    rows, lines = [], []
    for kind, settings in SETTINGS.items():
        for setting in settings:
            for name in names:
                if name.startswith(f"{kind}:"):
                    lines.append(f"{WORDS[kind].format(setting)}: {name.partition(':')[2]}")
                    for run in (run for run in runs if run.candidate == name):
                        here = {key.partition("/")[2]: value for key, value in run.values.items()
                                if key.startswith(f"{setting}/")}  # fmt: skip
                        load = {"load": run.values["load"]} if "load" in run.values else {}
                        rows.append(Run(lines[-1], run.seed, {**here, **load}, run.missing, run.error))
    return Result(
        name="engines",
        title="Engines, without HTTP: rows a second of an encoder, tokens a second of what writes",
        columns=[Column(str(size), f"{size} at once", 1) for size in SIZES],
        candidates=lines,
        runs=rows,
        better="higher",
        notes=[f"best of up to {ROUNDS} calls after one to warm up; {NEW} tokens written at most, the reading of the "
               "prompts within the clock"],
    )  # fmt: skip


# -- the children -------------------------------------------------------------------------------------


def train(kind: str, _engine: str, work: Path, rows: int | None) -> dict[str, Any]:
    """Train the model of a kind."""
    if kind == "encoder":
        return predict.train("", work / kind, argparse.Namespace())
    if kind == "decoder":
        return writers.trained(work / kind)
    from llmasos import LLM, TranslationTask

    translation.prepare(work / kind)
    LLM.from_pretrained(work / kind / "base").finetune(
        TranslationTask(source_language="en", target_language="de"),
        data.read(work / kind / "train.jsonl")[: 100 * rows if rows else PAIRS],
        eval_data=data.read(work / kind / "validation.jsonl")[:GATE], output=work / kind / "model",
        columns=COLUMNS, epochs=1, learning_rate=1e-3,
    )  # fmt: skip
    return {}


def export(kind: str, format_: str, work: Path, _rows: int | None) -> dict[str, Any]:
    """Export through the gate; one that is refused is missing, with the reason."""
    more = {"columns": COLUMNS} if kind == "translator" else {}
    return exported(format_, work / kind, GATE, **more)


def measure(kind: str, engine: str, work: Path, rows: int | None) -> dict[str, Any]:
    """Time an engine at every setting and size, in a trial up to ``rows``: ``SETTING/SIZE``, rows or tokens/s."""
    from llmasos import errors

    try:
        call = CALLS[kind](work / kind, work / kind / opens(f"{kind}:{engine}").partition(":")[2], engine)
    except errors.ParityError as error:
        return {"missing": " ".join(error.message.split())[:200]}
    return {f"{setting}/{size}": best(lambda n=setting, s=size: call(n, s))
            for setting in SETTINGS[kind] for size in SIZES if size <= (rows or max(SIZES))}  # fmt: skip


def best(call: Callable[[], int]) -> float:
    """Return the most that a call did a second, after one to warm up; a long one counts at once."""

    def timed() -> tuple[float, float]:
        start = time.perf_counter()
        count = call()
        seconds = time.perf_counter() - start
        return seconds, count / seconds

    seconds, rate = timed()
    if seconds >= LONG:
        return rate
    rates, begun = [], time.perf_counter()
    while len(rates) < ROUNDS and (not rates or time.perf_counter() - begun < SECONDS):
        rates.append(timed()[1])
    return max(rates)


def opened(folder: Path, engine: str) -> Any:
    """Open a model or an export by an engine, as the server does."""
    from llmasos import LLM
    from llmasos.conversion import parts_of

    name, _, precision = engine.partition(":")
    how = {"precision": precision} if folder.name == "model" else {}
    return parts_of(LLM.from_pretrained(folder), {"engine": name, "max_streams": max(SIZES), **how})


def computing(_work: Path, folder: Path, engine: str) -> Call:
    """Return what computes so many rows of random tokens."""
    from llmasos.data.batching import Batch

    parts, draw = opened(folder, engine), np.random.default_rng(0)

    def compute(length: int, size: int) -> int:
        ids = draw.integers(1000, 20000, size * length, dtype=np.int32)
        parts.engine.outputs(Batch(ids, None, np.full(size, length, np.int32), np.arange(size)))
        return size

    return compute


def beginnings(work: Path, folder: Path, length: int) -> list[list[int]]:
    """Return beginnings of stories of so many tokens, one story after the other where one is too short."""
    from llmasos import LLM

    tokenizer = LLM.from_pretrained(folder).tokenizer
    stories = [row["text"] for row in data.read(work / "validation.jsonl")] * 4
    text = [token for story in stories for token in tokenizer(story)["input_ids"]]
    return [text[i * length : (i + 1) * length] for i in range(max(SIZES))]


def writing(work: Path, folder: Path, engine: str) -> Call:
    """Return what writes after so many prompts; it counts the tokens that it wrote."""
    from llmasos.core.config import GenerateConfig

    prompts = {length: beginnings(work, work / "model", length) for length in PROMPTS}
    if engine.startswith("transformers:"):
        write = by_transformers(folder, engine)
        return lambda length, size: write(prompts[length][:size])
    generator, config = opened(folder, engine).generator, GenerateConfig(max_new_tokens=NEW, batch_size=max(SIZES))
    return lambda length, size: sum(len(one.tokens) for one in generator.answers(prompts[length][:size], config))


def by_transformers(folder: Path, engine: str) -> Callable[[list[list[int]]], int]:
    """Return what writes after prompts of one length by transformers.generate."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, engine.partition(":")[2])).eval()
    end = model.generation_config.eos_token_id

    def write(prompts: list[list[int]]) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
                                 pad_token_id=end)  # fmt: skip
        new = out[:, ids.shape[1] :].tolist()
        return sum(row.index(end) + 1 if end in row else len(row) for row in new)

    return write


def translating(work: Path, folder: Path, engine: str) -> Call:
    """Return what translates so many sentences with so many beams; it counts the tokens that it wrote."""
    from llmasos import LLM

    llm, texts = LLM.from_pretrained(folder), [row["en"] for row in data.read(work / "validation.jsonl")]
    precision = engine.partition(":")[2] if folder.name == "model" else "auto"

    def translate(beams: int, size: int) -> int:
        found = llm.predict(texts[:size], num_beams=beams, max_new_tokens=NEW, precision=precision)
        return sum(len(llm.tokenizer(one.text)["input_ids"]) for one in found)

    return translate


CALLS = {"encoder": computing, "decoder": writing, "translator": translating}
CHILDREN = {"train": train, "export": export, "measure": measure}

if __name__ == "__main__":
    main()
