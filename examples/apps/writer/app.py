"""A writing studio: a text is continued or rewritten, in several variants side by side, while you watch.

    python examples/apps/writer/app.py

Without a network starter-chat writes, a toy. A server of yours, or any that speaks OpenAI's protocol, replaces it:

    LLMASOS_URL=https://models.example.com LLMASOS_API_KEY=... python examples/apps/writer/app.py

The prompts are made here; the page streams the answers by way of this app, which keeps the key.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from llmasos import LLMasOSError
from llmasos.apps import Prompt
from llmasos.apps.models import models
from llmasos.apps.web import page, run
from llmasos.client import Client

HERE = Path(__file__).resolve().parent
Style = Literal["shorter", "plainer", "warmer", "more formal"]
CONTINUE = Prompt(
    "Continue the text of the user. Keep its language, its voice and its tense. Write what comes next and nothing "
    "else: no title, no comment, none of what is there already."
)
REWRITE = Prompt(
    "Rewrite the text of the user so that it is {style}. Keep its language and all that it says. Write the new text "
    "and nothing else.",
    style=Style,
)
SEEN = 4000
"""Characters before the end that a text is continued from."""


class Wish(BaseModel):
    kind: Literal["continue", "rewrite"]
    text: str = Field(min_length=1, max_length=20_000)
    style: Style = "plainer"


def studio(client: Client) -> FastAPI:
    """Return the app: its page, the route of the prompts, and what is passed on to the models."""
    app = page(HERE / "page", client, relays=["models", "chat/completions"])

    @app.post("/api/messages")
    def messages(wish: Wish) -> dict[str, Any]:
        if wish.kind == "continue":
            return {"messages": CONTINUE.messages(wish.text[-SEEN:])}
        return {"messages": REWRITE.messages(wish.text, style=wish.style)}

    return app


def main() -> None:
    """Start the models, where LLMASOS_URL names none, and the app."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--port", type=int, default=8012, help="0 takes a free one")
    port = words.parse_args().port
    with models(**{"starter-chat": "starter-chat"}) as client:
        run(studio(client), port=port, started=lambda url: print(f"writing studio: {url}", flush=True))


if __name__ == "__main__":
    try:
        main()
    except LLMasOSError as error:
        sys.exit(f"error: {error}")
