"""Scored pairs: MiniLM on STS-B's 5.7k pairs, raw rows to saved model, against sentence-transformers' trainer.

One epoch, batch 16, squared error of the cosine, learning rate 1.6e-4; ``contest.py`` says the rest. For the
Spearman correlation the validation pairs are embedded with transformers' own forward in float32.
"""

from __future__ import annotations

import time
from typing import Any

from . import child, contest, data, harness
from .contest import BEST, Contest, Job

RECIPE: dict[str, Any] = {"epochs": 1, "batch": 16, "rate": 1.6e-4}
FLAGS = {name: value for name, value in BEST.items() if name != "train_sampling_strategy"}  # it cannot look at pairs


def spearman(job: Job) -> float:
    """Embed pair by pair with transformers in float32, mean over the tokens, and correlate with the scores."""
    import torch
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(job.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.output)

    def vector(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0].mean(0)

    rows = data.read(job.validation)
    found = [torch.cosine_similarity(vector(r["sentence1"]), vector(r["sentence2"]), dim=0).item() for r in rows]
    return float(spearmanr(found, [row["score"] for row in rows]).statistic)


def sentence_transformers(job: Job) -> dict[str, Any]:
    """Train in the way that sentence-transformers' guide for STS-B shows."""
    child.require("sentence_transformers", "accelerate")
    start = time.perf_counter()
    from datasets import load_dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CosineSimilarityLoss
    from transformers import set_seed

    imports = time.perf_counter() - start
    laps = child.Laps()
    set_seed(job.seed)
    rows = load_dataset("json", data_files={"train": str(job.train), "validation": str(job.validation)})
    rows = rows.select_columns(["sentence1", "sentence2", "score"]).map(lambda row: {"score": row["score"] / 5.0})
    model = SentenceTransformer(str(data.model_folder()))
    laps.lap("prepare")
    loop = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**contest.arguments(job, **RECIPE, best=FLAGS)),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        loss=CosineSimilarityLoss(model),
    )
    return {**contest.run(loop, laps, lambda: model.save_pretrained(str(job.output))), "import_seconds": imports}


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    from llmasos import SentenceSimilarityTask

    task = SentenceSimilarityTask(score_range=(0, 5))
    modules = ("scipy.stats", "transformers.models.bert.modeling_bert")
    return contest.llmasos(job, lambda: task, modules=modules, **RECIPE)


CONTEST = Contest(
    name="similarity",
    title="Scored pairs of STS-B with MiniLM, 1 epoch, raw rows to saved model",
    source=harness.ROOT / ".." / "shared" / "data" / "stsb",
    train_peer=sentence_transformers,
    train_ours=llmasos,
    quality_of=spearman,
    quality="Spearman",
    peer="sentence_transformers",
    peer_name="sentence-transformers",
    best=FLAGS,
    seeds=1,
)

if __name__ == "__main__":
    CONTEST.main(__doc__)
