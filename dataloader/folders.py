"""List a tree of image folders once; afterwards ask the file system only for the folders' times.

UCF101 has 13,320 videos in 2.5 million images: listing them takes from seconds to minutes, so what each
folder holds is kept in a cache. A folder's times change when an entry is added, removed or renamed in it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils import InputError, atomic_path, rank

CACHE_NAME = ".frame_index.json"
_CACHE_VERSION = 1
_SETTLED_NS = 2_000_000_000  # some file systems' times tick every 2 s: until then a change may not show
_MAX_DEPTH = 8  # deeper than any layout; ends a loop of links

PREFIXES = {"frame": "rgb", "img_": "rgb", "image_": "rgb", "flow_x_": "x", "flow_y_": "y"}  # by name's start
_IMAGE = re.compile(r"(.*?)([0-9]+)(\.jpe?g|\.png)", re.IGNORECASE | re.DOTALL)


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; a missing or unreadable one is an InputError."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; was it moved since the start? extract this video again"
        ) from None


class Images(NamedTuple):
    """The images of one channel in a folder, named prefix + number + suffix; see Frames.

    `problem` says in words why they are no whole sequence; the numbers then mean nothing.
    """

    prefix: str
    digits: int
    start: int
    length: int
    suffix: str
    problem: str = ""

    @property
    def channel(self) -> str:
        """rgb, x or y, as far as the names tell."""
        return PREFIXES.get(self.prefix.casefold(), "rgb")


@dataclass(frozen=True, slots=True)
class Frames:
    """One sequence of consecutively numbered images: `prefix` + number + `suffix` in `folder` under a root.

    The first number is `start`, numbers are padded to `digits` (0: not padded), `count` images in all.
    """

    folder: str
    prefix: str
    digits: int
    start: int
    count: int
    suffix: str

    @classmethod
    def of(cls, folder: str, images: Images) -> Frames:
        """What a listing found in `folder`."""
        return cls(folder, *images[:-1])

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


@dataclass(slots=True)
class Folder:
    """What one folder holds. A folder with images is a video's: whatever lies below it is none."""

    stamp: tuple[int, ...]  # (mtime_ns, ctime_ns), or () for one that has to be listed again next time
    images: tuple[Images, ...]
    subfolders: tuple[str, ...]


def scan(root: Path) -> dict[str, Folder]:
    """Every folder under `root` by its path relative to it ("" is root's), with "/" on every system.

    Names that begin with a dot are skipped: unfinished extraction, caches. The cache is written to root, or
    to the user's cache folder where root can't be written. Raises InputError for a folder that can't be read.
    """
    cached = _read_cache(root)
    folders: dict[str, Folder] = {}
    now = time.time_ns()
    todo = [""]
    with tqdm(
        desc=f"counting frames in {root}", unit=" folders", delay=2, leave=False, disable=rank() > 0 or None
    ) as bar:
        while todo:
            path = todo.pop()
            full = f"{root}/{path}"
            try:
                status = os.stat(full)
            except OSError:
                continue  # gone since its parent was listed
            stamp = (status.st_mtime_ns, status.st_ctime_ns)  # tar and rsync set mtime back, never ctime
            folder = cached.get(path)
            if folder is None or folder.stamp != stamp:
                folder = _list(full, path)
                # writing the cache changes root's own times, so root is listed every time
                folder.stamp = stamp if path and max(stamp) < now - _SETTLED_NS else ()
                bar.update()
            folders[path] = folder
            if path.count("/") < _MAX_DEPTH:
                todo.extend(f"{path}/{name}" if path else name for name in folder.subfolders)
    if folders != cached:
        _write_cache(root, folders)
    return folders


def _list(full: str, path: str) -> Folder:
    own_prefix = path.rpartition("/")[2].casefold() + "_"  # v_X/v_X_1.jpg
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    subfolders = []
    try:
        with os.scandir(full) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if image := _IMAGE.fullmatch(name):
                    prefix, number, suffix = image.groups()
                    if path and (prefix in PREFIXES or prefix.casefold() in (own_prefix, *PREFIXES)):
                        numbers[prefix, suffix].append(number)
                elif entry.is_dir():
                    subfolders.append(name)
    except OSError as error:
        raise InputError(f"cannot list {full}: {error.strerror}; check its permissions") from None
    images: dict[str, Images] = {}
    for (prefix, suffix), found in sorted(numbers.items()):
        one = _sequence(prefix, suffix, found)
        if other := images.get(one.channel):
            both = f"{other.prefix}...{other.suffix} and {prefix}...{suffix}"
            one = one._replace(problem=f"holds two sequences, {both}; keep one of them")
        images[one.channel] = one
    return Folder((), tuple(images.values()), () if images else tuple(sorted(subfolders)))


def _sequence(prefix: str, suffix: str, numbers: Sequence[str]) -> Images:
    """Read first number, count and padding off the numbers in names, or what is wrong with them."""
    values = set(map(int, numbers))
    start, length = min(values), len(numbers)
    digits = min(map(len, numbers)) if any(len(text) > 1 and text[0] == "0" for text in numbers) else 0
    problem = ""
    if start > 1:
        problem = f"begins with image {start}, those before it are missing"
    elif max(values) - start + 1 > len(values):
        gap = next(i for i in itertools.count(start) if i not in values)
        problem = f"{prefix}{gap:0{digits}d}{suffix} is missing, and the numbers go on to {max(values)}"
    elif any(text != f"{int(text):0{digits}d}" for text in numbers if len(text) != digits):
        problem = "the numbers are padded to different widths"
    return Images(prefix, digits, start, length, suffix, problem)


def _cache_files(root: Path) -> list[Path]:
    """Where the cache may lie, the better place first."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return [root / CACHE_NAME, base / "two-stream" / f"{name}.json"]


def _read_cache(root: Path) -> dict[str, Folder]:
    """The newest cache, {} if there is none or it isn't one of ours."""
    found = [(file.stat().st_mtime, file) for file in _cache_files(root) if file.is_file()]
    if not found:
        return {}
    try:
        content = json.loads(max(found)[1].read_bytes())
        if content["version"] != _CACHE_VERSION:
            return {}
        images = [tuple(Images(*one) for one in several) for several in content["images"]]
        return {
            path: Folder(tuple(stamp), images[number], tuple(subfolders))
            for path, (number, subfolders, *stamp) in content["folders"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}


def _write_cache(root: Path, folders: dict[str, Folder]) -> None:
    # many folders hold equal sequences: each is written, and later built, once
    numbers = {images: i for i, images in enumerate({folder.images: None for folder in folders.values()})}
    entries = {path: (numbers[folder.images], folder.subfolders, *folder.stamp) for path, folder in folders.items()}
    content = {"version": _CACHE_VERSION, "images": list(numbers), "folders": entries}
    text = json.dumps(content, separators=(",", ":"))
    for file in _cache_files(root):
        try:
            with atomic_path(file) as temporary:
                temporary.write_text(text, encoding="ascii")
            return
        except InputError:
            continue  # without a cache it only takes longer
