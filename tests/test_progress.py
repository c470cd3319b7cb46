"""Progress of long jobs: what a log file gets, and lengths of time in words."""

import io
import re
import sys

from common import progress
from common.progress import Progress, duration


def log_of(monkeypatch, updates: int) -> list[str]:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with Progress(desc="fetch", total=updates) as bar:
        for number in range(updates):
            bar.update()
            if number == 1:
                bar.write("a word", file=sys.stderr)
    text = file.getvalue()
    assert "\r" not in text and "\x1b" not in text
    return text.splitlines()


def test_a_log_file_gets_few_whole_lines(monkeypatch):
    lines = log_of(monkeypatch, 500)  # in far less than a minute
    assert lines[0].startswith("fetch: 0 %") and lines[-1].startswith("fetch: 100 %")
    assert len(lines) == 3 and "a word" in lines
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    lines = [line for line in log_of(monkeypatch, 8) if line != "a word"]
    assert len(lines) > 4
    assert all(re.fullmatch(r"fetch: \d+ %, [\d:]+ gone, [\d:?]+ left", line) for line in lines)


def test_durations():
    expected = {0: "1 s", 40: "40 s", 720: "12 min", 12000: "3 h 20 min", 40000: "11 h", 397440: "4.6 days"}
    assert {seconds: duration(seconds) for seconds in expected} == expected
