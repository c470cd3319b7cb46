"""Several scripts one behind the other, each shown with its command and its time: run.py's and the demo's."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Step = tuple[str, list[str]]  # what it makes, and its command: a script of this project and its arguments


def run_steps(steps: Sequence[Step], folder: Path | None = None) -> int:
    """Run the commands in `folder`, showing each; returns the exit code of the first that fails, else 0."""
    began = time.monotonic()
    for number, (title, command) in enumerate(steps, 1):
        print(f"\n== {number}/{len(steps)} {title}\n$ python {shlex.join(command)}", flush=True)
        start = time.monotonic()
        code = call([sys.executable, str(ROOT / command[0]), *command[1:]], folder)
        if code:
            print(f"stopped at {title!r}; the same command goes on from there", file=sys.stderr)
            return code
        print(f"   {time.monotonic() - start:.0f} s, {time.monotonic() - began:.0f} s in all", flush=True)
    return 0


def call(command: list[str], folder: Path | None = None) -> int:
    """Run a command. Ctrl-C is the command's to handle; this waits for it."""
    process = subprocess.Popen(command, cwd=folder)
    old = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        code = process.wait()
        return code if code >= 0 else 128 - code  # ended by a signal
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
