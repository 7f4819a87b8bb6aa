"""The command line: a table of verbs, each a file that is imported when it is called.

Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 the work failed, 2 bad
usage or bad input, 130 stopped with Ctrl-C. With ``--json`` standard output holds one JSON document,
also when something went wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typer.core import TyperCommand

VERBS = {
    "quickstart": "Fine-tune a small model on sample data, or on yours, in minutes.",
    "doctor": "Show what this machine has, what is used of it and what is missing.",
    "tasks": "List what a model can be tuned for, and the fields of its data.",
    "data": "Show rows as the model sees them, and what of them it learns.",
    "plan": "Tell what a fine-tuning will take, or how a model will run on a device.",
    "finetune": "Tune a pretrained model on your data and save it.",
    "runs": "List, show, compare, plot and remove the runs of this machine.",
    "tune": "Search for the options of a fine-tuning.",
    "verify-resume": "Prove that a training that is killed goes on to the same bits.",
    "parity": "Train a few steps in torch, JAX and TensorFlow, and compare.",
    "evaluate": "Score a saved model on labelled data.",
    "predict": "Get a saved model's answers for texts.",
    "generate": "Let a model write on from a prompt or a conversation.",
    "chat": "Talk with a model in the terminal.",
    "tokenizer": "Learn a tokenizer from texts.",
    "create": "Make a model of random weights, to train from scratch.",
    "merge": "Fold an adapter into its base model, and prove it.",
    "export": "Write a model in another format, and prove that it is the same model.",
    "verify": "Check that a model or an export is what it was where it was made.",
    "serve": "Put models behind HTTP: OpenAI's routes, a route for each task, and more.",
    "new": "Begin a project: an app of your own, from one of the examples.",
    "keys": "Make, list and revoke the keys of the server.",
    "deploy": "Render what puts a model on a machine, a cluster or a cloud, and rehearse it here.",
    "top": "Watch a server: its models, queues and speed.",
    "mcp": "Offer models as tools to assistants that speak the Model Context Protocol.",
    "sign": "Sign a model, and write its bill of materials.",
    "pack": "Write a model as one file or folder that registries of containers take.",
    "push": "Send a model to a registry of containers.",
    "pull": "Get a model from a registry of containers, or out of a pack.",
}
"""The verbs, in the order of ``--help``; ``cli/<verb>.py`` holds its ``run`` and its ``EXAMPLES``."""

_HELP = """\
Usage: llmasos VERB [OPTIONS]

Fine-tune, evaluate and use language models of your own.

Verbs:
{verbs}

Options:
  --help     show this, or a verb's options and examples: llmasos finetune --help
  --version  show the version
  --json     with any verb: one JSON document on standard output
  --debug    with any verb: show the traceback of an error, and the libraries' warnings

Start with:
  llmasos quickstart
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing but ``SystemExit`` ever leaves a terminal in doubt."""
    words = list(sys.argv[1:] if argv is None else argv)
    ours = words[: words.index("--")] if "--" in words else words  # What follows "--" is text, not options.
    as_json, debug = "--json" in ours, "--debug" in ours
    if debug:
        words.remove("--debug")
    try:
        return _dispatch(words, debug=debug)
    except BrokenPipeError:
        return _hang_up()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        from .output import fail

        return fail(error, as_json=as_json)


def _dispatch(words: list[str], *, debug: bool) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items())), end="")
        return 0
    if words[0] in ("--version", "-V"):
        from .. import __version__

        print(f"llmasos {__version__}")
        return 0
    if words[0] not in VERBS:
        from ..core.errors import UsageError, did_you_mean

        what = "option" if words[0].startswith("-") else "verb"
        hint = f"{did_you_mean(words[0], VERBS)}known: {', '.join(VERBS)}"
        raise UsageError(f"there is no {what} {words[0]!r}", hint=hint)
    if not debug:
        _quieten()
    return _call(words[0], words[1:])


def _module(verb: str) -> Any:
    return import_module(f".{verb.replace('-', '_')}", __name__)


def command_of(verb: str) -> TyperCommand:
    """Return a verb's parsed form: its parameters, and what calls it."""
    import typer
    from typer.core import TyperArgument
    from typer.main import get_command

    run = _module(verb).run
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    paragraphs = (" ".join(paragraph.split()) for paragraph in (run.__doc__ or "").split("\n\n"))
    settings: Any = {"help_option_names": ["--help", "-h"]}
    app.command(verb, help="\n\n".join(paragraphs), context_settings=settings)(run)
    command: TyperCommand = get_command(app)  # type: ignore[assignment]
    # Where no word of ours says what a parameter takes, its name does: "<bool>" and "<list[str]>" tell nobody more.
    for parameter in (command.get_help_option(typer.Context(command, **settings)), *command.params):
        if isinstance(parameter, TyperArgument) or not getattr(parameter, "metavar", None):
            setattr(parameter, "display_type_rich", lambda **_: None)  # noqa: B010
    return command


def examples_of(verb: str) -> list[str]:
    """Return a verb's examples, a command line each."""
    return list(_module(verb).EXAMPLES.strip().splitlines())


def _call(verb: str, words: list[str]) -> int:
    """Parse the words for one verb, call it and return its exit code."""
    import typer

    from ..core.errors import UsageError

    command, name = command_of(verb), f"llmasos {verb}"
    task = _asked_task(words)
    if task:
        from .options import narrow

        narrow(command.params, task)
    try:
        with command.make_context(name, list(words), obj=[verb, *words]) as context:
            code = command.invoke(context)
    except typer.Exit as done:  # --help ends so. Examples are copied: nothing here breaks their lines.
        print("Examples:", *examples_of(verb), sep="\n  ")
        code = done.exit_code
    except typer.TyperException as error:
        raise UsageError(
            error.format_message().rstrip("."), hint=f"{name} --help shows options and examples"
        ) from error
    sys.stdout.flush()
    return code or 0


def _asked_task(words: list[str]) -> str | None:
    """Return the task that ``--task`` names, where help is asked for."""
    from ..core import plugins

    if not {"--help", "-h"} & set(words):
        return None
    named = [word for option, word in pairwise(words) if option == "--task"]
    named += [word.partition("=")[2] for word in words if word.startswith("--task=")]
    return next((name for name in named if name in plugins.names("tasks")), None)


def _quieten() -> None:
    """Keep the libraries below from talking on the user's terminal; ``--debug`` lets them."""
    import os
    import warnings

    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _hang_up() -> int:
    """Leave quietly when the reader of our output went away, as ``| head`` does."""
    import os

    # The interpreter flushes standard output once more at exit, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
