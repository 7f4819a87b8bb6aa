"""Start a server: which models under which names, and what may listen where."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import bundle, plugins
from ..core.config import ServeConfig
from ..core.environment import home, key_password, traces_wanted
from ..core.errors import BundleError, MissingExtraError, UsageError, did_you_mean
from ..core.hosts import handed_socket, is_loopback
from . import facts
from .guard import Guard
from .keys import KeyFile

if TYPE_CHECKING:
    from ..opening import Opened
    from ..protocols.base import Contract
    from .desk import Desk
    from .served import Parts
    from .tracing import Tracer
    from .watching import Watch

_LOG = logging.getLogger(__name__)
LAST_SECONDS = 25.0
"""What requests get to end behind a cloud, which kills a container 30 seconds after it has told it to stop."""


def named(models: Sequence[str]) -> dict[str, str]:
    """Return models by the names that clients call them: NAME=MODEL, or the last part of a reference.

    Raises:
        UsageError: two have one name.
    """
    out: dict[str, str] = {}
    for given in models:
        name, equals, ref = given.partition("=")
        name, ref = (name, ref) if equals and name and "/" not in name else (Path(given.rstrip("/")).name, given)
        if name in out:
            raise UsageError(f"two models are called {name}", hint=f"name one of them otherwise: other={ref}")
        out[name] = ref
    return out


def contract_of(cloud: str) -> Contract:
    """Return how a cloud runs the server.

    Raises:
        UsageError: there is no such cloud.
        MissingExtraError: what a server needs is not installed.
    """
    try:
        found = {name: plugins.load("protocols", name).contract for name in plugins.names("protocols")}
    except ImportError as error:
        raise MissingExtraError("a server", install="'llmasos[serve]'") from error
    known = {name: contract for name, contract in found.items() if contract is not None}
    if cloud not in known:
        raise UsageError(f"behind={cloud!r}", hint=f"{did_you_mean(cloud, known)}known: {', '.join(known)}")
    contract: Contract = known[cloud]
    return contract


def settled(options: Mapping[str, Any]) -> ServeConfig:
    """Return how to serve: what is asked for, and before that what a cloud in front asks for."""
    cloud = options.get("behind")
    if cloud is None:
        return ServeConfig.of(options)
    contract = contract_of(str(cloud))
    return ServeConfig.of({"host": "0.0.0.0", "port": contract.port(), "drain": LAST_SECONDS, **options})


def model_of(cloud: str) -> str:
    """Return the model that a cloud has put there, as NAME=FOLDER: its folder, or the one folder in it."""
    folder = contract_of(cloud).model()
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    whole = bundle.is_bundle(folder) or len(inside) != 1
    return f"model={folder if whole else inside[0]}"


def serve(
    models: Mapping[str, Opened],
    config: ServeConfig,
    *,
    adapters: Mapping[str, Opened | BundleError] | None = None,
    pinned: Sequence[str] = (),
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    started: Callable[[str], None],
    version: str,
) -> None:
    """Serve models until a signal stops the server.

    Args:
        models: by the names that clients call them.
        config: bounds.
        adapters: of one of these models each, by the names that clients call them; or how one is damaged.
        pinned: what is opened at once and kept open; all if not given.
        hosts: names by which the server may be asked for, see ``guard.py``.
        origins: web pages that may ask.
        started: told the address once it listens.
        version: of this package.

    Raises:
        UsageError: it would listen beyond this machine without a key, or what it is told makes no sense.
        MissingExtraError: what it needs is not installed.
    """
    try:
        from .app import run
    except ImportError as error:
        raise MissingExtraError("a server", install="'llmasos[serve]'") from error
    handed = handed_socket()
    if handed is not None:  # who may ask depends on where it listens, whatever the options say
        host, port = handed.getsockname()[:2]
        config = replace(config, host=host, port=port)
    guard, tls, desk = guarded(config, hosts, origins), _tls(config), desk_of(models, config, pinned, adapters)
    run(desk, guard, version=version, watch=watch_of(desk, version), started=started, handed=handed, **tls)


def desk_of(
    models: Mapping[str, Opened], config: ServeConfig, pinned: Sequence[str] = (),
    adapters: Mapping[str, Opened | BundleError] | None = None,
) -> Desk:  # fmt: skip
    """Return the desk of some models, and of adapters over them; all stay open where none is named.

    Raises:
        UsageError: there is no such model to pin or to give an engine to, or an adapter belongs to none of the models.
        MissingExtraError: what adapters or engines need is not installed.
    """
    from .adapters import opened, over
    from .desk import Desk, Shelf

    taken = ("precision", "speed", "device", "threads", "max_streams", "max_cache_tokens")
    options = {name: {one: getattr(config, one) for one in taken} for name in models}
    for option in ("engine", "quantize"):
        for name, value in of_each(option, getattr(config, option), models).items():
            options[name][option] = value
    for one in options.values():
        facts.check(one["engine"], one["quantize"])
    lying, damaged = over(adapters, models) if adapters else ({}, {})
    for name in lying:
        if (engine := options[name]["engine"]) not in (None, facts.OWN, facts.AUTO):
            raise UsageError(f"adapters are computed by {facts.OWN} alone, and the engine of {name} is {engine}",
                             hint="leave the engine out, or merge the adapters")  # fmt: skip
        options[name]["engine"] = None
    names = [*models, *(adapters or ())]
    if unknown := next((name for name in pinned if name not in names), None):
        raise UsageError(f"there is no model {unknown!r} to pin", hint=f"known: {', '.join(names)}")
    shelves = {
        name: Shelf(name, partial(opened, model, lying.get(name, {}), options[name]), _weights(model),
                    pinned=name in (pinned or names))
        for name, model in models.items()
    }  # fmt: skip
    for base, own in lying.items():
        shelves |= {
            name: Shelf(name, shelves[base].opens, _weights(adapter), pinned=name in (pinned or names),
                        base=shelves[base])
            for name, adapter in own.items()
        }  # fmt: skip
    for name, wrong in damaged.items():
        _LOG.warning("%s is not served: %s", name, wrong)
        shelves[name] = Shelf(name, partial(_raise, wrong), 0, refused=wrong)
    return Desk(shelves, config)


def of_each(option: str, text: str | None, models: Iterable[str]) -> dict[str, str | None]:
    """Return the value of an option for each model, from values for all and NAME=VALUE, with commas between.

    Raises:
        UsageError: there is no such model, or two values are for the same ones.
    """
    given: dict[str, str] = {}
    known = list(models)
    for part in filter(None, map(str.strip, (text or "").split(","))):
        name, equals, value = part.partition("=") if "=" in part else ("", "", part)
        if equals and name not in known:
            raise UsageError(f"{option}={part!r}: there is no model {name!r}",
                             hint=f"{did_you_mean(name, known)}known: {', '.join(known)}")  # fmt: skip
        if name in given:
            whose = f"of {name} " if name else ""
            raise UsageError(f"the {option} {whose}is both {given[name]} and {value}", hint="give it once")
        given[name] = value
    return {name: given.get(name, given.get("")) or None for name in known}


def _raise(error: BundleError) -> Parts:
    raise error.with_traceback(None)


def offer(
    models: Mapping[str, Opened],
    config: ServeConfig,
    *,
    adapters: Mapping[str, Opened | BundleError] | None = None,
    http: bool,
    started: Callable[[str], None],
    version: str,
) -> None:
    """Offer models as tools of the Model Context Protocol: over standard input and output, or HTTP on this machine.

    ``adapters``: as ``serve`` has them; each is a model of its own.

    Raises:
        MissingExtraError: what it needs is not installed.
    """
    try:
        from .tools import Tools, over_http, over_stdio
    except ImportError as error:
        raise MissingExtraError("an MCP server", install="'llmasos[mcp]'") from error
    tools = Tools(desk_of(models, config, adapters=adapters), version=version)
    if http:
        over_http(tools, started=started)
    else:
        over_stdio(tools)


def guarded(config: ServeConfig, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> Guard:
    """Return the guard of a server with this machine's keys.

    Raises:
        UsageError: it would listen beyond this machine without a key, or a host or an origin makes no sense.
    """
    keys, loopback = KeyFile(), is_loopback(config.host)
    if not loopback and not keys.current() and config.behind is None:
        raise UsageError(f"{config.host} can be reached from elsewhere, and there is no key",
                         hint="llmasos keys add NAME")  # fmt: skip
    return Guard(keys, loopback=loopback, hosts=hosts, origins=origins)


def _tls(config: ServeConfig) -> dict[str, Any]:
    """Return uvicorn's options for HTTPS."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise UsageError("ssl_keyfile is of no use without ssl_certfile", hint="give both")
        return {}
    files = {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
    password = key_password()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password or "")
    except (OSError, ValueError) as error:  # told before a model is opened
        raise UsageError(f"ssl_certfile={config.ssl_certfile!r} cannot be used: {error}",
                         hint="a certificate and its key, as PEM files") from error  # fmt: skip
    return files | {"ssl_keyfile_password": (password or b"").decode()}


def watch_of(desk: Desk, version: str) -> Watch:
    """Return all that watches a server, as its options and OpenTelemetry's variables ask for."""
    from .desk import PATIENCE
    from .logs import Contents, Lines, Plain
    from .metrics import Metrics
    from .watching import Watch

    lines, metrics = Lines(), Metrics(desk, version, PATIENCE)
    Plain.instead(lines, "uvicorn", "asyncio", __name__.partition(".")[0])
    wanted = desk.config.log_content == "on"
    contents = Contents(home() / "logs" / "contents.jsonl", lines, metrics.dropped) if wanted else None
    return Watch(metrics, lines, contents, _tracer(version))


def _tracer(version: str) -> Tracer | None:
    if not traces_wanted():
        return None
    from .tracing import Tracer

    return Tracer(version)


def _weights(model: Opened) -> int:
    return sum(path.stat().st_size for path in model.located.path.rglob("*") if path.is_file())
