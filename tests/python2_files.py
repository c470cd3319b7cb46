"""Files as PyTorch 0.2 to 0.3 wrote them under Python 2: what the tests of checkpoints and predictions read.

Python's own pickler, with what cPickle did otherwise: str is BINSTRING or STRING, an int of more than 32 bits is
INT with decimal digits, an OrderedDict is a call with a list of lists. The file is as in torch's `_legacy_save`.
"""

import io
import pickle
import struct
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch

MAGIC = 0x1950A86A20F9469CFC6C
PurePickler: Any = pickle._Pickler  # the one in Python


class Tensor:
    """A CUDA tensor to be written: float32 values, or int64 ones, in a storage of its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values, "<i8" if values.dtype.kind == "i" else "<f4")


class Storage:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class Writer(PurePickler):
    """One pickle. `storages` collects the tensors' (key, values) on the way."""

    dispatch: ClassVar[dict[Any, Any]] = dict(PurePickler.dispatch)

    def __init__(self, storages: dict[str, np.ndarray] | None = None, protocol: int = 2) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, protocol)
        self.storages = {} if storages is None else storages

    def finish(self, value: object) -> bytes:
        self.dump(value)
        return self.file.getvalue().replace(b"numpy._core", b"numpy.core")

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        if self.proto == 0:
            self.write(b"S" + _python2_repr(data.decode("latin-1")) + b"\n")
        else:
            self.write((b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    def save_int(self, value: int) -> None:
        self.write(b"I%d\n" % value) if 2**31 <= value < 2**63 else self.save_long(value)

    dispatch |= {str: save_text, bytes: save_text, int: save_int}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, OrderedDict):
            return OrderedDict, ([[key, item] for key, item in value.items()],)
        if isinstance(value, Tensor):
            shape, size = value.values.shape, value.values.itemsize
            strides = tuple(side // size for side in value.values.strides)
            return torch._utils._rebuild_tensor, (Storage(value.values.ravel()), 0, shape, strides)
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        key = str(94_000_000_000_000 + 64 * len(self.storages))
        self.storages[key] = value.values
        kind = torch.cuda.LongStorage if value.values.dtype.kind == "i" else torch.cuda.FloatStorage
        return "storage", kind, key, "cuda:0", value.values.size, None


def piece(value: object) -> bytes:
    """The instructions that make `value`, to be put into a pickle."""
    return Writer().finish(value)[2:-1]


def checkpoint(content: dict) -> bytes:
    """What torch.save(content, path) wrote: five pickles, then the storages."""
    storages: dict[str, np.ndarray] = {}
    sizes = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    body = Writer(storages).finish(content)
    keys = sorted(storages)
    pickles = [Writer().finish(MAGIC), Writer().finish(1001), Writer().finish(sizes), body, Writer().finish(keys)]
    data = [struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in keys]
    return b"".join(pickles + data)


def predictions(arrays: dict[str, np.ndarray], protocol: int) -> bytes:
    """What pickle.dump({video: array}, file, protocol) wrote under Python 2, for protocols 0 and 2."""
    return Writer(protocol=protocol).finish(arrays)


def _python2_repr(text: str) -> bytes:
    """repr of a Python 2 str: quotes, backslashes and everything but printable ASCII escaped."""
    short = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return b"'" + "".join(short.get(c, c if " " <= c <= "~" else f"\\x{ord(c):02x}") for c in text).encode() + b"'"
