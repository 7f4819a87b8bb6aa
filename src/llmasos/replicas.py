"""The server as an application of Ray Serve: each copy is this server, whole, behind Ray's own proxy.

Ray starts copies on the machines of its cluster, looks whether they live, and sends requests to those that do. A copy
has its own desk and its own models; nothing is shared but the file of keys.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.environment import one_entrance, quieten_ray, settings_here
from .core.errors import HardwareError, MissingExtraError
from .serving.desk import PATIENCE

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .serving.desk import Desk


class Replica:
    """A copy of the server.

    Args:
        models: references by the names that clients call them, the same on every machine.
        options: of ``ServeConfig``.
    """

    def __init__(self, models: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self._models, self._options = dict(models), dict(options)
        self._desk: Desk | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Ray calls it where the copy is to run, and opens the models by its lifespan."""
        from . import __version__
        from .opening import Opened
        from .serving.app import application
        from .serving.start import desk_of, guarded, settled, watch_of
        from .sources.base import locate

        config = settled({"host": "0.0.0.0", **self._options})
        guard = guarded(config)
        self._desk = desk_of({name: Opened(locate(ref)) for name, ref in self._models.items()}, config)
        return application(self._desk, guard, version=__version__, watch=watch_of(self._desk, __version__))

    def check_health(self) -> None:
        """Tell Ray, which starts another copy instead, whether this one is stuck.

        Raises:
            HardwareError: it has work, and has done nothing for a minute.
        """
        if self._desk is not None and self._desk.stalled(PATIENCE):
            raise HardwareError("the copy is stalled", hint="Ray starts another one")


def application_of(args: Mapping[str, Any]) -> Any:
    """Return the application of Ray Serve, as its configuration names it.

    Args:
        args: ``models`` and ``options``, as for ``Replica``.

    Raises:
        MissingExtraError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("Ray Serve", install="'llmasos[ray,serve]'") from error
    copies = serve.deployment(serve.ingress()(Replica), name="server")
    return copies.bind(args["models"], args.get("options", {}))


NODES = 2
"""Machines of the cluster on which a rehearsal runs an application."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a configuration of Ray Serve on a cluster of this machine, by Ray's own command, until SIGTERM.

    ``python -m llmasos.replicas serve.yaml --model DIR --host HOST --port PORT`` is what a rehearsal starts: they, and
    the variables that are set here, go before those in the file.
    """
    import yaml

    parser = argparse.ArgumentParser()
    for name in ("config", "--model", "--host", "--port"):
        parser.add_argument(name)
    told = parser.parse_args(words)
    content = yaml.safe_load(Path(told.config).read_text(encoding="utf-8"))
    (application,) = content["applications"]
    (called,) = application["args"]["models"]
    variables = application["runtime_env"]["env_vars"]
    application["args"]["models"] = {called: told.model}
    application["args"]["options"]["host"] = "0.0.0.0"  # so that keys are asked for as they are there
    application["runtime_env"]["env_vars"] = {**variables, **settings_here(variables)}
    content["http_options"] = {"host": told.host, "port": int(told.port)}
    content["proxy_location"] = "HeadOnly"  # all machines are this one, and have one port
    (server,) = application["deployments"]
    copies = server.get("num_replicas") or server["autoscaling_config"]["max_replicas"]
    return _run(content, cpus=server["ray_actor_options"]["num_cpus"] * -(-copies // NODES))


def _run(content: Mapping[str, Any], *, cpus: float) -> int:
    import yaml

    quieten_ray()
    one_entrance()
    from ray.cluster_utils import Cluster

    stopped = threading.Event()
    node = {"num_cpus": int(cpus) + 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(NODES - 1):
            cluster.add_node(**node)
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # in the place of Ray's own, which takes the node down
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "serve.yaml")
            path.write_text(yaml.safe_dump(content), encoding="utf-8")
            code = "from ray.serve.scripts import cli; cli()"
            asked = [sys.executable, "-c", code, "run", str(path), "--address", cluster.address]
            with subprocess.Popen(asked) as program:
                while program.poll() is None and not stopped.wait(0.1):
                    _replaced(cluster, node)
                if program.poll() is None:
                    program.send_signal(signal.SIGINT)
                code_ = program.wait()
        return 0 if stopped.is_set() else code_ or 1
    finally:
        cluster.shutdown()


def _replaced(cluster: Any, node: Mapping[str, Any]) -> None:
    """Add a machine for each that is gone, as whoever runs a cluster does."""
    for gone in [one for one in cluster.worker_nodes if one.dead_processes()]:
        stop = signal.getsignal(signal.SIGTERM)
        cluster.remove_node(gone, allow_graceful=False)
        cluster.add_node(wait=False, **node)
        signal.signal(signal.SIGTERM, stop)  # a new machine has set Ray's own again


if __name__ == "__main__":
    raise SystemExit(main())
