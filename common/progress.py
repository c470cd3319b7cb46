"""How far a long job is: a bar on a terminal, in a log file a line a minute, without carriage returns."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, in a log file


class _Lines:
    """What tqdm takes for a file: on stderr it writes whole lines, without what moves a terminal's cursor."""

    def write(self, text: str) -> None:
        if text := text.strip(" \r\n\x1b[A"):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


class Progress(tqdm):
    """tqdm on stderr, which in a log file writes whole lines: how much is done, how fast, how much time is left."""

    def __init__(self, **settings: Any) -> None:
        if not sys.stderr.isatty():
            settings |= {"file": _Lines(), "mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "ascii": True}
            # a bar that goes when it is done leaves nothing in a log, either, unless it takes long
            settings["delay"] = 0 if settings.get("leave", True) else LINE_EVERY
            settings["bar_format"] = "{desc}: {percentage:.0f} %, {elapsed} gone, {remaining} left{postfix}"
        # no miniters: a few long videos, or many short ones, are shown by the clock alone
        super().__init__(**{"dynamic_ncols": sys.stderr.isatty(), "miniters": 0, **settings})

    def say(self, text: str) -> None:
        """A line of its own, beside the bar."""
        self.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """A length of time in rounded words: `40 s`, `12 min`, `3 h 20 min`, `4.6 days`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{round(minutes / 60)} h"
    return f"{minutes / 60 / 24:.1f} days"


def progress_bar(total: int, what: str, unit: str, done: int = 0, disable: bool = False) -> Progress:
    """A bar of `total` units that goes when it is done; `done` of them were there before."""
    return Progress(total=total, initial=done, desc=what, unit=unit, leave=False, disable=disable)
