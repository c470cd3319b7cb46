"""What torch.save wrote: today's zip files, and those of PyTorch before 1.6, Python 2's included.

The formats are those of torch/serialization.py: `_save` writes zip files, `_legacy_save` wrote the others.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from typing import Any, BinaryIO

import numpy as np
import torch

from saved.plainpickle import PLAIN_NAMES, Name, Refused, Unpickler, show

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file of PyTorch before 1.6


@dataclass(frozen=True)
class _Storage:
    """The flat memory that tensors are views of."""

    values: torch.Tensor


def _size(machine: Unpickler, sides: Any) -> torch.Size:
    if type(sides) is not tuple or not all(type(side) is int and side.bit_length() < 63 for side in sides):
        raise Refused("it has a size that is not made of integers")
    machine.spend(len(sides))
    return torch.Size(sides)


def _tensor(
    machine: Unpickler, storage: Any, offset: Any, size: Any, stride: Any, *flags_and_hooks: object
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
    return storage.values.as_strided(tuple(size), tuple(stride), storage.values.storage_offset() + offset)


def _parameter(machine: Unpickler, tensor: Any, *flags_and_hooks: object) -> torch.Tensor:
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
    **PLAIN_NAMES,
    ("torch", "Size"): Name(_size),
    ("torch._utils", "_rebuild_tensor"): Name(_tensor),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): Name(_tensor),
    ("torch._utils", "_rebuild_parameter"): Name(_parameter),
    **{(module, name): Name(dtype) for module in ("torch", "torch.cuda") for name, dtype in _DTYPES.items()},
}


def _load(file: BinaryIO | mmap, size: int, refer: Callable[[Any], _Storage] | None = None) -> Any:
    return Unpickler(file, size, _NAMES, refer, leaves=(torch.Tensor,)).load()


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


def load_zip(file: BinaryIO) -> Any:
    """A folder of records: the pickle data.pkl, and data/KEY for each storage, the numbers and nothing else."""
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, os.fstat(file.fileno()).st_size)
        if "data.pkl" not in records or "constants.pkl" in records:  # TorchScript's
            raise Refused("it is a zip archive, but not one of torch.save")
        if archive.testzip() is not None:
            raise Refused("its checksums do not match, so it was damaged on the way")
        if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
            raise Refused("it comes from a big-endian machine")

        def read(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
            size = records[f"data/{key}"].file_size if f"data/{key}" in records else 0
            if size != count * dtype.itemsize:
                raise Refused(f"it declares {count} numbers where it has {size} bytes")
            values = torch.empty(count, dtype=dtype)
            values.view(torch.uint8).numpy()[:] = np.frombuffer(archive.read(records[f"data/{key}"]), np.uint8)
            return values

        program = archive.read(records["data.pkl"])
        return _load(io.BytesIO(program), len(program), _storages(read, {}))


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


def load_legacy(file: BinaryIO) -> Any:
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

        size = len(data)
        magic = _load(data, size)
        if magic != MAGIC:
            raise Refused("it is a pickle, but not one of torch.save")
        version, system = _load(data, size), _load(data, size)
        if version != VERSION or system["little_endian"] is not True:
            raise Refused("it comes from a big-endian machine or from another version of torch.save")
        content = _load(data, size, _storages(allocate, found))
        keys, position = _load(data, size), data.tell()
        if sorted(keys) != sorted(found):
            raise Refused("its list of storages is not that of its tensors")
        for key in keys:
            values = found[key]
            start, position = position + 8, position + 8 + values.numel() * values.itemsize
            if position > len(data) or struct.unpack("<q", data[start - 8 : start])[0] != values.numel():
                raise Refused("it ends too early, or has a storage of another length than declared")
            values.view(torch.uint8).numpy()[:] = np.frombuffer(data[start:position], np.uint8)
        return content
