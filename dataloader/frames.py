"""Find where each video's frames are on disk, and how many there are.

The layout is detected from folder and image names; whether numbers start at 0 or 1, from the images:

  tsfusion, ours     ROOT/v_X/frame000001.jpg, and flow in ROOT/{u,v}/v_X/frame000001.jpg
  dense_flow         ROOT/v_X/{img,flow_x,flow_y}_00001.jpg
  mmaction2          ROOT/Class/v_X/{img,flow_x,flow_y}_00001.jpg
  the original repo  ROOT/Class/separated_images/v_X/v_X_1.jpg

A packed dataset (data/pack.py) is read like its original folder. Other folders may lie between ROOT and
the video's folder, and videos may have any names. A folder without subfolders may also hold images of one
other name with consecutive numbers (00001.jpg, frame_000001.webp). They are then the video's frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel
from tqdm import tqdm

from common.formats import Natural, read_json
from dataloader.extracted import read_extraction
from dataloader.names import Video, first_few, ucf_parts, without_suffix
from dataloader.packed import PREFIXES, Frames, is_pack, open_pack
from utils import InputError, atomic_path, rank

Kind: TypeAlias = Literal["rgb", "flow"]
CHANNELS = {"rgb": ("rgb",), "flow": ("x", "y")}
_CALLED = {"rgb": "RGB frames", "flow": "optical flow"}

KNOWN = "VIDEO/frame000001.jpg, VIDEO/img_00001.png, u/VIDEO/frame000001.jpg or VIDEO/flow_x_00001.jpg"
CACHE_NAME = ".frame_index.json"
_SETTLED_NS = 2_000_000_000  # file times may tick only every 2 s, so a more recent change may not show
_MAX_DEPTH = 8  # deeper than any layout; ends symlink loops

_ANY_IMAGE = re.compile(r"[^.].*\.(jpe?g|png|webp|bmp|tiff?|ppm)", re.IGNORECASE)
_IMAGE = re.compile(r"(.*?)([0-9]+)(\.jpe?g|\.png|\.webp)", re.IGNORECASE | re.DOTALL)


@dataclass
class Index:
    """All videos with images under `root`.

    videos: name -> {"rgb": Frames}, {"x": Frames, "y": Frames}, or all three
    problems: name -> why its images cannot be used: a gap in the numbers, different counts in u and v, ...

    Names are spelled as on disk: `Class_gXX_cYY`, or the folder's path under root, such as `fight/fi001`.
    """

    root: Path
    kind: Kind
    videos: dict[str, dict[str, Frames]]
    problems: dict[str, str]
    _by_folded_name: dict[str, str] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """All videos, including those with a problem: the names_on_disk of load_split."""
        return sorted({*self.videos, *self.problems})


def index_frames(root: str | Path, kind: Kind) -> Index:
    """Find the images of every video under `root`: "rgb" frames or "flow".

    The images are counted once and cached (scan). Raises InputError if root holds no such images. A problem
    with a single video raises an error only when that video is requested.
    """
    root = Path(root)
    remedy = f"make them with data/extract_{kind}.py, or give their folder to --{kind}-dir"
    if not root.is_dir():
        raise InputError(f"{_CALLED[kind]}: {root} is {'not a folder' if root.exists() else 'not there'}; {remedy}")
    if is_pack(root):
        return assemble(root, kind, open_pack(root, kind))
    made = read_extraction(root)
    u, v = ({folder.name for folder in (root / name).glob("*/")} for name in "uv")
    holds = made.kind if made else "flow" if u and u == v else kind
    if holds != kind and (made or kind == "rgb"):
        raise InputError(f"{_CALLED[kind]}: {root} holds {_CALLED[holds]}; {remedy}")
    index = assemble(root, kind, {path: folder.images for path, folder in scan(root).items() if folder.images})
    if not index.problems and not any(CHANNELS[kind][0] in channels for channels in index.videos.values()):
        other = f", only {_CALLED['flow' if kind == 'rgb' else 'rgb']}" if index.videos else ""
        image = next((path for path in root.rglob("*") if _ANY_IMAGE.fullmatch(path.name)), None)
        if image and not other:
            other = f", but {image.relative_to(root)}; known are images of one name and numbers, as in {KNOWN}"
        raise InputError(f"{root} holds no {_CALLED[kind]} in a known layout{other}; {remedy}")
    return index


def find(index: Index, video_name: str) -> Frames | tuple[Frames, Frames]:
    """Return the images of one video: Frames from an rgb index, (x, y) from a flow index.

    `video_name` is a key, or a path as in lists: case does not matter, and leading folders may differ. Raises
    InputError for a video that is missing or has a problem.
    """
    name = locate(index, video_name)
    if name in index.problems:
        raise InputError(f"{index.root}: {index.problems[name]}")
    channels = [index.videos.get(name or "", {}).get(channel) for channel in CHANNELS[index.kind]]
    if channels[0] is None:
        raise InputError(f"{index.root} holds no {_CALLED[index.kind]} of {video_name}")
    return channels[0] if index.kind == "rgb" else tuple(channels)  # type: ignore[return-value]


def match(
    index: Index, videos: Iterable[Video], missing: Literal["error", "skip"] = "error"
) -> list[tuple[Video, Frames | tuple[Frames, Frames]]]:
    """Return each video with its images, in the given order.

    Videos that are missing or have a problem are counted, and the first few named, in an InputError. With
    missing="skip" they are left out and a line is printed; it is still an error if all are missing.
    """
    found: list[tuple[Video, Frames | tuple[Frames, Frames]]] = []
    absent: list[str] = []
    broken: list[str] = []
    owners: dict[str, Video] = {}
    videos = list(videos)
    for video in videos:
        name = locate_video(index, video)
        if name is None:
            absent.append(video.listed)
            continue
        try:
            found.append((video, find(index, name)))
        except InputError as error:
            broken.append(str(error).removeprefix(f"{index.root}: "))
            continue
        if owners.setdefault(name, video) is not video:
            raise InputError(f"{owners[name].listed} and {video.listed} would both be {index.root / name}; "
                             "put videos of one name into a folder for each class")
    parts = []
    if absent:
        parts.append(f"{len(absent)} of {len(videos)} listed videos can't be found ({first_few(absent)})")
    if broken:
        parts.append(f"{len(broken)} of {len(videos)} can't be used ({first_few(broken, 2)})")
    if parts and (missing == "error" or not found):
        remedy = "extract them, or use --allow-missing to go on without" if found else "is it the right folder?"
        raise InputError(f"{index.root}: {' and '.join(parts)}; {remedy}")
    if parts and rank() == 0:
        print(f"{index.root}: {' and '.join(parts)}; going on with the other {len(found)}")
    return found


def locate(index: Index, name: str, least: str = "") -> str | None:
    """Return the index's name of a video, or None. Leading folders outside `least` may differ."""
    folded = _fold(name)
    while folded:
        if found := index._by_folded_name.get(folded):
            return found
        folded = "" if folded == _fold(least) else folded.partition("/")[2]
    return None


