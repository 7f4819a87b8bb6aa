"""``llmasos serve``: put models behind HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..core.config import ServeConfig
from ..core.environment import behind
from ..core.errors import UsageError
from .options import Adapters, adapters_of, check, config_flags, with_flags
from .output import say

EXAMPLES = """
llmasos serve my-model
llmasos serve my-model chat=starter-chat --port 8080
llmasos serve base=org/model --adapter formal=my-adapter --adapter brief=other-adapter
llmasos serve my-model-onnx-int8 --memory 2GB
llmasos serve my-model chat=starter-chat --engine my-model=onnxruntime
llmasos serve my-model --host 0.0.0.0 --ssl-certfile cert.pem --ssl-keyfile key.pem
llmasos serve --behind sagemaker
"""


@with_flags(*config_flags(ServeConfig))
def run(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="models, or NAME=MODEL for another name")
    ] = None,
    *,
    adapter: Adapters = None,
    pin: Annotated[list[str] | None, typer.Option(help="open this model at once, and keep it open")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="a host name by which the server may be asked for")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="a web page that may ask, such as https://chat.example.com")
    ] = None,
    **options: Any,
) -> None:
    """Serve models over HTTP, each for what it can do.

    OpenAI's clients, the task routes (/v1/classify, /v1/tag, ...) and the protocols of other servers are answered; what
    there is stands at /docs. It listens on this machine alone, unless keys were made (llmasos keys add), or it runs
    behind a cloud that checks by itself who asks: then it answers that cloud's routes alone, and the model is the one
    that the cloud has put there.
    """
    check(options, ServeConfig)
    from .. import __version__
    from ..llm import LLM
    from ..serving.start import model_of, named, serve, settled

    cloud: str | None = options.get("behind") or behind()
    config = settled(options | ({"behind": cloud} if cloud else {}))
    if not models:
        if cloud is None:
            raise UsageError("no model to serve", hint="llmasos serve MODEL, or --behind a cloud that brings one")
        models = [model_of(cloud)]
    if cloud is not None:
        say(f"whoever reaches port {config.port} may ask: {cloud} must be the only one")
    opened = {name: LLM.from_pretrained(ref) for name, ref in named(models).items()}
    adapters = adapters_of(adapter)
    say(f"opening {', '.join([*opened, *adapters])}")
    serve(
        opened,
        config,
        adapters=adapters,
        pinned=pin or [],
        hosts=allow_host or [],
        origins=allow_origin or [],
        started=lambda url: print(url, flush=True),
        version=__version__,
    )
