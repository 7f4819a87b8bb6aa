"""The desk with its real search; the classifier, which takes a minute to tune, is left out."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from llmasos.apps.models import models
from llmasos.client import Classification

import app
from app import MEANINGS, desk, entries
from handing_over import reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def client():
    with models(meanings=MEANINGS) as client:
        yield client


@pytest.fixture(scope="module")
def http(client, folder):
    return TestClient(desk(client, folder, intents={}), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("where is my parcel", "Where is my parcel?"),
        ("I cannot remember my password", "I forgot my password. How do I get in?"),
        ("can I put the glass pot in the dishwasher", "Can the teapots go into the dishwasher?"),
        ("忘记密码了怎么登录", "忘记密码怎么登录？"),
        ("水壶漏水了", "水壶漏水或有水垢怎么办？"),
    ],
)
def test_a_question_is_answered_with_the_entry_that_says_so(http, message, title):
    answer = http.post("/api/ask", json={"message": message}).json()
    assert answer["citation"]["title"] == title
    assert answer["ticket"] is None
    entry = next(one for one in http.get("/api/faq").json() if one["id"] == answer["citation"]["id"])
    assert answer["answer"] == entry["text"]


def test_what_the_faq_does_not_hold_becomes_a_ticket(http, folder):
    answer = http.post("/api/ask", json={"message": "Who won the chess championship?"}).json()
    assert answer["answer"] is None
    ticket = json.loads((folder / "tickets.jsonl").read_text().splitlines()[-1])
    assert ticket["number"] == answer["ticket"]["number"]
    assert ticket["message"] == "Who won the chess championship?"


def test_an_entry_that_was_taken_out_is_not_found_any_more(client, tmp_path, monkeypatch):
    desk(client, tmp_path, intents={})
    fewer = {language: [one for one in entries(language) if "password" not in one.title] for language in ("en", "zh")}
    monkeypatch.setattr(app, "entries", fewer.__getitem__)
    later = TestClient(desk(client, tmp_path, intents={}), base_url="http://127.0.0.1")
    answer = later.post("/api/ask", json={"message": "I cannot remember my password"}).json()
    assert answer["citation"] is None or "password" not in answer["citation"]["title"]


def test_tickets_are_counted(http):
    answers = [http.post("/api/ask", json={"message": "a human, please"}).json() for _ in range(2)]
    assert answers[1]["ticket"]["number"] == answers[0]["ticket"]["number"] + 1


def intent(label: str, score: float) -> Classification:
    return Classification(label, score, {label: score})


@pytest.mark.parametrize(
    ("message", "found", "has_answer", "told"),
    [
        ("Where is it?", intent("delivery", 0.9), True, None),
        ("Let me talk to a human", intent("delivery", 0.9), True, "You asked for a person."),
        ("This is unacceptable", intent("delivery", 0.9), True, "We have let you down; a person should answer that."),
        ("Where is it?", intent("delivery", 0.2), True, "We are not certain what you need."),
        ("End my contract", intent("cancellation", 0.9), True, "A colleague has to carry this out."),
        ("Where is it?", intent("delivery", 0.9), False, "The answer is not in our questions and answers."),
    ],
)
def test_a_person_takes_over_where_one_must(message, found, has_answer, told):
    assert reason(message, found, has_answer, "en") == told


def test_an_empty_message_is_refused_in_words(http):
    answer = http.post("/api/ask", json={"message": ""})
    assert answer.status_code == 400
    assert "message" in answer.json()["error"]["message"]
