"""Mutate pickles and checkpoints, good and hostile, and read them: each must be read or refused in one line.

    python tests/fuzz_loaders.py --inputs 100000

Fails (exit code 1, with the input kept) if a reader crashes, takes more than a minute or 1 GB, raises anything but
InputError, or does anything that Python's audit events show (sys.addaudithook) beyond opening its own file: running
a command, importing a module, compiling code, opening another file, a socket.
"""

from __future__ import annotations

import argparse
import codecs
import faulthandler
import io
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import hostile_files
import numpy as np
import python2_files
import torch

from common.commandline import ArgumentParser
from saved.safe import load_checkpoint, load_pickle
from utils import InputError, run_main

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
FRAGMENTS = (
    b"cos\nsystem\n", b"c__builtin__\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n", b"U\x07storage", b"X\x01\x00\x00\x000",
    b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"ctorch\nSize\n", b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
)  # fmt: skip
INSTRUCTIONS = b"(.012FIJKLMNQRSTUVX]abcdeghijlpqrstu}\x81\x85\x86\x87\x8a\x8f\x90\x93\x94\x96"
ALLOWED_EVENTS = {  # pickle.find_class tells what is asked for, not what is given
    "open", "mmap.__new__", "object.__getattr__", "object.__setattr__", "sys._getframe", "marshal.loads", "builtins.id",
    "pickle.find_class", "sys.excepthook",  # CPython prints a line where a bytearray is cut off
}  # fmt: skip


def good_files() -> tuple[list[bytes], list[bytes]]:
    """Small pickles of predictions, and small checkpoints, of every kind that the readers know."""
    generator = np.random.default_rng(0)
    arrays = {f"Class_g01_c0{i}": generator.normal(size=(2, 5)).astype("f4") for i in range(3)}
    mixed = {**arrays, "d": np.arange(3.0)[::-1], "n": np.float64(2), "l": [1, 2**40, None, (True, "é", b"\xff")]}
    pickles = [pickle.dumps(content, protocol) for content in (arrays, mixed) for protocol in range(6)]
    pickles += [python2_files.predictions(arrays, protocol) for protocol in (0, 2)]

    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2, 2, 2)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoints = []
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        checkpoints.append(out.getvalue())
    weights = {name: python2_files.Tensor(array) for name, array in arrays.items()}
    state = {140_000_000_000_000: {"momentum_buffer": weights["Class_g01_c00"]}}
    checkpoints.append(python2_files.checkpoint({"state_dict": weights, "epoch": 3, "optimizer": {"state": state}}))
    return pickles, checkpoints


def hostile(command: str) -> tuple[list[bytes], list[bytes]]:
    programs = [*hostile_files.running(command).values(), *hostile_files.refused().values()]
    programs += [program for program in hostile_files.bombs().values() if len(program) < 20_000]
    checkpoints = [data for data in hostile_files.bad_checkpoints().values() if len(data) < 20_000]
    return programs, checkpoints + [hostile_files.zip_checkpoint(program) for program in programs[:10]]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with one to eight changes: of bytes, of numbers, of pieces, of instructions."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8))):
        at, length = rng.randrange(len(out) + 1), rng.randrange(1, 17)
        match rng.randrange(9):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                number = rng.choice(NUMBERS) - rng.randrange(2)
                size = rng.choice((1, 2, 4, 8))
                out[at : at + size] = struct.pack("<q" if number < 0 else "<Q", number)[:size]
            case 3:
                del out[at : at + length]
            case 4:
                piece = out[at : at + rng.choice((1, 4, 32, 200))]
                out[at:at] = piece * rng.choice((1, 2, 50))
            case 5:
                out[at:at] = rng.choice(FRAGMENTS)
            case 6:
                out[at:at] = bytes(rng.choices(INSTRUCTIONS, k=3))
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                out[at : at + length] = other[start : start + rng.choice((8, 64, 1000))]
            case 8 if rng.random() < 0.2:
                del out[at:]
    return bytes(out[:200_000])


