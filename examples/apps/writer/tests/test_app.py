"""The studio's prompts, and its way to a real model."""

import json

import pytest
from fastapi.testclient import TestClient

from llmasos.apps.models import models

from app import SEEN, studio


@pytest.fixture(scope="module")
def http():
    toy = models(**{"starter-chat": "starter-chat"})
    with toy as client, TestClient(studio(client), base_url="http://127.0.0.1") as app:
        yield app


def test_a_wish_becomes_messages(http):
    wish = {"kind": "rewrite", "text": "A long day.", "style": "warmer"}
    system, user = http.post("/api/messages", json=wish).json()["messages"]
    assert "so that it is warmer" in system["content"]
    assert user == {"role": "user", "content": "A long day."}


def test_a_long_text_is_continued_from_its_end(http):
    messages = http.post("/api/messages", json={"kind": "continue", "text": "a" * SEEN + "The end"}).json()["messages"]
    assert messages[-1]["content"] == ("a" * SEEN + "The end")[-SEEN:]


def test_an_answer_is_streamed_through_the_app(http):
    messages = http.post("/api/messages", json={"kind": "continue", "text": "Hello"}).json()["messages"]
    asked = {"model": "starter-chat", "messages": messages, "max_tokens": 8, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    assert any(json.loads(line)["choices"][0]["delta"].get("content") for line in lines if json.loads(line)["choices"])


def test_other_routes_of_the_server_are_not_passed_on(http):
    assert http.post("/v1/embeddings", json={"input": "a"}).status_code in (404, 405)


def test_an_unknown_style_is_refused_in_words(http):
    answer = http.post("/api/messages", json={"kind": "rewrite", "text": "A", "style": "pirate"})
    assert answer.status_code == 400
    assert "style" in answer.json()["error"]["message"]
