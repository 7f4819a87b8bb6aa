"""LLMasOS: a language model of your own, proven at every step.

The names below are all that most programs need. They are loaded when first used, so that importing
this package costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import LLMasOSError
    from .llm import LLM
    from .tasks.code_generation import CodeGenerationTask
    from .tasks.fill_mask import MaskedLanguageModelingTask
    from .tasks.language_modeling import LanguageModelingTask
    from .tasks.preference import PreferenceTask
    from .tasks.question_answering import QuestionAnsweringTask
    from .tasks.sentence_similarity import SentenceSimilarityTask
    from .tasks.summarization import SummarizationTask
    from .tasks.text_classification import TextClassificationTask
    from .tasks.text_generation import ChatTask
    from .tasks.token_classification import TokenClassificationTask
    from .tasks.translation import TranslationTask

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "ChatTask",
    "CodeGenerationTask",
    "LLMasOSError",
    "LanguageModelingTask",
    "MaskedLanguageModelingTask",
    "PreferenceTask",
    "QuestionAnsweringTask",
    "SentenceSimilarityTask",
    "SummarizationTask",
    "TextClassificationTask",
    "TokenClassificationTask",
    "TranslationTask",
    "__version__",
]

_HOMES = {
    "PreferenceTask": ".tasks.preference",
    "ChatTask": ".tasks.text_generation",
    "CodeGenerationTask": ".tasks.code_generation",
    "LLM": ".llm",
    "LLMasOSError": ".core.errors",
    "LanguageModelingTask": ".tasks.language_modeling",
    "MaskedLanguageModelingTask": ".tasks.fill_mask",
    "QuestionAnsweringTask": ".tasks.question_answering",
    "SentenceSimilarityTask": ".tasks.sentence_similarity",
    "SummarizationTask": ".tasks.summarization",
    "TextClassificationTask": ".tasks.text_classification",
    "TokenClassificationTask": ".tasks.token_classification",
    "TranslationTask": ".tasks.translation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
