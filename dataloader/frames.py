"""Find each video's images on disk, count them, and read them as uint8.

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

import contextlib
import dataclasses
import hashlib
import io
import json
import mmap
import os
import re
import sys
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel
from tqdm import tqdm

from common.formats import Natural, read_json
from dataloader.extracted import read_extraction
from dataloader.names import Video, first_few, ucf_parts, without_suffix
from dataloader.packed import PREFIXES, Frames, is_pack, open_pack
from utils import InputError, atomic_path, rank

try:  # libjpeg-turbo with SIMD: 1.4 times as fast as torchvision's decoder, 3 times as Pillow
    import simplejpeg
except ImportError:  # no wheel for this platform: everything works, but more slowly
    simplejpeg = None

Kind: TypeAlias = Literal["rgb", "flow"]
CHANNELS = {"rgb": ("rgb",), "flow": ("x", "y")}
_CALLED = {"rgb": "RGB frames", "flow": "optical flow"}

KNOWN = "VIDEO/frame000001.jpg, VIDEO/img_00001.png, u/VIDEO/frame000001.jpg or VIDEO/flow_x_00001.jpg"
CONVERTED = ("RGB", "L", "1", "LA", "P", "PA", "RGBA", "CMYK")  # modes that become RGB; 16 bits would be clipped
MOST_PIXELS = 50_000_000  # pixels in one image; memory is allocated before it is decoded
_SETTLED_NS = 2_000_000_000  # file times may tick only every 2 s, so a more recent change may not show
_WORTH_A_CACHE_NS = 1_000_000_000  # a scan that takes longer is cached
_said = mmap.mmap(-1, 1)  # whether the note of a conversion was printed; shared by loader processes
_MAX_DEPTH = 8  # deeper than any layout; ends symlink loops
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_IMAGE = re.compile(rf"(.*?)([0-9]+)({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE | re.DOTALL)


@dataclass
class Index:
    """All videos with images under `root`, by names as on disk: `Class_gXX_cYY`, or a path such as `fight/fi001`."""

    root: Path
    kind: Kind
    videos: dict[str, dict[str, Frames]]  # name -> {"rgb": Frames}, {"x": Frames, "y": Frames}, or all three
    problems: dict[str, str]  # name -> why its images cannot be used: a gap, different counts in u and v, ...
    by_folded_name: dict[str, str]

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
        raise InputError(f"{_CALLED[kind]}: there is no folder {root}; {remedy}")
    if is_pack(root):
        return assemble(root, kind, open_pack(root, kind))
    made = read_extraction(root)
    u, v = ({folder.name for folder in (root / name).glob("*/")} for name in "uv")
    holds = made.kind if made else "flow" if u and u == v else kind
    if holds != kind and (made or kind == "rgb"):
        raise InputError(f"{root} holds {_CALLED[holds]}, not {_CALLED[kind]}; {remedy}")
    index = assemble(root, kind, {path: folder.images for path, folder in scan(root).items() if folder.images})
    if not index.problems and not any(CHANNELS[kind][0] in channels for channels in index.videos.values()):
        image = next((path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES), None)
        found = f", but {image.relative_to(root)}" if image else ""
        raise InputError(f"{root} holds no {_CALLED[kind]} in a known layout ({KNOWN}){found}; {remedy}")
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


@dataclass(frozen=True)
class Source:
    """One video as a stream sees it: `frames` is for its ReadSteps, `count` is the number of time steps."""

    video: Video
    frames: Any
    count: int
    folder: str  # for messages


def find_sources(index: Index, videos: Sequence[Video], allow_missing: bool = False) -> list[Source]:
    """Return each video with its images under `index`, in the given order.

    Videos that are missing or have a problem are counted, and the first few named, in an InputError. With
    `allow_missing` they are left out and a line is printed; it is still an error if all are missing.
    """
    found: list[Source] = []
    absent: list[str] = []
    owners: dict[str, Video] = {}  # a folder's video
    for video in videos:
        name = locate_video(index, video)
        if name is None or CHANNELS[index.kind][0] not in index.videos.get(name, {}):
            absent.append(index.problems.get(name or "", video.listed))
            continue
        if owners.setdefault(name, video) is not video:
            raise InputError(f"{owners[name].listed} and {video.listed} would both be {index.root / name}; put videos "
                             "of one name into a folder for each class")  # fmt: skip
        frames = find(index, name)
        one = frames[0] if isinstance(frames, tuple) else frames
        found.append(Source(video, frames, one.count, str(index.root / one.folder)))
    if absent:
        problem = f"{index.root}: {len(absent)} of {len(videos)} listed videos can't be used ({first_few(absent)})"
        if not (allow_missing and found):
            remedy = "extract them, or use --allow-missing to go on without" if found else "is it the right folder?"
            raise InputError(f"{problem}; {remedy}")
        if rank() == 0:
            print(f"{problem}; going on with the other {len(found)}")
    return found


def locate(index: Index, name: str, least: str = "") -> str | None:
    """Return the index's name of a video, or None. Leading folders outside `least` may differ."""
    folded = _fold(name)
    while folded and folded not in index.by_folded_name:
        folded = "" if folded == _fold(least) else folded.partition("/")[2]
    return index.by_folded_name.get(folded)


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
            if images.problem:
                if channel in CHANNELS[kind]:
                    problems.setdefault(name, f"{path}: {images.problem}")
            elif (other := videos[name].setdefault(channel, images)) is not images and channel in CHANNELS[kind]:
                problems[name] = f"{name} is in {other.folder} and in {path}; keep one of them"
    for name, channels in videos.items():
        x, y = (channels[channel].count if channel in channels else 0 for channel in "xy")
        if kind == "flow" and x != y:
            problems.setdefault(name, f"{name} has {x} u (x) but {y} v (y) images; extract it again")
        for channel in CHANNELS[kind] if name in problems else ():
            channels.pop(channel, None)
    by_ending: dict[str, list[str]] = defaultdict(list)  # finds ROOT/rawframes/fight/fi001 as fight/fi001
    for folded, name in by_folded_name.items():
        by_ending["/".join(folded.split("/")[-2:])].append(name)
    endings = {ending: names[0] for ending, names in by_ending.items() if len(names) == 1}
    videos = {name: channels for name, channels in videos.items() if channels}
    return Index(root, kind, videos, problems, endings | by_folded_name)


