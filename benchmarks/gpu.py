"""Training on a GPU: MiniLM's shape as a classifier and a decoder at length 2048, against transformers.Trainer.

Weights and texts are random, since speed alone is measured: nothing is downloaded. All candidates of a part train the
same model on the same token counts, one optimiser step after another; the first steps, in which kernels are chosen, are
left out. The share of the peak is six operations for each parameter of a matrix product and each real token (no
embedding, the decoder's head included, no attention products) over the best of some large bfloat16 products on the
same card. Without a GPU it fails; ``--device cpu --tiny`` runs the same code with toy sizes, to test it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import child, harness
from .records import Column, Goal, Result, Run, goal, middle, ratio

WARM = 5
CANDIDATES = tuple(f"{part}_{name}" for part in ("encoder", "decoder")
                   for name in ("trainer_defaults", "trainer_best", "llmasos"))  # fmt: skip
BEST = {"bf16": True, "optim": "adamw_torch_fused", "dataloader_num_workers": 2, "dataloader_pin_memory": True}
"""What helps Trainer on a GPU."""

SIZES: dict[bool, dict[str, dict[str, Any]]] = {
    False: {
        "encoder": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
                    "vocab_size": 30_522, "length": 256, "batch": 256},
        "decoder": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
                    "vocab_size": 32_000, "length": 2048, "batch": 8},
    },
    True: {
        "encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "vocab_size": 100, "length": 32, "batch": 8},
        "decoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "vocab_size": 100, "length": 64, "batch": 4},
    },
}  # fmt: skip
"""By whether toy sizes are asked for: MiniLM's shape, and a Llama of 374 million weights."""


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__, seeds=2)
    parser.add_argument("--device", default="cuda", help="what torch calls the GPU (default cuda)")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps that are timed (default 30)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any device: a test of this program")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options))
        return
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("on a processor only toy sizes: add --tiny")
    card = name_of(options.device)
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        for part in ("encoder", "decoder"):
            prepare(part, work, options)
        more = ("--device", options.device, "--steps", str(options.steps), *(["--tiny"] if options.tiny else []))
        candidates = [harness.child("gpu", name, work, *more) for name in ("machine", *names)]
        runs = harness.measure(candidates, options.seeds, work)
        work_of_token = {part: 6 * matrix_parameters(work / part) for part in ("encoder", "decoder")}
    runs = [with_share(run, middle(runs, "machine", "bf16_gflops"), work_of_token) for run in runs]
    harness.finish(result(runs, names, card), options, partial=options.tiny or options.steps != 30)


def name_of(device: str) -> str:
    """Return the card's name; end with a sentence where there is none."""
    from llmasos.core import hardware
    from llmasos.errors import LLMasOSError

    try:
        hardware.pick_device(device)
    except LLMasOSError as error:
        raise SystemExit(f"nothing was measured, since there is no such GPU: {error}") from error
    return next((name for place, name in hardware.describe()["devices"].items() if place.startswith(device)), device)


def with_share(run: Run, peak: float | None, work_of_token: dict[str, int]) -> Run:
    """Add the share of the peak that a run reached, in per cent."""
    speed = run.values.get("tokens_per_second")
    if not (speed and peak):
        return run
    share = 100 * speed * work_of_token[run.candidate.partition("_")[0]] / (peak * 1e9)
    return replace(run, values={**run.values, "peak_share": share})


def result(runs: list[Run], names: list[str], card: str) -> Result:
    """Put the table together."""
    return Result(
        name="gpu",
        title=f"Training on one {card}: MiniLM's shape as a classifier, and a decoder, random weights",
        columns=[
            Column("tokens_per_second", "tokens/s", 0),
            Column("peak_share", "% of the bf16 peak", 1),
            Column("memory_gb", "GB of the card at most", 1),
            Column("loss", "last losses (mean)", 3, "mean"),
        ],
        candidates=names,
        runs=runs,
        better="higher",
        goals=goals(runs),
        notes=[
            f"measured peak: {middle(runs, 'machine', 'bf16_gflops') or 0:.0f} GFLOP/s in bfloat16 products",
            f"trainer_best: {', '.join(f'{key}={value!r}' for key, value in BEST.items())}",
        ],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    faster = {part: ratio(runs, f"{part}_trainer_defaults", f"{part}_llmasos", "tokens_per_second")
              for part in ("encoder", "decoder")}  # fmt: skip
    return [
        *(goal(f"{part}: at least 2x faster than Trainer with its defaults", faster[part], 2, shown="{:.2f}x")
          for part in faster),
        goal("decoder: at least 50 % of the peak", middle(runs, "decoder_llmasos", "peak_share"), 50, shown="{:.1f} %"),
    ]  # fmt: skip


# -- what is trained ----------------------------------------------------------------------------------


def prepare(part: str, work: Path, options: argparse.Namespace) -> None:
    """Write the untrained model, its tokenizer of whole words and the texts."""
    import numpy as np
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    size = {**SIZES[options.tiny][part]}
    length, batch, rng = size.pop("length"), size.pop("batch"), np.random.default_rng(0)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "bos_token": "[CLS]", "eos_token": "[SEP]"}  # fmt: skip
    pieces = [*dict.fromkeys(special.values()), *(f"w{i}" for i in range(size["vocab_size"] - 4))]
    words = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if part == "encoder":
        words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **special)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model: Any
    if part == "encoder":
        model = transformers.BertModel(transformers.BertConfig(**size, max_position_embeddings=length, pad_token_id=0))
    else:
        config = transformers.LlamaConfig(**size, **ids, max_position_embeddings=length)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(work / part)
    tokenizer.save_pretrained(work / part)
    rows = (WARM + options.steps) * batch
    # Sentences are of SST-2's kind: 20 words in the middle, few beyond 50. The decoder's texts fill its length.
    lengths = rng.lognormal(3.0, 0.5, rows).astype(int) + 2 if part == "encoder" else np.full(rows, length - 2)
    with (work / f"{part}.jsonl").open("w", encoding="utf-8") as file:
        for count in np.minimum(lengths, length - 2).tolist():
            text = " ".join(f"w{i}" for i in rng.integers(0, size["vocab_size"] - 4, count))
            file.write(json.dumps({"text": text, "label": int(rng.integers(0, 2))}) + "\n")


