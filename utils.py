"""What every script needs: errors in plain words, atomic files, seeds, processes and devices."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FEW = 2000  # videos, up to which training all of a network is not the best that can be done: the fast way is
BEGAN = time.time()  # nearly when the process did, for what is said of its duration


class InputError(Exception):
    """Something the person at the keyboard can put right: one line with what, which file, what to do."""


def run_main(main: Callable[[], int | None], if_memory_ends: str = "free some, or do less at a time") -> None:
    """Run a script's `main` and exit: 0 or what it returns, 1 after a bug, 2 after an InputError, 130 after Ctrl-C,
    141 where nobody reads on, as `| head` does.

    InputError and what `plain_cause` knows are turned into a line; any other exception is a bug and keeps its
    traceback. However it ends, so do its child processes.
    """
    code = 0
    _prepare_process()
    gc.freeze()  # what imports made is never garbage; a collection in a forked loader worker would copy 90 MB of it
    try:
        code = main() or 0
        sys.stdout.flush()  # now, where a reader that has gone, or a full disk, can still be answered
    except BrokenPipeError:  # `... | head` has read enough
        code = 141
    except Exception as error:
        cause = str(error) if isinstance(error, InputError) else plain_cause(error, if_memory_ends)
        code = 1 if cause is None else 2
        if cause is None:  # not raised again: while an exception lives, so do the loaders in its frames
            traceback.print_exc()
        elif first_to_report():
            print(f"error: {printable(cause)}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        if first_to_report():
            print("interrupted", file=sys.stderr)
    finally:
        gc.unfreeze()  # else Python's end leaves it all alone, too, and triton's bindings print what they leaked
        _end_children()
        try:
            sys.stdout.flush()
        except OSError:  # so that Python's end does not fail at it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _prepare_process() -> None:
    """Output that can be written whatever a terminal encodes, and a home for libraries' caches where there is none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        Path.home()
    except RuntimeError:  # a container's user without an entry in passwd: torch, timm and matplotlib would fail
        home = Path(tempfile.gettempdir(), f"two-stream-home-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            home = Path(tempfile.mkdtemp())
        print(f"note: this user has no home folder; caches of weights and compilers go to {home}", file=sys.stderr)
        os.environ.update(HOME=str(home), USER=os.environ.get("USER", "nobody"))


def _end_children() -> None:
    """Kill what processes are left: loaders' ignore the SIGTERM by which Python's end would stop them, and wait."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing else []
    if not children:
        return
    watch = getattr(signal, "SIGCHLD", None)  # torch's handler would raise at a loader's death
    handler = signal.signal(watch, signal.SIG_DFL) if watch else None
    for child in children:
        child.kill()
        child.join()
    if watch:
        signal.signal(watch, handler)


# What torch, numpy, gloo and NCCL say, and what it means. Peers' words count only where there are peers.
BATCH_NORM = ("Expected more than 1 value per channel when training",)
DEAD_LOADER = ("DataLoader worker (pid",)
NO_SHARED_MEMORY = ("unable to allocate shared memory", "unable to open shared memory", "unable to resize file")
PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


def plain_cause(error: Exception, if_memory_ends: str = "") -> str | None:
    """What befell a run from outside, in a line, where an exception tells of that; None for any other.

    torch raises the death of a loader process from a signal handler, wherever the main process happens to be.
    """
    text = str(error)
    first = next(iter(text.splitlines()), "")[:200]
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC  # of a file that is written to no name is known
        return f"the disk is full ({first}): free some, or write elsewhere" if full else None
    if not isinstance(error, (RuntimeError, MemoryError, ValueError)):
        return None
    memory = f"not enough memory: {if_memory_ends}"
    for words, cause in (
        (BATCH_NORM, "batch norm has one value to average: a larger --batch-size, --segments or --size"),
        (DEAD_LOADER, "a loader process died, most likely killed for lack of memory (or of /dev/shm in a container): "
                      "use fewer --workers or a smaller --batch-size, and go on with --resume"),
        (NO_SHARED_MEMORY, "/dev/shm is too small for what loader processes hand over: give the container more (docker "
                           "run --shm-size 2g), or take --workers 0"),
        (PEER_GONE, "another process of this run has ended, see its own words; go on with --resume"),
        (OUT_OF_MEMORY, memory),
    ):  # fmt: skip
        if any(word in text for word in words) and (words != PEER_GONE or processes() > 1):
            return f"{cause} ({first})"
    return f"{memory} ({first})" if isinstance(error, MemoryError) else None


# Control characters (a terminal acts on them), line separators, overrides of the writing direction, and the halves of
# characters that stand for bytes that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """One line that is safe to show: a name that holds what a terminal would act on shows its escape, `\\x1b`."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def csv_text(value: Any) -> Any:
    """A CSV's cell: text that a spreadsheet would take for a formula gets a `'` in front (OWASP, CSV injection).

    Numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value)


def plural(count: int, noun: str) -> str:
    """A number and its regular noun: `1 video`, `13,320 videos`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


# --- files ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it over `target` when the block ends well.

    A run killed at any moment leaves the old file or the new one, never half of one. The bytes reach the
    disk (fsync) before the rename, so this holds for a power cut as well.
    """
    target = Path(target)
    # The token keeps two hosts apart that write into one shared folder.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; an old file is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_name(path: str | os.PathLike) -> None:
    """Raise InputError for a path that is not UTF-8: no JSON file and no list could name it."""
    try:
        str(Path(path).absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} is not UTF-8 text, as its folders' names are: rename them") from None


def check_writable(folder: str | os.PathLike) -> None:
    """Before hours of work: make `folder`, and see that files can be written to it."""
    folder = Path(folder)
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to a folder {folder}: {error.strerror or error}; choose another") from None


def check_output(folder: str | os.PathLike, needed: int, replaced: Iterable[str | os.PathLike] = ()) -> None:
    """check_writable, and are `needed` bytes free, less what the files to be `replaced` take already?

    Sweeps up what killed runs left in `folder`, half-written; call it where `folder` is owned (engine/owner.py).
    """
    folder = Path(folder)
    check_writable(folder)
    for leaving in folder.glob(".*.tmp"):
        writer = re.fullmatch(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp", leaving.name)  # atomic_path's
        if writer and (int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))):
            leaving.unlink(missing_ok=True)
    needed -= sum(Path(path).stat().st_size for path in replaced if Path(path).is_file())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.2f} GB free, a run needs {needed / 1e9:.2f}: free some, or --output elsewhere"
        )


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; True where that can't be asked."""
    if os.name == "nt":  # there os.kill ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths need not be UTF-8


# --- seeds ---------------------------------------------------------------------------------------------


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed python, numpy and torch. `deterministic` also picks CUDA's reproducible kernels, at some speed."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def seed_step(seed: int, epoch: int, batch: int) -> None:
    """Seed torch for one training step: what it draws (dropout) is a function of these numbers and the rank.

    No generator's state has to be saved then: a run resumed at this step draws the same.
    """
    import torch

    sequence = np.random.SeedSequence((seed, epoch, batch, rank()))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)


# --- processes and devices -----------------------------------------------------------------------------


def first_to_report() -> bool:
    """True for one process only: the first that asks. An error that all ranks meet is then shown once."""
    torch = sys.modules.get("torch")  # an error before torch is imported needs no torch
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        return store.add("two-stream/reported", 1) == 1
    except RuntimeError:  # rank 0, which keeps the store, is gone: it has reported
        return False


def rank() -> int:
    """This process' number, from 0, as torchrun set it."""
    return _from_torchrun("RANK", 0)


def processes() -> int:
    """How many processes do this run together, as torchrun set it; 1 without it."""
    return _from_torchrun("WORLD_SIZE", 1)


def _from_torchrun(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise InputError(f"the environment's {name} is no number: {os.environ[name]}; torchrun sets it") from None


def set_up_device(name: str) -> Any:
    """The torch.device that `--device` names, and the process group when torchrun started this process."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", _from_torchrun("LOCAL_RANK", 0) if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"--device {name} is no device of this machine: use auto, cpu, cuda, cuda:N or mps ({reason})"
        ) from None
    if processes() > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def cpu_count() -> int:
    """Cores this process may use, divided among the processes that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _from_torchrun("LOCAL_WORLD_SIZE", 1))
