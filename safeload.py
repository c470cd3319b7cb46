"""The one place that reads pickles and checkpoints: bytes in, plain objects out, and nothing is ever run.

Pickles are run by plainpickle.py, a machine that cannot call what a file names; its words for tensors are
here. Checkpoints follow torch/serialization.py: `_save` writes today's, `_legacy_save` those before
PyTorch 1.6.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from typing import Any, BinaryIO

import numpy as np
import torch

from plainpickle import NUMPY_NAMES, Machine, Name, Refused, as_key, show
from utils import InputError

MAX_PICKLE_BYTES = 1 << 30  # 25 samples x 10 views of UCF101's test set take 382 MB
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file of PyTorch before 1.6


def load_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of any protocol, of Python 2 or 3, that holds data only.

    Returns containers, strings, numbers and numpy arrays (of booleans and numbers, native byte order).
    What Python 2 called str is read as Latin-1 text.
    Raises InputError for a file that is missing, damaged, too large or wants anything else.
    """
    with _reading(path, "a pickle of plain data") as file:
        if os.fstat(file.fileno()).st_size > MAX_PICKLE_BYTES:
            raise Refused(f"it is larger than {MAX_PICKLE_BYTES >> 20} MB")
        return Machine(file.read(), NUMPY_NAMES).run()


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read what torch.save wrote: a dict of plain containers, strings, numbers and tensors on the CPU.

    Zip files (PyTorch 1.6 and newer) are read by torch's weights-only loader, once the machine has run their
    pickle without data and has found every tensor to lie inside its record. Older files, those written under
    Python 2 included, are read here: torch's loader refuses Python 2's 64-bit ids, which are INT as text.
    Raises InputError for a file that is missing, damaged or wants anything else.
    """
    with _reading(path, "a checkpoint of weights and plain data") as file:
        head = file.read(512)
        file.seek(0)
        if head[:4] == b"PK\x03\x04":
            content = _load_zip(file)
        elif head[:1] == b"\x80":
            content = _load_legacy(file)
        else:
            raise Refused(_what_else(head))
        if not isinstance(content, dict):
            raise Refused(f"it holds a {type(content).__name__} instead of a dict")
        return content


@contextmanager
def _reading(path: str | os.PathLike, wanted: str) -> Iterator[BinaryIO]:
    """Open `path`; turn whatever its content makes go wrong in the block into one line."""
    damage = (
        IndexError, KeyError, TypeError, ValueError, OverflowError, EOFError, RuntimeError, AssertionError,
        NotImplementedError, struct.error, zipfile.BadZipFile,
    )  # fmt: skip
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise Refused("it is empty")
            yield file
            return
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except pickle.UnpicklingError:
        reason = "torch's weights-only loader refuses it"
    except damage as error:
        reason = f"it is damaged ({type(error).__name__})"
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run")


def _what_else(head: bytes) -> str:
    if head.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.9 wrote; save its weights again with a newer one"
    return "torch.save did not write it"


# ---- what the pickle of a checkpoint may name


@dataclass(frozen=True)
class _Storage:
    """The flat memory that tensors are views of; on device meta where only sizes are checked."""

    values: torch.Tensor


def _ordered_dict(machine: Machine, items: Any = ()) -> OrderedDict:
    """OrderedDict() of Python 3, OrderedDict([[key, value], ...]) of Python 2."""
    if type(items) not in (list, tuple) or any(type(item) not in (list, tuple) for item in items):
        raise Refused("its pickle has a dict that is not made of pairs")
    machine.spend(len(items))
    return OrderedDict((as_key(key), value) for key, value in items)


def _counter(machine: Machine, counts: Any) -> Counter:
    """Counter({...}): the milestones of a MultiStepLR."""
    if type(counts) is not dict or any(type(count) is not int for count in counts.values()):
        raise Refused("its pickle has a Counter that does not count")
    machine.spend(len(counts))
    return Counter(counts)


def _size(machine: Machine, sides: Any) -> torch.Size:
    if type(sides) is not tuple or not all(type(side) is int and side.bit_length() < 63 for side in sides):
        raise Refused("it has a size that is not made of integers")
    machine.spend(len(sides))
    return torch.Size(sides)


def _tensor(
    machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *flags_and_hooks: object
) -> torch.Tensor:
    """A view of `storage` that lies inside it and has no more elements than it."""
    if not isinstance(storage, _Storage) or not len(size) == len(stride) <= 16:
        raise Refused("it has a tensor without memory")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *size, *stride)):
        raise Refused("it has a tensor of an impossible shape")
    count = math.prod(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if count else -1
    if offset > storage.values.numel() or max(count, last + 1) > storage.values.numel():
        raise Refused(f"it has a tensor of shape {tuple(size)} in {storage.values.numel()} numbers")
    return storage.values.as_strided(tuple(size), tuple(stride), offset)


def _parameter(machine: Machine, tensor: Any, *flags_and_hooks: object) -> torch.Tensor:
    if type(tensor) is not torch.Tensor:
        raise Refused("it has a parameter without a tensor")
    return tensor


_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NAMES: dict[tuple[str, str], Name] = {
    **NUMPY_NAMES,
    ("collections", "OrderedDict"): Name(_ordered_dict),
    ("collections", "Counter"): Name(_counter),
    ("torch", "Size"): Name(_size),
    ("torch._utils", "_rebuild_tensor"): Name(_tensor),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): Name(_tensor),
    ("torch._utils", "_rebuild_parameter"): Name(_parameter),
    **{(module, name): Name(dtype) for module in ("torch", "torch.cuda") for name, dtype in _DTYPES.items()},
}


def _run(
    data: bytes | mmap, position: int = 0, refer: Callable[[Any], _Storage] | None = None
) -> tuple[Any, int]:
    """The object of the pickle at `position`, and where the pickle ends."""
    machine = Machine(data, _NAMES, position, refer, leaves=(torch.Tensor,))
    return machine.run(), machine.position


def _storages(
    allocate: Callable[[torch.dtype, str, int], torch.Tensor], found: dict[str, torch.Tensor]
) -> Callable[[Any], _Storage]:
    """Answers a pickle's references to storages from `found`; `allocate` makes one on its first mention."""

    def refer(reference: Any) -> _Storage:
        kind, name, key, _, count, *view = reference
        if kind != "storage" or not isinstance(name, Name) or not isinstance(name.value, torch.dtype):
            raise Refused("it holds a whole pickled model; save its state_dict instead")
        if type(key) is not str or type(count) is not int or count < 0:
            raise Refused("it has a storage without name or size")
        if key not in found:
            found[key] = allocate(name.value, key, count)
        values = found[key]
        if values.dtype != name.value or values.numel() != count:
            raise Refused("it has a storage of two kinds")
        if view and view[0] is not None:
            _, offset, length = view[0]
            if not 0 <= offset <= offset + length <= count:
                raise Refused("it has a storage that lies outside another")
            values = values[offset : offset + length]
        return _Storage(values)

    return refer


