"""The only reader of pickles, arrays and checkpoints: it returns plain data and executes nothing in a file.

A pickle is a program that calls the functions it names. torch's weights-only loader reads the zip files of
torch.save. Other pickles go through Python's pickle.Unpickler, with a find_class that allows only the
functions in `names`. docs/safe_loading.md states the guarantees.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import warnings
import zipfile
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
SAFETENSORS_KEY = "two-stream"  # our key in the metadata of .safetensors files
MAX_DEPTH = 64  # of nested containers
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")  # dtypes


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
    and returned as a list, or as a list of lists if it has two dimensions. Raises InputError as that does.
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
        size = _size(file)
        if head.startswith(b"PK\x03\x04"):
            content, size = _load_zip(path, file)
        else:
            content = _load_legacy(file)
        if not isinstance(content, dict):
            raise Refused(f"it holds a {type(content).__name__} instead of a dict")
        return _plain(content, _own(size))


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
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except Exception as error:  # a program of arbitrary bytes can fail in any way
        reason = f"it is damaged or of another kind ({type(error).__name__})"
    raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Refused(f"it takes more than {limit >> 20} MB")


# --- checkpoints ---------------------------------------------------------------------------------------


def _load_zip(path: str | os.PathLike, file: IO[bytes]) -> tuple[Any, int]:
    """Return the content and its tensors' bytes. torch.load checks neither checksums nor compression."""
    import torch

    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Refused("its records are not as torch.save writes them")
        if archive.testzip() is not None:
            raise Refused("its checksums do not match, so it was damaged on the way")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other pickle protocols than torch.save's
            content = torch.load(path, "cpu", weights_only=True, mmap=True)
        return content, sum(record.file_size for record in records if "/data/" in record.filename)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Refused(f"it asks to run or make {named[1]}" if named else "its pickle is not one of data") from None


def _load_legacy(file: IO[bytes]) -> Any:
    """Read a file from PyTorch before 1.6, with our unpickler in place of pickle's.

    torch's weights-only loader lacks the opcode for Python 2's 64-bit integers, which optimizers use as ids.
    """
    import torch

    rebuild = torch._utils._rebuild_tensor

    class Unpickler(_Unpickler):
        names = _Unpickler.names | {
            ("torch", "Size"): torch.Size,
            ("torch._utils", "_rebuild_tensor"): rebuild,  # before PyTorch 0.4
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: rebuild(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }

    module = SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=lambda file, **_: Unpickler(file).load())
    # torch would look for a tar archive in an object with a fileno; an mmap has none.
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return torch.load(data, "cpu", pickle_module=module, weights_only=False)  # type: ignore[arg-type]


def _own(size: int) -> Callable[[Any], Any]:
    """Return a function that copies a file's tensors out of its memory map. `size`: bytes of its numbers."""
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

    names: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {}

    def __init__(self, file: Any, **_: object) -> None:
        super().__init__(file, encoding="latin1")  # keeps array bytes in Python 2's strings intact

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        return _Function(self.names[module, name])


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


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand in for _codecs.encode(text, 'latin1'), with which Python 3 writes bytes in protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("it asks for text in another encoding than Latin-1")
    return text.encode("latin-1")


# This project's functions under the names that they replace, for numpy before and since 2 and Python 2 and 3.
_Unpickler.names = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): lambda counts: Counter(dict(counts)),  # a MultiStepLR's milestones
    ("numpy", "ndarray"): lambda: _Made(),
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",
}
for core in ("numpy.core", "numpy._core"):
    _Unpickler.names |= {
        (f"{core}.multiarray", "_reconstruct"): lambda *_: _Made(),
        (f"{core}.multiarray", "scalar"): lambda dtype, content: _Made(_array(content, dtype, (), "C").value[()]),
        (f"{core}.numeric", "_frombuffer"): _array,
    }


def _plain(content: Any, tensor: Callable[[Any], Any] | None = None) -> Any:
    """Rebuild a pickle's result as containers without attributes of strings, numbers, arrays and tensors.

    `tensor` copies each tensor. An object that occurs in several places stays one object.
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
        elif kind is _Made and value.value is not None:  # an array, a number, or objects in a list
            made = rebuild(value.value, depth + 1) if type(value.value) is list else value.value
        elif kind.__name__ == "Size" or (isinstance(value, (np.ndarray, np.generic)) and value.dtype != object):
            made = value
        elif tensor and kind.__module__.partition(".")[0] == "torch":
            made = tensor(value)
        else:
            raise Refused("it leaves an object half made")
        done[id(value)] = made
        return made

    return rebuild(content, 0)