def locate_video(index: Index, video: Video) -> str | None:
    """Return the index's name of a listed video, or None.

    A key longer than Class/stem tells videos of equal name apart, so all of it must be on disk.
    """
    least = video.name if video.name.count("/") > 1 else ""
    return locate(index, video.listed, least) or locate(index, video.name, least)


def _fold(name: str) -> str:
    """Normalise a video's name: ignore case, suffix, v_ and the form of accents (decomposed on macOS)."""
    if parts := ucf_parts(name):
        return f"{parts[0]}_g{parts[1]}_c{parts[2]}".casefold()
    return unicodedata.normalize("NFC", without_suffix(name)).casefold()


def assemble(root: Path, kind: Kind, sequences: Mapping[str, Sequence[Frames]]) -> Index:
    """Build the index from the sequences in each folder under `root`: find each one's video and channel."""
    videos: dict[str, dict[str, Frames]] = defaultdict(dict)
    problems: dict[str, str] = {}
    by_folded_name: dict[str, str] = {}
    for path, found in sorted(sequences.items()):
        named_by_channel = any(images.channel != "rgb" for images in found)
        name, in_u_or_v = _name_and_channel(path, kind == "flow" and not named_by_channel)
        name = by_folded_name.setdefault(_fold(name), name)  # u/v_HandStand... equals v/v_Handstand...
        for images in found:
            channel = in_u_or_v or images.channel
            if channel not in CHANNELS[kind]:
                if not images.problem:
                    videos[name].setdefault(channel, images)
            elif images.problem:
                problems.setdefault(name, f"{path}: {images.problem}")
            elif channel in videos[name]:
                problems[name] = f"{name} is in {videos[name][channel].folder} and in {path}; keep one of them"
            else:
                videos[name][channel] = images
    for name, channels in videos.items():
        if kind == "flow" and name not in problems and (problem := _uneven(channels.get("x"), channels.get("y"))):
            problems[name] = f"{name} {problem}; extract it again"
        if name in problems:
            for channel in CHANNELS[kind]:
                channels.pop(channel, None)
    by_ending: dict[str, list[str]] = defaultdict(list)  # finds ROOT/rawframes/fight/fi001 as fight/fi001
    for folded, name in by_folded_name.items():
        by_ending["/".join(folded.split("/")[-2:])].append(name)
    endings = {ending: names[0] for ending, names in by_ending.items() if len(names) == 1}
    videos = {name: channels for name, channels in videos.items() if channels}
    return Index(root, kind, videos, problems, endings | by_folded_name)


