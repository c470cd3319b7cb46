"""Sequences of images that data/pack.py packed into a few large files.

  PACK/shard-00000.tar    the unchanged image files, sequence after sequence; `tar xf` restores them
  PACK/shard-00000.npy    int64 (images, 2): offset and length of each image's bytes in the tar
  PACK/shard-00000.json   its sequences: {"sequences": [[folder, prefix, digits, start, count, suffix]]},
                          and the fingerprint of each (dataloader/extracted.py): {"made_of": [text]}
  PACK/pack.json          written last: {"format": "two-stream pack", "kind", "made_of", "shards": [{"name", "bytes"}]}
  PACK/extraction.json    copied unchanged, if there is one

A stack's ten x images are adjacent, and so are its ten y images: a clip takes two reads, an RGB frame one.
"""

import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from common.formats import Natural, read_json
from dataloader.frames import Frames
from utils import InputError

FORMAT = "two-stream pack"
PACK_AGAIN = "copy it or pack this data set again"
READ_AT_ONCE = 64  # images per read, which limits the memory


class ShardEntry(BaseModel):
    """A shard in pack.json."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]  # without suffix or folder
    bytes: Natural  # of its tar


class PackFile(BaseModel):
    """pack.json."""

    format: Literal["two-stream pack"]
    kind: Literal["rgb", "flow"]
    shards: list[ShardEntry]


class ShardFile(BaseModel):
    """The sequences of a shard: folder, prefix, digits, start, count and suffix of each."""

    sequences: list[tuple[str, str, Natural, Natural, Natural, str]]
    made_of: list[str] = []  # fingerprint of each (extracted.fingerprint); absent in earlier versions


def is_pack(root: Path) -> bool:
    """Return whether `root` holds a pack. Raises InputError if data/pack.py has not finished it."""
    if (root / "pack.json").is_file():
        if not hasattr(os, "pread"):
            raise InputError(f"{root} is a pack, and Windows cannot read it in parallel: unpack it with tar xf")
        return True
    if (root / "shard-00000.tar").is_file():
        raise InputError(f"{root} is an unfinished pack: start data/pack.py again")
    return False


@dataclass(eq=False)
class Shard:
    """One tar file and its table. Each process opens it at its first read."""

    path: Path
    size: int  # of the tar, in bytes

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def read(self, first: int, count: int) -> list[bytes]:
        """Read `count` images' bytes from table row `first` on, in one read. InputError for a bad file."""
        try:
            file, table = self.opened
            places = table[first : first + count]
            low, high = (int(places[0, 0]), int(places[-1].sum())) if len(places) == count else (0, -1)
            if not 0 <= low <= high <= self.size:
                raise ValueError("they do not fit each other")
            data = os.pread(file.fileno(), high - low, low)  # no position, which forks would share
            if len(data) != high - low:
                raise ValueError("cut off")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.path} or its table is damaged or gone ({error}); {PACK_AGAIN}") from None
        return [data[start - low : start - low + size] for start, size in places.tolist()]

    @functools.cached_property
    def opened(self) -> tuple[Any, np.ndarray]:
        """The tar, and the table of its images. Raises ValueError if they are of another size or shape."""
        table = np.load(self.path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        if self.path.stat().st_size != self.size or table.ndim != 2 or table.shape[1] != 2 or table.dtype != np.int64:
            raise ValueError("of another size or shape")
        # The file stays open. The table is a plain view, because slicing a memmap costs 10 us.
        return open(self.path, "rb", buffering=0), np.asarray(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFrames(Frames):
    """One sequence of images in a shard; `folder` and the names are those of the packed files."""

    shard: Shard
    first: int  # row of the shard's table

    def read(self, root: str | Path, steps: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """Yield a name for messages and the bytes of each image in `steps`, ascending and from 0."""
        for run in consecutive_runs(list(steps), READ_AT_ONCE):
            for step, data in zip(run, self.shard.read(self.first + run[0], len(run)), strict=True):
                yield f"{self.shard.path}:{self.folder}/{self.name(step)}", data


def consecutive_runs(numbers: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Split ascending numbers into runs of consecutive ones, none longer than `longest`."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        for start in range(0, len(run), longest):
            yield run[start : start + longest]


def open_pack(root: Path, kind: str) -> dict[str, list[PackedFrames]]:
    """Return the images of each packed folder. Raises InputError for a bad pack or one of another kind."""
    pack = read_json(root / "pack.json", PackFile, PACK_AGAIN)
    if pack.kind != kind:
        raise InputError(f"{root} holds packed {pack.kind} images, not {kind}; give it to --{pack.kind}-dir")
    images: dict[str, list[PackedFrames]] = defaultdict(list)
    for one in pack.shards:
        shard, first = Shard(root / f"{one.name}.tar", one.bytes), 0
        for sequence in read_shard(root / f"{one.name}.json")[0]:
            images[sequence.folder].append(PackedFrames(*astuple(sequence), shard=shard, first=first))
            first += sequence.count
    return images


def read_shard(path: Path) -> tuple[list[Frames], list[str]]:
    """Return the sequences listed in a shard's JSON file, and their fingerprints."""
    shard = read_json(path, ShardFile, PACK_AGAIN)
    return [Frames(*sequence) for sequence in shard.sequences], shard.made_of