# ---- the two kinds of file


def _load_zip(file: BinaryIO) -> Any:
    """torch.load, once the checksums, the pickle and every size in it have been found good."""
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, os.fstat(file.fileno()).st_size)
        if "data.pkl" not in records:
            raise Refused("it is a zip archive, but not one of torch.save")
        if archive.testzip() is not None:
            raise Refused("its checksums do not match, so it was damaged on the way")
        program = archive.read(records["data.pkl"])

    def check_size(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        size = records[f"data/{key}"].file_size if f"data/{key}" in records else 0
        if size != count * dtype.itemsize:
            raise Refused(f"it declares {count} numbers where it has {size} bytes")
        return torch.empty(count, dtype=dtype, device="meta")

    _run(program, refer=_storages(check_size, {}))
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols that torch.save does not use by itself
        return torch.load(file, map_location="cpu", weights_only=True)


def _records(archive: zipfile.ZipFile, total: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by their name below its one folder.

    Only what torch.save writes passes: record after record from the first byte on, uncompressed, each name
    once. That leaves nothing that Python's zip reader and torch's own could read differently.
    """
    records: dict[str, zipfile.ZipInfo] = {}
    folders, end = set(), 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        folder, _, name = info.filename.partition("/")
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        plain = info.orig_filename == info.filename and info.filename.isascii() and not info.flag_bits & 1
        if not stored or not plain or name in records:
            raise Refused(f"its record {show(info.orig_filename)} is not as torch.save writes it")
        if info.header_offset < end or (not records and info.header_offset):
            raise Refused("its records overlap, or something stands before them")
        end = info.header_offset + 30 + len(info.filename) + info.file_size
        records[name] = info
        folders.add(folder)
    if len(folders) != 1 or end > total or archive.comment:
        raise Refused("it is a zip archive, but not one of torch.save")
    return records


def _load_legacy(file: BinaryIO) -> Any:
    """Five pickles (magic number, version, system, content, names of the storages), then for each storage its
    count as int64 and its numbers, all little-endian."""
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        found: dict[str, torch.Tensor] = {}
        room = len(data)

        def allocate(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
            nonlocal room
            room -= count * dtype.itemsize
            if room < 0:
                raise Refused(f"it declares a storage of {count} numbers, more than it holds")
            return torch.empty(count, dtype=dtype)

        magic, position = _run(data)
        if magic != MAGIC:
            raise Refused("it is a pickle, but not one of torch.save")
        version, position = _run(data, position)
        system, position = _run(data, position)
        if version != VERSION or system["little_endian"] is not True:
            raise Refused("it comes from a big-endian machine or from another version of torch.save")
        content, position = _run(data, position, _storages(allocate, found))
        keys, position = _run(data, position)
        if sorted(keys) != sorted(found):
            raise Refused("its list of storages is not that of its tensors")
        for key in keys:
            values = found[key]
            start, position = position + 8, position + 8 + values.numel() * values.itemsize
            if position > len(data) or struct.unpack("<q", data[start - 8 : start])[0] != values.numel():
                raise Refused("it ends too early, or has a storage of another length than declared")
            values.view(torch.uint8).numpy()[:] = np.frombuffer(data[start:position], np.uint8)
        return content