def matrix_parameters(folder: Path) -> int:
    """Return the parameters of all matrices that every token is multiplied with, a decoder's head included."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    decoder = config["model_type"] == "llama"
    head = hidden * config["vocab_size"] if decoder else 0
    return int(layers * (4 * hidden * hidden + (3 if decoder else 2) * hidden * inner) + head)


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    part, _, how = name.partition("_")
    if name == "machine":
        import torch

        from llmasos.core import hardware

        # A processor without units for bfloat16 takes minutes for such a product; there the program is only tested.
        kind = torch.float32 if options.device == "cpu" else torch.bfloat16
        return {"bf16_gflops": hardware.matmul_peak(kind, options.device) / 1e9}
    return CHILDREN[how](part, how, work, options)


class Pace:
    """Clock of the steps after the first few; a step has ended when the device has."""

    def __init__(self, device: str) -> None:
        self.device, self.steps, self.tokens, self.losses = device, 0, 0, list[float]()
        self.begun = self.ended = 0.0

    def step(self, tokens: int, loss: float) -> None:
        """Book a step that has ended."""
        if self.device != "cpu":
            import torch

            torch.accelerator.synchronize()
        self.steps, self.ended = self.steps + 1, time.perf_counter()
        if self.steps <= WARM:
            self.begun = self.ended
            return
        self.tokens += tokens
        self.losses.append(loss)

    def values(self) -> dict[str, float]:
        """Return what the table shows."""
        import torch

        speed = self.tokens / (self.ended - self.begun)
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device.startswith("cuda") else 0.0
        last = self.losses[-10:]
        return {"tokens_per_second": speed, "memory_gb": memory, "loss": sum(last) / len(last)}


def trainer(part: str, how: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train with transformers.Trainer, padded batches in random order, as its documentation shows."""
    child.require("accelerate")
    import transformers
    from datasets import load_dataset

    folder, pace = work / part, Pace(options.device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = load_dataset("json", data_files=str(work / f"{part}.jsonl"), split="train")
    border = [tokenizer.eos_token_id] if part == "decoder" else []
    rows = rows.map(lambda row: {"input_ids": [*border, *tokenizer(row["text"])["input_ids"], *border]})
    mean = sum(map(len, rows["input_ids"])) / len(rows)
    model: Any
    if part == "encoder":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        collator: Any = transformers.DataCollatorWithPadding(tokenizer)
        rows = rows.remove_columns("text")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        rows = rows.remove_columns(["text", "label"])
    batch = SIZES[options.tiny][part]["batch"]
    arguments = transformers.TrainingArguments(
        output_dir=str(work / f"{part}-{how}-{options.seed}"), per_device_train_batch_size=batch,
        max_steps=WARM + options.steps, learning_rate=1e-4, report_to=[], save_strategy="no", logging_steps=1,
        seed=options.seed, disable_tqdm=True, use_cpu=options.device == "cpu",
        **(BEST if how == "trainer_best" else {}),
    )  # fmt: skip

    class Follow(transformers.TrainerCallback):
        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                pace.step(round(batch * mean), float(logs["loss"]))

    transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator,
                         callbacks=[Follow()]).train()  # fmt: skip
    return pace.values()


def llmasos(part: str, _how: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train with this project, as its README shows."""
    from llmasos import LLM, LanguageModelingTask, TextClassificationTask
    from llmasos.core.events import Step
    from llmasos.data.dataset import read
    from llmasos.data.encoding import encode

    size, pace = SIZES[options.tiny][part], Pace(options.device)
    model = LLM.from_pretrained(work / part)
    task = TextClassificationTask(labels=[0, 1]) if part == "encoder" else LanguageModelingTask()
    columns = None if part == "encoder" else {"text": "text"}
    rows = work / f"{part}.jsonl"
    encoded = encode(read(rows, task.fields, columns=columns), task, model.tokenizer, size["length"])
    batch = round(size["batch"] * size["length"] / encoded.lengths.mean()) if part == "decoder" else size["batch"]

    def follow(event: Any) -> None:
        if isinstance(event, Step):
            pace.step(round(event.rows * encoded.lengths.mean()), event.loss)

    model.finetune(
        task, rows, columns=columns, eval_split=0.0, max_length=size["length"], max_steps=WARM + options.steps,
        epochs=1000, batch_size=batch, learning_rate=1e-4, device=options.device, seed=options.seed, progress=follow,
        precision="auto" if options.device == "cpu" else "bfloat16",
    )  # fmt: skip
    return pace.values()


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "trainer_defaults": trainer,
    "trainer_best": trainer,
    "llmasos": llmasos,
}

if __name__ == "__main__":
    main()
