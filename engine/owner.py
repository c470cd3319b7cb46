"""One run at a time in an output folder: two in one would mix their checkpoints, records and predictions."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils import InputError, check_writable, is_alive, rank, write_json

PATIENCE = 15.0  # seconds that the loader workers of a killed run may take to notice; until then they hold its lock


@contextlib.contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Keep `folder` to this run while the block lasts; of several processes rank 0 does so for all.

    The lock is the operating system's, so it ends with its process, however that ends. Raises InputError, naming
    the owner, where another run has the folder.
    """
    if rank() > 0:
        yield
        return
    folder = Path(folder)
    check_writable(folder)
    note, lock = folder / ".owner.json", FileLock(folder / ".owner.lock")
    owner = _read(note)
    dead = owner.get("host") == socket.gethostname() and not is_alive(owner.get("pid", 0))
    try:
        lock.acquire(timeout=PATIENCE if dead else 0)
    except Timeout:
        raise InputError(
            f"{folder} belongs to a run that still writes there ({_describe(_read(note))}): wait for its end or stop "
            "it, or choose another --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        print(f"note: no lock on {folder} ({error}): see that no other run writes there", file=sys.stderr)
    try:
        started = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        command = shlex.join(["python", *sys.argv])
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": command})
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _read(note: Path) -> dict:
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it starts or ends at this moment
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict) -> str:
    if not owner:
        return "it has just started or is ending"
    command = textwrap.shorten(str(owner.get("command")), 200, placeholder=" ...")
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('started')}: {command}"
