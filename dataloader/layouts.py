"""Where each video's frames lie on disk, and how many there are.

The layout is told by the names of folders and images, the first number, 0 or 1, by the images:

  tsfusion, ours     ROOT/v_X/frame000001.jpg, and flow in ROOT/{u,v}/v_X/frame000001.jpg
  dense_flow         ROOT/v_X/{img,flow_x,flow_y}_00001.jpg
  mmaction2          ROOT/Class/v_X/{img,flow_x,flow_y}_00001.jpg
  the original repo  ROOT/Class/separated_images/v_X/v_X_1.jpg

A packed data set (data/pack.py) is read as the folder it was made of.
Any other folders may stand between ROOT and the video's, and videos may have any names.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from dataloader.extracted import read_extraction
from dataloader.folders import Folder, Frames, Images, scan
from dataloader.names import Video, first_few, ucf_parts, without_suffix
from dataloader.packed import is_pack, open_pack
from utils import InputError, rank

Kind: TypeAlias = Literal["rgb", "flow"]
CHANNELS = {"rgb": ("rgb",), "flow": ("x", "y")}
_CALLED = {"rgb": "RGB frames", "flow": "optical flow"}


@dataclass
class Index:
    """All videos with images under `root`.

    videos: name -> {"rgb": Frames}, {"x": Frames, "y": Frames}, or all three
    problems: name -> why its images can't be used: a gap in the numbers, u and v of different counts, ...

    A name is spelled as on disk: `Class_gXX_cYY`, or the folder's path under root, such as `fight/fi001`.
    """

    root: Path
    kind: Kind
    videos: dict[str, dict[str, Frames]]
    problems: dict[str, str]
    _by_folded_name: dict[str, str] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """All videos, those with a problem too: what load_split wants as names_on_disk."""
        return sorted({*self.videos, *self.problems})


def index_frames(root: str | Path, kind: Kind) -> Index:
    """Find the images of every video under `root`: "rgb" frames or "flow".

    Counted once and cached (folders.scan). Raises InputError where root holds no such images; what is wrong
    with a single video is an error only for who asks for it.
    """
    root = Path(root)
    remedy = f"make them with data/extract_{kind}.py, or give their folder to --{kind}-dir"
    if not root.is_dir():
        raise InputError(f"{_CALLED[kind]}: {root} is {'not a folder' if root.exists() else 'not there'}; {remedy}")
    if is_pack(root):
        return assemble(root, kind, *open_pack(root, kind))
    made = read_extraction(root)
    if made is not None and made.kind != kind:
        raise InputError(f"{_CALLED[kind]}: {root} holds extracted {_CALLED[made.kind]}; {remedy}")
    u, v = ({folder.name for folder in (root / name).glob("*/")} for name in "uv")
    if kind == "rgb" and u and u == v:
        raise InputError(f"{root} holds optical flow in u and v, no RGB frames; make those with data/extract_rgb.py")
    index = assemble(root, kind, scan(root))
    if not index.problems and not any(CHANNELS[kind][0] in channels for channels in index.videos.values()):
        other = f", only {_CALLED['flow' if kind == 'rgb' else 'rgb']}" if index.videos else ""
        raise InputError(f"{root} holds no {_CALLED[kind]} in a known layout{other}; {remedy}")
    return index


def find(index: Index, video_name: str) -> Frames | tuple[Frames, Frames]:
    """The images of one video: Frames of an rgb index, (x, y) of a flow index.

    `video_name` is a key or a path as lists write it: case doesn't matter, and leading folders may differ.
    Raises InputError for a video that isn't there or has a problem.
    """
    name = locate(index, video_name)
    if name is None:
        raise InputError(f"{index.root} holds no {_CALLED[index.kind]} of {video_name}")
    if name in index.problems:
        raise InputError(f"{index.root}: {index.problems[name]}")
    channels = index.videos[name]
    if CHANNELS[index.kind][0] not in channels:
        raise InputError(f"{index.root} holds no {_CALLED[index.kind]} of {video_name}")
    return channels["rgb"] if index.kind == "rgb" else (channels["x"], channels["y"])


def match(
    index: Index, videos: Iterable[Video], missing: Literal["error", "skip"] = "error"
) -> list[tuple[Video, Frames | tuple[Frames, Frames]]]:
    """Each video with its images, in the given order.

    Videos that aren't there, or have a problem, are counted and the first few named: in an InputError, or
    with missing="skip" in a printed line, and left out. That all are missing is an error in any case.
    """
    found: list[tuple[Video, Frames | tuple[Frames, Frames]]] = []
    absent: list[str] = []
    broken: list[str] = []
    owners: dict[str, Video] = {}
    videos = list(videos)
    for video in videos:
        name = locate(index, video.listed) or locate(index, video.name)
        if name is None:
            absent.append(video.listed)
            continue
        try:
            found.append((video, find(index, name)))
        except InputError as error:
            broken.append(str(error).removeprefix(f"{index.root}: "))
            continue
        if owners.setdefault(name, video) is not video:
            raise InputError(
                f"{owners[name].listed} and {video.listed} would both be {index.root / name}; "
                "put videos of one name into a folder for each class"
            )
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


def locate(index: Index, name: str) -> str | None:
    """The index's name of a video; the list may have more leading folders than the disk, or fewer."""
    folded = _fold(name)
    while folded:
        if found := index._by_folded_name.get(folded):
            return found
        folded = folded.partition("/")[2]
    return None


