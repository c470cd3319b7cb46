"""Run several scripts in sequence, each shown with its command and its time, for run.py and the demo.

They run in this process, so that killing it ends everything and torch is imported only once.
"""

import contextlib
import gc
import os
import runpy
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from utils import printable

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Steps:
    """Runs steps: call it with a title and a command, a script of this project and its arguments."""

    total: int  # number of steps
    folder: Path | None = None  # the commands' working directory; None: the current one
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def __call__(self, title: str, *command: object, passed: tuple[int, ...] = (0,)) -> int:
        """Run one step and return its exit code. Exits with that code if it is not in `passed`."""
        self.done += 1
        words = [str(word) for word in command]
        print("\n" + printable(f"== {self.done}/{self.total} {title}"), flush=True)
        print(printable(f"$ python {shlex.join(words)}"), flush=True)
        start, used = time.monotonic(), sum(os.times()[:4])  # CPU time, with finished child processes
        code = call(words, self.folder)
        if code not in passed:
            again = "" if code == 2 else "; the same command goes on from there"  # 2: bad input
            print(f"stopped at {title!r}{again}", file=sys.stderr)
            sys.exit(code)
        wall, cpu = time.monotonic() - start, sum(os.times()[:4]) - used
        print(f"   {wall:.0f} s ({cpu:.0f} s of CPU), {time.monotonic() - self.began:.0f} s in all", flush=True)
        return code


def call(command: list[str], folder: Path | None = None) -> int:
    """Run a script of this project in `folder`, as `python` would. Returns its exit code."""
    script, before, argv = str(ROOT / command[0]), os.getcwd(), sys.argv
    try:
        os.chdir(folder or before)
        sys.argv = [script, *command[1:]]
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as end:  # raised by utils.run_main
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        with contextlib.suppress(OSError):
            os.chdir(before)
        gc.collect()  # frees the network and loaders before the next step
