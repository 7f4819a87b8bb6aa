"""TensorBoard: event files in ``LLMASOS_HOME/tensorboard``, a folder for each run.

They are written with tensorboard's own records and nothing else: its usual writers would import TensorFlow
wherever that is installed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..core.environment import home
from ..core.errors import MissingExtraError
from ..core.events import Evaluated, Started, Step
from .base import final, options, scalars, title


class TensorBoard:
    """Writes scalars, and the configuration as a text."""

    def __init__(self) -> None:
        try:
            import tensorboard.compat.proto.event_pb2  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("report_to=tensorboard", install="llmasos[tensorboard]") from error
        self._last = 0

    def start(self, run: Started) -> str:
        """Begin an event file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = home() / "tensorboard" / title(run)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{run.id}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._text("configuration", options(run))
        return f"TensorBoard shows the curves: tensorboard --logdir {home() / 'tensorboard'}"

    def record(self, event: Step | Evaluated) -> None:
        """Write the numbers of a step or an evaluation."""
        self._scalars(scalars(event), event.step)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Write the metrics of the kept model, and close the file."""
        self._scalars(final(metrics), self._last)
        self._text("end", {"status": status, **metrics})
        self._file.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._last = step
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=found))

    def _text(self, tag: str, values: Mapping[str, object]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        table = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in values.items())
        about = create_summary_metadata(display_name=tag, description="")
        value = Summary.Value(tag=tag, metadata=about, tensor=TensorProto(dtype=DT_STRING, string_val=[table.encode()]))
        self._write(step=self._last, summary=Summary(value=[value]))

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()  # who looks on wants the newest step


PLUGIN = TensorBoard
