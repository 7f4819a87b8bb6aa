"""A real server on a real port, in a thread of the test's own process."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from llmasos import LLM
from llmasos.core.config import ServeConfig
from llmasos.serving.desk import Desk, Shelf
from llmasos.serving.guard import Guard

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The starter's template, with tools as Hermes and Qwen have them."""


def with_tools(folder: Path) -> Path:
    """Write the starter with tools in its template; return its folder."""
    import llmasos

    shutil.copytree(Path(llmasos.__file__).parent / "starters" / "starter-chat", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@contextmanager
def serving(models: Mapping[str, str | Path], **options: Any) -> Iterator[httpx2.Client]:
    """Serve models until the block ends; yield a client of the server, its ``base_url`` the address."""
    import uvicorn

    from llmasos.serving.app import application

    told = {"precision": "float32", "speed": "auto", "device": "cpu", "threads": 1}
    shelves = {
        name: Shelf(name, partial(LLM.from_pretrained(str(ref))._parts, told), 1) for name, ref in models.items()
    }
    desk = Desk(shelves, ServeConfig.of({"port": 0, "memory": "4GB", **options}))
    server = uvicorn.Server(uvicorn.Config(application(desk, Guard(), version="0.0.0"), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            client.desk = desk  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)
