"""A run's folder or file: locked, because two runs would mix what they write, and with room for it."""

import contextlib
import itertools
import os
import re
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from utils import InputError, check_output, check_writable, is_alive, rank

PATIENCE = 15.0  # seconds until the loader workers of a killed run notice; until then they hold its lock


@contextlib.contextmanager
def owned(folder: str | os.PathLike, file: str = "", flag: str = "--output") -> Iterator[None]:
    """Lock `folder`, or one `file` in it, for the duration of the block. Rank 0 holds the lock for all.

    The lock is the operating system's: it ends with its process, however that ends. A note beside it names the
    owner. Raises InputError with this note, and the `flag` that chooses another place, if another run holds it.
    """
    if rank() > 0:
        yield
        return
    folder = Path(folder)
    check_writable(folder)
    name = f".{file or 'owner'}"
    note, lock = folder / f"{name}.txt", FileLock(folder / f"{name}.lock")
    host = socket.gethostname()
    owner = re.match(r"process (\d+) on (.+) since ", _read(note))
    dead = owner is not None and owner[2] == host and not is_alive(int(owner[1]))
    try:
        lock.acquire(timeout=PATIENCE if dead else 0)
    except Timeout:
        said = textwrap.shorten(_read(note), 300, placeholder=" ...") or "it has just started or is ending"
        remedy = f"wait for its end or stop it, or choose another {flag}"
        raise InputError(f"{folder / file} belongs to a run that still writes there ({said}): {remedy}") from None
    except (OSError, NotImplementedError) as error:
        print(f"note: no lock on {folder / file} ({error}): see that no other run writes there", file=sys.stderr)
    try:
        since = f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(['python', *sys.argv])}"
        note.write_text(f"process {os.getpid()} on {host} since {since}", "utf-8", "surrogateescape")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def make_room(folder: Path, needed: int, resumed: Path | None, names: Sequence[str]) -> None:
    """Check for `needed` bytes, and rename another training's files in case --resume was forgotten.

    `resumed` is the checkpoint that this training continues; `names` are of the files that it replaces, the
    last checkpoint's at last, as it says that there is a training. Raises InputError if the disk is full.
    """
    own = [folder / name for name in names]
    goes_on = resumed is not None and resumed.resolve() in [path.resolve() for path in own]
    check_output(folder, needed, replaced=own if goes_on else ())
    if goes_on or not own[-1].is_file():
        return
    free = (f"old{number}_" for number in itertools.count(1))
    prefix = next(prefix for prefix in free if not (folder / f"{prefix}{names[-1]}").exists())
    for path in filter(Path.is_file, own):
        path.replace(folder / f"{prefix}{path.name}")
    print(f"{folder} held another training: its files are now {folder}/{prefix}*", flush=True)


def _read(note: Path) -> str:
    try:
        return note.read_text("utf-8", "surrogateescape")
    except OSError:  # there is no owner, or it is just starting or ending
        return ""
