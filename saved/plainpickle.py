"""Reads pickles of plain data: containers, strings, numbers and numpy arrays; nothing that a file says is run.

A pickle is a program, and some of its instructions call whatever the file names. Python's own unpickler runs it
here, narrowed: the only functions that it can call are those in `names`, all of them written in this project.

Time and memory stay in proportion to the file, too. A pickle runs at most MAX_INSTRUCTIONS; a declared length
must be there in bytes; arrays, and the bytes that they are made of, hold at most twice what the file does; keys
are strings and integers; and the finished object is walked once, so that lists which hold themselves, or each
other 2**n times, are found. CPython's C unpickler can't be narrowed that far: it keeps a memo as large as the file
says, and hashes nested keys. So this is a subclass of the same in Python, pickle._Unpickler.

The instructions are described in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAX_INSTRUCTIONS = 2_000_000  # UCF101's 3,783 predictions take 90,000; the worst of them take 200 bytes each
MAX_DEPTH = 64


class Refused(Exception):
    """Why a pickle is not read: half a sentence about the file."""


def show(value: object) -> str:
    """What a file says, fit for one line of a terminal; of nested things, which can be huge, only the type."""
    if not isinstance(value, (str, bytes)):
        return f"a {type(value).__name__}"
    text = ascii(value[:60])
    return text[1:-1] if isinstance(value, str) else text


@dataclass(frozen=True)
class Name:
    """What a pickle may name: a function to call, a type of storage, or a bare word (None)."""

    value: Any = None


@dataclass
class _Dtype:
    """A numpy dtype: the pickle names its code, then sets the byte order."""

    code: str
    order: Any = "="  # "<", ">" or "="


class Unpickler(pickle._Unpickler):
    """Runs the next pickle of `file`, which is `size` bytes long; `names` is all that it may name.

    `refer` answers references to things outside the pickle. `leaves` are the types that it and `names` make and
    that may stay in the result.
    """

    stack: list[Any]  # these four are the base's
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(
        self,
        file: BinaryIO | Any,
        size: int,
        names: dict[tuple[str, str], Name],
        refer: Callable[[Any], Any] | None = None,
        leaves: tuple[type, ...] = (),
    ) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings, so that arrays' bytes survive
        self.size, self.names, self.refer, self.leaves = size, names, refer, leaves
        self.work = 0  # instructions run, and entries that one of them copied
        self.copied = 0  # bytes of arrays and of re-encoded strings
        self.dispatch = _Dispatch(self)  # type: ignore[assignment, misc]

    def load(self) -> Any:
        result = super().load()
        self.check(result)
        return result

    def check(self, result: Any) -> None:
        """Walk the finished object: known types, bounded depth and, repetitions counted, bounded size."""
        budget, volume = 2 * self.work + 1000, 4 * self.size
        unseen = [(result, 0)]
        while unseen:
            node, depth = unseen.pop()
            if isinstance(node, (dict, list, tuple, set)):
                budget -= len(node) + 1
                if budget < 0 or depth > MAX_DEPTH:
                    raise Refused("it holds lists within lists without end")
                children = node.values() if isinstance(node, dict) else node
                unseen.extend((child, depth + 1) for child in children)
            elif isinstance(node, (np.ndarray, np.generic)) and node.dtype != object:
                volume -= node.nbytes
                if volume < 0:
                    raise Refused("it repeats an array without end")
            elif not isinstance(node, (type(None), bool, int, float, str, bytes, bytearray, *self.leaves)):
                raise Refused("it leaves an object half made")

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > MAX_INSTRUCTIONS:
            raise Refused(f"its pickle takes more than {MAX_INSTRUCTIONS} instructions")

    def copy(self, count: int) -> None:
        self.copied += count
        if self.copied > 2 * self.size:  # protocols 0 to 2 spell an array's bytes as text: encoded, then copied
            raise Refused("it describes more data than it holds")

    # instructions that take memory or time, or run code, at the file's word

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        return self.names[module, name]

    def persistent_load(self, reference: Any) -> Any:
        if self.refer is None:
            raise Refused("it refers to something outside itself")
        return self.refer(reference)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not callable(function.value) or type(arguments) is not tuple:
            raise Refused("its pickle calls something that is not a function")
        self.spend(len(arguments))
        self.append(function.value(self, *arguments))

    def build(self) -> None:
        """Complete what a call began: the byte order of a dtype, the content of an array."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            target.order = state[1] if state[1] in ("<", ">") else "="
        elif isinstance(target, np.ndarray) and target.dtype == object:  # begun by _reconstruct
            _, shape, dtype, fortran, content = state
            if isinstance(dtype, _Dtype) and dtype.code == "O":
                self.stack[-1] = _objects(content, shape, fortran)
                return
            made = _array(self, content, dtype, shape, "F" if fortran else "C")
            done: Any = (1, made.shape, made.dtype, made.flags.fnc, made.tobytes("A"))
            target.__setstate__(done)
        elif not isinstance(target, OrderedDict):  # whose state is a state_dict's _metadata: not needed
            raise Refused("its pickle fills something that is not there")

    def fill(self, items: list) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise Refused("its pickle fills something that is not there, or has a key without a value")
        self.stack[-1].update(zip(map(as_key, items[::2]), items[1::2], strict=True))

    def new_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.fill(items)

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("its pickle fills something that is not there")
        self.stack[-1].extend(items)

    def add_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(map(as_key, items))

    def new_set(self) -> None:
        self.spend(2)  # an empty one is three times as large as the other containers
        self.append(set())

    def read_float(self) -> None:
        line = self.readline()
        if len(line) > 200:
            raise Refused("its pickle has a number of more than 200 characters")
        self.append(float(line))


