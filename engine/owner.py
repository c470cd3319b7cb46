"""A lock on a folder or file: two runs would mix their checkpoints, records, predictions or features."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from common.formats import Count, read_json
from utils import InputError, check_writable, is_alive, rank, write_json

PATIENCE = 15.0  # seconds until the loader workers of a killed run notice; until then they hold its lock


class Owner(BaseModel):
    """.owner.json."""

    pid: Count
    host: str
    started: str
    command: str


@contextlib.contextmanager
def owned(folder: str | os.PathLike, file: str = "", flag: str = "--output") -> Iterator[None]:
    """Lock `folder`, or one `file` in it, for the duration of the block. Rank 0 holds the lock for all.

    The lock is the operating system's: it ends with its process, however that ends. Raises InputError, which names
    the owner and the `flag` that chooses another place, if another run holds the lock.
    """
    if rank() > 0:
        yield
        return
    folder = Path(folder)
    check_writable(folder)
    name = f".{file or 'owner'}"
    note, lock = folder / f"{name}.json", FileLock(folder / f"{name}.lock")
    owner = _read(note)
    dead = owner is not None and owner.host == socket.gethostname() and not is_alive(owner.pid)
    try:
        lock.acquire(timeout=PATIENCE if dead else 0)
    except Timeout:
        raise InputError(
            f"{folder / file} belongs to a run that still writes there ({_describe(_read(note))}): wait for its end or "
            f"stop it, or choose another {flag}"
        ) from None
    except (OSError, NotImplementedError) as error:
        print(f"note: no lock on {folder / file} ({error}): see that no other run writes there", file=sys.stderr)
    try:
        command = shlex.join(["python", *sys.argv])
        started = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        own = Owner(pid=os.getpid(), host=socket.gethostname(), started=started, command=command)
        write_json(note, own.model_dump())
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _read(note: Path) -> Owner | None:
    try:
        return read_json(note, Owner, "")
    except InputError:  # the other run is just starting or ending
        return None


def _describe(owner: Owner | None) -> str:
    if not owner:
        return "it has just started or is ending"
    command = textwrap.shorten(owner.command, 200, placeholder=" ...")
    return f"process {owner.pid} on {owner.host} since {owner.started}: {command}"
