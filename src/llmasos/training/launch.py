"""Start several processes of one training on this machine, with torch's own launcher.

Each runs the same command; it finds its place in the environment that the launcher makes (``backends/_parallel.py``).
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ..core.errors import TrainingError


def launch(words: Sequence[str], processes: int) -> int:
    """Run ``llmasos`` with these words in so many processes; return the exit code of the first that failed, or 0.

    When one dies, the others are stopped at once.

    Raises:
        TrainingError: a process was killed: which, and by what.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say is said here
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="llmasos", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2, signals_to_handle="SIGTERM,SIGHUP",
    )  # fmt: skip
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the processes get it too, and save what they have
    try:
        elastic_launch(config, sys.executable)("-m", "llmasos", *words)
    except ChildFailedError as error:
        return _failed(error, processes)
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _failed(error: Any, processes: int) -> int:
    """Return the exit code of a process that has said itself what was wrong; raise for one that could not."""
    rank, failure = error.get_first_failure()
    code = int(failure.exitcode)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    raise TrainingError(
        f"process {rank} (of {processes}, counted from 0) was ended by {name}; the others were stopped",
        hint="the same command goes on from the last checkpoint; SIGKILL often means that memory ran out",
    ) from error
