"""Translation: a text in one language in, the same in another out.

Models with an encoder and a decoder (Marian, T5, BART, mBART, M2M100, NLLB) are trained and asked as they were
pretrained: a tokenizer that knows languages is told which are meant, and the answer then begins with the token
of the target language. A model that only continues text gets the source inside a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..core.errors import UsageError, did_you_mean
from ._sequences import SOURCE, SequenceTask, text_problem
from .base import Field, Problem, Row

if TYPE_CHECKING:
    from ..metrics.base import Scorer


@dataclass(frozen=True)
class TranslationTask(SequenceTask):
    """Translate texts.

    Args:
        source_language: the language of the sources, as the model's tokenizer or your columns call it ("en",
            "eng_Latn"); rows may have the texts in columns of these names.
        target_language: the language to translate into.
        template: text around the source, with {source} in its place, for example
            "translate English to German: {source}" for T5; the model's own, or a plain one, if not given.
        label_smoothing: share of the target probability that is spread over the vocabulary, 0 to 1.
        decoder_only: the model has no encoder and gets the source in a prompt; settled by the model.

    Example:
        >>> TranslationTask(source_language="en", target_language="de").metric_names
        ('loss', 'perplexity', 'token_accuracy')
    """

    tag: ClassVar[str] = "translation"
    answer_metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf")

    source_language: str | None = None
    target_language: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_language is not None and self.source_language == self.target_language:
            raise UsageError(
                f"source_language and target_language are both {self.source_language!r}", hint="name two languages"
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        """The text and its translation."""
        return (
            Field(
                "source",
                _columns(self.source_language, "source", "src", "source_text", "text", "input"),
                doc="the text to translate; in a column of this name or named by source_language",
            ),
            Field(
                "target",
                _columns(self.target_language, "target", "tgt", "target_text", "translation", "output"),
                answer=True,
                doc="its translation; in a column of this name or named by target_language",
            ),
        )

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        return text_problem(row, "source") or (text_problem(row, "target") if labelled else None)

    def texts_of(self, row: Row) -> tuple[str, list[str]]:
        """Return the source and the target of a row."""
        target = row.get("target")
        return row["source"], [] if target is None else [target]

    def default_template(self, config: Any) -> str:
        """Return what the model was pretrained with, as T5 says in its configuration, or a plain prompt."""
        known = getattr(config, "task_specific_params", None) or {}
        own = known.get(f"translation_{self.source_language}_to_{self.target_language}", {}).get("prefix")
        if own:
            return f"{own}{SOURCE}"
        if not self.decoder_only:
            return SOURCE
        into = f" into {self.target_language}" if self.target_language else ""
        return f"Translate{into}:\n{SOURCE}\nTranslation:\n"

    def check_languages(self, tokenizer: Any) -> None:
        """Tell a tokenizer that knows languages which are meant.

        Raises:
            UsageError: it needs them and was given none, or it does not know one.
        """
        if self.decoder_only or not hasattr(tokenizer, "src_lang"):
            return
        for name, language, attribute in (
            ("source_language", self.source_language, "src_lang"),
            ("target_language", self.target_language, "tgt_lang"),
        ):
            if language is None:
                raise UsageError(
                    f"this model's tokenizer needs a {name}", hint=f"{name}={_languages(tokenizer)[0]!r} or another"
                )
            if language_token(tokenizer, language) is None:
                known = _languages(tokenizer)
                raise UsageError(
                    f"{name}={language!r} is no language of this model's tokenizer",
                    hint=f"{did_you_mean(language, known)}for example {', '.join(known[:5])}",
                )
            if getattr(tokenizer, attribute) != language:
                setattr(tokenizer, attribute, language)

    def generation(self, tokenizer: Any) -> dict[str, Any]:
        """Begin with the token of the target language, where the tokenizer has one.

        Where its targets end with that token, as those of the first mBART do, the decoder starts from it.
        """
        if self.decoder_only or not hasattr(tokenizer, "src_lang") or self.target_language is None:
            return {}
        self.check_languages(tokenizer)
        language = language_token(tokenizer, self.target_language)
        ends = tokenizer(text_target="a")["input_ids"][-1] == language
        return {"start_token" if ends else "first_token": language}

    def scorer(self) -> Scorer:
        """Return an empty scorer: single tokens, and BLEU and chrF of what the model writes."""
        from ..metrics.texts import TranslationScorer

        return TranslationScorer(self.target_language)

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Numbers, from words to digits."""
        words = {"one": "1", "two": "2", "six": "6", "ten": "10"}
        return cls(), [{"source": word, "target": digits} for word, digits in words.items()] * 4


def language_token(tokenizer: Any, language: str) -> int | None:
    """Return the id of a language's token ("deu_Latn", or "__de__" for M2M100), or None if there is none."""
    unknown = tokenizer.unk_token_id
    for token in (language, f"__{language}__"):
        found = tokenizer.convert_tokens_to_ids(token)
        if found is not None and found != unknown and token in tokenizer.all_special_tokens:
            return int(found)
    return None


def _languages(tokenizer: Any) -> Sequence[str]:
    """Return the languages that a tokenizer has tokens for."""
    special = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token,
               tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token}  # fmt: skip
    return [token.strip("_") if token.startswith("__") else token
            for token in tokenizer.all_special_tokens if token not in special]  # fmt: skip


def _columns(language: str | None, *usual: str) -> tuple[str, ...]:
    """Return the names of a column, that of its language first, also inside a column called translation."""
    return usual if language is None else (language, f"translation.{language}", *usual)


PLUGIN = TranslationTask
