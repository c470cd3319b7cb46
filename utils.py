"""Shared by all scripts: plain error messages, atomic files, seeds, processes and devices."""

import contextlib
import errno
import gc
import hashlib
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

BEGAN = time.time()  # approximate start of the process, to report its duration


class InputError(Exception):
    """An error that the user can fix. One line says what is wrong, in which file, and what to do."""


def run_main(main: Callable[[], int | None], if_memory_ends: str = "free some, or do less at a time") -> None:
    """Run a script's `main` and exit with its return value or 0.

    An InputError, or an error that `plain_cause` explains, is printed as one line: exit code 2. Any other
    exception is a bug and keeps its traceback: 1. After Ctrl-C it is 130, and 141 if nobody reads the output
    any more (`| head`). All child processes are ended in every case.
    """
    code, said = 0, ""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed by `>&-`
        stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack letters
        setattr(sys, name, stream)
    try:
        Path.home()
    except RuntimeError:  # a container's user without a passwd entry: torch, timm and matplotlib would fail
        os.environ.update(HOME=tempfile.mkdtemp(), USER=os.environ.get("USER", "nobody"))
        print(f"note: this user has no home folder; this run's caches go to {os.environ['HOME']}", file=sys.stderr)
    gc.freeze()  # else a collection in a forked loader worker would copy 90 MB of imported objects
    try:
        code = main() or 0
        sys.stdout.flush()  # now, while a closed pipe or a full disk can still be handled
    except BrokenPipeError:  # `... | head` has read enough
        code = 141
    except Exception as error:
        cause = str(error) if isinstance(error, InputError) else plain_cause(error, if_memory_ends)
        code = 1 if cause is None else 2
        if cause is None:  # not re-raised: a live exception keeps the loaders in its frames alive
            traceback.print_exc()
        else:
            said = f"error: {printable(cause)}"
    except KeyboardInterrupt:
        code, said = 130, "interrupted"
    finally:
        if said and first_to_report():
            print(said, file=sys.stderr)
        gc.unfreeze()  # else Python doesn't collect these objects at exit, and triton's bindings report leaks
        end_children()
        try:
            sys.stdout.flush()
        except OSError:  # keeps Python's own flush at exit from failing again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def end_children() -> None:
    """Kill the remaining child processes. Loader workers ignore the SIGTERM that Python sends at exit."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing else []
    if children and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise when a loader dies
    for child in children:
        child.kill()
        child.join()


NO_MEMORY = "not enough memory"
# Phrases in the messages of torch, numpy, gloo and NCCL, and what they mean.
CAUSES = {
    ("Expected more than 1 value per channel when training",):
        "batch norm has one value to average: a larger --batch-size, --segments or --size",
    ("DataLoader worker (pid",): "a loader process died, most likely killed for lack of memory (or of /dev/shm in a "
        "container): use fewer --workers or a smaller --batch-size, and go on with --resume",
    ("unable to allocate shared memory", "unable to open shared memory", "unable to resize file"):
        "/dev/shm is too small for what loader processes hand over: give the container more (docker run --shm-size "
        "2g), or take --workers 0",
    ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"):
        "another process of this run has ended, see its own words; go on with --resume",
    ("out of memory", "can't allocate memory", "Unable to allocate"): NO_MEMORY,
}  # fmt: skip


def plain_cause(error: Exception, if_memory_ends: str = "") -> str | None:
    """Explain a known failure (full disk, out of memory, dead loader, lost peer) in one line; else None.

    When a loader process dies, torch raises from a signal handler, wherever the main process happens to be.
    """
    first = str(error).partition("\n")[0][:200]
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC  # a failed write doesn't tell the file's name
        return f"the disk is full ({first}): free some, or write elsewhere" if full else None
    if not isinstance(error, (RuntimeError, MemoryError, ValueError)):
        return None
    known = (cause for phrases, cause in CAUSES.items() if any(phrase in str(error) for phrase in phrases))
    cause = next(known, NO_MEMORY if isinstance(error, MemoryError) else None)
    remedy = f": {if_memory_ends}" if cause == NO_MEMORY else ""
    return f"{cause}{remedy} ({first})" if cause else None


def printable(text: str) -> str:
    """Return `text` as one line that is safe to print: control characters become escapes, as `\\x1b`."""
    # Control characters (a terminal acts on them), line separators, overrides of the writing direction, and the
    # surrogates that stand for bytes that are not UTF-8.
    unsafe = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(unsafe, lambda match: match[0].encode("unicode_escape").decode(), text)


def csv_text(value: Any) -> Any:
    """Return `value` for a CSV cell: text that a spreadsheet would run gets a `'` (OWASP, CSV injection)."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value)


