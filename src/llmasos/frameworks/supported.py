"""What can be trained in another framework than torch; everything else is refused here, by name."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ..core.config import FinetuneConfig
from ..core.errors import MissingExtraError, UsageError
from ..tasks.base import Task
from ..tasks.language_modeling import LanguageModelingTask
from ..tasks.text_classification import TextClassificationTask
from .models import WITH_DROPOUT, dropouts, unlike

FRAMEWORKS = ("jax", "tensorflow")
"""What Keras computes with here; torch has the project's own trainer."""

ARCHITECTURES: dict[type[Task], tuple[str, ...]] = {
    TextClassificationTask: ("bert",),
    LanguageModelingTask: ("llama", "gpt2"),
}
"""The tasks, and the architectures that each may have, as transformers' ``model_type``."""

OPTIONS: dict[str, tuple[Any, ...]] = {
    "adapter": ("none",),
    "trainable": ("all",),
    "precision": ("auto", "float32"),
    "device": ("auto", "cpu"),
    "speed": ("auto", "buckets", "plain"),
}
"""Options of which only these values can be honoured; all others can, whatever they are."""


def settled(config: FinetuneConfig, task: Task, model_config: Any) -> FinetuneConfig:
    """Return the options as a run in this framework has them: on the CPU, in float32, with padded rows.

    Args:
        config: as the user gave it; for torch it is returned as it is.
        task: the task, labels settled or not.
        model_config: the model's transformers configuration.

    Raises:
        UsageError: the framework can't honour an option, or do this task with this architecture.
        MissingExtraError: Keras, KerasHub or the framework is not installed.
    """
    if config.framework not in FRAMEWORKS:
        return config
    _check_options(config)
    _check_model(config, task, model_config)
    missing = [name for name in ("keras", "keras_hub", config.framework) if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"framework={config.framework}", install=f"'llmasos[{config.framework}]'")
    speed = "buckets" if config.speed == "auto" else config.speed
    return replace(config, device="cpu", precision="float32", speed=speed)


def distributions(framework: str) -> list[str]:
    """Return the distributions that a run in a framework depends on besides its own."""
    return ["keras", "keras-hub", framework] if framework in FRAMEWORKS else []


def _check_options(config: FinetuneConfig) -> None:
    for name, allowed in OPTIONS.items():
        value = getattr(config, name)
        if value not in allowed:
            known = "; ".join(f"{option}={' or '.join(values)}" for option, values in OPTIONS.items())
            raise UsageError(
                f"framework={config.framework} cannot honour {name}={value}",
                hint=f"it takes {known}; or framework=torch",
            )


def _check_model(config: FinetuneConfig, task: Task, model_config: Any) -> None:
    kind, where = model_config.model_type, f"framework={config.framework}"
    known = "; ".join(f"{task.tag} with {' or '.join(names)}" for task, names in ARCHITECTURES.items())
    if type(task) not in ARCHITECTURES:
        raise UsageError(f"{where} cannot do {task.tag}", hint=f"it can do {known}; or framework=torch")
    if kind not in ARCHITECTURES[type(task)]:
        raise UsageError(
            f"{where} cannot do {task.tag} with a {kind} model", hint=f"it can do {known}; or framework=torch"
        )
    if found := unlike(model_config):
        raise UsageError(f"{where}: KerasHub's {kind} cannot be one with {found}", hint="framework=torch")
    if config.dropout is None and len(several := dropouts(model_config)) > 1:
        raise UsageError(
            f"{where}: this model has dropouts of {', '.join(map(str, sorted(several)))}, and KerasHub's has one",
            hint="dropout=0.1 sets all",
        )
    if config.dropout and kind not in WITH_DROPOUT:
        raise UsageError(f"{where} cannot honour dropout={config.dropout:g} in a {kind} model", hint="dropout=0")
