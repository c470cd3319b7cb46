"""What every script needs: plain words, flags, atomic files, metrics, records, checkpoints, seeds."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import secrets
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

BEGAN = time.time()  # nearly when the process did, for what is said of its duration


class InputError(Exception):
    """Something the person at the keyboard can put right: one line with what, which file, what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or what it returns, 2 after an InputError, 130 after Ctrl-C,
    141 where nobody reads on, as `| head` does.

    InputError and what `plain_cause` knows are turned into a line; any other exception is a bug and keeps its
    traceback.
    """
    code = 0
    gc.freeze()  # what imports made is never garbage; a collection in a forked loader worker would copy 90 MB of it
    try:
        code = main() or 0
        sys.stdout.flush()  # now, where a reader that has gone can still be answered
    except BrokenPipeError:  # `... | head` has read enough
        code = 141
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at Python's end
    except (InputError, RuntimeError, MemoryError) as error:
        code = 2
        cause = str(error) if isinstance(error, InputError) else plain_cause(error)
        if cause is None:
            raise
        if first_to_report():
            print(f"error: {printable(cause)}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        if first_to_report():
            print("interrupted", file=sys.stderr)
    finally:
        gc.unfreeze()  # else Python's end leaves it all alone, too, and triton's bindings print what they leaked
    sys.exit(code)


def progress_bar(total: int, what: str, unit: str, done: int = 0, disable: bool = False) -> tqdm:
    """A bar of `total` units: alive in a terminal, a line a minute with the time left in a log file."""
    terminal = sys.stderr.isatty()
    bar = tqdm if terminal else _LoggedBar
    seconds = {} if terminal else {"mininterval": 60, "maxinterval": 60}
    return bar(
        total=total, initial=done, desc=what, unit=unit, leave=False, disable=disable, dynamic_ncols=terminal, **seconds
    )


class _LoggedBar(tqdm):
    """A bar whose every showing is a line of its own; nothing is drawn over, and the empty start is not shown."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        text = str(self) if msg is None else msg
        if text and self.n > self.initial:
            self.fp.write(text + "\n")
            self.fp.flush()
        return True

    def moveto(self, n: int) -> None:
        pass


def duration(seconds: float) -> str:
    """A length of time in rounded words: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def plain_cause(error: Exception) -> str | None:
    """What befell a run from outside, in a line, where an exception tells of that; None for any other.

    torch raises the death of a loader process from a signal handler, wherever the main process happens to be.
    """
    first = next(iter(str(error).splitlines()), "")
    if "DataLoader worker (pid" in first:
        return (
            "a loader process died, most likely killed for lack of memory (or of /dev/shm in a container): use fewer "
            f"--workers or a smaller --batch-size, and go on with --resume ({first.strip()})"
        )
    if world()[1] > 1 and any(words in str(error) for words in PEER_GONE):
        return f"another process of this run has ended, see its own words; go on with --resume ({first[:200]})"
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return f"not enough memory: use a smaller --batch-size or --size, or --accumulate 4 ({first[:200]})"
    return None


# What gloo and NCCL say in the processes that remain, and torch and numpy where memory ends.
PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")

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


# --- command lines -------------------------------------------------------------------------------------


def bounded(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """A type for argparse: an int or float from `low` to `high`, both included."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:  # NaN is in no range
            span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {span}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


class ArgumentParser(argparse.ArgumentParser):
    """A command line whose help fits the terminal and shows every default, and whose errors are InputErrors.

    Prose of the description is wrapped; indented lines, which are commands, are kept.
    """

    def __init__(self, description: str | None = None, epilog: str | None = None, **settings: Any) -> None:
        width = min(110, shutil.get_terminal_size().columns)
        super().__init__(
            description=_fill(description or "", width),
            epilog=_fill(epilog or "", width),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=32 if width > 100 else 24, width=width
            ),
            **settings,
        )
        self.register("action", None, Store)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(flag, re.findall(r"--[\w-]+", self.format_help()), 1, 0.75)
            self.error(f"{flag}: no such flag" + (f", did you mean {close[0]}?" if close else ""))
        return namespace

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; `python {sys.argv[0]} -h` explains all flags")


class _WithDefault(argparse.Action):
    """Help that ends with the default, as it is when the help is printed: a recipe may have changed it."""

    @property
    def help(self) -> str | None:  # type: ignore[override]
        default = self.default
        # What None means is for the help itself to say.
        if self._help is None or default in (None, [], (), argparse.SUPPRESS) or "default:" in self._help:
            return self._help
        if isinstance(default, bool):
            default = "on" if default else "off"
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{self._help} (default: {shown.replace('%', '%%')})"

    @help.setter
    def help(self, text: str | None) -> None:
        self._help = text