def plural(count: int, noun: str) -> str:
    """Format a count with its regular noun: `1 video`, `13,320 videos`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def file_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes. It is read in blocks: a film may be larger than the memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` if the block succeeds.

    A run killed at any moment leaves the old file or the new one, never a partial one. The bytes are synced
    to disk (fsync) before the rename, so this also holds for a power cut.
    """
    target = Path(target)
    # The token distinguishes two hosts that write into one shared folder.
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
    """Raise InputError if a path is not UTF-8: JSON files and lists could not contain it."""
    try:
        str(Path(path).absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} is not UTF-8 text, as its folders' names are: rename them") from None


def check_writable(folder: str | os.PathLike) -> None:
    """Create `folder` and raise InputError if it is not writable, before hours of work."""
    folder = Path(folder)
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to a folder {folder}: {error.strerror or error}; choose another") from None


def check_output(folder: str | os.PathLike, needed: int, replaced: Iterable[str | os.PathLike] = ()) -> None:
    """Run check_writable; raise InputError if `needed` bytes, less the size of files `replaced`, aren't free.

    It also deletes partial files of killed runs: call it while holding the folder's lock (engine/owner.py).
    """
    folder = Path(folder)
    check_writable(folder)
    for leaving in folder.glob(".*.tmp"):
        writer = re.fullmatch(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp", leaving.name)  # a name that atomic_path makes
        if writer and (int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))):
            leaving.unlink(missing_ok=True)
    needed -= sum(Path(path).stat().st_size for path in replaced if Path(path).is_file())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder} has {free / 1e9:.2f} GB free, a run needs {needed / 1e9:.2f}: free some, or "
                         "--output elsewhere")  # fmt: skip


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine; True if that can't be determined."""
    try:
        if os.name != "nt":  # on Windows os.kill would end the process
            os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths need not be UTF-8


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch. `deterministic` also selects CUDA's reproducible, slower kernels."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def seed_step(seed: int, epoch: int, batch: int) -> None:
    """Seed torch for one training step, so that its random draws (dropout) depend only on these and the rank.

    A run resumed at this step draws the same numbers, and no generator state has to be saved.
    """
    import torch

    sequence = np.random.SeedSequence((seed, epoch, batch, rank()))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)


def first_to_report() -> bool:
    """True only for the first process that calls it, so that an error on all ranks is shown once."""
    torch = sys.modules.get("torch")  # not imported here: an early error needs no torch
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        return store.add("two-stream/reported", 1) == 1
    except RuntimeError:  # rank 0, which hosts the store, has ended and has reported
        return False


def rank() -> int:
    """The rank that torchrun assigned to this process; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """The number of processes in this run, set by torchrun; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def set_up_device(name: str) -> Any:
    """Return the torch.device for `--device`. Under torchrun, also initialise the process group."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            own = int(os.environ.get("LOCAL_RANK", 0))
            device = torch.device("cuda", own if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:200]
        known = "use auto, cpu, cuda, cuda:N or mps"
        raise InputError(f"--device {name} is no device of this machine: {known} ({reason})") from None
    if processes() > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def amp_dtype(choice: str, device: Any) -> Any:
    """Return the torch.dtype for `--amp` on this torch.device. auto is bfloat16 only if the hardware computes in it."""
    import torch

    if choice != "auto":
        return {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    hardware = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # also true where it is emulated
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        hardware = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if hardware else torch.float32


def cpu_count() -> int:
    """The cores that this process may use, divided among torchrun's processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
