"""``llmasos keys``: who may ask the servers of this machine, and for how much."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..core.errors import UsageError, did_you_mean
from ..serving.keys import Key, KeyFile
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos keys add ada
llmasos keys add website --rate 60/min --tokens 20000/min --concurrent 4
llmasos keys list
llmasos keys revoke website
"""

ACTIONS = ("add", "list", "revoke")


def run(
    action: Annotated[str, typer.Argument(metavar="add|list|revoke", help="what to do")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="whose key it is")] = None,
    *,
    rate: Annotated[str | None, typer.Option(metavar="N/min", help="add: requests a minute")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N/min", help="add: tokens a minute, read and written together")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(metavar="N", help="add: requests at once", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Make, list and revoke the keys of the server.

    As soon as there is a key, a server answers nobody without one, and may listen beyond this machine. A secret is
    shown when it is made, and kept nowhere: what is kept is its hash. Servers that run notice new and revoked keys.
    """
    limits = {"rate": rate, "tokens": tokens, "concurrent": concurrent}
    _check(action, name, [option for option, value in limits.items() if value is not None])
    keys = KeyFile()
    if action == "add":
        secret = keys.add(name or "", rate=_per_minute("rate", rate), tokens=_per_minute("tokens", tokens),
                          concurrent=concurrent)  # fmt: skip
        if as_json:
            show_json({"name": name, "secret": secret})
            return
        say("the key, shown this once; clients send it as Authorization: Bearer KEY, or in LLMASOS_API_KEY:")
        print(secret)
    elif action == "revoke":
        keys.revoke(name or "")
        left = [*keys.current()]
        if as_json:
            show_json({"revoked": name, "left": left})
            return
        say(f"{name} is revoked")
        if not left:
            say("no key is left: a server of this machine alone that is started now needs none")
    else:
        _list([*keys.current().values()], as_json=as_json)


def _check(action: str, name: str | None, given: list[str]) -> None:
    if action not in ACTIONS:
        raise UsageError(
            f"there is no action {action!r}", hint=f"{did_you_mean(action, ACTIONS)}one of {', '.join(ACTIONS)}"
        )
    if given and action != "add":
        raise UsageError(f"--{given[0]} does nothing with keys {action}", hint="leave it out")
    if (name is None) != (action == "list"):
        wanted = "no name" if action == "list" else "a name"
        raise UsageError(f"keys {action} takes {wanted}", hint=f"llmasos keys {action}{'' if name else ' NAME'}")


def _per_minute(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(/min)?", text.strip())
    if found is None or not int(found[1]):
        raise UsageError(f"{option}={text!r} is no number a minute", hint=f"such as --{option} 60/min")
    return int(found[1])


def _list(keys: list[Key], *, as_json: bool) -> None:
    if as_json:
        show_json({"keys": [{name: value for name, value in asdict(key).items() if name != "digest"} for key in keys]})
        return
    if not keys:
        say("no keys")
        return
    head = ("name", "begins", "created", "requests/min", "tokens/min", "at once")
    show_table([head, *((key.name, f"{key.begins}...", key.created, *map(_word, (key.rate, key.tokens, key.concurrent)))
                        for key in keys)], right=(3, 4, 5))  # fmt: skip


def _word(limit: Any) -> str:
    return "any" if limit is None else f"{limit:,}"
