"""The one place that reads pickles, arrays and checkpoints: bytes in, plain data out, and nothing in a file is run.

A pickle is a program that calls what it names. torch's weights-only loader reads the zip files of torch.save. Other
pickles go through Python's pickle.Unpickler, whose find_class gives the functions in `names` and nothing else.
docs/safe_loading.md says what is promised.
"""

from __future__ import annotations

import lzma
import math
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import numpy as np

from common.formats import parse_json
from utils import InputError

MAX_PICKLE_BYTES = 1 << 30  # 25 samples x 10 views of UCF101's test set take 382 MB
SAFETENSORS_KEY = "two-stream"  # of the metadata of our .safetensors files
MAX_DEPTH = 64  # of lists within lists
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")  # codes of dtypes


class Refused(Exception):
    """Why a file is not read: half a sentence about it."""


def show(value: object) -> str:
    """What a file says, fit for one line of a terminal. Nested things can be huge: of these only the type."""
    if not isinstance(value, (str, bytes)):
        return f"a {type(value).__name__}"
    text = ascii(value[:60])
    return text[1:-1] if isinstance(value, str) else text


# --- files ---------------------------------------------------------------------------------------------


def load_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of any protocol, of Python 2 or 3, that holds data only.

    Returns containers, strings, numbers and numpy arrays (of booleans and numbers, native byte order).
    What Python 2 called str is read as Latin-1 text.
    Raises InputError for a file that is missing, damaged, too large or wants anything else.
    """
    with _reading(path, "a pickle of plain data") as file:
        _check_size(_size(file), MAX_PICKLE_BYTES)
        head = file.read(512)
        if head[:4] == b"PK\x03\x04":
            raise Refused("it is a zip archive, as torch.save writes checkpoints")
        if head[:1] == b"<" or head.startswith(b"version https://git-lfs"):
            raise Refused(_what_else(head, "pickle"))
        file.seek(0)
        return _plain(_Unpickler(file).load())


def load_arrays(path: str | os.PathLike, only: str | None = None) -> Any:
    """Read a .npy file, or a .npz file as a dict of its arrays (or of one): of numbers, strings or fields of these.

    An array of objects is read as `load_pickle` reads a pickle, and returned as the list that it holds; of two
    dimensions, as a list of lists. Raises InputError for a file that is missing, damaged, too large or wants more.
    """
    with _reading(path, "a file of numpy arrays") as file:
        limit = max(MAX_PICKLE_BYTES, _size(file))  # the features of a large dataset are more, uncompressed
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _load_array(file, _size(file))
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(f"{only or ''}.npy")]
            _check_size(sum(member.file_size for member in members), limit)
            arrays = {}
            for member in members:
                with archive.open(member) as part:
                    arrays[member.filename.removesuffix(".npy")] = _load_array(part, member.file_size)
            return arrays


def _load_array(file: IO[bytes], size: int) -> Any:
    head = file.read(512)
    if head[:6] != b"\x93NUMPY":
        raise Refused(_what_else(head, "numpy.save"))
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind == "O":
        _check_size(size, MAX_PICKLE_BYTES)
        return _plain(_Unpickler(file).load())
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise Refused("it declares more than it holds")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read what torch.save wrote, or a .safetensors file: a dict of plain data and tensors on the CPU.

    Files of PyTorch before 1.6 are read, Python 2's included. The tensors own their memory.
    Raises InputError for a file that is missing, damaged or wants anything else.
    """
    with _reading(path, "a checkpoint of weights and plain data") as file:
        head = file.read(512)
        file.seek(0)
        if str(path).endswith(".safetensors") or head[8:9] == b"{":
            return _load_safetensors(path)
        size = _size(file)
        if head[:4] == b"PK\x03\x04":
            content, size = _load_zip(path, file)
        elif head[:1] == b"\x80":
            content = _load_legacy(file)
        else:
            raise Refused(_what_else(head, "torch.save"))
        if not isinstance(content, dict):
            raise Refused(f"it holds a {type(content).__name__} instead of a dict")
        return _plain(content, _own(size))


def check_weights(state: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise InputError for weights that hold NaN or infinity."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinity: its training diverged; take an earlier checkpoint")


@contextmanager
def _reading(path: str | os.PathLike, wanted: str) -> Iterator[IO[bytes]]:
    """Open `path`; turn whatever its content makes go wrong in the block into one line."""
    damage = (
        ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, EOFError, RuntimeError,
        pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    )  # fmt: skip
    try:
        with open(path, "rb") as file:
            if not _size(file):
                raise Refused("it is empty")
            yield file
            return
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except damage as error:
        reason = f"it is damaged ({type(error).__name__}), get it again"
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Refused(f"it takes more than {limit >> 20} MB")


def _what_else(head: bytes, writer: str) -> str:
    if head.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    return f"{writer} did not write it"


# --- checkpoints ---------------------------------------------------------------------------------------


def _load_zip(path: str | os.PathLike, file: IO[bytes]) -> tuple[Any, int]:
    """The content, and the bytes of its numbers. torch.load looks neither at checksums nor at what is compressed."""
    import torch

    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Refused("its records are not as torch.save writes them")
        if archive.testzip() is not None:
            raise Refused("its checksums do not match, so it was damaged on the way")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles in another protocol than torch.save's
            content = torch.load(path, "cpu", weights_only=True, mmap=True)
        return content, sum(record.file_size for record in records if "/data/" in record.filename)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Refused(f"it asks to run or make {named[1]}" if named else "its pickle is not one of data") from None


def _load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """A file as the content of a checkpoint: ours with what it says of itself, any other its tensors by name."""
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
    # Weights alone: engine.training tells a resumed training so, which needs the optimizer's state.
    return {**about, "format": SAFETENSORS_KEY, "state_dict": state, "batch": 0, "ema": None}