def _name_and_channel(path: str, in_u_and_v: bool) -> tuple[str, str | None]:
    """Return a folder's video, and "x" or "y" if a parent folder u or v tells it, as in tsfusion's flow."""
    if parts := ucf_parts(path):
        name = f"{parts[0]}_g{parts[1]}_c{parts[2]}"
    else:
        name = path.replace("separated_images/", "")
    if not in_u_and_v:
        return name, None
    above = path.split("/")[:-1]
    letter = next((part for part in above if part in ("u", "v")), None)
    if letter and not parts:
        above.remove(letter)
        name = "/".join([*above, path.split("/")[-1]])
    return name, {"u": "x", "v": "y"}.get(letter or "")


def _uneven(x: Frames | None, y: Frames | None) -> str:
    if x is None and y is None:
        return ""
    if x is None or y is None:
        return "has v (y) but no u (x) images" if x is None else "has u (x) but no v (y) images"
    return f"has {x.count} u (x) but {y.count} v (y) images" if x.count != y.count else ""


# --- what folders hold, listed once -------------------------------------------------------------------


class Folder(NamedTuple):
    """The content of one folder. A folder with images is a video's; folders below it are ignored."""

    stamp: tuple[int, ...]  # (mtime_ns, ctime_ns), or () if the folder must be listed again next time
    images: tuple[Frames, ...] = ()
    subfolders: tuple[str, ...] = ()


def scan(root: Path) -> dict[str, Folder]:
    """List every folder under `root` by its relative path, with "/" on every system; "" is root itself.

    Names that begin with a dot are skipped: unfinished extraction, caches. The cache is written to root, or
    to the user's cache folder if root is not writable. Raises InputError for a folder that cannot be read.
    """
    cached = _read_cache(root)
    folders: dict[str, Folder] = {}
    now = time.time_ns()
    todo = [""]
    with tqdm(desc=f"counting frames in {root}", unit=" folders", delay=2, leave=False,
              disable=rank() > 0 or None) as bar:  # fmt: skip
        while todo:
            path = todo.pop()
            full = f"{root}/{path}"
            try:
                status = os.stat(full)
            except OSError:
                continue  # removed since its parent was listed
            stamp = (status.st_mtime_ns, status.st_ctime_ns)  # tar and rsync restore mtime, never ctime
            folder = cached.get(path)
            if folder is None or folder.stamp != stamp:
                # Writing the cache changes root's own times, so root is always listed again.
                folder = _list(full, path, stamp if path and max(stamp) < now - _SETTLED_NS else ())
                bar.update()
            folders[path] = folder
            if path.count("/") < _MAX_DEPTH:
                todo.extend(f"{path}/{name}" if path else name for name in folder.subfolders)
    if folders != cached:
        _write_cache(root, folders)
    return folders


