"""Pickles and checkpoints that mean harm: they would run a command, or declare more than they hold.

Shared by the tests and by fuzz_loaders.py, which mutates them.
"""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import python2_files
import torch


class Evil:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def running(command: str) -> dict[str, bytes]:
    """Pickles that make Python's own unpickler run `command`."""
    evil = Evil(command)
    text = command.encode()
    call = b"cos\nsystem\n(S'%s'\ntR" % text
    return {
        **{f"reduce{protocol}": pickle.dumps(evil, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
        "inst": b"(S'%s'\nios\nsystem\n." % text,
        "obj": b"(cos\nsystem\nS'%s'\no." % text,
        "nested": pickle.dumps({"a_g01_c01": [1, (2, {"deep": [evil]})]}, 2),
        "discarded": call + b"0}.",
        "as a key": b"}" + call + b"Ns.",
        "after a good part": b"(lp0\n" + b"I1\na" * 1000 + call + b"a.",
        "object array": pickle.dumps({"a": np.array([evil, None], object)}, 2),
        "object array 5": pickle.dumps({"a": np.array([evil, None], object)}, 5),
        "array state": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + call + b"tb.",
        "dtype argument": b"cnumpy\ndtype\n(" + call + b"tR.",
        "eval": b'c__builtin__\neval\n(S\'__import__("os").system("%s")\'\ntR.' % text,
        "eval 3": b'cbuiltins\neval\n(S\'__import__("os").system("%s")\'\ntR.' % text,
        "getattr": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'%s'\ntR." % text,
        "popen": b"csubprocess\ngetoutput\n(S'%s'\ntR." % text,
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(V%s\ntR." % text,
        "dotted name": b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93(V%s\ntR." % text,
        "partial": b"cfunctools\npartial\n(cos\nsystem\nS'%s'\ntR)R." % text,
        "map": b"c__builtin__\nlist\n(c__builtin__\nmap\n(cos\nsystem\n(lS'%s'\natRtR." % text,
    }


def refused() -> dict[str, bytes]:
    """Pickles that ask for what data does not need, or are impossible."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    f4 = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    o8 = b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"
    array5 = b"cnumpy._core.numeric\n_frombuffer\n(C\x04abcd"
    return {
        "persistent id": b"Pfile\n.",
        "binary persistent id": b"\x80\x02U\x04fileQ.",
        "extension": b"\x80\x02\x82\x01.",
        "newobj": b"\x80\x02csubprocess\nPopen\n(U\x01xt\x81.",
        "builtin class": pickle.dumps(float),
        "numpy load": b"cnumpy\nload\n(S'x'\ntR.",
        "array class": pickle.dumps(np.ma.masked_array([1.0]), 2),
        "slice": pickle.dumps(slice(1, 2), 2),
        "bare name": b"cnumpy\nndarray\n.",
        "name in a list": b"(cnumpy\nndarray\nl.",
        "unfinished array": array + b".",
        "unfinished array in a list": b"(" + array + b"l.",
        "bare dtype": f4 + b".",
        "negative shape": array + b"(I1\n(I-1\nt" + f4 + b"I00\nS'abcd'\ntb.",
        "shape and bytes differ": array + b"(I1\n(I2\nt" + f4 + b"I00\nS'abcd'\ntb.",
        "array twice": array + b"(I1\n(I1\nt" + f4 + b"I00\nS'abcd'\ntb(I1\n(I1\nt" + f4 + b"I00\nS'abcd'\ntb.",
        "array in itself": array + b"q\x00(I1\n(I1\nt" + o8 + b"I00\n(h\x00ltb.",
        "shape of huge numbers": array + b"(I1\n(" + pickle.dumps(1 << 800_000, 2)[2:-1] + b"q\x00" + b"h\x00" * 9999
                                 + b"t" + f4 + b"I00\nS'abcd'\ntb.",
        "object in many dimensions": array + b"(I1\n(" + b"I1\n" * 30 + b"t" + o8 + b"I00\n(Nltb.",
        "billion rows without columns": array + b"(I1\n(I1000000000\nI0\nt" + o8 + b"I00\n(ltb.",
        "axes of another kind": array5 + f4 + b"(K\x01t\x8c\x01K" + f4 + b"tR.",
        "other codec": b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        "codec of a list": b"c_codecs\nencode\n((lVlatin1\ntR.",
        "long double": pickle.dumps(np.zeros(2, np.longdouble), 2),
        "dates": pickle.dumps(np.zeros(2, "M8[s]"), 2),
        "records": pickle.dumps(np.zeros(2, [("a", "f4")]), 2),
        "tuple key": pickle.dumps({(1, 2): 3}, 2),
        "no stop": b"]",
        "text": b"spatial predictions\n",
        "zeros": bytes(100),
        "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
        "a list in itself": b"]q\x00h\x00a.",
        "100 GB of bytes": b"\x8e" + struct.pack("<Q", 100 << 30) + b"abc.",
        "100 GB of array": array + b"(I1\n(I26843545600\nt" + f4 + b"I00\nS'abcd'\ntb.",
        "build on a list": b"]}b.",
    }


def zip_file(records: dict[str, bytes], folder: str = "archive", compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file as torch.save lays one out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"{folder}/{name}", data)
    return out.getvalue()


def zip_checkpoint(program: bytes, storages: dict[str, bytes] | None = None, **options) -> bytes:
    data = {f"data/{key}": value for key, value in (storages or {}).items()}
    return zip_file({"data.pkl": program, "byteorder": b"little", **data, "version": b"3\n"}, **options)


def legacy_checkpoint(program: bytes, keys: tuple[str, ...] = (), data: bytes = b"") -> bytes:
    """A file of PyTorch before 1.6 around the pickle `program`."""
    empty = python2_files.checkpoint({})
    body, names = python2_files.Writer().finish({}), python2_files.Writer().finish([])
    assert empty.endswith(body + names)
    return empty[: -len(body + names)] + program + python2_files.Writer().finish(list(keys)) + data


def tensor(
    count: int, size: tuple, stride: tuple, offset: int = 0, kind: bytes = b"FloatStorage", view: object = "none",
    legacy: bool = False,
) -> bytes:  # fmt: skip
    """The pickle of {'w': a tensor in storage '0' of `count` numbers}."""
    piece = python2_files.piece
    views = [piece(None if view == "none" else view)] if legacy else []
    head = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\n" + kind + b"\nU\x010U\x03cpu"
    return b"".join([head, piece(count), *views, b"tQ", piece(offset), piece(size), piece(stride), b"tRs."])


def bad_checkpoints() -> dict[str, bytes]:
    """Checkpoints whose containers or tensors lie."""
    old = legacy_checkpoint
    good = tensor(4, (2, 2), (2, 1))
    four = np.arange(4, dtype="<f4").tobytes()
    huge = 25 << 30  # 100 GB of float32
    whole = zip_checkpoint(good, {"0": four})
    data = whole.index(four)
    model = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), model)
    old_model = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), old_model, _use_new_zipfile_serialization=False)
    stored = struct.pack("<q", 4) + four
    tensors = {
        "100 GB storage": (huge, (huge,), (1,), 0),
        "100 GB view of nothing": (4, (huge,), (0,), 0),
        "outside": (4, (2, 2), (3, 1), 0),
        "offset outside": (4, (2,), (1,), 3),
        "offset far outside": (4, (0,), (1,), 2**61),
        "negative offset": (4, (2,), (1,), -1),
        "negative stride": (4, (2,), (-1,), 3),
        "negative size": (4, (-1,), (1,), 0),
        "negative count": (-4, (2,), (1,), 0),
        "more than 64 bits": (4, (2**40, 2**40), (1, 1), 0),
        "sizes without strides": (4, (2, 2), (1,), 0),
    }
    return {
        **{f"zip, {name}": zip_checkpoint(tensor(*a), {"0": four}) for name, a in tensors.items()},
        **{
            f"legacy, {name}": old(tensor(*a, legacy=True), ("0",), stored)
            for name, a in tensors.items()
            if name != "offset far outside"  # of no numbers, which may lie anywhere
        },
        "zip, wrong type": zip_checkpoint(tensor(4, (2,), (1,), kind=b"DoubleStorage"), {"0": four}),
        "zip, missing storage": zip_checkpoint(good),
        "zip, a storage that is none": zip_checkpoint(
            b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor\n(ccollections\nOrderedDict\n)R}U\x05valueU\x04abcdsb"
            b"K\x00K\x01\x85K\x01\x85tRs."),
        "zip, compressed": zip_checkpoint(good, {"0": four}, compression=zipfile.ZIP_DEFLATED),
        "zip, bomb": zip_checkpoint(good, {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED),
        "zip, two folders": zip_file({"data.pkl": good}) [:-22] + zip_file({"data.pkl": good}, "other"),
        "zip, without pickle": zip_file({"data/0": four}),
        "zip, something before it": b"#!/bin/sh\n" + whole,
        "zip, flipped bit": whole[:data] + bytes([whole[data] ^ 1]) + whole[data + 1 :],
        "zip, cut": whole[: len(whole) // 2],
        "zip, cut by a byte": whole[:-1],
        "zip, empty": zip_file({}),
        "zip, whole model": model.getvalue(),
        "zip, byte order": zip_file({"data.pkl": good, "byteorder": b"middle", "data/0": four}),
        "zip, a list": zip_checkpoint(b"\x80\x02].", {}),
        "legacy, whole model": old_model.getvalue(),
        "legacy, view outside": old(
            tensor(4, (2,), (1,), view=("1", 3, 2), legacy=True), ("0",), stored),
        "legacy, keys differ": old(tensor(4, (2,), (1,), legacy=True), ("1",), stored),
        "legacy, other count": old(tensor(4, (2,), (1,), legacy=True), ("0",), struct.pack("<q", 5) + four),
        "legacy, cut": old(tensor(4, (2,), (1,), legacy=True), ("0",), stored[:-1]),
        "legacy, a list": old(b"\x80\x02]."),
        "predictions": pickle.dumps({"a": np.zeros(3, "f4")}, 2),
        "web page": b"<!DOCTYPE html><html><head><title>404</title>",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "text": b"weights\n",
        "magic alone": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "PK alone": b"PK\x03\x04",
    }  # fmt: skip
