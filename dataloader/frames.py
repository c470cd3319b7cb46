"""A video's images on disk: a numbered sequence of files, found by the video's name, and read as uint8.

Which sequences there are: dataloader/layouts.py. Packed ones: dataloader/packed.py.
"""

import io
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataloader.lists import Video
from dataloader.names import first_few, folded_name
from utils import InputError, rank

try:  # libjpeg-turbo with SIMD: 1.4 times as fast as torchvision's decoder, 3 times as Pillow
    import simplejpeg
except ImportError:  # no wheel for this platform: everything works, but more slowly
    simplejpeg = None

Kind: TypeAlias = Literal["rgb", "flow"]
CALLED = {"rgb": "RGB frames", "flow": "optical flow"}
CHANNELS = {"rgb": ("rgb",), "flow": ("x", "y")}
PREFIXES = {"frame": "rgb", "img_": "rgb", "image_": "rgb", "flow_x_": "x", "flow_y_": "y"}  # by name's start
CONVERTED = ("RGB", "L", "1", "LA", "P", "PA", "RGBA", "CMYK")  # modes that become RGB; 16 bits would be clipped
MOST_PIXELS = 50_000_000  # pixels in one image; memory is allocated before it is decoded
_said = mmap.mmap(-1, 1)  # whether the note of a conversion was printed; shared by loader processes


@dataclass(frozen=True, slots=True)
class Frames:
    """One sequence of consecutively numbered images: `prefix` + number + `suffix` in `folder` under a root."""

    folder: str
    prefix: str
    digits: int  # to which numbers are padded; 0: not padded
    start: int  # the first number
    count: int
    suffix: str
    problem: str = ""  # why the images are no complete sequence; the numbers then mean nothing

    @property
    def channel(self) -> str:
        """rgb, x or y, as indicated by the names; rgb if they are unknown."""
        return PREFIXES.get(self.prefix.casefold(), "rgb")

    def name(self, i: int) -> str:
        """Return the file name of the i-th image. i counts from 0, whatever the first number is."""
        return f"{self.prefix}{self.start + i:0{self.digits}d}{self.suffix}"

    def path(self, root: str | Path, i: int) -> Path:
        """Return the path of the i-th image, from 0."""
        if not 0 <= i < self.count:
            raise IndexError(f"image {i} of the {self.count} in {self.folder}")
        return Path(root, self.folder, self.name(i))

    def read(self, root: str | Path, steps: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """Yield the path and bytes of each image in `steps`, from 0. InputError for a missing image."""
        for step in steps:
            path = f"{root}/{self.folder}/{self.name(step)}"  # making a Path takes longer than reading
            try:
                with open(path, "rb", buffering=0) as file:
                    data = file.readall()
            except OSError as error:
                cause = f"{error.strerror}; was it moved since the start? extract this video again"
                raise InputError(f"cannot read {path}: {cause}") from None
            yield path, data


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


def find(index: Index, video_name: str) -> Frames | tuple[Frames, Frames]:
    """Return the images of one video: Frames from an rgb index, (x, y) from a flow index.

    `video_name` is a key, or a path as in lists: case does not matter, and leading folders may differ. Raises
    InputError for a video that is missing or has a problem.
    """
    name = locate(index, video_name) or ""
    if name in index.problems:
        raise InputError(f"{index.root}: {index.problems[name]}")
    channels = index.videos.get(name, {})
    if CHANNELS[index.kind][0] not in channels:
        raise InputError(f"{index.root} holds no {CALLED[index.kind]} of {video_name}")
    return channels["rgb"] if index.kind == "rgb" else (channels["x"], channels["y"])


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
        name = locate_video(index, video) or ""
        if CHANNELS[index.kind][0] not in index.videos.get(name, {}):
            absent.append(index.problems.get(name, video.listed))
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
    folded = folded_name(name)
    while folded and folded not in index.by_folded_name:
        folded = "" if folded == folded_name(least) else folded.partition("/")[2]
    return index.by_folded_name.get(folded)


def locate_video(index: Index, video: Video) -> str | None:
    """Return the index's name of a listed video, or None.

    A key longer than Class/stem tells videos of equal name apart, so all of it must be on disk.
    """
    least = video.name if video.name.count("/") > 1 else ""
    return locate(index, video.listed, least) or locate(index, video.name, least)


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
                paths = f"{files[0][0]} and {files[1][0]}"
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
    planes = np.asarray(image)
    if isinstance(image, np.ndarray) or image.mode == "L":
        return planes
    # Flow may be stored as three equal planes, up to what JPEG makes of them.
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
        unknown = isinstance(error, UnidentifiedImageError)  # its message only names a BytesIO object
        reason = f"it begins with {data[:12]!r}" if unknown else str(error).split("\n")[0]
        raise InputError(f"{path} is not a whole image ({reason}); extract this video again") from None
