"""Find the images of all videos under a folder, and count them.

The layout is detected from folder and image names; whether numbers start at 0 or 1, from the images:

  tsfusion, ours     ROOT/v_X/frame000001.jpg, and flow in ROOT/{u,v}/v_X/frame000001.jpg
  dense_flow         ROOT/v_X/{img,flow_x,flow_y}_00001.jpg
  mmaction2          ROOT/Class/v_X/{img,flow_x,flow_y}_00001.jpg
  the original repo  ROOT/Class/separated_images/v_X/v_X_1.jpg

A packed dataset (data/pack.py) is read like its original folder. Other folders may lie between ROOT and
the video's folder, and videos may have any names. A folder without subfolders may also hold images of one
other name with consecutive numbers (00001.jpg, frame_000001.webp). They are then the video's frames.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from dataloader.extracted import read_extraction
from dataloader.frames import CALLED, CHANNELS, PREFIXES, Frames, Index, Kind
from dataloader.names import folded_name, ucf_parts
from dataloader.packed import is_pack, open_pack
from utils import InputError, rank

KNOWN = "VIDEO/frame000001.jpg, VIDEO/img_00001.png, u/VIDEO/frame000001.jpg or VIDEO/flow_x_00001.jpg"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEEPEST = 8  # deeper than any layout; ends loops of symbolic links
IMAGE = re.compile(rf"(?!\.)(.*?)([0-9]+)({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE | re.DOTALL)


def index_frames(root: str | Path, kind: Kind, folders: Sequence[str] = ("",)) -> Index:
    """Find the images of every video under `root`: "rgb" frames or "flow". `folders`: only in these below it.

    Raises InputError if root holds no such images. A problem with a single video raises an error only when
    that video is requested.
    """
    root = Path(root)
    remedy = f"make them with data/extract_{kind}.py, or give their folder to --{kind}-dir"
    if not root.is_dir():
        raise InputError(f"{CALLED[kind]}: there is no folder {root}; {remedy}")
    if is_pack(root):
        return assemble(root, kind, open_pack(root, kind))
    made = read_extraction(root)
    u, v = ({folder.name for folder in (root / name).glob("*/")} for name in "uv")
    holds = made.kind if made else "flow" if u and u == v else kind
    if holds != kind and (made or kind == "rgb"):
        raise InputError(f"{root} holds {CALLED[holds]}, not {CALLED[kind]}; {remedy}")
    index = assemble(root, kind, scan(root, folders))
    if not index.problems and not any(CHANNELS[kind][0] in channels for channels in index.videos.values()):
        image = next((path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES), None)
        found = f", but {image.relative_to(root)}" if image else ""
        raise InputError(f"{root} holds no {CALLED[kind]} in a known layout ({KNOWN}){found}; {remedy}")
    return index


def assemble(root: Path, kind: Kind, sequences: Mapping[str, Sequence[Frames]]) -> Index:
    """Build the index from the sequences in each folder under `root`: find each one's video and channel."""
    videos: dict[str, dict[str, Frames]] = defaultdict(dict)
    problems: dict[str, str] = {}
    by_folded_name: dict[str, str] = {}
    for path, found in sorted(sequences.items()):
        named_by_channel = any(images.channel != "rgb" for images in found)
        name, in_u_or_v = _name_and_channel(path, kind == "flow" and not named_by_channel)
        name = by_folded_name.setdefault(folded_name(name), name)  # u/v_HandStand... equals v/v_Handstand...
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
    folders = path.split("/")
    letter = next((part for part in folders[:-1] if part in ("u", "v")), None) if in_u_and_v else None
    if letter and not parts:
        folders.remove(letter)
        name = "/".join(folders)
    return name, {"u": "x", "v": "y", None: None}[letter]


def scan(root: Path, within: Sequence[str] = ("",)) -> dict[str, list[Frames]]:
    """Return the sequences in each folder under `root`, by its relative path with "/" on every system.

    A folder with images is a video's, and folders below it are ignored, as are names that begin with a dot
    (unfinished extraction). Raises InputError for a folder that can't be read.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else removed since its parent was listed
            raise InputError(f"cannot list {error.filename}: {error.strerror}; check its permissions") from None

    found: dict[str, list[Frames]] = {}
    walks = (os.walk(root / folder, onerror=fail, followlinks=True) for folder in within)
    for full, folders, files in tqdm(
        chain.from_iterable(walks), desc=f"counting frames in {root}", unit=" folders", delay=2, leave=False,
        disable=rank() > 0 or None,
    ):  # fmt: skip
        path = Path(full).relative_to(root).as_posix()
        folders[:] = [name for name in folders if name[0] != "."]
        if path != "." and (sequences := _sequences(path, files, bool(folders))):  # root itself is no video
            found[path] = sequences
        if path in found or path.count("/") == DEEPEST:
            folders.clear()
    return found


def _sequences(folder: str, files: Sequence[str], has_subfolders: bool) -> list[Frames]:
    """Return a folder's sequences, one per channel: of known names or, without subfolders, of any others."""
    known_prefixes = (folder.rpartition("/")[2].casefold() + "_", *PREFIXES)  # v_X/v_X_1.jpg
    known: dict[tuple[str, str], list[str]] = defaultdict(list)
    others: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in filter(None, map(IMAGE.fullmatch, files)):
        prefix, number, suffix = image.groups()
        (known if prefix.casefold() in known_prefixes else others)[prefix, suffix].append(number)
    found: dict[str, Frames] = {}
    for (prefix, suffix), numbers in sorted((known or ({} if has_subfolders else others)).items()):
        one = _sequence(folder, prefix, suffix, numbers)
        if other := found.get(one.channel):
            both = f"{other.prefix}...{other.suffix} and {prefix}...{suffix}"
            problem = f"holds several sequences, {both}; keep one of them, or names of a known layout"
            one = replace(one, problem=problem)
        found[one.channel] = one
    return list(found.values())


def _sequence(folder: str, prefix: str, suffix: str, numbers: Sequence[str]) -> Frames:
    """Derive first number, count and padding from the numbers in file names, or which image is missing."""
    start = min(1, *map(int, numbers))
    digits = min(map(len, numbers)) if any(len(text) > 1 and text[0] == "0" for text in numbers) else 0
    present = set(numbers)
    expected = (f"{number:0{digits}d}" for number in range(start, start + len(numbers)))
    missing = next((text for text in expected if text not in present), None)
    problem = f"{prefix}{missing}{suffix} is missing among {len(numbers)} images" if missing else ""
    return Frames(folder, prefix, digits, start, len(numbers), suffix, problem)