def mutate_checkpoint(data: bytes, others: list[bytes], programs: list[bytes], rng: random.Random) -> bytes:
    """A zip file is mostly changed inside and zipped again, or its checksums would refuse nearly everything."""
    if not data.startswith(b"PK") or rng.random() < 0.3:
        return mutate(data, others, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return mutate(data, others, rng)
    name = "data.pkl" if rng.random() < 0.8 and "data.pkl" in records else rng.choice(list(records) or ["data.pkl"])
    records[name] = mutate(records.get(name, b""), programs, rng)
    if rng.random() < 0.05:
        records[f"data/{rng.randrange(3)}"] = bytes(rng.randrange(100))
    return hostile_files.zip_file(records)


def watch_for_actions(seen: Counter) -> None:
    """Count every audit event while a reader runs that a reader has no business with."""

    def hook(event: str, arguments: tuple) -> None:
        if not seen["armed"]:
            return
        if event not in ALLOWED_EVENTS:
            seen[f"{event} {arguments!r:.100}"] += 1
        elif event == "open" and (seen["path"] != str(arguments[0]) or "r" not in str(arguments[1] or "r")):
            seen[f"open {arguments!r:.100}"] += 1

    sys.addaudithook(hook)


def limit_memory(extra: int) -> None:
    """Let this process take only `extra` bytes more, where the system can do that."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
    except (ImportError, OSError, ValueError):
        print("memory is not limited on this system")


def peak_memory() -> int:
    """Most bytes that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(inputs: int, seed: int, folder: Path) -> int:
    """Read `inputs` mutated files; the one being read stays in `folder` if this process dies."""
    rng = random.Random(seed)
    sentinel = folder / "sentinel"
    good_pickles, good_checkpoints = good_files()
    bad_pickles, bad_checkpoints = hostile(f"echo x > {sentinel.as_posix()}")
    pickles, checkpoints = good_pickles + bad_pickles, good_checkpoints + bad_checkpoints
    path = folder / "input"
    counts: Counter[str] = Counter()
    seen: Any = Counter()  # counts, and what is watched for
    slowest = 0.0
    for codec in ("unicode_escape", "raw-unicode-escape", "cp437"):  # imported on first use, as parts of torch are
        codecs.lookup(codec)
    for data in good_checkpoints:
        path.write_bytes(data)
        load_checkpoint(path)
    watch_for_actions(seen)
    limit_memory(1 << 30)
    before, started = peak_memory(), time.monotonic()
    for number in range(inputs):
        if number % 2:
            read, base = load_pickle, rng.choice(good_pickles if rng.random() < 0.6 else bad_pickles)
            data = mutate(base, pickles, rng)
        else:
            read, base = load_checkpoint, rng.choice(good_checkpoints if rng.random() < 0.6 else bad_checkpoints)
            data = mutate_checkpoint(base, checkpoints, pickles, rng)
        path.write_bytes(data)
        faulthandler.dump_traceback_later(60, exit=True)
        begun = time.perf_counter()
        seen["path"], seen["armed"] = str(path), 1
        problem = None
        try:
            read(path)
            outcome = "read"
        except InputError as error:
            outcome = "refused"
            message = str(error)
            if not message.isprintable() or len(message) > 600:
                problem = f"message: {message!r}"
        except BaseException:
            outcome, problem = "raised", traceback.format_exc()
        seen["armed"] = 0
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.perf_counter() - begun)
        actions = [event for event in seen if event not in ("armed", "path")]
        if actions or sentinel.exists():
            problem = f"it did something: {actions or 'the sentinel is there'}"
        if problem:
            print(f"input {number} of seed {seed}, {read.__name__}: {problem}")
            return 1
        counts[f"{read.__name__} {outcome}"] += 1
    seconds = time.monotonic() - started
    print(f"the process took {peak_memory() - before >> 20} MB more at its peak than before the first file")
    print(f"{inputs} inputs in {seconds:.0f} s, seed {seed}: nothing but data and refusals; slowest {slowest:.2f} s")
    for name, count in sorted(counts.items()):
        print(f"  {name:26} {count}")
    return 0


def main() -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many files to read")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the worker's
    args = parser.parse_args()
    if args.folder:
        return fuzz(args.inputs, args.seed, args.folder)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--inputs", str(args.inputs), "--seed", str(args.seed), "--folder", name]
        code = subprocess.run(command).returncode
        if code:
            kept = Path("fuzz_failure.bin").resolve()
            kept.write_bytes(Path(name, "input").read_bytes())
            print(f"failed with exit code {code}; the input is kept in {kept}")
    return 1 if code else 0


if __name__ == "__main__":
    run_main(main)
