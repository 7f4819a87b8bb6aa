"""``llmasos new app``: a project of your own that begins as one of the example apps."""

from __future__ import annotations

from typing import Annotated

import typer

from ..apps.scaffold import new_app
from ..core.errors import UsageError
from .output import AsJson, show_json

EXAMPLES = """
llmasos new app my-shop --template support
llmasos new app my-lessons --template tutor
llmasos new app my-words --template writer
"""


def run(
    what: Annotated[str, typer.Argument(metavar="app", help="what to make: app")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the project, and of the folder that is made for it")],
    *,
    template: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="support: answers customers; tutor: answers questions about a text; writer: writes on and rewrites",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Begin a project: a small app that runs, with its pages, its own tests and a README.

    It runs on models that need no network; change its texts, its page and its models as you like.
    """
    if what != "app":
        raise UsageError(f"there is no {what!r} to make", hint="llmasos new app NAME --template support")
    path = new_app(name, template)
    commands = [f"cd {name}", "python app.py", "python -m pytest"]
    if as_json:
        show_json({"output": str(path), "template": template, "next": commands})
        return
    print(f"project: {path}\nnext:")
    print("\n".join(f"  {command}" for command in commands))
