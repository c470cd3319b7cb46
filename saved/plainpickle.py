"""A machine that runs pickles of plain data: containers, strings, numbers and numpy arrays.

A pickle is a program for a small stack machine, and some of its instructions call whatever the file names.
Python's own machine can be narrowed (`find_class`), but then it still runs numpy's and torch's real
constructors on arguments that the file chose, keeps a memo as large as the file says and hashes nested keys.
So this is a machine of its own. It knows the instructions that data needs and no others, and the only
functions that it can call are those in `names`, all of them written in this project.

Time and memory stay in proportion to the file. A pickle runs at most MAX_INSTRUCTIONS; a declared length
must be there in bytes; arrays, and the bytes that they are made of, hold at most twice what the file does; keys
are strings and integers; and the finished object is walked once, so that lists which hold themselves, or each
other 2**n times, are found.

The instructions are described in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

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


@dataclass
class _Array:
    """A numpy array in the making: asked for, remembered, then given its shape, dtype and bytes."""

    made: np.ndarray | list | None = None


@dataclass
class Machine:
    """Runs the pickle that starts at `position` of `data`; `names` is all that it may name."""

    data: bytes | mmap
    names: dict[tuple[str, str], Name]
    position: int = 0
    refer: Callable[[Any], Any] | None = None  # answers references to things outside the pickle
    leaves: tuple[type, ...] = ()  # what `names` and `refer` make that may stay in the result
    work: int = 0  # instructions run, and entries that one of them copied
    copied: int = 0  # bytes of arrays and of re-encoded strings
    stack: list = field(default_factory=list)
    marks: list[list] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        while (code := self.take(1)) != pickle.STOP:
            self.spend(1)
            if code not in _INSTRUCTIONS:
                what = f"its pickle has the instruction {show(code)}, which data does not need"
                raise Refused("it is no pickle" if self.position == 1 else what)
            _INSTRUCTIONS[code](self)
        result = self.stack.pop()
        self.check(result)
        return result

    def check(self, result: Any) -> None:
        """Walk the finished object: known types, bounded depth and, repetitions counted, bounded size."""
        budget, volume = 2 * self.work + 1000, 4 * len(self.data)
        unseen = [(result, 0)]
        while unseen:
            node, depth = unseen.pop()
            if isinstance(node, (dict, list, tuple, set)):
                budget -= len(node) + 1
                if budget < 0 or depth > MAX_DEPTH:
                    raise Refused("it holds lists within lists without end")
                children = node.values() if isinstance(node, dict) else node
                unseen.extend((child, depth + 1) for child in children)
            elif isinstance(node, (np.ndarray, np.generic)):
                volume -= node.nbytes
                if volume < 0:
                    raise Refused("it repeats an array without end")
            elif not isinstance(node, (type(None), bool, int, float, str, bytes, bytearray, *self.leaves)):
                raise Refused("it leaves an object half made")

    # bytes

    def take(self, count: int) -> bytes:
        end = self.position + count
        if not self.position <= end <= len(self.data):
            raise Refused("it ends too early, or declares more than it holds")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def sized(self, layout: str) -> bytes:
        return self.take(self.number(layout))

    def line(self) -> bytes:
        return self.take(self.data.find(b"\n", self.position) + 1 - self.position)[:-1]

    def word(self) -> str:
        """A line that is a number or a name; it is short, since long decimals take quadratic time to read."""
        text = self.line()
        if len(text) > 200:
            raise Refused("its pickle has a number or a name of more than 200 characters")
        return text.decode("ascii")

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > MAX_INSTRUCTIONS:
            raise Refused(f"its pickle takes more than {MAX_INSTRUCTIONS} instructions")

    def copy(self, count: int) -> None:
        self.copied += count
        if self.copied > 2 * len(self.data):  # protocols 0 to 2 spell an array's bytes as text: encoded, then copied
            raise Refused("it describes more data than it holds")

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, count: int) -> list:
        if len(self.stack) < count:
            raise Refused("its pickle takes what is not there")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Refused("its pickle fills something that is not there")
        return self.stack[-1]

    def new_set(self) -> None:
        self.spend(2)  # an empty one is three times as large as the other containers
        self.push(set())

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        value = self.memo[index]
        self.push(value.made if isinstance(value, _Array) and value.made is not None else value)

    # what runs code in other machines

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in self.names:
            raise Refused(f"it asks to run or make {show(module)}.{show(name)}")
        self.push(self.names[module, name])

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, Name) or not callable(function.value) or type(arguments) is not tuple:
            raise Refused("its pickle calls something that is not a function")
        self.push(function.value(self, *arguments))

    def build(self) -> None:
        """Complete what a call began: the byte order of a dtype, the content of an array."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            target.order = state[1] if state[1] in ("<", ">") else "="
        elif isinstance(target, _Array) and target.made is None:
            _, shape, dtype, fortran, content = state
            order = "F" if fortran else "C"
            made = _objects(content, shape, order) if dtype == _OBJECTS else _array(self, content, dtype, shape, order)
            target.made = self.stack[-1] = made
        elif not isinstance(target, OrderedDict):  # whose state is a state_dict's _metadata: not needed
            raise Refused("its pickle fills something that is not there")

    def look_up(self) -> None:
        if self.refer is None:
            raise Refused("it refers to something outside itself")
        self.push(self.refer(self.stack.pop()))


def _fill(target: dict, items: list) -> dict:
    if len(items) % 2:
        raise Refused("its pickle has a key without a value")
    target.update(zip(map(as_key, items[::2]), items[1::2], strict=True))
    return target


