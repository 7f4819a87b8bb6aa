"""``llmasos chat``: talk with a model in the terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LLMasOSError, UsageError, did_you_mean
from ._talk import Here, Served, Talk, show
from .output import AsJson, say, show_json

EXAMPLES = """
llmasos chat starter-chat
llmasos chat my-model --system "Answer in one sentence." --set temperature=0.7
llmasos chat --url http://127.0.0.1:8000 --key my-key
"""

COMMANDS = {
    "help": "show these commands",
    "reset": "forget the conversation",
    "system [TEXT]": "tell the model what it is; without a text, show what it was told",
    "set [NAME=VALUE ...]": "write otherwise: temperature=0.7 top_p=0.9; without a value, as it was",
    "retry": "answer the last question again",
    "save FILE": "write the conversation as JSON, which finetune reads",
    "load FILE": "go on with a conversation that was saved",
    "quit": "leave; Ctrl-D does too",
}


def run(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="a Hub name, a folder, or pkg:NAME")] = None,
    *,
    url: Annotated[str | None, typer.Option(metavar="URL", help="a running server that knows MODEL")] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="the server's API key; others can see it here", envvar="LLMASOS_API_KEY"),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="what the model is told about itself")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="how answers are written: temperature=0.7")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Talk with a model in the terminal: one here, or one of a running server.

    Answers come as they are written; Ctrl-C stops one. The whole conversation goes with each question. Commands begin
    with a slash: /help lists them. Where standard input is no terminal, each of its lines is a question.
    """
    if model is None and url is None:
        raise UsageError("there is nobody to talk with", hint="name a model, or give --url")
    talk = Talk(Served(url, key, model) if url else Here(str(model)), system)
    talk.change(settings or [])
    if as_json:
        show_json({"model": talk.speaker.name, "messages": _asked(talk)})
        return
    say(f"{talk.speaker.name}: /help lists commands, Ctrl-C stops an answer, /quit leaves")
    _converse(talk)


def _asked(talk: Talk) -> list[dict[str, str]]:
    """Ask the lines of standard input; return the whole conversation."""
    for line in sys.stdin:
        if line.strip():
            "".join(talk.ask(line.strip()))
    return talk.messages


def _converse(talk: Talk) -> None:
    """Read lines, and answer them, until the user leaves."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # Windows has its own
            import readline  # noqa: F401  its import gives input() a history and arrow keys
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            if typed:
                print()
            return
        except KeyboardInterrupt:
            print("\n(/quit leaves)")
            continue
        try:
            if line.startswith("/"):
                if _commanded(talk, line[1:]):
                    return
            elif line:
                show(talk.ask(line))
        except KeyboardInterrupt:
            print("(stopped)")
        except LLMasOSError as error:
            say(f"error: {error}")


def _commanded(talk: Talk, line: str) -> bool:
    """Do what a command says; return whether the user leaves."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "help":
        width = max(map(len, COMMANDS))
        print("\n".join(f"/{usage:<{width}}  {doc}" for usage, doc in COMMANDS.items()))
    elif name == "reset":
        talk.reset()
    elif name == "system":
        if rest:
            talk.system = rest
        print(talk.system or "(nothing)")
    elif name == "set":
        talk.change(rest.split())
        print(" ".join(f"{key}={value}" for key, value in talk.settings.items()) or "(nothing is set)")
    elif name == "retry":
        show(talk.again())
    elif name in ("save", "load"):
        print(f"{(talk.save if name == 'save' else talk.load)(_path(name, rest))} messages")
    elif name not in ("quit", "exit"):
        known = [usage.split()[0] for usage in COMMANDS]
        raise UsageError(f"there is no command /{name}", hint=f"{did_you_mean(name, known)}/help lists all")
    return name in ("quit", "exit")


def _path(name: str, rest: str) -> Path:
    if not rest:
        raise UsageError(f"/{name} needs a file", hint=f"/{name} talk.json")
    return Path(rest).expanduser()
