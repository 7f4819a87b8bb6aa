"""``llmasos mcp``: offer models as tools to assistants."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from ..core.config import ServeConfig
from ..core.errors import UsageError
from .options import Adapters, adapters_of, check, config_flags, names_of, with_flags
from .output import say

EXAMPLES = """
llmasos mcp my-model
llmasos mcp my-model chat=starter-chat
llmasos mcp base=my-model --adapter formal=my-adapter
llmasos mcp my-model --http --port 8001
"""
KEPT = ("port", "memory", "max_waiting", "max_waiting_tokens", "max_streams", "max_cache_tokens", "max_new_tokens",
        "max_inputs", "max_body", "batch_size", "timeout", "precision", "speed", "device", "threads")  # fmt: skip


@with_flags(*config_flags(ServeConfig, without=[name for name in names_of(ServeConfig) if name not in KEPT]))
def run(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="models, or NAME=MODEL for another name")],
    *,
    adapter: Adapters = None,
    http: Annotated[bool, typer.Option("--http", help="listen on this machine instead of standard input")] = False,
    **options: Any,
) -> None:
    """Offer models as tools of the Model Context Protocol: classify, answer, translate, embed, chat, ...

    An assistant starts this command and talks to it over standard input and output; or it finds it at the address that
    is printed, with --http.
    """
    check(options, ServeConfig)
    if "port" in options and not http:
        raise UsageError(f"port={options['port']} does nothing over standard input", hint="add --http")
    from .. import __version__
    from ..llm import LLM
    from ..serving.start import named, offer

    opened = {name: LLM.from_pretrained(ref) for name, ref in named(models).items()}
    adapters, config = adapters_of(adapter), ServeConfig.of(options)
    say(f"opening {', '.join([*opened, *adapters])}")
    started = partial(print, flush=True)
    offer(opened, config, adapters=adapters, http=http, started=started, version=__version__)