def as_key(value: Any) -> str | bytes | int | bool | None:
    """A key of a dict or set. Nested ones can take exponential time to hash; integers beyond 64 bits can be
    chosen so that millions of them collide."""
    if type(value) not in (str, bytes, int, bool, type(None)):
        raise Refused("it has a key that is neither a string nor an integer")
    if isinstance(value, int) and value.bit_length() > 64:
        raise Refused("it has an integer of more than 64 bits for a key")
    return value


def _integer(text: str) -> int | bool:
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L"))


def _python2_string(text: bytes) -> str:
    """A quoted string of protocol 0, as Python 2's repr wrote it, read as Latin-1."""
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise Refused("its pickle has a string without quotes")
    return text[1:-1].decode("unicode_escape")


_INSTRUCTIONS: dict[bytes, Callable[[Machine], Any]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    # constants and numbers
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: lambda m: m.push(_integer(m.word())),
    pickle.LONG: lambda m: m.push(_integer(m.word())),
    pickle.FLOAT: lambda m: m.push(float(m.word())),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.sized("<B"), "little", signed=True)),
    # strings; Python 2's are Latin-1 text, so that arrays' bytes survive
    pickle.STRING: lambda m: m.push(_python2_string(m.line())),
    pickle.BINSTRING: lambda m: m.push(m.sized("<i").decode("latin-1")),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.sized("<B").decode("latin-1")),
    pickle.UNICODE: lambda m: m.push(m.line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: lambda m: m.push(m.sized("<I").decode("utf-8", "surrogatepass")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.sized("<B").decode("utf-8", "surrogatepass")),
    pickle.BINUNICODE8: lambda m: m.push(m.sized("<Q").decode("utf-8", "surrogatepass")),
    pickle.BINBYTES: lambda m: m.push(m.sized("<I")),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.sized("<B")),
    pickle.BINBYTES8: lambda m: m.push(m.sized("<Q")),
    pickle.BYTEARRAY8: lambda m: m.push(bytearray(m.sized("<Q"))),
    # containers
    pickle.MARK: lambda m: m.mark(),
    pickle.POP: lambda m: m.stack.pop() if m.stack else m.to_mark(),
    pickle.POP_MARK: lambda m: m.to_mark(),
    pickle.DUP: lambda m: m.push(m.stack[-1]),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.EMPTY_SET: lambda m: m.new_set(),
    pickle.TUPLE: lambda m: m.push(tuple(m.to_mark())),
    pickle.TUPLE1: lambda m: m.push(tuple(m.last(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.last(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.last(3))),
    pickle.LIST: lambda m: m.push(m.to_mark()),
    pickle.DICT: lambda m: m.push(_fill({}, m.to_mark())),
    pickle.APPEND: lambda m: (item := m.last(1), m.top(list).extend(item)),
    pickle.APPENDS: lambda m: (items := m.to_mark(), m.top(list).extend(items)),
    pickle.SETITEM: lambda m: (items := m.last(2), _fill(m.top(dict), items)),
    pickle.SETITEMS: lambda m: (items := m.to_mark(), _fill(m.top(dict), items)),
    pickle.ADDITEMS: lambda m: (items := m.to_mark(), m.top(set).update(map(as_key, items))),
    # memory for what comes again
    pickle.PUT: lambda m: m.remember(int(m.word())),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.GET: lambda m: m.recall(int(m.word())),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    # what runs code in other machines
    pickle.GLOBAL: lambda m: m.name(m.word(), m.word()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.look_up(),
}


def _dtype(machine: Machine, code: str, *_: object) -> _Dtype:
    """numpy.dtype('f4', ...): numbers and booleans, and objects, whose arrays are read as the lists they are."""
    if code in ("O", "O4", "O8"):
        return _Dtype("O")
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"):
        raise Refused(f"it has a numpy array of type {show(code)}, which holds no plain numbers")
    return _Dtype(code)


def _array(machine: Machine, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array of `shape` that owns its memory, if the bytes of `content` are exactly those it takes."""
    if isinstance(content, str):  # Python 2's bytes
        content = content.encode("latin-1")
    if type(content) not in (bytes, bytearray) or not isinstance(dtype, _Dtype) or type(shape) is not tuple:
        raise Refused("it has a numpy array without bytes, type or shape")
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


_OBJECTS = _Dtype("O")


def _objects(content: Any, shape: Any, order: str) -> list:
    """The list that an array of objects was pickled as; one of two dimensions as a list of rows."""
    if type(content) is not list or type(shape) is not tuple or not all(type(side) is int for side in shape):
        raise Refused("it has a numpy array of objects without objects or shape")
    if math.prod(shape) != len(content) or len(shape) > 2 or (len(shape) == 2 and order == "F"):
        raise Refused(f"it has a numpy array of {len(content)} objects in the shape {shape}")
    if len(shape) < 2:
        return content
    return [content[place : place + shape[1]] for place in range(0, len(content), shape[1] or 1)]


def _scalar(machine: Machine, dtype: Any, content: Any) -> Any:
    return _array(machine, content, dtype, (), "C")[()]


def _encode(machine: Machine, text: Any, encoding: Any) -> bytes:
    """_codecs.encode(text, 'latin1'): how Python 3 writes bytes for protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused(f"it asks for {show(text)} in the encoding {show(encoding)}")
    machine.copy(len(text))
    return text.encode("latin-1")


def _ordered_dict(machine: Machine, items: Any = ()) -> OrderedDict:
    """OrderedDict() of Python 3, OrderedDict([[key, value], ...]) of Python 2."""
    if type(items) not in (list, tuple) or any(type(item) not in (list, tuple) for item in items):
        raise Refused("its pickle has a dict that is not made of pairs")
    machine.spend(len(items))
    return OrderedDict((as_key(key), value) for key, value in items)


def _counter(machine: Machine, counts: Any) -> Counter:
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
            ("multiarray", "_reconstruct", lambda machine, *_: _Array()),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
}
