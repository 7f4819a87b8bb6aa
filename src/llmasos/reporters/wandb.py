"""Weights & Biases: a run in the project ``llmasos``, wherever its own variables say.

``WANDB_MODE=offline`` keeps the run in the working folder (``WANDB_DIR`` names another) for ``wandb sync``;
``WANDB_PROJECT`` and ``WANDB_ENTITY`` name other places.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import MissingExtraError, UsageError
from ..core.events import Evaluated, Started, Step
from .base import final, options, scalars, title


class WandB:
    """Hands the numbers to wandb's own process, which sends them."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("report_to=wandb", install="llmasos[wandb]") from error
        settings = wandb.setup().settings
        self._mode, self._project = settings.mode, settings.project or "llmasos"
        if self._mode in ("online", "shared") and not wandb.login(prompt=False):
            raise UsageError("wandb knows no account", hint="wandb login, or WANDB_MODE=offline")

    def start(self, run: Started) -> str:
        """Begin a run with the configuration."""
        import wandb

        self._run = wandb.init(
            project=self._project, name=title(run), config=options(run), reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        return f"wandb has the run as {title(run)}: {self._run.dir if self._run.offline else self._run.url}"

    def record(self, event: Step | Evaluated) -> None:
        """Hand over the numbers of a step or an evaluation."""
        self._run.log(scalars(event), step=event.step)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Hand over the metrics of the kept model, and wait until all is sent or written."""
        self._run.summary.update({"status": status, **final(metrics)})
        self._run.finish(exit_code=0 if status == "done" else 1)


PLUGIN = WandB
