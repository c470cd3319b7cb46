"""Progress of long jobs: what a log file gets, and lengths of time in words."""

import io
import re
import sys

import pytest

from data import progress
from data.progress import Progress
from utils import duration


def log_of(monkeypatch, updates: int) -> list[str]:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with Progress(desc="fetch", total=updates) as bar:
        for number in range(updates):
            bar.update()
            if number == 1:
                bar.say("a word")
    text = file.getvalue()
    assert "\r" not in text and "\x1b" not in text
    return text.splitlines()


def test_a_log_file_gets_few_whole_lines(monkeypatch):
    lines = log_of(monkeypatch, 500)  # in far less than a minute
    assert lines[0].startswith("fetch: 0 %") and lines[-1].startswith("fetch: 100 %")
    assert len(lines) == 3 and "a word" in lines


def test_a_line_says_how_much_time_is_left(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    lines = [line for line in log_of(monkeypatch, 8) if line != "a word"]
    assert len(lines) > 4
    assert all(re.fullmatch(r"fetch: \d+ %, [\d:]+ gone, [\d:?]+ left", line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (40, "40 s"), (720, "12 min"), (12000, "3 h 20 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
