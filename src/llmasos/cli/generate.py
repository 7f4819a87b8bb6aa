"""``llmasos generate``: let a model write on from prompts, as it comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.config import GenerateConfig
from ..core.errors import UsageError
from .options import config_flags, with_flags
from .output import AsJson, say, show_json

EXAMPLES = """
llmasos generate my-model "Once upon a time" --max-new-tokens 40
llmasos generate my-model --chat "How do I reset my password?" --temperature 0.7 --top-p 0.9
llmasos generate my-model "The parcel as JSON:" --json-schema parcel.schema.json
"""


@with_flags(*config_flags(GenerateConfig))
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a Hub name, a folder, or pkg:NAME")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="texts to write on from")] = None,
    *,
    chat: Annotated[bool, typer.Option("--chat", help="prompts are messages of a user, for the chat template")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="with --chat: what the model is told")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="end the answer before this; may be repeated"),
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="JSON schema that the answer must obey")
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Let a model write on from prompts: a text that it continues, or with --chat a question.

    Prompts come as arguments, or one from standard input. A single answer is written as it comes.
    """
    GenerateConfig.of(options)
    if system is not None and not chat:
        raise UsageError("--system is given without --chat", hint="add --chat")
    schema = _schema(json_schema)
    texts = prompts or [_typed()]
    from ..llm import LLM

    say(f"loading {model}")
    llm = LLM.from_pretrained(model)
    asked = [_messages(text, system) for text in texts] if chat else texts
    if len(texts) == 1 and not as_json and options.get("num_beams") in (None, 1, "1"):
        for piece in llm.generate(asked[0], stream=True, stop=stop or (), json_schema=schema, **options):
            print(piece, end="", flush=True)
        print()
        return
    answers = llm.generate(asked, stop=stop or (), json_schema=schema, **options)
    if as_json:
        show_json({"model": model, "answers": [{"prompt": t, **a.as_dict()} for t, a in zip(texts, answers)]})
        return
    for answer in answers:
        print(json.dumps(answer.text, ensure_ascii=False) if len(answers) > 1 else answer.text)


def _typed() -> str:
    if sys.stdin.isatty():
        say("type a prompt and Enter; end with Ctrl-D")
    text = sys.stdin.read().rstrip("\n")
    if not text:
        raise UsageError("there is no prompt", hint="give one as an argument or on standard input")
    return text


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def _schema(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="--json-schema takes a file") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="--json-schema takes a JSON schema") from error
