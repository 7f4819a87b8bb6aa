"""``llmasos chat`` in a terminal of its own, as a user types; and against a running server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmasos import LLM
from llmasos.cli import main
from llmasos.cli._talk import Talk, _paragraphs
from llmasos.core.errors import RemoteError, UsageError
from tiny import save_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    llm = LLM.from_pretrained("starter-chat")
    return {text: llm.generate([{"role": "user", "content": text}]).text for text in ("Hello", "thanks")}


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.fd, there = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmasos", *words], stdin=there, stdout=there, stderr=there, env=environment,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(there)
        self.text = ""

    def read_until(self, pattern: str, seconds: float = 240) -> str:
        """Return what is shown until a pattern comes; colours and other escapes are left out."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < until, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    more = os.read(self.fd, 1 << 16).decode(errors="replace")
                except OSError:  # the other end is closed
                    more = ""
                assert more, f"it ended without {pattern!r}: {self.text!r}"
                self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", more)
        shown, self.text = self.text[: found.end()], self.text[found.end() :]
        return shown

    def interrupt(self, pattern: str) -> str:
        """Press Ctrl-C until a pattern comes: pressed just before a line is awaited, it is seen with the next key."""
        for _ in range(20):
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                return self.read_until(pattern, 5)
            except AssertionError:
                continue
        raise AssertionError(f"no {pattern!r} in {self.text!r}")

    def say(self, line: str) -> None:
        os.write(self.fd, line.encode() + b"\n")


@contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    made = Terminal(*words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)
        os.close(made.fd)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_talk_in_a_terminal(tmp_path: Path, answers: dict[str, str]) -> None:
    """Answers, commands, a stop and the end, in one session: its start takes longest."""
    file = tmp_path / "talk.json"
    with terminal("chat", "starter-chat") as term:
        term.read_until("/quit leaves")
        term.read_until("> ")
        term.say("Hello")
        assert answers["Hello"] in flat(term.read_until(r"\n\r*> "))
        term.say("/retry")
        assert answers["Hello"] in flat(term.read_until(r"\n\r*> "))
        term.say(f"/save {file}")
        assert "2 messages" in term.read_until(r"messages\s+> ")
        assert json.loads(file.read_text())["messages"] == [*HELLO, {"role": "assistant", "content": answers["Hello"]}]
        term.say("/reset")
        term.read_until(r"reset\s+> ")
        term.say("thanks")
        assert answers["thanks"] in flat(term.read_until(r"\n\r*> "))
        term.say(f"/load {file}")
        assert "2 messages" in term.read_until(r"messages\s+> ")
        term.say("/system You are a toy.")
        term.read_until(r"\nYou are a toy\.\s+> ")
        term.say("/set temperature=2 max_new_tokens=2000")
        assert "temperature=2.0 max_new_tokens=2000" in term.read_until(r"=2000\s+> ")
        term.say("/sing")
        assert "there is no command /sing" in term.read_until(r"lists all\s+> ")
        term.say("/help")
        assert "/save FILE" in term.read_until(r"Ctrl-D does too\s+> ")
        term.interrupt(r"/quit leaves\)\s+> ")
        term.say("/quit")
        assert term.process.wait(60) == 0


def test_ctrl_c_stops_an_answer_and_not_the_program(tmp_path: Path) -> None:
    with terminal("chat", "starter-chat", "--set", "temperature=2", "--set", "max_new_tokens=1900",
                  "--set", "repetition_penalty=5") as term:  # fmt: skip
        for _ in range(5):  # a hot model can end soon by itself
            term.read_until("> ")
            term.say("Tell me all")
            time.sleep(0.3)
            os.killpg(term.process.pid, signal.SIGINT)
            if "(stopped)" in term.read_until(r"\(stopped\)|leaves\)"):
                break
        else:
            pytest.fail("no answer was stopped")
        term.read_until("> ")
        os.write(term.fd, b"\x04")
        assert term.process.wait(60) == 0


def test_questions_come_from_a_pipe(answers: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "llmasos", "chat", "starter-chat"], input="Hello\n\n/reset\nthanks\n",
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines() == [answers["Hello"], answers["thanks"]]


def test_a_talk_as_json(capsys, monkeypatch, answers: dict[str, str]) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", "starter-chat", "--json", "--system", "You are a toy."]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["role"] for one in found["messages"]] == ["system", "user", "assistant"]