def _fold(name: str) -> str:
    """What is equal for two spellings of one video: case, suffix, v_ and composed accents (macOS) aside."""
    if parts := ucf_parts(name):
        return f"{parts[0]}_g{parts[1]}_c{parts[2]}".casefold()
    return unicodedata.normalize("NFC", without_suffix(name)).casefold()


def assemble(
    root: Path, kind: Kind, folders: dict[str, Folder], frames_of: Callable[[str, Images], Frames] = Frames.of
) -> Index:
    """The index of these folders, by their paths under `root`: which video and channel each sequence is."""
    videos: dict[str, dict[str, Frames]] = defaultdict(dict)
    problems: dict[str, str] = {}
    by_folded_name: dict[str, str] = {}
    for path, folder in sorted(folders.items()):
        if not folder.images:
            continue
        named_by_channel = any(images.channel != "rgb" for images in folder.images)
        name, in_u_or_v = _name_and_channel(path, kind == "flow" and not named_by_channel)
        name = by_folded_name.setdefault(_fold(name), name)  # u/v_HandStand... is v/v_Handstand...
        for images in folder.images:
            channel = in_u_or_v or images.channel
            if channel not in CHANNELS[kind]:
                if not images.problem:
                    videos[name].setdefault(channel, frames_of(path, images))
            elif images.problem:
                problems.setdefault(name, f"{path}: {images.problem}")
            elif channel in videos[name]:
                problems[name] = f"{name} is in {videos[name][channel].folder} and in {path}; keep one of them"
            else:
                videos[name][channel] = frames_of(path, images)
    for name, channels in videos.items():
        if kind == "flow" and name not in problems and (problem := _uneven(channels.get("x"), channels.get("y"))):
            problems[name] = f"{name} {problem}; extract it again"
        if name in problems:
            for channel in CHANNELS[kind]:
                channels.pop(channel, None)
    by_ending: dict[str, list[str]] = defaultdict(list)  # ROOT/rawframes/fight/fi001 is found as fight/fi001
    for folded, name in by_folded_name.items():
        by_ending["/".join(folded.split("/")[-2:])].append(name)
    endings = {ending: names[0] for ending, names in by_ending.items() if len(names) == 1}
    videos = {name: channels for name, channels in videos.items() if channels}
    return Index(root, kind, videos, problems, endings | by_folded_name)


def _name_and_channel(path: str, in_u_and_v: bool) -> tuple[str, str | None]:
    """A folder's video, and "x" or "y" where, as in tsfusion's flow, the folder u or v above tells it."""
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
