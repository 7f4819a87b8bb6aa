"""MLflow: a run in the experiment ``llmasos``, wherever MLflow's own variables say.

``MLFLOW_TRACKING_URI`` names a server or a database (MLflow's default is a file of SQLite in the working folder),
``MLFLOW_EXPERIMENT_NAME`` another experiment.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import MissingExtraError, RemoteError
from ..core.events import Evaluated, Started, Step
from .base import final, options, scalars, title

_SECONDS = 5.0  # between two sends: a server would slow every step down
_MOST_METRICS, _MOST_OPTIONS = 1000, 100  # that MLflow takes at once


class MLflow:
    """Collects numbers and sends them every few seconds."""

    def __init__(self) -> None:
        try:
            from mlflow import MlflowClient, get_tracking_uri
            from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
        except ImportError as error:
            raise MissingExtraError("report_to=mlflow", install="llmasos[mlflow]") from error
        name = MLFLOW_EXPERIMENT_NAME.get() or "llmasos"
        try:
            self._client = MlflowClient()
            known = self._client.get_experiment_by_name(name)
            self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        except Exception as error:  # of MLflow, of the database, of the network, or a driver that is not installed
            raise RemoteError(
                f"MLflow cannot use {get_tracking_uri()}: {' '.join(str(error).split())}",
                hint="MLFLOW_TRACKING_URI names the server or the database",
            ) from error
        self._where = f"experiment {name} at {get_tracking_uri()}"
        self._waiting: list[Any] = []

    def start(self, run: Started) -> str:
        """Begin a run with the configuration as its parameters."""
        from mlflow.entities import Param

        self._run = self._client.create_run(self._experiment, run_name=title(run)).info.run_id
        given = [Param(name, str(value)) for name, value in options(run).items()]
        for some in _cut(given, _MOST_OPTIONS):
            self._client.log_batch(self._run, params=some)
        self._sent, self._last = time.monotonic(), 0
        return f"MLflow has the run as {title(run)} in {self._where}"

    def record(self, event: Step | Evaluated) -> None:
        """Keep the numbers of a step or an evaluation, and send them when some seconds are over."""
        self._keep(scalars(event), event.step)
        if time.monotonic() - self._sent > _SECONDS:
            self._send()

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Send the rest, the metrics of the kept model, and how it ended."""
        self._keep(final(metrics), self._last)
        self._send()
        self._client.set_tag(self._run, "llmasos.status", status)
        self._client.set_terminated(self._run, {"done": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))

    def _keep(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        self._last, now = step, int(time.time() * 1000)
        # "@" is not allowed in a name; MLflow's own metrics are called ndcg_at_10
        self._waiting += [Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()]

    def _send(self) -> None:
        for some in _cut(self._waiting, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=some)
        self._waiting, self._sent = [], time.monotonic()


def _cut(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


PLUGIN = MLflow