class _Dispatch:
    """The unpickler's table of instructions, by their code: it counts them."""

    def __init__(self, unpickler: Unpickler) -> None:
        self.unpickler = unpickler

    def __getitem__(self, code: int) -> Callable[[Unpickler], Any]:
        self.unpickler.spend(1)
        if code not in _INSTRUCTIONS:
            raise Refused(f"its pickle has the instruction {show(bytes([code]))}, which data does not need")
        return _INSTRUCTIONS[code]


_INSTRUCTIONS: dict[int, Callable[[Any], Any]] = {
    **pickle._Unpickler.dispatch,
    pickle.REDUCE[0]: Unpickler.call,
    pickle.BUILD[0]: Unpickler.build,
    pickle.DICT[0]: Unpickler.new_dict,
    pickle.SETITEM[0]: lambda self: (value := self.stack.pop(), key := self.stack.pop(), self.fill([key, value])),
    pickle.SETITEMS[0]: lambda self: self.fill(self.pop_mark()),
    pickle.APPEND[0]: lambda self: self.extend([self.stack.pop()]),
    pickle.APPENDS[0]: lambda self: self.extend(self.pop_mark()),
    pickle.EMPTY_SET[0]: Unpickler.new_set,
    pickle.ADDITEMS[0]: Unpickler.add_items,
    pickle.FLOAT[0]: Unpickler.read_float,
    pickle.BYTEARRAY8[0]: lambda self: self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0]))),
}
for _code in (
    pickle.PERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
    pickle.FROZENSET, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.LONG4,
):  # fmt: skip
    del _INSTRUCTIONS[_code[0]]


def as_key(value: Any) -> str | bytes | int | bool | None:
    """A key of a dict or set. Nested ones can take exponential time to hash; integers beyond 64 bits can be
    chosen so that millions of them collide."""
    if type(value) not in (str, bytes, int, bool, type(None)):
        raise Refused("it has a key that is neither a string nor an integer")
    if isinstance(value, int) and value.bit_length() > 64:
        raise Refused("it has an integer of more than 64 bits for a key")
    return value


