"""How far a long job is: a bar on a terminal, in a log file a line a minute, without carriage returns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, in a log file


class Progress(tqdm):
    """tqdm on stderr, which in a log file writes whole lines: how much is done, how fast, how much time is left."""

    def __init__(self, **settings: Any) -> None:
        self.in_log = not sys.stderr.isatty()
        if self.in_log:
            settings |= {"mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "delay": 0, "ascii": True}
            settings["bar_format"] = "{desc}: {percentage:.0f} %, {elapsed} gone, {remaining} left{postfix}"
        # no miniters: a few long videos, or many short ones, are shown by the clock alone
        super().__init__(**{"dynamic_ncols": not self.in_log, "miniters": 0, **settings})

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if file.isatty():
            return tqdm.status_printer(file)

        def line(text: str) -> None:
            if text.strip():
                print(text.strip(), file=file, flush=True)

        return line

    def clear(self, nolock: bool = False) -> None:
        if not self.in_log:
            super().clear(nolock)

    def say(self, text: str) -> None:
        """A line of its own, beside the bar."""
        if self.in_log or self.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self.write(text, file=sys.stderr)
