"""What every script needs: plain errors, atomic files, seeds, records, checkpoints, prediction files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class InputError(Exception):
    """Something the person at the keyboard can put right: one line with what, which file, what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or what it returns, 2 after an InputError, 130 after Ctrl-C.

    Only InputError is turned into a line; any other exception is a bug and keeps its traceback.
    """
    try:
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it over `target` when the block ends well.

    A run killed at any moment leaves the old file or the new one, never half of one. The bytes reach the
    disk (fsync) before the rename, so this holds for a power cut as well.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; the old file is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)
