"""The only reader of pickles, arrays and checkpoints: it returns plain data and executes nothing in a file.

A pickle is a program that calls the functions it names. Python's own pickle.Unpickler reads it here with a
find_class that knows only the functions in `names`, which are this project's. A checkpoint is a pickle beside
the bytes of its tensors, which are read here as well. docs/safe_loading.md states the guarantees.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import numpy as np

from common.formats import parse_json
from utils import InputError

MAX_PICKLE_BYTES = 1 << 30  # 25 samples x 10 views of UCF101's test set take 382 MB
SAFETENSORS_KEY = "two-stream"  # our key in the metadata of .safetensors files
MAX_DEPTH = 64  # of nested containers
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")  # dtypes
_STORAGES = {  # torch's storage classes by dtype
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip


class Refused(Exception):
    """A file is rejected. The message is a clause that completes "PATH is not ...: "."""


def show(value: object) -> str:
    """Format a value from a file for a terminal line. Containers can be huge, so only their type is shown."""
    if not isinstance(value, (str, bytes)):
        return f"a {type(value).__name__}"
    text = ascii(value[:60])
    return text[1:-1] if isinstance(value, str) else text


# --- files ---------------------------------------------------------------------------------------------


def load_pickle(path: str | os.PathLike) -> Any:
    """Read a data-only pickle of any protocol, from Python 2 or 3.

    Returns containers, strings, numbers and numpy arrays (of booleans and numbers, native byte order).
    Python 2's str is read as Latin-1 text.
    Raises InputError if the file is missing, damaged, too large or asks for anything but data.
    """
    with _reading(path, "a pickle of plain data") as file:
        _check_size(_size(file), MAX_PICKLE_BYTES)
        return _plain(_Unpickler(file).load())


def load_arrays(path: str | os.PathLike, only: str | None = None) -> Any:
    """Read a .npy file, or a .npz file as a dict of its arrays (or of `only` one).

    Arrays hold numbers, strings or fields of these. An object array is read as `load_pickle` reads a pickle,
    and returned as a list, or as a list of lists if it has two dimensions. Raises InputError if the file is
    missing, damaged, too large or asks for anything but data.
    """
    with _reading(path, "a file of numpy arrays") as file:
        limit = max(MAX_PICKLE_BYTES, _size(file))  # a large dataset's features exceed MAX_PICKLE_BYTES
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _load_array(file, _size(file))
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(f"{only or ''}.npy")]
            _check_size(sum(member.file_size for member in members), limit)
            arrays = {}
            for member in members:
                with archive.open(member) as part:
                    arrays[member.filename.removesuffix(".npy")] = _load_array(part, member.file_size)
            return arrays


def _load_array(file: IO[bytes], size: int) -> Any:
    form = np.lib.format
    old = form.read_magic(file) == (1, 0)
    shape, _, dtype = form.read_array_header_1_0(file) if old else form.read_array_header_2_0(file)
    if dtype.kind == "O":
        _check_size(size, MAX_PICKLE_BYTES)
        return _plain(_Unpickler(file).load())
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise Refused("it declares more than it holds")
    file.seek(0)
    return form.read_array(file, allow_pickle=False)


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a file of torch.save or a .safetensors file: a dict of plain data and tensors on the CPU.

    Files from PyTorch before 1.6 can be read, including those written by Python 2. The tensors own their
    memory. Raises InputError if the file is missing, damaged or asks for anything but data.
    """
    with _reading(path, "a checkpoint of weights and plain data") as file:
        head = file.read(9)
        file.seek(0)
        if str(path).endswith(".safetensors") or head[8:] == b"{":
            return _load_safetensors(path)
        content = _plain(_load_zip(file) if head.startswith(b"PK\x03\x04") else _load_legacy(file))
        if not isinstance(content, dict):
            raise Refused(f"it holds a {type(content).__name__} instead of a dict")
        return content


