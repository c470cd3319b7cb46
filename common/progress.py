"""Progress of a long job: a bar on a terminal; in a log file a line a minute without carriage returns."""

import sys
from typing import Any

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, in a log file


class _Lines:
    """A file-like object for tqdm. It writes whole lines to stderr, without cursor control codes."""

    def write(self, text: str) -> None:
        if text := text.strip(" \r\n\x1b[A"):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


class Progress(tqdm):
    """tqdm on stderr. In a log file it writes whole lines: the share done, elapsed and remaining time."""

    def __init__(self, **settings: Any) -> None:
        if not sys.stderr.isatty():
            settings |= {"file": _Lines(), "mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "ascii": True}
            # A bar that disappears when done (leave=False) leaves nothing in a short job's log, either.
            settings["delay"] = 0 if settings.get("leave", True) else LINE_EVERY
            settings["bar_format"] = "{desc}: {percentage:.0f} %, {elapsed} gone, {remaining} left{postfix}"
        # miniters 0: update by time alone, whether there are few long videos or many short ones.
        super().__init__(**{"dynamic_ncols": sys.stderr.isatty(), "miniters": 0, **settings})


def duration(seconds: float) -> str:
    """Format a duration, rounded: `40 s`, `12 min`, `3 h 20 min`, `4.6 days`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 60)} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def progress_bar(total: int, what: str, unit: str, done: int = 0, disable: bool = False) -> Progress:
    """Return a bar of `total` units that disappears when done; it starts at `done`."""
    return Progress(total=total, initial=done, desc=what, unit=unit, leave=False, disable=disable)
