"""Where each video's frames lie on disk, and how many there are.

Layouts, told apart by the names of folders and images; the first number, 0 or 1, is read off as well:

  tsfusion, ours     ROOT/v_X/frame000001.jpg, and flow in ROOT/{u,v}/v_X/frame000001.jpg
  dense_flow         ROOT/v_X/{img,flow_x,flow_y}_00001.jpg
  mmaction2          ROOT/Class/v_X/{img,flow_x,flow_y}_00001.jpg
  the original repo  ROOT/Class/separated_images/v_X/v_X_1.jpg

Any other folders may stand between ROOT and the video's. The index lists each folder once and keeps what it
found in a cache; afterwards it asks the file system only for the folders' times.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dataloader.names import Video, first_few, ucf_parts, without_suffix
from utils import InputError, atomic_path

CACHE_NAME = ".frame_index.json"
_CACHE_VERSION = 1
_SETTLED_NS = 2_000_000_000  # a folder younger than this may still change within one tick of its time stamp
_MAX_DEPTH = 8  # deeper than any layout; ends a loop of links

_CHANNELS = {"frame": "rgb", "img_": "rgb", "image_": "rgb", "flow_x_": "x", "flow_y_": "y"}
_IMAGE = re.compile(r"(.*?)(\d+)(\.jpe?g|\.png)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Frames:
    """One sequence of consecutively numbered images.

    folder is relative to the index's root; digits is the width the number is padded to (0: not padded);
    start is the first number; a name is prefix + number + suffix.
    """

    folder: str
    prefix: str
    digits: int
    start: int
    count: int
    suffix: str = ".jpg"

    def path(self, root: str | Path, i: int) -> Path:
        """The path of the i-th image, i counted from 0 whatever the numbers on disk start with."""
        if not 0 <= i < self.count:
            raise IndexError(f"image {i} of {self.count} in {self.folder}")
        return Path(root, self.folder, f"{self.prefix}{self.start + i:0{self.digits}d}{self.suffix}")


@dataclass
class Index:
    """All videos with frames under `root`.

    videos: name -> {"rgb": Frames}, {"x": Frames, "y": Frames} or all three. The name is as spelled on disk:
        `Class_gXX_cYY` for UCF101's form, else the folder's path under root, as in `fight/fi001`
    problems: name -> why its frames can't be used (a gap in the numbers, u and v of different counts, ...)
    """

    root: Path
    kind: Literal["rgb", "flow"]
    videos: dict[str, dict[str, Frames]]
    problems: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str | None] = field(
        default_factory=dict, repr=False
    )  # folded name -> name; None: several

    def __post_init__(self) -> None:
        for name in [*self.videos, *self.problems]:
            folded = _fold(name)
            self._names[folded] = name
            if (
                folded.count("/") > 1
            ):  # ROOT/rawframes/fight/fi001 is found as fight/fi001 if only one ends so
                short = "/".join(folded.rsplit("/", 2)[1:])
                self._names[short] = None if self._names.get(short, name) != name else name


def index_frames(root: str | Path, kind: Literal["rgb", "flow"]) -> Index:
    """Find every video's frames (`rgb`) or flow images (`flow`) under `root`.

    The cache lies in root, or in the user's cache folder where root can't be written. Raises InputError where
    root is missing or holds no such images; what is wrong with single videos stands in Index.problems.
    """
    root = Path(root)
    what = "RGB frames" if kind == "rgb" else "optical flow"
    if not root.is_dir():
        is_file = "is a file, not a folder" if root.exists() else "doesn't exist"
        raise InputError(f"the folder of {what}, {root}, {is_file}; make it with data/extract_{kind}.py")
    index = _assemble(root, kind, _scan(root))
    wanted = {"rgb"} if kind == "rgb" else {"x", "y"}
    if not index.problems and not any(wanted & sequences.keys() for sequences in index.videos.values()):
        other = f" (though {len(index.videos)} videos of the other modality)" if index.videos else ""
        raise InputError(f"no {what} under {root}{other}; make them with data/extract_{kind}.py")
    return index


def find(index: Index, video_name: str) -> Frames | tuple[Frames, Frames]:
    """The frames of one video: Frames of an rgb index, (x, y) of a flow index.

    `video_name` is a key or a path as lists write it; case doesn't matter, nor leading folders that the disk
    doesn't have. Raises InputError where the video isn't there or its frames have a problem.
    """
    name = _locate(index, video_name)
    if name is None:
        raise InputError(f"no frames of {video_name} under {index.root}")
    sequences = index.videos.get(name, {})
    if index.kind == "rgb" and "rgb" in sequences:
        return sequences["rgb"]
    if index.kind == "flow" and "x" in sequences and "y" in sequences:
        return sequences["x"], sequences["y"]
    raise InputError(f"{name} under {index.root}: {index.problems.get(name, f'no {index.kind} images')}")


def match(
    index: Index, videos: Iterable[Video], missing: Literal["error", "skip"] = "error"
) -> list[tuple[Video, Frames | tuple[Frames, Frames]]]:
    """Each video with its frames, in the given order.

    Videos without frames are counted and the first few named: an InputError, or with missing="skip" a printed
    line, and they are left out. None found at all is always an error.
    """
    videos = list(videos)
    found, absent, broken = [], [], []
    for video in videos:
        name = _locate(index, video.listed) or _locate(index, video.name)
        if name is None:
            absent.append(video.listed)
            continue
        try:
            found.append((video, find(index, name)))
        except InputError as error:
            broken.append(str(error))
    _no_folder_twice(index, found)
    reports = []
    if absent:
        reports.append(
            f"{len(absent)} of {len(videos)} listed videos are not under {index.root}: {first_few(absent)}"
        )
    if broken:
        reports.append(f"{len(broken)} of {len(videos)} listed videos can't be used: {first_few(broken, 2)}")
    if reports and (missing == "error" or not found):
        remedy = (
            "extract them, or go on without them with --missing skip"
            if found
            else "is this the right folder?"
        )
        raise InputError(f"{'; '.join(reports)}; {remedy}")
    for report in reports:
        print(f"left out: {report}")
    return found


def _no_folder_twice(index: Index, found: list) -> None:
    owners: dict[str, Video] = {}
    for video, frames in found:
        folder = (frames if isinstance(frames, Frames) else frames[0]).folder
        if (other := owners.setdefault(folder, video)) is not video:
            raise InputError(
                f"{other.listed} and {video.listed} both match the folder {index.root / folder}; "
                "put videos of the same name into folders of their classes"
            )


def _locate(index: Index, name: str) -> str | None:
    """The index's name of a video, also where the list has more leading folders than the disk, or the disk none."""
    folded = _fold(name)
    while folded:
        if found := index._names.get(folded):
            return found
        folded = folded.partition("/")[2]
    return None


