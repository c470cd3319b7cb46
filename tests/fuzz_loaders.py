"""Mutate pickles and checkpoints, good and hostile, and read them: each must be read or refused in one line.

    python tests/fuzz_loaders.py 100000
    python tests/fuzz_loaders.py 300 FOLDER    # reads the files in FOLDER, too; the last line is JSON of refusals

Fails (exit code 1) if a reader raises anything but InputError, or does anything that Python's audit events show
(sys.addaudithook) beyond opening its own file: running a command, importing a module, opening another file, a socket.
"""

import codecs
import contextlib
import io
import json
import pickle
import random
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hostile_files
import numpy as np
import python2_files
import torch

from saved.safe import load_checkpoint, load_pickle
from utils import InputError

INSTRUCTIONS = b"(.012FIJKLMNQRSTUVX]abcdeghijlpqrstu}\x81\x85\x86\x87\x8a\x8f\x90\x93\x94\x96"
ALLOWED_EVENTS = {  # pickle.find_class tells what is asked for, not what is given
    "open", "mmap.__new__", "object.__getattr__", "object.__setattr__", "sys._getframe", "marshal.loads", "builtins.id",
    "pickle.find_class", "sys.excepthook",  # CPython prints a line where a bytearray is cut off
}  # fmt: skip


def files(command: str) -> tuple[list[bytes], list[bytes]]:
    """Small pickles and checkpoints of every kind that the readers know, and hostile ones that run `command`."""
    arrays = {f"Class_g01_c0{i}": np.arange(10, dtype="f4").reshape(2, 5) for i in range(3)}
    mixed = {**arrays, "d": np.arange(3.0)[::-1], "n": np.float64(2), "l": [1, 2**40, None, (True, "é", b"\xff")]}
    pickles = [pickle.dumps(mixed, protocol) for protocol in range(6)] + [python2_files.predictions(arrays, 2)]
    pickles += [*hostile_files.running(command).values(), *hostile_files.refused().values()]
    content = {"epoch": 3, "state_dict": torch.nn.BatchNorm2d(4).state_dict()}
    checkpoints = [data for data in hostile_files.bad_checkpoints().values() if len(data) < 20_000]
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        checkpoints += 20 * [out.getvalue()]
    weights = {name: python2_files.Tensor(array) for name, array in arrays.items()}
    checkpoints += 20 * [python2_files.checkpoint({"state_dict": weights, "epoch": 3})]
    return pickles, checkpoints


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with one to three changes: of bytes, pieces or instructions."""
    out = bytearray(data[:200_000])
    for _ in range(rng.randrange(1, 4)):
        at, length, other = rng.randrange(len(out) + 1), rng.randrange(1, 17), rng.choice(others)
        start = rng.randrange(len(other) + 1)
        piece = rng.choice((b"", rng.randbytes(length), bytes(rng.choices(INSTRUCTIONS, k=3)),
                            other[start : start + 64], bytes(out[at : at + 32]) * 20))  # fmt: skip
        out[at : at + rng.choice((0, 1, length))] = piece
    return bytes(out)


def mutate_checkpoint(data: bytes, others: list[bytes], programs: list[bytes], rng: random.Random) -> bytes:
    """A zip file is mostly changed inside and zipped again, or its checksums would refuse nearly everything."""
    records: dict[str, bytes] = {}
    with contextlib.suppress(zipfile.BadZipFile, EOFError), zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    if not records or rng.random() < 0.3:
        return mutate(data, others, rng)
    name = rng.choice(["data.pkl", *records])
    records[name] = mutate(records.get(name, b""), programs, rng)
    return hostile_files.zip_file(records)


def main(inputs: int, folder: Path, more: list[Path]) -> None:
    rng, path, sentinel = random.Random(0), folder / "input", folder / "sentinel"
    pickles, checkpoints = files(f"echo x > {sentinel.as_posix()}")
    counts: Counter[str] = Counter()
    for codec in ("latin-1", "unicode_escape", "raw-unicode-escape", "cp437"):  # imported on first use
        codecs.lookup(codec)
    for data in checkpoints[-60::20]:
        path.write_bytes(data)
        load_checkpoint(path)
    seen: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        own = str(arguments[0]) == str(reading) and "r" in str(arguments[1] or "r") if event == "open" else True
        if reading and (event not in ALLOWED_EVENTS or not own):
            seen.append(f"{event} {arguments!r:.100}")

    def refusal(file: Path, read: Callable) -> str | None:
        """Return why a file is refused, None if it is read. Ends the program if anything else happens."""
        nonlocal reading
        reading, said = file, None
        try:
            read(file)
        except InputError as error:
            said = str(error)
            if not said.isprintable() or len(said) > 600:
                seen.append(f"said {said!r}")
        finally:  # anything else is a crash, with its traceback
            reading = None
        if seen or sentinel.exists():
            sys.exit(f"{file}, {read.__name__}: {seen or 'the sentinel is there'}")
        counts[f"{read.__name__} {'refused' if said else 'read'}"] += 1
        return said

    reading: Path | None = None
    sys.addaudithook(hook)
    try:  # what declares more memory than there is must be refused, too
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    except (ImportError, OSError):
        print("memory is not limited on this system")
    said = {file.name: refusal(file, load_pickle if file.suffix == ".pickle" else load_checkpoint) for file in more}
    counts.clear()
    for number in range(inputs):
        if number % 2:
            path.write_bytes(mutate_checkpoint(rng.choice(checkpoints), checkpoints, pickles, rng))
        else:
            path.write_bytes(mutate(rng.choice(pickles), pickles, rng))
        refusal(path, (load_pickle, load_checkpoint)[number % 2])
    print(f"{inputs} inputs: nothing but data and refusals, {dict(counts)}")
    if more:
        print(json.dumps(said))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(int(sys.argv[1]), Path(name), sorted(Path(sys.argv[2]).iterdir()) if sys.argv[2:] else [])
