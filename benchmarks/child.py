"""The child's side of a benchmark: one JSON line, a missing package said in time, stopwatches."""

from __future__ import annotations

import importlib.util
import json
import time
from typing import Any


def report(content: dict[str, Any]) -> None:
    """Print the child's one JSON line."""
    print("\n" + json.dumps(content), flush=True)


def require(*packages: str) -> None:
    """End the child with "not installed" where one of these packages is absent."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            report({"missing": package})
            raise SystemExit(0)


class Laps:
    """A stopwatch: ``lap("train")`` books the time since the last call under that name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def values(self) -> dict[str, float]:
        """Return the laps as ``NAME_seconds`` and their sum as ``seconds``."""
        return {"seconds": sum(self.seconds.values()), **{f"{k}_seconds": v for k, v in self.seconds.items()}}


class Phases(Laps):
    """A stopwatch driven by a run's events: each phase's time is booked when the next one begins."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = "prepare"

    def __call__(self, event: Any) -> None:
        """Take an event of the run."""
        content = event.as_dict()
        if content["event"] == "phase":
            self.lap(self._phase)
            self._phase = content["name"]

    def values(self) -> dict[str, float]:
        """Close the last phase and return the laps."""
        self.lap(self._phase)
        return super().values()
