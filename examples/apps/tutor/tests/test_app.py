"""The tutor with its real search."""

import pytest
from fastapi.testclient import TestClient

from llmasos.apps.models import models
from llmasos.errors import DataError

from app import HERE, MEANINGS, tutor
from lesson import SENTENCE, read
from quiz import gaps


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory):
    with models(meanings=MEANINGS) as client:
        yield TestClient(tutor(client, tmp_path_factory.mktemp("tutor")), base_url="http://127.0.0.1")


def asked(http, text: dict[str, str], question: str) -> list[dict[str, str]]:
    found = http.post("/api/ask", json={"text": text["id"], "question": question})
    assert found.status_code == 200, found.text
    for place in found.json():
        assert text["text"][place["start"] : place["end"]] == place["text"]
    return found.json()


@pytest.mark.parametrize(
    ("lesson", "question", "words"),
    [
        ("bread", "At what temperature does yeast die?", "above 55 degrees it dies"),
        ("bread", "Why does the crust turn brown?", "crust becomes brown when the surface reaches 140 degrees"),
        ("moon.zh", "月球离地球有多远？", "三十八万四千公里"),
        ("moon.zh", "谁拍下了月球背面的照片？", "月球三号"),
    ],
)
def test_the_answer_is_a_sentence_of_the_text(http, lesson, question, words):
    text = http.post(f"/api/lessons/{lesson}").json()
    assert any(words in " ".join(place["text"].split()) for place in asked(http, text, question)[:2])


def test_what_the_text_does_not_say_has_no_answer(http):
    assert asked(http, http.post("/api/lessons/bread").json(), "Who is the president of France?") == []


def test_a_pasted_text_is_read_with_its_places(http):
    text = http.post("/api/texts", json={"text": "🍞 Ada baked bread. 🥐 Ben baked croissants in Lyon."}).json()
    assert asked(http, text, "Where did Ben bake?")[0]["text"].startswith("🥐 Ben baked")


def test_a_file_is_read_by_its_kind(http):
    headers = {"content-type": "application/octet-stream"}
    text = http.post("/api/files?name=tea.md", content=b"# Tea\n\nTea is grown in Assam.", headers=headers).json()
    assert text["title"] == "Tea"
    assert asked(http, text, "Where is tea grown?")[0]["text"] == "Tea is grown in Assam."
    broken = http.post("/api/files?name=tea.pdf", content=b"%PDF-1.4 no", headers=headers)
    assert broken.status_code == 400
    assert broken.json()["error"]["message"].startswith("tea.pdf cannot be read")


def test_files_are_read_and_what_cannot_be_read_is_told():
    text, _ = read("notes.html", b"<h1>Notes</h1><p>Tea is hot.</p><script>x()</script>")
    assert "Tea is hot." in text
    assert "x()" not in text
    with pytest.raises(DataError, match=r"broken\.pdf cannot be read"):
        read("broken.pdf", b"%PDF-1.4 no")


def test_questions_back_leave_out_a_word_of_the_sentence():
    text = (HERE / "texts" / "bread.md").read_text(encoding="utf-8")
    found = gaps(text, [one.span() for one in SENTENCE.finditer(text)])
    assert len(found) > 10
    for gap in found:
        assert f"{gap.before}{gap.word}{gap.after}" == " ".join(text[gap.start : gap.end].split())


def test_questions_back_go_round(http):
    text = http.post("/api/lessons/moon.zh").json()
    words = [http.post("/api/quiz", json={"text": text["id"], "number": at}).json()["word"] for at in range(40)]
    assert len(set(words)) > 5
    assert words[0] in words[1:]


def test_a_text_that_is_not_open_is_told(http):
    answer = http.post("/api/ask", json={"text": "none", "question": "Who?"})
    assert answer.status_code == 400
    assert "not open any more" in answer.json()["error"]["message"]