def check_weights(state: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise InputError for weights that hold NaN or infinity."""
    for name, value in state.items():
        if not value.isfinite().all():
            why = "its training diverged; take an earlier checkpoint"
            raise InputError(f"{path}: {name} holds NaN or infinity: {why}")


@contextmanager
def _reading(path: str | os.PathLike, wanted: str) -> Iterator[IO[bytes]]:
    """Open `path`. Turn any error that its content causes in the block into a one-line InputError."""
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip().lower()
            if not head:
                raise Refused("it is empty")
            if head.startswith((b"<!doctype", b"<html")):
                raise Refused("it is a web page; download the file itself")
            if head.startswith(b"version https://git-lfs"):
                raise Refused("it is a Git LFS pointer; fetch the file itself with `git lfs pull`")
            file.seek(0)
            yield file
            return
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # a program of arbitrary bytes can fail in any way
        reason = f"it is damaged or of another kind ({type(error).__name__})"
    raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Refused(f"it takes more than {limit >> 20} MB")


# --- checkpoints ---------------------------------------------------------------------------------------


def _load_zip(file: IO[bytes]) -> Any:
    """Read data.pkl and the tensors' records beside it. zipfile compares the checksum of what it reads."""
    import torch

    with zipfile.ZipFile(file) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise Refused("its records are not as torch.save writes them")
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = name.removesuffix("/data.pkl")
        if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
            raise Refused("its numbers are in another byte order")

        def read(key: Any, dtype: Any, count: int) -> Any:
            data = bytearray(archive.read(f"{folder}/data/{key}"))
            return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

        with archive.open(name) as program:
            return _TorchUnpickler(program, read).load()


def _load_legacy(file: IO[bytes]) -> Any:
    """Read a file from PyTorch before 1.6: five pickles, then each storage's count and numbers."""
    import torch

    for _ in ("magic number", "version", "sizes of types"):
        _Unpickler(file).load()
    unpickler = _TorchUnpickler(file, lambda _key, dtype, count: torch.empty(count, dtype=dtype))
    content, keys = unpickler.load(), _Unpickler(file).load()
    for key in keys:
        storage = unpickler.storages.pop(key)
        data = bytearray(file.read(8 + storage.nbytes))
        if data[:8] != struct.pack("<q", len(storage)) or len(data) != 8 + storage.nbytes:
            raise Refused("it declares more numbers than it holds")
        if len(storage):
            storage.copy_(torch.frombuffer(data, dtype=storage.dtype, offset=8))
    if unpickler.storages:
        raise Refused("it lacks the numbers of a tensor")
    return content


def _load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Return a checkpoint's content: tensors and description from our files, else only tensors by name."""
    library = safetensors_library()
    try:
        with library.safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            text = (file.metadata() or {}).get(SAFETENSORS_KEY)
    except library.SafetensorError:
        raise Refused("it is a damaged safetensors file, get it again") from None
    if text is None:
        return state
    about = parse_json(text, dict[str, Any], path, "get it again")
    # The file has no optimizer state; when training resumes from it, engine.training reports that.
    return {**about, "format": SAFETENSORS_KEY, "state_dict": state, "batch": 0}


def safetensors_library() -> Any:
    """Import the optional package safetensors."""
    try:
        import safetensors.torch
    except ImportError:
        raise InputError("safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors


# --- pickles -------------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Load the next pickle of a file; it may refer only to the functions in `names`."""

    names: ClassVar[dict[tuple[str, str], Any]] = {}

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # keeps array bytes in Python 2's strings intact

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        return self.names[module, name]


class _TorchUnpickler(_Unpickler):
    """Load torch.save's pickle. `read(key, dtype, count)` returns a storage as a flat tensor."""

    def __init__(self, file: Any, read: Callable[[Any, Any, int], Any]) -> None:
        super().__init__(file)
        self.read = read
        self.storages: dict[Any, Any] = {}  # tensors that share a storage share its memory

    def persistent_load(self, about: Any) -> _Made:
        import torch

        _storage, name, key, _device, count, *view = about
        if name not in _STORAGES.values() or any(view):
            raise Refused("it has a tensor of another kind than weights")
        dtype = getattr(torch, name)
        if key not in self.storages:
            self.storages[key] = self.read(key, dtype, count)
        found = self.storages[key]
        if len(found) != count or found.dtype != dtype:
            raise Refused("it declares more numbers than it holds")
        return _Made(found)


class _Function:
    """A function that a pickle may call. Unwrapped, the BUILD opcode could replace its code or defaults."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("its pickle changes a function")


class _Made:
    """A value made for a pickle, and opaque to it. An array is created by a call and completed by BUILD."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if self.value is not None:
            raise Refused("its pickle fills an array twice")
        if isinstance(dtype, _Dtype) and dtype.code == "O":
            self.value = _objects(content, shape, fortran)
        else:
            self.value = _array(content, dtype, shape, "F" if fortran else "C").value


class _Dtype:
    """A numpy dtype: a pickle gives its code, then its byte order. The rest of its state is ignored."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: object) -> None:
        objects = code in ("O", "O4", "O8")  # object arrays are stored as lists and read as such
        if not objects and code not in _NUMBERS:
            raise Refused(f"it has a numpy array of type {show(code)}, which holds no plain numbers")
        self.code, self.order = "O" if objects else code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


def _array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Made:
    """Return an array of `shape` that owns its memory. `content` must have exactly the bytes it needs."""
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin-1")
    if type(content) not in (bytes, bytearray) or not isinstance(dtype, _Dtype) or type(shape) is not tuple:
        raise Refused("it has a numpy array without bytes, type or shape")
    if dtype.code == "O" or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise Refused("it has a numpy array of objects in bytes, or of an impossible shape")
    stored = np.dtype(dtype.order + dtype.code)
    if len(content) != math.prod(shape) * stored.itemsize:
        raise Refused(f"it has a numpy array of shape {shape} in {len(content)} bytes")
    numbers = np.frombuffer(content, stored).astype(dtype.code)
    array = numbers.reshape(shape, order="F" if order == "F" else "C")
    return _Made(array if axes is None else array.transpose(axes))


def _objects(content: Any, shape: Any, fortran: Any) -> list:
    """Return the list that an object array was pickled as, or a list of rows if it has two dimensions."""
    columns_first = len(shape) == 2 and fortran
    if type(content) is not list or math.prod(shape) != len(content) or len(shape) > 2 or columns_first:
        raise Refused("it has a numpy array of objects of an impossible shape")
    if len(shape) < 2:
        return content
    return [content[place : place + shape[1]] for place in range(0, len(content), shape[1] or 1)]


def _tensor(storage: _Made, offset: int, shape: Any, strides: Any, *_: Any) -> _Made:
    """Return a view of a storage. It lies inside, and has no more numbers than the storage."""
    if type(storage) is not _Made:  # such as a dict on which the pickle set attributes
        raise Refused("it has a tensor without a storage")
    flat, numbers = storage.value, math.prod(shape)
    end = offset + 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or max(offset, numbers, end if numbers else 0) > len(flat):
        raise Refused(f"it has a tensor of shape {tuple(shape)} in {flat.nbytes} bytes")
    return _Made(flat.as_strided(shape, strides, offset))


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand in for _codecs.encode(text, 'latin1'), with which Python 3 writes bytes in protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("it asks for text in another encoding than Latin-1")
    return text.encode("latin-1")


# This project's functions under the names that they replace, for numpy before and since 2 and Python 2 and 3.
_Unpickler.names = {
    ("collections", "OrderedDict"): _Function(OrderedDict),
    ("collections", "Counter"): _Function(lambda counts: Counter(dict(counts))),  # a MultiStepLR's milestones
    ("numpy", "ndarray"): _Function(lambda: _Made()),
    ("numpy", "dtype"): _Function(_Dtype),
    ("_codecs", "encode"): _Function(_encode),
    ("__builtin__", "bytes"): _Function(lambda: b""),
    **{
        (f"{package}.{module}", name): _Function(function)
        for package in ("numpy.core", "numpy._core")
        for module, name, function in (
            ("multiarray", "_reconstruct", lambda *_: _Made()),
            ("multiarray", "scalar", lambda dtype, content: _Made(_array(content, dtype, (), "C").value[()])),
            ("numeric", "_frombuffer", _array),
        )
    },
}
_TorchUnpickler.names = {
    **_Unpickler.names,
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
    **{("torch", f"{name}Storage"): dtype for name, dtype in _STORAGES.items()},
    **{("torch.cuda", f"{name}Storage"): dtype for name, dtype in _STORAGES.items()},
}


def _plain(content: Any) -> Any:
    """Rebuild a pickle's result as containers without attributes of strings, numbers, arrays and tensors.

    An object that occurs in several places stays one object.
    """
    done: dict[int, Any] = {}

    def rebuild(value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in (type(None), bool, int, float, str, bytes, bytearray):
            return value
        if id(value) in done:
            return done[id(value)]
        if depth > MAX_DEPTH:
            raise Refused("it holds lists within lists without end")
        made: Any
        if kind in (dict, OrderedDict, Counter):
            if not all(type(key) in (str, bytes, int, float, bool, type(None)) for key in value):
                raise Refused("it has a key that is neither a string nor a number")
            made = kind()
            for key in dict.keys(value):  # ignores attributes that the pickle set
                made[key] = rebuild(value[key], depth + 1)
        elif kind in (list, tuple, set):
            made = kind(rebuild(item, depth + 1) for item in value)
        elif kind is _Made and value.value is not None:  # an array, a number, a tensor, or objects in a list
            made = rebuild(value.value, depth + 1) if type(value.value) is list else value.value
        else:
            raise Refused("it leaves an object half made")
        done[id(value)] = made
        return made

    return rebuild(content, 0)