def safetensors_library() -> Any:
    """The package safetensors, which is optional."""
    try:
        import safetensors.torch
    except ImportError:
        raise InputError("safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors


def _load_legacy(file: IO[bytes]) -> Any:
    """A file of PyTorch before 1.6, with our unpickler in the place of pickle's.

    torch's weights-only loader has no instruction for Python 2's 64-bit integers, which an optimizer's ids are.
    """
    import torch

    rebuild = torch._utils._rebuild_tensor

    class Unpickler(_Unpickler):
        names = _Unpickler.names | {
            ("torch", "Size"): _Function(lambda sides: torch.Size(sides)),
            ("torch._utils", "_rebuild_tensor"): _Function(rebuild),  # before PyTorch 0.4
            ("torch._utils", "_rebuild_tensor_v2"): _Function(lambda *arguments: rebuild(*arguments[:4])),
            ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
        }

    module = SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=lambda file, **_: Unpickler(file).load())
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:  # has no fileno, for which torch would look for a tar
        return torch.load(data, "cpu", pickle_module=module, weights_only=False)  # type: ignore[arg-type]


def _own(size: int) -> Callable[[Any], Any]:
    """What makes ours of the tensors in a file of `size` bytes: with memory that doesn't change with the file."""
    import torch

    owned: dict[int, Any] = {}  # a storage's address -> its copy, which its tensors share

    def tensor(found: Any) -> Any:
        nonlocal size
        if not isinstance(found, torch.Tensor) or found.layout is not torch.strided or found.device.type != "cpu":
            raise Refused("it has a tensor of another kind than weights")
        storage = found.untyped_storage()
        if storage.data_ptr() not in owned:
            size -= storage.nbytes()
            if size < 0:
                raise Refused("it declares more numbers than it holds")
            owned[storage.data_ptr()] = storage.clone()
        if found.numel() * found.itemsize > storage.nbytes():
            raise Refused(f"it has a tensor of shape {tuple(found.shape)} in {storage.nbytes()} bytes")
        view = torch.empty(0, dtype=found.dtype)
        return view.set_(owned[storage.data_ptr()], found.storage_offset(), found.shape, found.stride())

    return tensor


# --- pickles -------------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Runs the next pickle of a file; `names` is all that it may name."""

    names: ClassVar[dict[tuple[str, str], Any]] = {}

    def __init__(self, file: Any, **_: object) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings, so that arrays' bytes survive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        return self.names[module, name]


class _Function:
    """A function that a pickle may call. The instruction BUILD would give a bare one other code or defaults."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("its pickle changes a function")


class _Made:
    """What a pickle had made, which it can't reach into; an array is begun by a call and completed by BUILD."""

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
    """A numpy dtype: the pickle names its code, then sets the byte order. Its state is not numpy's to believe."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: object) -> None:
        objects = code in ("O", "O4", "O8")  # whose arrays are read as the lists they are
        if not objects and code not in _NUMBERS:
            raise Refused(f"it has a numpy array of type {show(code)}, which holds no plain numbers")
        self.code, self.order = "O" if objects else code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


def _array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Made:
    """An array of `shape` that owns its memory, if the bytes of `content` are exactly those it takes."""
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin-1")
    if type(content) not in (bytes, bytearray) or not isinstance(dtype, _Dtype) or type(shape) is not tuple:
        raise Refused("it has a numpy array without bytes, type or shape")
    if dtype.code == "O" or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise Refused("it has a numpy array of objects in bytes, or of an impossible shape")
    stored = np.dtype(dtype.order + dtype.code)
    if len(content) != math.prod(shape) * stored.itemsize:
        raise Refused(f"it has a numpy array of shape {shape} in {len(content)} bytes")
    array = np.frombuffer(content, stored).astype(dtype.code).reshape(shape, order="F" if order == "F" else "C")
    return _Made(array if axes is None else array.transpose(axes))


def _objects(content: Any, shape: Any, fortran: Any) -> list:
    """The list that an array of objects was pickled as; one of two dimensions as a list of rows."""
    if type(content) is not list or math.prod(shape) != len(content) or len(shape) > 2 or (len(shape) == 2 and fortran):
        raise Refused("it has a numpy array of objects of an impossible shape")
    if len(shape) < 2:
        return content
    return [content[place : place + shape[1]] for place in range(0, len(content), shape[1] or 1)]


def _encode(text: Any, encoding: Any) -> bytes:
    """_codecs.encode(text, 'latin1'): how Python 3 writes bytes for protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("it asks for text in another encoding than Latin-1")
    return text.encode("latin-1")


# Functions of this project under the names of those that they stand for: before numpy 2 and since, of Python 2 and 3.
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


def _plain(content: Any, tensor: Callable[[Any], Any] | None = None) -> Any:
    """What a pickle has left, rebuilt: containers without attributes, of strings, numbers, arrays and tensors.

    `tensor` makes ours of each of its tensors. What is found in several places stays one thing.
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
            for key in dict.keys(value):  # whatever attributes the pickle gave it
                made[key] = rebuild(value[key], depth + 1)
        elif kind in (list, tuple, set):
            made = kind(rebuild(item, depth + 1) for item in value)
        elif kind is _Made and value.value is not None:
            made = rebuild(value.value, depth + 1)
        elif (isinstance(value, (np.ndarray, np.generic)) and value.dtype != object) or kind.__name__ == "Size":
            made = value  # an array, or torch.Size
        elif tensor and kind.__module__.partition(".")[0] == "torch":
            made = tensor(value)
        else:
            raise Refused("it leaves an object half made")
        done[id(value)] = made
        return made

    return rebuild(content, 0)