class Store(_WithDefault):
    """A flag or argument with a value: argparse's own default action."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.metavar is None and self.choices is None:
            self.metavar = {"int": "N", "float": "X"}.get(getattr(self.type, "__name__", ""))

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)


class Switch(_WithDefault, argparse.BooleanOptionalAction):
    """--flag and --no-flag."""

    def __init__(self, *args: Any, help: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.help = help


def _fill(text: str, width: int) -> str:
    """Wrap paragraphs; a line that begins with a space stays, its comment below it where the width needs it."""
    filled = []
    for is_indented, lines in itertools.groupby(text.strip("\n").splitlines(), lambda line: line[:1] in ("", " ")):
        if not is_indented:
            filled += textwrap.wrap(" ".join(lines), width)
            continue
        for line in lines:
            command, _, comment = line.strip().partition("  ")
            if len(line) <= width:
                filled.append(line)
            else:
                margin = line[: -len(line.lstrip())]
                below = margin + " " * 4
                filled += [margin + command, *textwrap.wrap(below + comment.strip(), width, subsequent_indent=below)]
    return "\n".join(filled)


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


def check_writable(folder: str | os.PathLike) -> None:
    """Before hours of work: make `folder`, and see that files can be written to it."""
    folder = Path(folder)
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
        return True
    return True


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- metrics -------------------------------------------------------------------------------------------


def check_finite(scores: np.ndarray, videos: Sequence[str] | None = None) -> None:
    """Raise InputError for (videos, classes) scores that hold NaN or infinity, naming the first such video.

    Neither can be ranked: every comparison with NaN is false, so a test of "is any class better?" calls it right.
    """
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        first = videos[bad[0]] if videos is not None else f"video number {bad[0] + 1}"
        raise InputError(
            f"the scores of {first} are not finite, nor those of {len(bad) - 1:,} more of {len(scores):,} videos: the "
            "network has most likely diverged; train again, or from an earlier checkpoint, with a lower --lr or with "
            "--clip-grad, and with --amp off if it was fp16"
        )


def ranks(scores: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> np.ndarray:
    """Place of the true class among (videos, classes) scores, (videos,) int: 0 is a correct first guess.

    Between equal scores the lower class index counts as the higher guess, as in argmax, so that constant scores
    earn no more than chance. What is not provably behind the true class counts as before it. Raises InputError for
    scores that aren't finite, with the name that `videos` gives the row.
    """
    check_finite(scores, videos)
    own = np.take_along_axis(scores, labels[:, None], 1)
    later = np.arange(scores.shape[1]) > labels[:, None]
    behind = (scores < own) | ((scores == own) & later)
    return scores.shape[1] - 1 - behind.sum(1)


def accuracy(logits: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> dict[str, float]:
    """Top-1, top-5 and mean-class accuracy in per cent of (videos, classes) scores against (videos,) labels.

    Mean-class accuracy averages over the classes that have videos, as THUMOS and TSN report it. Ties, and scores
    that aren't finite: see `ranks`.
    """
    rank = ranks(logits, labels, videos)
    per_class = [float((rank[labels == c] < 1).mean()) for c in np.unique(labels)]
    return {
        "top1": 100 * float((rank < 1).mean()),
        "top5": 100 * float((rank < 5).mean()),
        "mean_class": 100 * float(np.mean(per_class)),
    }


def mean_logits(clips: np.ndarray) -> np.ndarray:
    """The logits of videos, (..., classes) float32, from those of their clips in time, (..., samples, classes)."""
    return clips.mean(-2, dtype=np.float64).astype(np.float32)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> float:
    """Mean cross-entropy of (videos, classes) logits, in nats. Raises InputError for logits that aren't finite."""
    from scipy.special import log_softmax  # here: scipy takes a moment to import

    check_finite(logits, videos)
    return -float(np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), labels[:, None], 1).mean())


# --- records -------------------------------------------------------------------------------------------

RECORD_COLUMNS = ("Epoch", "Batch Time", "Data Time", "Loss", "Prec@1", "Prec@5", "lr")


def write_record(path: str | os.PathLike, row: Mapping[str, float]) -> None:
    """Put one epoch's row into a record CSV, in place of that epoch's and all later rows.

    An epoch that is done again after a kill therefore stands in the file once.
    """
    import pandas as pd

    rows = [dict(row)]
    if os.path.exists(path):
        try:
            old = pd.read_csv(path)
            rows = old[old["Epoch"] < row["Epoch"]].to_dict("records") + rows
        except (ValueError, KeyError) as error:
            raise InputError(f"{path} is no record of this program ({error}); move it away") from None
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=list(RECORD_COLUMNS)).astype({"Epoch": int}).to_csv(temporary, index=False)


# --- checkpoints ---------------------------------------------------------------------------------------


def save_checkpoint(checkpoint: Mapping[str, Any], *paths: str | os.PathLike) -> None:
    """Write a checkpoint of tensors and plain containers to each path in turn.

    torch's weights-only loader reads it.
    """
    import torch

    buffer = io.BytesIO()  # a full disk then fails in one plain write, not inside torch's zip writer
    torch.save(dict(checkpoint), buffer)
    for path in paths:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def weights_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of a state_dict's tensors: which weights made a prediction."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().numpy()).data)
    return digest.hexdigest()


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

    sequence = np.random.SeedSequence((seed, epoch, batch, world()[0]))
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


def world() -> tuple[int, int]:
    """This process' rank and the number of processes, as torchrun set them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def set_up_device(name: str) -> Any:
    """The torch.device that `--device` names, and the process group when torchrun started this process."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device {name} is no device: use auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this machine, or this torch, has no Metal GPU; use auto or cpu")
    if device.type == "cuda":
        index = device.index if device.index is not None else local
        if index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there is no GPU {index}, this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if world()[1] > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def cpu_count() -> int:
    """Cores this process may use, divided among the processes that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
