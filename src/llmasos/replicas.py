"""The server as an application of Ray Serve: each copy is this server, whole, behind Ray's own proxy.

Ray starts copies on the machines of its cluster, looks whether they live, and sends requests to those that do. A copy
has its own desk and its own models; nothing is shared but the file of keys.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.environment import one_entrance, quieten_ray, settings_here
from .core.errors import HardwareError, MissingExtraError
from .serving.desk import PATIENCE

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .serving.desk import Desk
    from .serving.splitting import Hand, Split


SERVER, NAMESPACE = "server", "llmasos"
"""Names of the copies in their application, and of what a release counts in."""
RELEASE = "/v1/release"
"""Where a release's counts are asked for."""


class Replica:
    """A copy of the server.

    Args:
        models: references by the names that clients call them, the same on every machine.
        options: of ``ServeConfig``.
    """

    def __init__(self, models: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self._models, self._options = dict(models), dict(options)
        self._desk: Desk | None = None
        self._app: FastAPI | None = None
        self._split: Split | None = None
        self._counts: Any = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Ray calls it where the copy is to run, and opens the models by its lifespan."""
        from . import __version__
        from .opening import Opened
        from .serving.app import application
        from .serving.splitting import Split
        from .serving.start import desk_of, guarded, settled, watch_of
        from .sources.base import locate

        config = settled({"host": "0.0.0.0", **self._options})
        guard = guarded(config)
        self._desk = desk_of({name: Opened(locate(ref)) for name, ref in self._models.items()}, config)
        app = application(self._desk, guard, version=__version__, watch=watch_of(self._desk, __version__))
        app.add_api_route(RELEASE, self._counted, include_in_schema=False)
        self._app, self._split = app, Split(config)
        app.add_middleware(self._split.before)
        return app

    async def reconfigure(self, release: Mapping[str, Any]) -> None:
        """Hand a share of the requests on to another version, or no more; Ray calls it when it is told to.

        Args:
            release: ``next``, the application of the other version, its ``share``, and where both are counted,
                ``counts``; or the counts that have ``ended``.
        """
        import ray

        assert self._split is not None
        if not release.get("counts"):
            self._counts = None
            self._split.to(0.0, None, None)
            with suppress(ValueError):  # another copy has done it
                ray.kill(ray.get_actor(release.get("ended", ""), NAMESPACE))
            return
        actor = ray.remote(Counts).options(name=release["counts"], namespace=NAMESPACE, lifetime="detached",
                                           get_if_exists=True, num_cpus=0, max_restarts=-1)  # fmt: skip
        self._counts = actor.remote()
        hand = _handing(release["next"]) if release["share"] else None
        self._split.to(release["share"], hand, self._counts.add.remote)

    async def handed(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        """Answer a request that a copy of the old version hands on: that it is taken, then the answer's messages."""
        assert self._app is not None
        messages: asyncio.Queue[Any] = asyncio.Queue()
        read = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in read:
                return message
            await asyncio.Event().wait()  # that the client has left is told by the end of this
            raise AssertionError

        yield {}
        answer = asyncio.ensure_future(self._app(dict(scope), receive, messages.put))
        answer.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await answer
        finally:
            answer.cancel()

    async def _counted(self) -> dict[str, list[int]]:
        """Return requests and errors of the two versions of a release, by all copies; nothing where there is none."""
        found: dict[str, list[int]] = await self._counts.all.remote() if self._counts else {}
        return found

    def check_health(self) -> None:
        """Tell Ray, which starts another copy instead, whether this one is stuck.

        Raises:
            HardwareError: it has work, and has done nothing for a minute.
        """
        if self._desk is not None and self._desk.stalled(PATIENCE):
            raise HardwareError("the copy is stalled", hint="Ray starts another one")


class Counts:
    """What all copies have counted since a release began: an actor of Ray."""

    def __init__(self) -> None:
        self._all = {"old": [0, 0], "new": [0, 0]}

    def add(self, version: str, failed: bool) -> None:
        """Count a request."""
        self._all[version][0] += 1
        self._all[version][1] += failed

    def all(self) -> dict[str, list[int]]:
        """Return requests and errors by version."""
        return self._all


def _handing(name: str) -> Hand:
    """Return what hands a request on to an application."""
    from ray import serve

    server = serve.get_deployment_handle(SERVER, name, _check_exists=False).options(stream=True, method_name="handed")

    async def hand(scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Any]:
        answer = server.remote(scope, body)
        try:
            async for part in answer:
                yield part
        except BaseException:
            answer.cancel()
            raise

    return hand


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
    copies = serve.deployment(serve.ingress()(Replica), name=SERVER)
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
    application["route_prefix"] = "/"
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
                    _drained(cluster, content)
                    program.terminate()
                code_ = program.wait()
        return 0 if stopped.is_set() else code_ or 1
    finally:
        cluster.shutdown()


def _drained(cluster: Any, content: Mapping[str, Any]) -> None:
    """Take applications away, which lets their requests end; Ray's shutdown alone kills its proxy under them."""
    import ray
    from ray import serve

    ray.init(cluster.address, namespace="serve", log_to_driver=False)
    for one in content["applications"]:
        serve.delete(one["name"])
    ray.shutdown()  # else the cluster would not be taken down under its own driver


def _replaced(cluster: Any, node: Mapping[str, Any]) -> None:
    """Add a machine for each that is gone, as whoever runs a cluster does."""
    for gone in [one for one in cluster.worker_nodes if one.dead_processes()]:
        stop = signal.getsignal(signal.SIGTERM)
        cluster.remove_node(gone, allow_graceful=False)
        cluster.add_node(wait=False, **node)
        signal.signal(signal.SIGTERM, stop)  # a new machine has set Ray's own again


if __name__ == "__main__":
    raise SystemExit(main())
