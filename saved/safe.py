"""The only reader of pickles, arrays and checkpoints: it returns plain data and executes nothing in a file.

A pickle is a program that calls the functions it names. torch's weights-only loader reads the zip files of
torch.save. Other pickles go through Python's pickle.Unpickler, which only notes what they ask for (`_Asked`);
`_plain` then makes arrays and containers from that. docs/safe_loading.md states the guarantees.
"""

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
from typing import IO, Any

import numpy as np

from common.formats import parse_json
from utils import InputError

MAX_PICKLE_BYTES = 1 << 30  # 25 samples x 10 views of UCF101's test set take 382 MB
SAFETENSORS_KEY = "two-stream"  # our key in the metadata of .safetensors files
MAX_DEPTH = 64  # of nested containers
# Files of another kind: how they begin, in lower case, and what to say of them.
OTHERS = {
    b"<!doctype": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file itself with `git lfs pull`",
}
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")  # dtypes
# What a pickle may ask for, by Python 2 or 3, numpy before or since 2, and PyTorch before 1.6.
_KNOWN = {
    "collections.OrderedDict", "collections.Counter", "__builtin__.bytes", "_codecs.encode", "numpy.dtype",
    "numpy.ndarray", "torch.Size", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"numpy.{core}.{name}" for core in ("core", "_core")
      for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")),
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

    Returns containers, strings (Python 2's as Latin-1), numbers and numpy arrays (of booleans and numbers, in
    native byte order). Raises InputError if the file is missing, damaged, too large or asks for more than data.
    """
    with _reading(path, "a pickle of plain data") as file:
        return _unpickle(file, os.path.getsize(path))


def load_arrays(path: str | os.PathLike, only: str | None = None) -> Any:
    """Read a .npy file, or a .npz file as a dict of its arrays (or of `only` one).

    Arrays hold numbers, strings or fields of these. An object array is read as `load_pickle` reads a pickle,
    and returned as a list, or as a list of lists if it has two dimensions. Raises InputError as that does.
    """
    with _reading(path, "a file of numpy arrays") as file:
        size = os.path.getsize(path)
        if not zipfile.is_zipfile(file):
            return _load_array(file, size)
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(f"{only or ''}.npy")]
            limit = max(MAX_PICKLE_BYTES, size)  # a large dataset's features exceed MAX_PICKLE_BYTES
            if sum(member.file_size for member in members) > limit:
                raise Refused(f"it takes more than {limit >> 20} MB")
            return {member.filename.removesuffix(".npy"): _load_array(archive.open(member), member.file_size)
                    for member in members}  # fmt: skip


def _load_array(file: IO[bytes], size: int) -> Any:
    form = np.lib.format
    file.seek(0)
    first = form.read_magic(file) == (1, 0)
    dtype = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(file)[2]
    if dtype.kind == "O":
        return _unpickle(file, size)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other pickle protocols than torch.save's
            raw, size = (_load_zip if head.startswith(b"PK\x03\x04") else _load_legacy)(file)
            content = _plain(raw, _own(size))
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
            reason = next((said for start, said in OTHERS.items() if head.startswith(start)), None)
            if reason or not head:
                raise Refused(reason or "it is empty")
            file.seek(0)
            yield file
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    except Exception as error:  # a program of arbitrary bytes can fail in any way
        if isinstance(error, MemoryError):
            error = Refused("it needs more memory than there is")
        damaged = f"it is damaged or of another kind ({type(error).__name__})"
        reason = str(error) if isinstance(error, Refused) else damaged
        raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run") from None


# --- checkpoints ---------------------------------------------------------------------------------------


def _load_zip(file: IO[bytes]) -> tuple[Any, int]:
    """Return the content and its tensors' bytes. torch.load checks neither checksums nor compression."""
    import torch

    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Refused("its records are not as torch.save writes them")
        if archive.testzip() is not None:
            raise Refused("its checksums do not match, so it was damaged on the way")
    try:
        content = torch.load(file.name, "cpu", weights_only=True, mmap=True)
        return content, sum(record.file_size for record in records if "/data/" in record.filename)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Refused(f"it asks to run or make {named[1]}" if named else "its pickle is not one of data") from None


def _load_legacy(file: IO[bytes]) -> tuple[Any, int]:
    """Read a file from PyTorch before 1.6, with our unpickler in place of pickle's. Return its size, too.

    torch's weights-only loader lacks the opcode for Python 2's 64-bit integers, which optimizers use as ids.
    """
    import torch

    module: Any = SimpleNamespace(
        __name__="pickle", Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load())  # fmt: skip
    # torch would look for a tar archive in an object with a fileno; an mmap has none.
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        content = torch.load(data, "cpu", pickle_module=module, weights_only=False)  # type: ignore[arg-type]
        return content, len(data)


def _own(size: int) -> Callable[[Any], Any]:
    """Return a function that copies a file's tensors out of its memory map. `size`: bytes of its numbers."""
    import torch

    owned: dict[int, Any] = {}  # a storage's address -> its copy, which its tensors share

    def own(found: Any) -> Any:
        nonlocal size
        if type(found) is _Asked:  # in a file from PyTorch before 1.6
            match found.name.rpartition(".")[2], *(found.arguments or ()):
                case "Size", sides:
                    found = torch.Size(sides)
                case "_rebuild_parameter", tensor, *_:
                    return own(tensor)
                case _, storage, offset, sides, strides, *_:
                    held = storage.nbytes()
                    found = torch._utils._rebuild_tensor(storage, offset, sides, strides)
                    if found.untyped_storage().nbytes() > held:  # torch enlarges a storage that is too small
                        raise Refused("it has a tensor that lies outside its numbers")
        if isinstance(found, torch.Size):
            return found
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

    return own


def _load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Return a checkpoint's content: tensors and description from our files, else only tensors by name."""
    library = safetensors_library()
    with library.safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        text = (file.metadata() or {}).get(SAFETENSORS_KEY)
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


def _unpickle(file: IO[bytes], size: int) -> Any:
    if size > MAX_PICKLE_BYTES:
        raise Refused(f"it takes more than {MAX_PICKLE_BYTES >> 20} MB")
    return _plain(_Unpickler(file).load())


class _Unpickler(pickle.Unpickler):
    """Load the next pickle of a file. It calls nothing; what it is to call becomes an `_Asked`."""

    def __init__(self, file: Any, **_: object) -> None:
        super().__init__(file, encoding="latin1")  # keeps array bytes in Python 2's strings intact

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        return _Asked(f"{module}.{name}")


class _Asked:
    """A function that a pickle names, a call of it, and the state that the pickle gives to its result."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple | None = None) -> None:
        self.name, self.arguments, self.state = name, arguments, ()

    def __call__(self, *arguments: Any) -> Any:
        # A dict is made at once, for the pickle goes on to fill it.
        return OrderedDict(*arguments) if self.name == "collections.OrderedDict" else _Asked(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        if self.arguments is None or self.state:
            raise Refused("its pickle changes a function, or fills an array twice")
        self.state = state


def _make(asked: _Asked, rebuild: Callable[[Any], Any]) -> Any:
    """Make what a pickle asks for: bytes, a Counter, a number or an array that owns its memory.

    An object array becomes the list that it was made of, or a list of rows. `rebuild` makes plain data.
    """
    fortran, axes = False, None
    match asked.name.rpartition(".")[2], *(asked.arguments or ()):
        case ("bytes",):
            return b""
        case "encode", str() as text, "latin1" | "latin-1":  # how Python 3 writes bytes in protocol 2
            return text.encode("latin-1")
        case "Counter", dict() as counts:  # a MultiStepLR's milestones
            return Counter(rebuild(counts))
        case "scalar", dtype, content:
            shape: Any = ()
        case "_frombuffer", content, dtype, shape, order, *more:
            fortran, axes = order == "F", more[0] if more else None
        case "_reconstruct", *_ if asked.state:
            _, shape, dtype, fortran, content = asked.state
        case _:
            raise Refused("it leaves an object half made")
    if type(dtype) is not _Asked or dtype.name != "numpy.dtype" or not dtype.arguments:
        raise Refused("it has a numpy array without a type")
    code = dtype.arguments[0]
    in_order: Any = "F" if fortran else "C"
    objects = code in ("O", "O4", "O8")
    # Before anything is multiplied or made: a small file may ask for a billion empty rows, or for huge numbers.
    if type(shape) is not tuple or len(shape) > (2 if objects else 32) or (objects and 0 in shape[1:]):
        raise Refused("it has a numpy array of an impossible shape")
    if not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise Refused("it has a numpy array of an impossible shape")
    content = rebuild(content)
    if objects:
        return np.fromiter(content, object, len(content)).reshape(shape or 1, order=in_order).tolist()
    if code not in _NUMBERS:
        raise Refused(f"it has a numpy array of type {show(code)}, which holds no plain numbers")
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin-1")
    stored = np.dtype(code).newbyteorder(dtype.state[1] if dtype.state else "=")
    if len(content) != math.prod(shape) * stored.itemsize:
        raise Refused(f"it has a numpy array of shape {shape} in {len(content)} bytes")
    array = np.frombuffer(content, stored).astype(code).reshape(shape, order=in_order)
    return array[()] if asked.name.endswith("scalar") else array if axes is None else array.transpose(axes)


def _plain(content: Any, own: Callable[[Any], Any] | None = None) -> Any:
    """Rebuild a pickle's result as containers without attributes of strings, numbers, arrays and tensors.

    `own` makes each tensor. An object that occurs in several places stays one object.
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
            if not all(type(key) in (str, bytes, int, float, bool, type(None)) for key in dict.keys(value)):
                raise Refused("it has a key that is neither a string nor a number")
            # dict.items ignores attributes that the pickle set.
            made = kind({key: rebuild(item, depth + 1) for key, item in dict.items(value)})
        elif kind in (list, tuple, set):
            made = kind(rebuild(item, depth + 1) for item in value)
        elif kind is _Asked and not value.name.startswith("torch"):
            made = _make(value, lambda item: rebuild(item, depth + 1))
        elif own:
            made = own(value)
        else:
            raise Refused("it leaves an object half made")
        done[id(value)] = made
        return made

    return rebuild(content, 0)
