"""What a run looks like: a live bar on a terminal, clean lines elsewhere."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from llmasos.core.events import Evaluated, Finished, Note, Phase, Progress, Saved, Step
from llmasos.progress import duration, render


def step(number: int, steps: int = 100, loss: float = 0.5) -> Step:
    return Step(number, steps, number / steps, loss, 1e-4, 1.0, 32, 210.4, 125.0)


RUN = [
    Note("2 labels found in the data: ham, spam"),
    Phase("tokenize", 2000),
    Progress(1000),
    Progress(2000),
    Phase("train", 3200),
    *(step(i) for i in range(1, 51)),
    Phase("evaluate", 200),
    Progress(200),
    Evaluated(50, 0.5, 0.31, {"accuracy": 0.9123, "mcc": 0.8}, "accuracy", best=True),
    *(step(i) for i in range(51, 101)),
    Note("validation worsens", level="warning"),
    Saved(Path("model")),
    Finished("done", 100, 83.0),
]


STORY = (
    "ham, spam",
    "tokenize: 1,000 of 2,000 rows",
    "epoch 0.5: validation loss 0.3100, accuracy 0.9123, the best so far",
    "warning: validation worsens",
    "saved model",
    "done: 100 steps in 1:23 min",
)


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(events, **options) -> list[str]:
    stream = io.StringIO()
    with render(stream, **options) as draw:
        for event in events:
            draw(event)
    return stream.getvalue().splitlines()


def terminal(events, monkeypatch, **variables: str) -> str:
    """Draw on a real pseudo-terminal and return every byte that it received."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", **variables}.items():
        monkeypatch.setenv(name, value)
    leader, follower = os.openpty()
    received: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(leader, received))
    reader.start()
    with os.fdopen(follower, "w", encoding="utf-8") as stream, render(stream) as draw:
        for event in events:
            draw(event)
    reader.join(timeout=10)
    os.close(leader)
    return b"".join(received).decode()


def _drain(leader: int, into: list[bytes]) -> None:
    try:
        while chunk := os.read(leader, 4096):
            into.append(chunk)
    except OSError:  # Linux reports the closed other end so.
        pass


def test_plain_lines_hold_no_carriage_return_and_no_escape_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = "\n".join(lines(RUN))
    assert "\r" not in text
    assert "\x1b" not in text


def test_plain_lines_tell_the_whole_story():
    text = "\n".join(lines(RUN))
    for part in STORY:
        assert part in text


def test_a_step_line_shows_loss_metric_speed_and_time_left():
    last = [line for line in lines(RUN) if line.startswith("train: step")][-1]
    assert last == "train: step 100/100  epoch 1.00  loss 0.5000  accuracy 0.9123  210 rows/s  2:05 min left"


def test_a_fast_run_gets_a_line_each_twentieth_of_the_way():
    shown = [
        line
        for line in lines([Phase("train"), *(step(i, 1000) for i in range(1, 1001))], clock=Clock())
        if "step" in line
    ]
    assert len(shown) == 20


def test_a_slow_run_gets_lines_by_the_clock_at_growing_distances():
    clock, stream = Clock(), io.StringIO()
    with render(stream, clock=clock) as draw:
        draw(Phase("train"))
        for i in range(1, 36_001):  # Ten hours, a step a second.
            clock.now += 1
            draw(step(i, 10**7))
    assert 20 <= len(stream.getvalue().splitlines()) <= 150


def test_progress_without_a_known_total_is_counted():
    clock = Clock()
    stream = io.StringIO()
    with render(stream, clock=clock) as draw:
        draw(Phase("read"))
        clock.now = 11
        draw(Progress(123456))
    assert stream.getvalue().splitlines() == ["read", "read: 123,456 rows"]


def test_a_terminal_gets_a_live_bar_and_keeps_the_lines(monkeypatch):
    seen = terminal(RUN, monkeypatch)
    assert "\x1b[" in seen
    for part in ("100/100", "210 rows/s", "validation loss 0.3100", "done: 100 steps"):
        assert part in seen


def test_a_terminal_with_no_color_gets_no_colours(monkeypatch):
    import re

    seen = terminal(RUN, monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", seen)
    assert re.search(r"\x1b\[[\d;]*3[0-7]m", terminal(RUN, monkeypatch, NO_COLOR=""))


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, variables):
    seen = terminal(RUN, monkeypatch, **variables)
    assert "\x1b" not in seen
    assert "done: 100 steps" in seen


def test_plain_can_be_asked_for_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with render(stream, plain=True) as draw:
        draw(Note("quiet"))
    assert stream.getvalue() == "quiet\n"


def test_brackets_in_a_note_are_not_taken_for_markup(monkeypatch):
    assert "label [bold] of row 3" in terminal([Note("label [bold] of row 3")], monkeypatch)


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (8.44, "8.4 s"), (59.97, "1:00 min"), (125, "2:05 min"), (3599, "1:00 h"), (11220, "3:07 h"),
])  # fmt: skip
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
