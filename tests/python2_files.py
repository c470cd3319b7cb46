"""Files as PyTorch 0.2 to 0.3 wrote them under Python 2, byte by byte: what the checkpoint tests read.

Written from the description of the instructions in CPython's pickletools and of the file in torch's
`_legacy_save`, with what cPickle did in protocol 2: str is SHORT_BINSTRING or BINSTRING, an int beyond 32 bits
is INT with decimal digits, an OrderedDict is a call with a list of lists, and strings are remembered.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C


class Tensor:
    """A CUDA tensor to be written: float32 values, or int64 ones, in a storage of its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values, "<i8" if values.dtype.kind == "i" else "<f4")


class Writer:
    """One pickle of protocol 2. `storages` collects the tensors' (key, values) on the way."""

    def __init__(self, storages: dict[str, np.ndarray] | None = None) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str, int] = {}
        self.remembered = 0
        self.storages = {} if storages is None else storages

    def finish(self, value: object) -> bytes:
        self.write(value)
        return bytes(self.out + b".")

    def put(self) -> int:
        index, self.remembered = self.remembered, self.remembered + 1
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)
        return index

    def name(self, module: str, name: str) -> None:
        self.out += b"c" + module.encode() + b"\n" + name.encode() + b"\n"
        self.put()

    def write(self, value: object) -> None:
        out = self.out
        if value is None or isinstance(value, bool):
            out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            if 0 <= value < 256:
                out += b"K" + bytes([value])
            elif 0 <= value < 65536:
                out += b"M" + struct.pack("<H", value)
            elif -(2**31) <= value < 2**31:
                out += b"J" + struct.pack("<i", value)
            elif value < 2**63:
                out += b"I%d\n" % value  # cPickle: a Python 2 int, 64 bits wide
            else:
                digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                out += b"\x8a" + bytes([len(digits)]) + digits
        elif isinstance(value, float):
            out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self.string(value)
        elif isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, OrderedDict):
            self.name("collections", "OrderedDict")
            self.write([[key, item] for key, item in value.items()])
            out += b"\x85R"
            self.put()
        elif isinstance(value, dict):
            out += b"}"
            self.put()
            out += b"("
            for key, item in value.items():
                self.write(key)
                self.write(item)
            out += b"u"
        elif isinstance(value, list):
            out += b"]"
            self.put()
            out += b"("
            for item in value:
                self.write(item)
            out += b"e"
        elif isinstance(value, tuple):
            out += b"(" if len(value) > 3 else b""
            for item in value:
                self.write(item)
            out += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
            if value:
                self.put()
        else:
            raise TypeError(type(value))

    def string(self, value: str) -> None:
        if value in self.memo:
            index = self.memo[value]
            self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
            return
        text = value.encode("latin-1")
        self.out += b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text
        self.memo[value] = self.put()

    def tensor(self, value: Tensor) -> None:
        key = str(94_000_000_000_000 + 64 * len(self.storages))
        self.storages[key] = value.values.ravel()
        shape = value.values.shape
        self.name("torch._utils", "_rebuild_tensor")
        self.out += b"("
        self.out += b"("
        self.string("storage")
        self.name("torch.cuda", "LongStorage" if value.values.dtype.kind == "i" else "FloatStorage")
        self.string(key)
        self.string("cuda:0")
        self.write(value.values.size)
        self.write(None)
        self.out += b"t"
        self.put()
        self.out += b"Q"
        self.write(0)
        self.write(tuple(shape))
        self.write(tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))))
        self.out += b"t"
        self.put()
        self.out += b"R"
        self.put()


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
    if protocol == 0:
        out = [b"(dp0\n"]
        for key, array in arrays.items():
            out += [b"S" + _python2_repr(key) + b"\n"]
            out += [b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("]
            out += [b"".join(b"I%d\n" % side for side in array.shape), b"tcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"]
            out += [b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"]
            text = array.astype("<f4").tobytes().decode("latin-1")
            out += [b"S" + _python2_repr(text) + b"\ntbs"]
        return b"".join([*out, b"."])
    writer = Writer()
    writer.out += b"}("
    for key, array in arrays.items():
        writer.string(key)
        writer.name("numpy.core.multiarray", "_reconstruct")
        writer.name("numpy", "ndarray")
        writer.write((0,))
        writer.write("b")
        writer.out += b"\x87R"
        writer.put()
        writer.out += b"("
        writer.write(1)
        writer.write(array.shape)
        writer.name("numpy", "dtype")
        writer.write(("f4", 0, 1))
        writer.out += b"R"
        writer.write((3, "<", None, None, None, -1, -1, 0))
        writer.out += b"b"
        writer.write(False)
        writer.string(array.astype("<f4").tobytes().decode("latin-1"))
        writer.out += b"tb"
    return bytes(writer.out + b"u.")


def _python2_repr(text: str) -> bytes:
    """repr of a Python 2 str: quotes, backslashes and everything but printable ASCII escaped."""
    short = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return b"'" + "".join(short.get(c, c if " " <= c <= "~" else f"\\x{ord(c):02x}") for c in text).encode() + b"'"