def _fold(name: str) -> str:
    """Compare names without case, without a suffix, composed alike (macOS decomposes accents), without v_."""
    name = without_suffix(name)
    name = (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()
    return _bare(name) if ucf_parts(name) else name


def _bare(name: str) -> str:
    return name.rpartition("/")[2].removeprefix("v_")


# ------------------------------------------------------------------------------- from folders to videos


@dataclass
class _Folder:
    """One folder as listed: its sequences [prefix, digits, start, count, suffix], a problem, or its subfolders."""

    stamp: list[int]  # [mtime_ns, ctime_ns], or [] where it must be listed again
    sequences: list[list]
    subfolders: list[str]
    problem: str = ""


def _assemble(root: Path, kind: str, folders: dict[str, _Folder]) -> Index:
    videos: dict[str, dict[str, Frames]] = defaultdict(dict)
    problems: dict[str, str] = {}
    spelled: dict[str, str] = {}  # folded name -> name, so that u/v_HandStand... and v/v_Handstand... meet
    for path, folder in folders.items():
        if not folder.sequences and not folder.problem:
            continue
        channel, name = _channel_and_name(path, kind)
        name = spelled.setdefault(_fold(name), name)
        if folder.problem:
            problems[name] = f"{path}: {folder.problem}"
        for prefix, digits, start, count, suffix in folder.sequences:
            of_prefix = _CHANNELS.get(prefix.casefold(), "rgb")
            sequence = channel if channel and of_prefix == "rgb" else of_prefix
            frames = Frames(path, prefix, digits, start, count, suffix)
            other = videos[name].setdefault(sequence, frames)
            if other is not frames:
                problems[name] = (
                    f"its {sequence} images lie in {other.folder} and in {path}; keep one of them"
                )
    for name, sequences in videos.items():
        x, y = sequences.get("x"), sequences.get("y")
        if name not in problems and (x is None) != (y is None):
            have, lack = ("u (x)", "v (y)") if x else ("v (y)", "u (x)")
            problems[name] = f"has {have} images in {(x or y).folder} but no {lack} images"  # type: ignore[union-attr]
        elif name not in problems and x and y and x.count != y.count:
            problems[name] = f"{x.count} u (x) images in {x.folder} but {y.count} v (y) images in {y.folder}"
    wanted = {"rgb"} if kind == "rgb" else {"x", "y"}
    for name in problems:
        for channel in wanted:
            videos[name].pop(channel, None)
    return Index(root, kind, {name: found for name, found in videos.items() if found}, problems)  # type: ignore[arg-type]


def _channel_and_name(path: str, kind: str) -> tuple[str | None, str]:
    """("x", "y" or None, video name) of a folder: tsfusion tells the flow's channel by a folder u or v."""
    parts = path.split("/")
    channel = None
    if kind == "flow":
        for letter, axis in (("u", "x"), ("v", "y")):
            if letter in parts[:-1] and channel is None:
                parts.remove(letter)
                channel = axis
    name = "/".join(part for part in parts if part != "separated_images")
    return channel, name.rpartition("/")[2].removeprefix("v_") if ucf_parts(name) else name


# ------------------------------------------------------------------------------------ listing and cache


def _scan(root: Path) -> dict[str, _Folder]:
    """Every folder under root by its relative path with slashes; unchanged ones are taken from the cache."""
    cached = _read_cache(root)
    folders: dict[str, _Folder] = {}
    now = time.time_ns()
    todo = [""]
    while todo:
        path = todo.pop()
        full = f"{root}/{path}"
        try:
            status = os.stat(full)
        except OSError:
            continue  # gone since its parent was listed: missing, and reported as that
        stamp = [status.st_mtime_ns, status.st_ctime_ns]
        folder = cached.get(path)
        if folder is None or folder.stamp != stamp:
            folder = _list_folder(full, path)
            # a change in the same tick would leave the stamp as it is; root's changes with every cache written
            folder.stamp = stamp if max(stamp) < now - _SETTLED_NS and path else []
        folders[path] = folder
        if path.count("/") < _MAX_DEPTH:
            todo.extend(f"{path}/{name}" if path else name for name in folder.subfolders)
    if folders != cached:
        _write_cache(root, folders)
    return folders


def _list_folder(full: str, path: str) -> _Folder:
    own_prefix = path.rpartition("/")[2].casefold() + "_"  # v_X/v_X_1.jpg
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    subfolders = []
    try:
        with os.scandir(full) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):  # unfinished extraction, caches, macOS's ._ files
                    continue
                found = _IMAGE.fullmatch(name)
                if found and (found[1].casefold() in _CHANNELS or found[1].casefold() == own_prefix):
                    numbers[found[1], found[3]].append(found[2])
                elif not found and entry.is_dir():
                    subfolders.append(name)
    except OSError as error:
        raise InputError(f"cannot list {full}: {error.strerror}; check its permissions") from error
    if not numbers or not path:
        return _Folder([], [], sorted(subfolders))
    sequences, problem = [], ""
    channels = set()
    for (prefix, suffix), found in sorted(numbers.items()):
        sequence, trouble = _sequence(found)
        channel = _CHANNELS.get(prefix.casefold(), "rgb")
        if channel in channels:
            trouble = f"two sequences of {channel} images, one named {prefix}...{suffix}; keep one of them"
        channels.add(channel)
        if trouble:
            problem = f"{prefix}...{suffix}: {trouble}"
        else:
            sequences.append([prefix, *sequence, suffix])
    return _Folder([], sequences, [], problem)  # what lies below a video's folder is no video