def _dtype(machine: Unpickler, code: str, *_: object) -> _Dtype:
    """numpy.dtype('f4', ...): numbers and booleans, and objects, whose arrays are read as the lists they are."""
    if code in ("O", "O4", "O8"):
        return _Dtype("O")
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"):
        raise Refused(f"it has a numpy array of type {show(code)}, which holds no plain numbers")
    return _Dtype(code)


def _array(machine: Unpickler, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array of `shape` that owns its memory, if the bytes of `content` are exactly those it takes."""
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin-1")
    if type(content) not in (bytes, bytearray) or not isinstance(dtype, _Dtype) or type(shape) is not tuple:
        raise Refused("it has a numpy array without bytes, type or shape")
    if dtype.code == "O":
        raise Refused("it has a numpy array of objects in bytes")
    if len(shape) > 16 or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise Refused("it has a numpy array of an impossible shape")
    stored = np.dtype(dtype.code).newbyteorder(dtype.order)
    if len(content) != math.prod(shape) * stored.itemsize:
        raise Refused(f"it has a numpy array of shape {shape} in {len(content)} bytes")
    machine.copy(len(content))
    array = np.frombuffer(content, stored).astype(dtype.code)
    array = array.reshape(shape, order="F" if order == "F" else "C")
    if axes is None:
        return array
    if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
        raise Refused("it has a numpy array with impossible axes")
    return array.transpose(axes)


def _objects(content: Any, shape: Any, fortran: Any) -> list:
    """The list that an array of objects was pickled as; one of two dimensions as a list of rows."""
    if type(content) is not list or type(shape) is not tuple or not all(type(side) is int for side in shape):
        raise Refused("it has a numpy array of objects without objects or shape")
    if math.prod(shape) != len(content) or len(shape) > 2 or (len(shape) == 2 and fortran):
        raise Refused(f"it has a numpy array of {len(content)} objects in the shape {shape}")
    if len(shape) < 2:
        return content
    return [content[place : place + shape[1]] for place in range(0, len(content), shape[1] or 1)]


def _scalar(machine: Unpickler, dtype: Any, content: Any) -> Any:
    return _array(machine, content, dtype, (), "C")[()]


def _encode(machine: Unpickler, text: Any, encoding: Any) -> bytes:
    """_codecs.encode(text, 'latin1'): how Python 3 writes bytes for protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused(f"it asks for {show(text)} in the encoding {show(encoding)}")
    machine.copy(len(text))
    return text.encode("latin-1")


def _ordered_dict(machine: Unpickler, items: Any = ()) -> OrderedDict:
    """OrderedDict() of Python 3, OrderedDict([[key, value], ...]) of Python 2."""
    if type(items) not in (list, tuple) or any(type(item) not in (list, tuple) for item in items):
        raise Refused("its pickle has a dict that is not made of pairs")
    machine.spend(len(items))
    return OrderedDict((as_key(key), value) for key, value in items)


def _counter(machine: Unpickler, counts: Any) -> Counter:
    """Counter({...}), such as the milestones of a MultiStepLR."""
    if type(counts) is not dict or any(type(count) is not int for count in counts.values()):
        raise Refused("its pickle has a Counter that does not count")
    machine.spend(len(counts))
    return Counter(counts)


PLAIN_NAMES: dict[tuple[str, str], Name] = {
    ("collections", "OrderedDict"): Name(_ordered_dict),
    ("collections", "Counter"): Name(_counter),
    ("numpy", "ndarray"): Name(),
    ("numpy", "dtype"): Name(_dtype),
    ("_codecs", "encode"): Name(_encode),
    ("__builtin__", "bytes"): Name(lambda machine: b""),
    **{
        (f"{package}.{module}", name): Name(function)
        for package in ("numpy.core", "numpy._core")  # before and since numpy 2
        for module, name, function in (
            ("multiarray", "_reconstruct", lambda machine, *_: np.empty(0, object)),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
}