def test_a_model_without_a_template_does_not_talk(tmp_path: Path, capsys) -> None:
    save_tiny(tmp_path / "writer", "AutoModelForCausalLM")
    assert main(["chat", str(tmp_path / "writer")]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_somebody_has_to_answer(capsys) -> None:
    assert main(["chat"]) == 2
    assert "--url" in capsys.readouterr().err
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "is it running?" in capsys.readouterr().err


# -- a server -----------------------------------------------------------------------------------------


def test_a_talk_with_a_server(capsys, monkeypatch, answers: dict[str, str]) -> None:
    pytest.importorskip("fastapi")
    import io

    from servers import serving

    with serving({"toy": "starter-chat"}) as server:
        url = str(server.base_url)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/set max_new_tokens=2\n/retry\n/set seed=-1\n"))
        assert main(["chat", "toy", "--url", f"{url}/v1", "--key", "none", "--set", "temperature=0"]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == answers["Hello"]
        assert answers["Hello"].startswith(lines[2])
        assert len(lines[2]) < len(lines[0])
        assert "seed" in err
        assert main(["chat", "tay", "--url", url]) == 2
        assert "did you mean 'toy'?" in capsys.readouterr().err
        monkeypatch.setattr(sys, "stdin", io.StringIO("<|im_end|>\nHello\n"))
        assert main(["chat", "--url", url, "--set", "temperature=0"]) == 0
        out, err = capsys.readouterr()
        assert (out.strip(), "control token" in err) == (answers["Hello"], True)  # what was refused is forgotten


# -- a talk -------------------------------------------------------------------------------------------


class Parrot:
    """Says what was said last, in two pieces, and how often it was asked; fails where told."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked: list[tuple[list[dict[str, str]], dict[str, object]]] = []

    def answer(self, messages, settings):
        self.asked.append(([*messages], settings))
        text = messages[-1]["content"]
        if text == "fail":
            raise RemoteError("gone")
        yield text[:1]
        yield f"{text[1:]} {len(self.asked)}"


def asked(talk: Talk, text: str) -> str:
    return "".join(talk.ask(text))


def test_a_talk_holds_what_was_said() -> None:
    talk = Talk(Parrot(), "Be brief.")
    assert (asked(talk, "Hi"), asked(talk, "So")) == ("Hi 1", "So 2")
    with pytest.raises(RemoteError):
        asked(talk, "fail")
    assert [one["content"] for one in talk.messages] == ["Be brief.", "Hi", "Hi 1", "So", "So 2"]
    assert "".join(talk.again()) == "So 4"
    assert [one["content"] for one in talk.messages] == ["Be brief.", "Hi", "Hi 1", "So", "So 4"]
    pieces = talk.ask("Stop")
    next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": "S"}
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    with pytest.raises(UsageError, match="no question yet"):
        list(talk.again())


def test_settings_are_checked_and_taken_back() -> None:
    talk = Talk(Parrot())
    talk.change(["temperature=0.5", "top-p=0.9"])
    assert talk.settings == {"temperature": 0.5, "top_p": 0.9}
    for wrong in ("temprature=1", "temperature", "temperature=hot", "device=cpu"):
        with pytest.raises(UsageError):
            talk.change([wrong])
    talk.change(["top_p=", "seed=3"])
    assert talk.settings == {"temperature": 0.5, "seed": 3}
    asked(talk, "Hi")
    assert talk.speaker.asked[0][1] == {"temperature": 0.5, "seed": 3}
    talk.change(["seed="])
    asked(talk, "Hi")
    assert talk.speaker.asked[1][1]["seed"] != 3


def test_a_file_is_replaced_only_by_its_like(tmp_path: Path) -> None:
    talk, file = Talk(Parrot(), "Be brief."), tmp_path / "talk.json"
    with pytest.raises(UsageError, match="nothing has been said"):
        talk.save(file)
    asked(talk, "Hi")
    assert talk.save(file) == 3
    asked(talk, "So")
    assert talk.save(file) == 5
    other = Talk(Parrot())
    assert other.load(file) == 5
    assert other.messages == talk.messages
    for content in ("x", "[]", '{"messages": []}', '{"messages": [{"role": "user", "content": "a"}]}',
                    '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "a"}]}',
                    ):  # fmt: skip
        file.write_text(content)
        with pytest.raises(UsageError):
            other.load(file)
        with pytest.raises(UsageError, match="no conversation"):
            talk.save(file)
    assert other.messages == talk.messages
    with pytest.raises(UsageError, match="does not exist"):
        talk.save(tmp_path / "none" / "talk.json")


def test_paragraphs_are_cut_where_they_end() -> None:
    assert _paragraphs("a") == ("", "a")
    assert _paragraphs("a\n\nb") == ("a\n\n", "b")
    assert _paragraphs("a\n\n```\nb\n\nc") == ("a\n\n", "```\nb\n\nc")
    assert _paragraphs("```\nb\n\nc\n```\n\nd") == ("```\nb\n\nc\n```\n\n", "d")