def _sequence(digits: list[str]) -> tuple[list[int], str]:
    """([digits, start, count], problem) of the numbers in a folder's image names."""
    values = [int(number) for number in digits]
    start, count = min(values), len(values)
    width = min(map(len, digits)) if any(number[0] == "0" and len(number) > 1 for number in digits) else 0
    if start > 1:
        return [], f"numbers start at {start}, so the first images are missing"
    if max(values) - start + 1 != count:
        present = set(values)
        gap = next((i for i in range(start, max(values)) if i not in present), None)
        return [], f"image {gap} of {max(values)} is missing" if gap is not None else "a number occurs twice"
    if any(len(text) != max(width, len(str(value))) for text, value in zip(digits, values, strict=True)):
        return [], "numbers are padded to different widths"
    return [width, start, count], ""


def _cache_files(root: Path) -> list[Path]:
    """Where the cache may lie: in root, or in the user's cache folder for a root that can't be written."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return [root / CACHE_NAME, base / "two-stream" / f"{name}.json"]


def _read_cache(root: Path) -> dict[str, _Folder]:
    """The newest readable cache, {} if there is none; one that isn't of our making is as good as none."""
    newest: tuple[float, dict[str, _Folder]] = (0.0, {})
    for file in _cache_files(root):
        try:
            when = file.stat().st_mtime
            content = json.loads(file.read_bytes())
            if content["version"] == _CACHE_VERSION and when > newest[0]:
                newest = when, {path: _Folder(*entry) for path, entry in content["folders"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return newest[1]


def _write_cache(root: Path, folders: dict[str, _Folder]) -> None:
    entries = {path: [f.stamp, f.sequences, f.subfolders, f.problem] for path, f in folders.items()}
    text = json.dumps({"version": _CACHE_VERSION, "folders": entries}, separators=(",", ":"))
    for file in _cache_files(root):
        try:
            with atomic_path(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return
        except (InputError, OSError):
            continue  # no cache only costs time