def _list(full: str, path: str, stamp: tuple[int, ...]) -> Folder:
    own_prefix = path.rpartition("/")[2].casefold() + "_"  # v_X/v_X_1.jpg
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    others: dict[tuple[str, str], list[str]] = defaultdict(list)  # names that no layout uses
    subfolders: list[str] = []
    try:
        with os.scandir(full) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if image := _IMAGE.fullmatch(entry.name):
                    prefix, number, suffix = image.groups()
                    known = prefix.casefold() in (own_prefix, *PREFIXES)
                    (numbers if known else others)[prefix, suffix].append(number)
                elif entry.is_dir():
                    subfolders.append(entry.name)
    except OSError as error:
        raise InputError(f"cannot list {full}: {error.strerror}; check its permissions") from None
    images: dict[str, Frames] = {}
    numbers = numbers or ({} if subfolders else others)
    for (prefix, suffix), found in sorted(numbers.items()) if path else ():  # root itself is not a video
        one = _sequence(path, prefix, suffix, found)
        if other := images.get(one.channel):
            both = f"{other.prefix}...{other.suffix} and {prefix}...{suffix}"
            problem = f"holds several sequences, {both}; keep one of them, or names of a known layout"
            one = dataclasses.replace(one, problem=problem)
        images[one.channel] = one
    return Folder(stamp, tuple(images.values()), () if images else tuple(sorted(subfolders)))


def _sequence(folder: str, prefix: str, suffix: str, numbers: Sequence[str]) -> Frames:
    """Derive first number, count and padding from the numbers in file names, or the problem with them."""
    values = set(map(int, numbers))
    start = min(values)
    digits = min(map(len, numbers)) if any(len(text) > 1 and text[0] == "0" for text in numbers) else 0
    problem = ""
    if start > 1:
        problem = f"begins with image {start}, those before it are missing"
    elif max(values) - start + 1 > len(values):
        gap = next(i for i in itertools.count(start) if i not in values)
        problem = f"{prefix}{gap:0{digits}d}{suffix} is missing, and the numbers go on to {max(values)}"
    elif any(text != f"{int(text):0{digits}d}" for text in numbers if len(text) != digits):
        problem = "the numbers are padded to different widths"
    return Frames(folder, prefix, digits, start, len(numbers), suffix, problem)


def _cache_files(root: Path) -> list[Path]:
    """Return where the cache may be, in order of preference."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return [root / CACHE_NAME, base / "two-stream" / f"{name}.json"]


Row = tuple[str, Natural, Natural, Natural, str, str]  # Frames without the folder


class CacheFile(BaseModel):
    """The cache: path -> Folder, with each sequence as a Row."""

    version: Literal[3]
    folders: dict[str, tuple[tuple[int, ...], list[Row], tuple[str, ...]]]


def _read_cache(root: Path) -> dict[str, Folder]:
    """Read the newest cache; {} if there is none, or if it is not ours."""
    found = [(file.stat().st_mtime, file) for file in _cache_files(root) if file.is_file()]
    if not found:
        return {}
    try:
        folders = read_json(max(found)[1], CacheFile, "").folders
    except InputError:
        return {}
    return {
        path: Folder(stamp, tuple(Frames(path, *row) for row in rows), subfolders)
        for path, (stamp, rows, subfolders) in folders.items()
    }


def _write_cache(root: Path, folders: dict[str, Folder]) -> None:
    entries = {
        path: (folder.stamp, [dataclasses.astuple(frames)[1:] for frames in folder.images], folder.subfolders)
        for path, folder in folders.items()
    }
    text = json.dumps({"version": 3, "folders": entries}, separators=(",", ":"))
    for file in _cache_files(root):
        try:
            with atomic_path(file) as temporary:
                temporary.write_text(text, encoding="ascii")
            return
        except InputError:
            continue  # without a cache, the next start only takes longer
