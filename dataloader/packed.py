"""Sequences of numbered images: files in a folder, or packed into a few large files, which data/pack.py writes.

  PACK/shard-00000.tar    the image files as they were, one sequence behind the other; `tar xf` gives them back
  PACK/shard-00000.npy    int64 (images, 2): where each image's bytes begin in the tar, and how many they are
  PACK/shard-00000.json   which sequences these are: {"sequences": [[folder, prefix, digits, start, count, suffix]]},
                          and the fingerprint of each, of dataloader/extracted.py: {"made_of": [text]}
  PACK/pack.json          written last: {"format": "two-stream pack", "kind", "made_of", "shards": [{"name", "bytes"}]}
  PACK/extraction.json    as it was, if it was there

A stack's ten x images lie side by side, and so do its ten y images: a clip takes two reads, an RGB frame one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from common.formats import Natural, read_json
from utils import InputError

FORMAT = "two-stream pack"
PACK_AGAIN = "copy it or pack this data set again"
READ_AT_ONCE = 64  # images of a run, which bounds the memory
PREFIXES = {"frame": "rgb", "img_": "rgb", "image_": "rgb", "flow_x_": "x", "flow_y_": "y"}  # by name's start


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; a missing or unreadable one is an InputError."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; was it moved since the start? extract this video again"
        ) from None


@dataclass(frozen=True, slots=True)
class Frames:
    """One sequence of consecutively numbered images: `prefix` + number + `suffix` in `folder` under a root.

    The first number is `start`, numbers are padded to `digits` (0: not padded), `count` images in all. `problem` says
    in words why the images are no whole sequence; the numbers then mean nothing.
    """

    folder: str
    prefix: str
    digits: int
    start: int
    count: int
    suffix: str
    problem: str = ""

    @property
    def channel(self) -> str:
        """rgb, x or y, as far as the names tell."""
        return PREFIXES.get(self.prefix.casefold(), "rgb")

    def path(self, root: str | Path, i: int) -> Path:
        """The path of the i-th image; i counts from 0, whatever the names start with."""
        if not 0 <= i < self.count:
            raise IndexError(f"image {i} of the {self.count} in {self.folder}")
        return Path(root, self.folder, f"{self.prefix}{self.start + i:0{self.digits}d}{self.suffix}")

    def read(self, root: str | Path, steps: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """The path and the bytes of each image in `steps`, which count from 0. InputError for one that's gone."""
        stem = f"{root}/{self.folder}/{self.prefix}"  # no Path here: making one takes longer than reading the file
        for step in steps:
            path = f"{stem}{self.start + step:0{self.digits}d}{self.suffix}"
            yield path, read_bytes(path)


class ShardEntry(BaseModel):
    """A shard in pack.json: its name, without suffix or folder, and the size of its tar."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    bytes: Natural


class PackFile(BaseModel):
    """pack.json."""

    format: Literal["two-stream pack"]
    kind: Literal["rgb", "flow"]
    shards: list[ShardEntry]


class ShardFile(BaseModel):
    """What a shard holds: folder, prefix, digits, start, count and suffix of each sequence."""

    sequences: list[tuple[str, str, Natural, Natural, Natural, str]]
    made_of: list[str] = []  # what each was made of (extracted.fingerprint); earlier versions did not write it


def is_pack(root: Path) -> bool:
    """Does `root` hold a pack? InputError for one that data/pack.py has not finished."""
    if (root / "pack.json").is_file():
        return True
    if (root / "shard-00000.tar").is_file():
        raise InputError(f"{root} is an unfinished pack: start data/pack.py again")
    return False


class Shard:
    """One tar file and its table. Opened when first read, in each process anew."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._file: Any = None
        self._table: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_table": None}

    def read(self, first: int, count: int) -> list[bytes]:
        """The bytes of `count` images from row `first` of the table on, in one read. InputError for a bad file."""
        try:
            if self._file is None:
                self._open()
            places = self._table[first : first + count]
            low, high = (int(places[0, 0]), int(places[-1].sum())) if len(places) == count else (0, -1)
            if not 0 <= low <= high <= self.size:
                raise ValueError("they do not fit each other")
            if hasattr(os, "pread"):  # keeps no position, which forked processes would share
                data = os.pread(self._file.fileno(), high - low, low)
            else:
                self._file.seek(low)
                data = self._file.read(high - low)
            if len(data) != high - low:
                raise ValueError("cut off")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.path} or its table is damaged or gone ({error}); {PACK_AGAIN}") from None
        return [data[start - low : start - low + size] for start, size in places.tolist()]

    def _open(self) -> None:
        table = np.load(self.path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        if self.path.stat().st_size != self.size or table.ndim != 2 or table.shape[1] != 2 or table.dtype != np.int64:
            raise ValueError("of another size or shape")
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - stays open
        self._table = np.asarray(table)  # a plain view: slices of a memmap cost 10 us


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFrames(Frames):
    """One sequence of images in a shard; `folder` and the names are those of the files that were packed."""

    shard: Shard
    first: int  # row of the shard's table

    def read(self, root: str | Path, steps: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """A name for messages and the bytes of each image in `steps`, which count from 0 and rise."""
        stem = f"{self.shard.path}:{self.folder}/{self.prefix}"
        for run in consecutive_runs(list(steps), READ_AT_ONCE):
            for step, data in zip(run, self.shard.read(self.first + run[0], len(run)), strict=True):
                yield f"{stem}{self.start + step:0{self.digits}d}{self.suffix}", data


def consecutive_runs(numbers: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Rising numbers in runs of consecutive ones, none longer than `longest`."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        for start in range(0, len(run), longest):
            yield run[start : start + longest]


def open_pack(root: Path, kind: str) -> dict[str, list[PackedFrames]]:
    """The images of each folder that was packed. Raises InputError for a bad pack, or one of another kind."""
    pack = read_json(root / "pack.json", PackFile, PACK_AGAIN)
    if pack.kind != kind:
        raise InputError(f"{root} holds packed {pack.kind} images, not {kind}; give it to --{pack.kind}-dir")
    images: dict[str, list[PackedFrames]] = {}
    for one in pack.shards:
        shard, first = Shard(root / f"{one.name}.tar", one.bytes), 0
        for sequence in sequences_of(root / f"{one.name}.json"):
            packed = PackedFrames(*astuple(sequence), shard=shard, first=first)
            images.setdefault(sequence.folder, []).append(packed)
            first += sequence.count
    return images


def sequences_of(path: Path) -> list[Frames]:
    """The sequences that a shard's JSON file lists."""
    return [Frames(*sequence) for sequence in read_json(path, ShardFile, PACK_AGAIN).sequences]