def _name_and_channel(path: str, in_u_and_v: bool) -> tuple[str, str | None]:
    """Return a folder's video, and "x" or "y" if a parent folder u or v tells it, as in tsfusion's flow."""
    parts = ucf_parts(path)
    name = f"{parts[0]}_g{parts[1]}_c{parts[2]}" if parts else path.replace("separated_images/", "")
    if not in_u_and_v:
        return name, None
    folders = path.split("/")
    letter = next((part for part in folders[:-1] if part in ("u", "v")), "")
    if letter and not parts:
        folders.remove(letter)
        name = "/".join(folders)
    return name, {"u": "x", "v": "y"}.get(letter)


# --- what folders hold, listed once -------------------------------------------------------------------


class Folder(NamedTuple):
    """The content of one folder. A folder with images is a video's; folders below it are ignored."""

    stamp: tuple[int, ...]  # (mtime_ns, ctime_ns), or () if the folder must be listed again next time
    images: tuple[Frames, ...] = ()
    subfolders: tuple[str, ...] = ()


def scan(root: Path) -> dict[str, Folder]:
    """List every folder under `root` by its relative path, with "/" on every system; "" is root itself.

    Names that begin with a dot are skipped: unfinished extraction. A slow scan is cached in the user's cache
    folder; a folder is listed again if its times changed. Raises InputError for a folder that can't be read.
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
                folder = _list(full, path, stamp if max(stamp) < now - _SETTLED_NS else ())
                bar.update()
            folders[path] = folder
            if path.count("/") < _MAX_DEPTH:
                todo.extend(f"{path}/{name}" if path else name for name in folder.subfolders)
    if folders != cached and time.time_ns() - now > _WORTH_A_CACHE_NS:
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
    """Derive first number, count and padding from the numbers in file names, or which image is missing."""
    start = min(1, *map(int, numbers))
    digits = min(map(len, numbers)) if any(len(text) > 1 and text[0] == "0" for text in numbers) else 0
    present = set(numbers)
    expected = (f"{number:0{digits}d}" for number in range(start, start + len(numbers)))
    missing = next((text for text in expected if text not in present), None)
    problem = f"{prefix}{missing}{suffix} is missing among {len(numbers)} images" if missing else ""
    return Frames(folder, prefix, digits, start, len(numbers), suffix, problem)


class CacheFile(BaseModel):
    """The cache: path -> Folder, with each sequence as Frames without the folder."""

    version: Literal[4]
    folders: dict[str, tuple[tuple[int, ...], list[tuple[str, Natural, Natural, Natural, str, str]], tuple[str, ...]]]


def _cache_file(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")
    return base / "two-stream" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"


def _read_cache(root: Path) -> dict[str, Folder]:
    """Read the cache; {} if there is none, or if it is not ours."""
    try:
        folders = read_json(_cache_file(root), CacheFile, "").folders
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
    text = json.dumps({"version": 4, "folders": entries}, separators=(",", ":"))
    with contextlib.suppress(InputError), atomic_path(_cache_file(root)) as temporary:
        temporary.write_text(text, encoding="ascii")  # if that fails, the next start only takes longer


# --- reading -------------------------------------------------------------------------------------------

# (where a video's images are, time steps from 0) -> for each step uint8 (planes, height, width): RGB, or x and y
ReadSteps = Callable[[Any, Sequence[int]], Iterable[np.ndarray]]


@dataclass(frozen=True)
class ReadFrame:
    """Read RGB frames under `root`: each of `steps` as (3, height, width) uint8, colours interleaved in memory."""

    root: Path

    def __call__(self, frames: Frames, steps: Sequence[int]) -> Iterator[np.ndarray]:
        for path, data in frames.read(self.root, steps):
            yield decode_rgb(data, path).transpose(2, 0, 1)


@dataclass(frozen=True)
class ReadFlow:
    """Read the flow of frame pairs under `root`: each of `steps` as (2, height, width) uint8, x, then y.

    A clip concatenates the pairs, so its channels are x1, y1, ..., x10, y10, as in Simonyan and Zisserman
    2014, section 3, equation 1.
    """

    root: Path

    def __call__(self, frames: tuple[Frames, Frames], steps: Sequence[int]) -> Iterator[np.ndarray]:
        for files in zip(*(component.read(self.root, steps) for component in frames), strict=True):
            x, y = (decode_gray(data, path) for path, data in files)
            if x.shape != y.shape:
                paths = " and ".join(path for path, _ in files)
                raise InputError(f"{paths} are of different size; extract this video again")
            yield np.stack((x, y))


def decode_rgb(data: bytes, path: str | Path) -> np.ndarray:
    """Decode an image of any colours to (H, W, 3) uint8 RGB, as tsn-pytorch does. `path`: for messages."""
    image = _decode(data, path, "RGB")
    if isinstance(image, np.ndarray):
        return image
    if image.mode not in CONVERTED:
        raise InputError(f"{path} is {image.mode}, and frames have 8 bits a colour: convert them")
    if image.mode != "RGB" and not _said[0] and rank() == 0:
        _said[0] = 1
        print(f"note: {path} is {image.mode}; such frames are converted to RGB", file=sys.stderr, flush=True)
    return np.asarray(image.convert("RGB"))


def decode_gray(data: bytes, path: str | Path) -> np.ndarray:
    """Decode an image of one flow component to (H, W) uint8. `path`: for messages."""
    image = _decode(data, path, "GRAY")
    if isinstance(image, np.ndarray):
        return image
    if image.mode == "L":
        return np.asarray(image)
    # Flow may be stored as three equal planes, up to what JPEG makes of them.
    planes = np.asarray(image)
    if image.mode == "RGB" and np.ptp(planes.astype(np.int16), axis=2).max() <= 2:
        return np.ascontiguousarray(planes[..., 0])
    raise InputError(f"{path} is {image.mode}, and flow is grayscale; is --flow-dir a folder of RGB frames?")


def _decode(data: bytes, path: str | Path, wanted: Literal["RGB", "GRAY"]) -> np.ndarray | Image.Image:
    """Decode a JPEG of the wanted colours to an array, and other images to Pillow's.

    Raises InputError for what is no whole image.
    """
    try:
        if simplejpeg is not None and data[:2] == b"\xff\xd8":
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            if {"Gray": "GRAY", "YCbCr": "RGB"}.get(colour) == wanted and height * width <= MOST_PIXELS:
                image = simplejpeg.decode_jpeg(data, wanted)  # strict: a truncated file raises
                return image if wanted == "RGB" else image[..., 0]
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"it claims {picture.width} x {picture.height} pixels")
        picture.load()
        return picture
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
        if isinstance(error, UnidentifiedImageError):  # its message only names a BytesIO object
            reason = f"it begins with {data[:12]!r}"
        raise InputError(f"{path} is not a whole image ({reason}); extract this video again") from None
