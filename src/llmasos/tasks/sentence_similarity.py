"""Sentence similarity: texts as vectors whose cosine says how close they are in meaning.

A text's vector is the mean of its tokens' last hidden states (Reimers & Gurevych 2019, Sentence-BERT). Three
layouts of rows teach it, told apart by their columns:

- pairs that belong together (question and answer, title and text): every other row of the batch is a wrong
  partner. Softmax cross entropy of the cosines over a temperature (Henderson et al. 2017, "multiple negatives
  ranking"; van den Oord et al. 2018, InfoNCE). Texts that occur twice in a batch are never wrong partners.
- triplets, which add a wrong partner of their own: it joins the candidates of all rows.
- pairs with a score: the squared error of the cosine (Sentence-BERT's regression), or CoSENT (Su 2022),
  log(1 + sum exp((cos_j - cos_i) / temperature)) over all pairs of rows with score_i > score_j. On STS-B (MiniLM,
  one epoch, batches of 16, seed 0) the first gave a Spearman correlation of 0.891, the second 0.878, none 0.867.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, did_you_mean, shown
from .base import Encoding, Field, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..metrics.base import Scorer

LAYOUTS = ("pairs", "triplets", "scored")
_SAID = {
    "pairs": "rows are pairs that belong together; the other rows of a batch are wrong partners",
    "triplets": "rows are triplets: a text, one that belongs to it, and one that does not",
    "scored": "rows are pairs with a score",
}
_TEXTS = ("anchor", "positive", "negative")


@dataclass(frozen=True)
class Similarity:
    """The answer for a pair: the cosine of its two vectors, -1 to 1; 1 for texts of one meaning."""

    score: float

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class SentenceSimilarityTask(Task):
    """Tell how close two texts are in meaning, by vectors that can be searched.

    Args:
        layout: what rows hold: "pairs" that belong together, "triplets" with a wrong partner, or "scored" pairs;
            None tells it from the columns.
        temperature: what cosines are divided by, in all losses but the squared error.
        symmetric: whether positives also look for their anchors, with pairs and triplets.
        scored_loss: for scored pairs, "cosine" (squared error of the cosine) or "cosent" (their order).
        score_range: the lowest and the highest score, which become 0 and 1; None takes the data's, in whole numbers.

    Example:
        >>> SentenceSimilarityTask(layout="triplets").group
        3
    """

    tag: ClassVar[str] = "sentence-similarity"
    auto_class: ClassVar[str] = "AutoModel"
    output: ClassVar[str] = "embedding"

    layout: str | None = None
    temperature: float = 0.05
    symmetric: bool = False
    scored_loss: str = "cosine"
    score_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, known in (("layout", (None, *LAYOUTS)), ("scored_loss", ("cosine", "cosent"))):
            value = getattr(self, name)
            if value not in known:
                names = [word for word in known if word]
                near = did_you_mean(str(value), names)
                raise UsageError(f"{name}={value!r}", hint=f"{near}one of {', '.join(names)}")
        if not 0.0 < self.temperature < float("inf"):
            raise UsageError(f"temperature={self.temperature}", hint="a number above 0, such as 0.05")
        if self.score_range is not None:
            object.__setattr__(self, "score_range", _checked_range(self.score_range))

    # -- what is settled ----------------------------------------------------------------------------

    @property
    def group(self) -> int:
        """Two texts a row, three in triplets."""
        return 3 if self.layout == "triplets" else 2

    @property
    def joint(self) -> bool:
        """Only the squared error looks at each row alone."""
        return not (self.layout == "scored" and self.scored_loss == "cosine")

    @property
    def default_metric(self) -> str:
        """Spearman's correlation with scores, else how well partners are found."""
        return "spearman" if self.layout == "scored" else "mrr"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Correlations with scores; else recall, mean reciprocal rank, nDCG and, of triplets, accuracy."""
        if self.layout == "scored":
            return ("spearman", "pearson")
        return ("mrr", "recall@1", "recall@10", "ndcg@10", *(("accuracy",) if self.layout == "triplets" else ()))

    @classmethod
    def variants(cls) -> list[Self]:
        """Return the task for each layout of rows."""
        return [cls(layout=layout) for layout in LAYOUTS]

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """Two texts, and a score or a wrong partner."""
        return (
            Field(
                "anchor",
                ("anchor", "sentence1", "query", "question", "text1", "sentence_a", "text_a", "question1", "premise",
                 "title", "text", "sent1"),
                doc="a text",
            ),
            Field(
                "positive",
                ("positive", "sentence2", "document", "answer", "passage", "text2", "sentence_b", "text_b",
                 "question2", "hypothesis", "pos", "context", "text_pair", "sent2", "text", "body"),
                doc="the text to compare it with, or that belongs to it",
            ),
            Field(
                "negative", ("negative", "hard_negative", "neg"), required=self.layout == "triplets", answer=True,
                doc="a text that does not belong to it",
            ),
            Field(
                "score", ("score", "similarity", "similarity_score", "relatedness_score", "label"), kind="number",
                required=self.layout == "scored", answer=True, doc="how close the two texts are, a number",
            ),
        )  # fmt: skip

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        names = [*_TEXTS[:2], *(_TEXTS[2:] if labelled and self._asks("negative", row) else ())]
        for name in names:
            text = row.get(name)
            if not isinstance(text, str):
                return Problem(name, shown(text), "a string")
            if not text.strip():
                return Problem(name, "an empty text", "some text", drop=True)
        return self._score_problem(row.get("score")) if labelled and self._asks("score", row) else None

    def _asks(self, field: str, row: Row) -> bool:
        """Say whether this field is read: as the layout says, or, before it is settled, if the row has it."""
        owner = {"negative": "triplets", "score": "scored"}[field]
        return self.layout == owner if self.layout else field in row

    def _score_problem(self, score: Any) -> Problem | None:
        if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
            return Problem("score", shown(score), "a number")
        if self.score_range is not None and not self.score_range[0] <= score <= self.score_range[1]:
            low, high = self.score_range
            return Problem("score", f"{score:g}", f"a number from {low:g} to {high:g} (score_range)")
        return None

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the layout and the range of the scores."""
        del tokenizer
        layout, notes = self.layout, []
        scores: set[float] = set()
        for row in rows:
            layout = layout or _layout_of(row)
            if layout != "scored":
                break
            scores.add(float(row["score"]))
        if self.layout is None:
            notes.append(_SAID[layout or "pairs"])
        if layout != "scored":
            return replace(self, layout=layout), notes
        if len(scores) < 2:
            raise DataError(
                f"every row has the same score: {next(iter(scores), None)}",
                hint='scores must differ; for pairs that all belong together, layout="pairs"',
            )
        bounds = self.score_range
        if bounds is None:
            bounds = (float(floor(min(*scores, 0.0))), float(ceil(max(scores))))
            if min(scores) >= 1.0:  # as in questionnaires: 1 to 5
                bounds = (1.0, bounds[1])
            notes.append(f"scores go from {bounds[0]:g} to {bounds[1]:g} (score_range), which become 0 and 1")
        return replace(self, layout=layout, score_range=bounds), notes

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise each text by itself."""
        names = _TEXTS[: self.group if labelled else 2]
        texts = [row[name] for row in rows for name in names]
        ids, cut = tokenized(texts, tokenizer, max_length)
        problems = _without_tokens(ids, names)
        good = [i for i in range(len(rows)) if i not in problems]
        lines = [ids[i * len(names) : (i + 1) * len(names)] for i in good]
        if len(names) < self.group:  # asked for the score of a pair: the wrong partner's place is held by one token
            lines = [[*line, line[0][:1]] for line in lines]
        targets = None
        if labelled and self.layout == "scored":
            targets = self._scaled([rows[i]["score"] for i in good])
        elif labelled:
            targets = np.asarray([[_number_of(one) for one in line] for line in lines], dtype=np.int64)
        truncated = np.asarray(cut, dtype=np.int64).reshape(len(rows), len(names)).sum(axis=1).tolist()
        flat = [one for line in lines for one in line]
        return Encoding(flat, None, truncated, targets, good if problems else None, problems or None)

    def _scaled(self, scores: Sequence[float]) -> NDArray[np.float32]:
        if self.score_range is None:
            raise UsageError("the range of the scores is not settled yet",
                             hint="pass score_range=(0, 5), or fit the task on data first")  # fmt: skip
        low, high = self.score_range
        return ((np.asarray(scores, dtype=np.float64) - low) / (high - low)).astype(np.float32)

    # -- numbers ------------------------------------------------------------------------------------

    def head_config(self) -> dict[str, Any]:
        """No head: the encoder itself gives the vectors."""
        return {}

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed loss. outputs: vectors, (sequences, width)."""
        import torch
        from torch.nn.functional import normalize

        vectors = outputs if outputs.dtype.itemsize >= 4 else outputs.float()
        assert batch.places is not None
        places = torch.from_numpy(batch.places).to(vectors.device)
        unit = normalize(vectors.index_select(0, places), dim=-1).view(len(batch), batch.group, -1)
        if self.layout == "scored":
            cosine = (unit[:, 0] * unit[:, 1]).sum(dim=-1)
            wanted = batch.target_tensor(vectors.device).to(cosine.dtype)
            return self._cosent(cosine, wanted) if self.scored_loss == "cosent" else ((cosine - wanted) ** 2).sum()
        return self._in_batch(unit, batch)

    def _in_batch(self, unit: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Each anchor's positive among those of all rows, and all negatives. unit: (rows, group, width)."""
        import torch
        from torch.nn.functional import cross_entropy

        from ..metrics.similarity import belonging

        assert batch.targets is not None
        rows = len(unit)
        candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives, then all negatives
        logits = unit[:, 0] @ candidates.T / self.temperature  # (rows, candidates)
        mine = torch.arange(rows, device=unit.device)
        others = torch.from_numpy(belonging(batch.targets, batch.targets)).to(unit.device)
        others[mine, mine] = False
        logits = logits.masked_fill(others, -torch.inf)
        loss = cross_entropy(logits, mine, reduction="sum")
        if not self.symmetric:
            return loss
        return (loss + cross_entropy(logits[:, :rows].T, mine, reduction="sum")) / 2

    def _cosent(self, cosine: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """log(1 + sum of exp((cos_j - cos_i) / temperature)) where row i has the higher score, times the rows."""
        import torch

        differences = (cosine[None, :] - cosine[:, None]) / self.temperature
        wrong_order = differences[wanted[:, None] > wanted[None, :]]
        return len(cosine) * torch.logsumexp(torch.cat([wrong_order, wrong_order.new_zeros(1)]), dim=0)

    def weight(self, batch: Batch) -> float:
        """The number of rows."""
        return float(len(batch))

    def scorer(self) -> Scorer:
        """Return an empty scorer for scored pairs or for partners."""
        from ..metrics.similarity import PartnerScorer, ScoredPairsScorer

        return ScoredPairsScorer() if self.layout == "scored" else PartnerScorer(triplets=self.group == 3)

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Turn vectors, (group * rows, width), into the cosine of each pair."""
        from ..metrics.similarity import cosines, grouped

        del encoding, rows
        vectors = grouped(outputs, self.group)
        return [Similarity(round(float(score), 6)) for score in cosines(vectors[:, 0], vectors[:, 1])]

    # -- storage ------------------------------------------------------------------------------------

    def extra_files(self, config: Any) -> dict[str, Any]:
        """Return what sentence-transformers opens the folder by: mean over tokens, then length 1."""
        modules = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
        return {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(modules)
            ],
            "sentence_bert_config.json": {"max_seq_length": None, "do_lower_case": False},
            "config_sentence_transformers.json": {
                "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine",
            },
            "1_Pooling/config.json": {
                "word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            },
        }  # fmt: skip

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Pairs of a question and an answer about the same thing."""
        things = ("anvil", "bicycle", "cello", "drum", "easel", "fiddle", "globe", "hammock", "inkwell", "jigsaw",
                  "kettle", "lantern", "mirror", "notebook", "oven", "puzzle", "quilt", "rucksack", "saddle", "tripod",
                  "umbrella", "vase", "wok", "xylophone")  # fmt: skip
        return cls(), [{"anchor": f"{thing}?", "positive": f"{thing} {thing}"} for thing in things]


class TextEmbedding(SentenceSimilarityTask):
    """Single texts as vectors, what ``LLM.embed`` asks for; it has nothing to learn.

    Args:
        normalize: whether vectors are scaled to length 1.
    """

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        object.__setattr__(self, "normalize", normalize)

    @property
    def group(self) -> int:
        """One text a row."""
        return 1

    @property
    def fields(self) -> tuple[Field, ...]:
        """A text."""
        return (Field("text", ("text", "sentence", "content", "anchor", "query", "document"), doc="the text"),)

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return what is wrong with a row, or None."""
        del labelled
        text = row.get("text")
        if not isinstance(text, str):
            return Problem("text", shown(text), "a string")
        return None if text.strip() else Problem("text", "an empty text", "some text", drop=True)

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise the texts."""
        del labelled
        ids, cut = tokenized([row["text"] for row in rows], tokenizer, max_length)
        return Encoding(ids, None, cut, problems=_without_tokens(ids, ("text",)) or None)

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Return one vector a row, float32, (width,)."""
        from ..metrics.base import finite
        from ..metrics.similarity import unit

        del encoding, rows
        vectors = finite(outputs)
        return list(unit(vectors) if self.__dict__["normalize"] else vectors.astype(np.float32))


def tokenized(texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[list[NDArray[np.int32]], list[int]]:
    """Return the ids of each text, at most ``max_length``, and how many were cut from it."""
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
    ids: list[list[int]] = tokenizer(list(texts), verbose=False, **only_ids)["input_ids"]
    cut = [max(0, len(one) - max_length) for one in ids]
    if long := [i for i, tokens in enumerate(cut) if tokens]:
        shorter = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length, **only_ids)["input_ids"]
        for i, one in zip(long, shorter, strict=True):
            ids[i] = one
    return [np.asarray(one, dtype=np.int32) for one in ids], cut


def _without_tokens(ids: list[NDArray[np.int32]], names: Sequence[str]) -> dict[int, Problem]:
    """Find rows of which the tokenizer leaves nothing: no mean can be taken."""
    found: dict[int, Problem] = {}
    for at in (i for i, one in enumerate(ids) if not len(one)):
        row, place = divmod(at, len(names))
        found.setdefault(row, Problem(names[place], "a text without tokens", "some text", drop=True))
    return found


def _layout_of(row: Row) -> str:
    if "score" in row and "negative" in row:
        raise DataError(
            "rows have both a score and a wrong partner",
            hint='layout="scored" or layout="triplets" says which is meant',
        )
    return "scored" if "score" in row else "triplets" if "negative" in row else "pairs"


def _number_of(ids: NDArray[np.int32]) -> int:
    """Return a number for a text: texts of the same tokens have the same (and others, but for 1 in 2^64, not)."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little", signed=True)


def _checked_range(given: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"score_range={given!r}", hint="two numbers, such as (0, 5)") from error
    if not (isfinite(low) and isfinite(high) and low < high):
        raise UsageError(f"score_range=({low:g}, {high:g})", hint="the lower number first, such as (0, 5)")
    return low, high


PLUGIN = SentenceSimilarityTask
