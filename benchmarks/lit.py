"""LitGPT's own pretraining on the model and the blocks of ``pretrain``; needs litgpt, which is imported here.

``litgpt.pretrain.main`` is run as it is: what ``litgpt pretrain`` calls, with torch.compile, its own loop and its own
loss. It is given a logger, by which the steps are followed, and a data module that hands out the blocks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.loggers.logger import Logger
from litgpt import GPT, Config
from litgpt import pretrain as litgpt
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import get_default_supported_precision
from safetensors.torch import load_file
from torch.utils.data import DataLoader


class Follower(Logger):
    """A logger that passes on the loss of each step, which LitGPT logs when the step has ended."""

    name, version = "follower", 0

    def __init__(self, follow: Callable[[float], None]) -> None:
        self._follow = follow

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        del step
        if "loss" in metrics:
            self._follow(metrics["loss"])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Blocks(DataModule):
    """Blocks in a given order, cut from a stream of tokens, each with the token behind it."""

    def __init__(self, stream: torch.Tensor, starts: list[int], length: int) -> None:
        super().__init__()
        self._rows = [stream[start : start + length + 1] for start in starts]
        self._size = 1

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        del tokenizer, max_seq_length
        self._size = batch_size

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(self._rows, batch_size=self._size)

    val_dataloader = train_dataloader


def shape(folder: Path, length: int) -> Config:
    """Return LitGPT's settings for the Llama of a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Config(
        name=config["model_type"],
        block_size=length,
        n_layer=config["num_hidden_layers"],
        n_embd=config["hidden_size"],
        n_head=config["num_attention_heads"],
        head_size=config["head_dim"],
        n_query_groups=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        rope_base=int(config["rope_parameters"]["rope_theta"]),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )


def weights(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    """Return the weights of a folder under LitGPT's names."""
    out: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, out, load_file(folder / "model.safetensors"))
    return out


def tied(config: Config, values: dict[str, torch.Tensor]) -> GPT:
    """Return LitGPT's model in float32 with these weights and one matrix for both ends."""
    model = GPT(config)
    model.load_state_dict(values)
    model.transformer.wte.weight = model.lm_head.weight
    return model.eval()


def check(base: Path, config: Config) -> None:
    """Make sure that LitGPT's model of these weights is transformers' model of them.

    Raises:
        AssertionError: the logits or the numbers of parameters differ.
    """
    from transformers import AutoModelForCausalLM

    ours, theirs = tied(config, weights(base, config)), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(2 * config.block_size).view(2, -1) % config.vocab_size
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def train(
    base: Path,
    output: Path,
    stream: torch.Tensor,
    starts: list[int],
    follow: Callable[[float], None],
    *,
    rows: int,
    length: int,
    rate: float,
    micro: int,
    precision: str | None,
    seed: int,
) -> GPT:
    """Pretrain from the weights of a folder and return what was saved, in float32.

    Args:
        base: a Llama with tied embeddings.
        output: new folder for what LitGPT writes.
        stream: tokens.
        starts: where blocks begin in it, in the order of training.
        follow: called with the loss when a step has ended.
        rows: blocks of one step.
        length: tokens of a block.
        rate: learning rate; it stays.
        micro: blocks of one forward pass.
        precision: a precision of LitGPT; what it chooses by itself if None.
        seed: what LitGPT draws from; the weights and the blocks are given.
    """
    config, start = shape(base, length), output / "start"
    check(base, config)
    start.mkdir(parents=True)
    torch.save(weights(base, config), start / "lit_model.pth")
    # When it saves, LitGPT reads the command line again to note it down.
    sys.argv = ["litgpt", "pretrain", config.name]
    fabric = lightning.Fabric(
        accelerator="cpu",
        devices=1,
        precision=precision or get_default_supported_precision(training=True),
        loggers=[Follower(follow)],
    )
    fabric.launch()
    litgpt.main(
        fabric=fabric,
        devices=1,
        seed=seed,
        initial_checkpoint_dir=start,
        resume=False,
        config=config,
        data=Blocks(stream, starts, length),
        out_dir=output,
        tokenizer_dir=None,
        tokenizer=None,
        train=TrainArgs(
            save_interval=None,
            global_batch_size=rows,
            micro_batch_size=micro,
            max_tokens=len(starts) * length,
            max_norm=1.0,
            min_lr=rate,
            lr_warmup_steps=0,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=len(starts) + 1, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": rate, "weight_decay": 0.1, "betas": (0.9, 0.95)},
        },
    )
    saved = torch.load(output / "final" / "lit_model.pth", weights_only=False)  # it holds the data's state too
    return tied(config, saved["model"])
