"""The one place that reads pickles and checkpoints: bytes in, plain objects out, and nothing is ever run.

`plainpickle` runs pickles of plain data on a machine that cannot call what a file names; `torchfile` teaches it
the words for tensors, and reads both kinds of file that torch.save has written.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from saved.plainpickle import PLAIN_NAMES, Machine, Refused
from utils import InputError

__all__ = ["load_arrays", "load_checkpoint", "load_pickle"]

MAX_PICKLE_BYTES = 1 << 30  # 25 samples x 10 views of UCF101's test set take 382 MB


def load_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of any protocol, of Python 2 or 3, that holds data only.

    Returns containers, strings, numbers and numpy arrays (of booleans and numbers, native byte order).
    What Python 2 called str is read as Latin-1 text.
    Raises InputError for a file that is missing, damaged, too large or wants anything else.
    """
    with _reading(path, "a pickle of plain data") as file:
        if os.fstat(file.fileno()).st_size > MAX_PICKLE_BYTES:
            raise Refused(f"it is larger than {MAX_PICKLE_BYTES >> 20} MB")
        data = file.read()
        if data[:4] == b"PK\x03\x04":
            raise Refused("it is a zip archive, as torch.save writes checkpoints")
        if data[:1] == b"<" or data.startswith(b"version https://git-lfs"):
            raise Refused(_what_else(data[:512]))
        return Machine(data, PLAIN_NAMES).run()


def load_arrays(path: str | os.PathLike) -> Any:
    """Read a .npy file, or a .npz file as a dict of its arrays: of numbers, strings or named fields of these.

    An array of objects is read as `load_pickle` reads a pickle, and returned as the list that it holds; of two
    dimensions, as a list of lists. Raises InputError for a file that is missing, damaged, too large or wants more.
    """
    with _reading(path, "a file of numpy arrays") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            if os.fstat(file.fileno()).st_size > MAX_PICKLE_BYTES:
                raise Refused(f"it is larger than {MAX_PICKLE_BYTES >> 20} MB")
            return _load_array(file.read())
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            if sum(member.file_size for member in members) > MAX_PICKLE_BYTES:
                raise Refused(f"it unpacks to more than {MAX_PICKLE_BYTES >> 20} MB")
            return {member.filename.removesuffix(".npy"): _load_array(archive.read(member)) for member in members}


def _load_array(data: bytes) -> Any:
    file = io.BytesIO(data)
    if data[:6] != b"\x93NUMPY":
        raise Refused(_what_else(data[:512]).replace("torch.save", "numpy.save"))
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind == "O":
        return Machine(data[file.tell() :], PLAIN_NAMES).run()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > len(data):
        raise Refused("it declares more than it holds")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read what torch.save wrote: a dict of plain containers, strings, numbers and tensors on the CPU.

    Zip files (PyTorch 1.6 and newer) are read by torch's weights-only loader, once the machine has run their
    pickle without data and has found every tensor to lie inside its record. Older files, those written under
    Python 2 included, are read here: torch's loader refuses Python 2's 64-bit ids, which are INT as text.
    Raises InputError for a file that is missing, damaged or wants anything else.
    """
    from saved import torchfile  # torch takes a second to import; who reads predictions needs none of it

    with _reading(path, "a checkpoint of weights and plain data") as file:
        head = file.read(512)
        file.seek(0)
        if head[:4] == b"PK\x03\x04":
            content = torchfile.load_zip(file)
        elif head[:1] == b"\x80":
            content = torchfile.load_legacy(file)
        else:
            raise Refused(_what_else(head))
        if not isinstance(content, dict):
            raise Refused(f"it holds a {type(content).__name__} instead of a dict")
        return content


@contextmanager
def _reading(path: str | os.PathLike, wanted: str) -> Iterator[BinaryIO]:
    """Open `path`; turn whatever its content makes go wrong in the block into one line."""
    damage = (
        IndexError, KeyError, TypeError, ValueError, OverflowError, EOFError, RuntimeError, AssertionError,
        struct.error, zipfile.BadZipFile,
    )  # fmt: skip
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise Refused("it is empty")
            yield file
            return
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "it needs more memory than there is"
    except pickle.UnpicklingError:
        reason = "torch's weights-only loader refuses it"
    except damage as error:
        reason = f"it is damaged ({type(error).__name__}), get it again"
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from None
    raise InputError(f"{path} is not {wanted}: {reason}; nothing in it was run")


def _what_else(head: bytes) -> str:
    if head.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.9 wrote; save its weights again with a newer one"
    return "torch.save did not write it"
