"""Reading of RGB frames and flow image pairs as uint8. Messages explain what is wrong with a bad image."""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataloader.frames import Index, match
from dataloader.lists import Video
from dataloader.packed import Frames
from utils import InputError, rank

try:  # libjpeg-turbo with SIMD: 1.4 times as fast as torchvision's decoder, 3 times as Pillow
    import simplejpeg
except ImportError:  # no wheel for this platform: everything works, but more slowly
    simplejpeg = None

AGAIN = "extract this video again"
CONVERTED = ("GRAY", "1", "LA", "P", "PA", "RGBA", "CMYK", "YCCK")  # to RGB, as tsn-pytorch does
_said = mmap.mmap(-1, 1)  # whether the conversion note was printed; shared by the loader's processes
MOST_PIXELS = 50_000_000  # pixels in one image; memory is allocated before it is decoded

# (where a video's images are, time steps from 0) -> for each step uint8 (planes, height, width): RGB, or x
# and y
ReadSteps = Callable[[Any, Sequence[int]], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Source:
    """One video as a stream sees it: `frames` is for its ReadSteps, `count` is the number of time steps."""

    video: Video
    frames: Any
    count: int
    folder: str  # for messages


def find_sources(index: Index, videos: list[Video], allow_missing: bool = False) -> list[Source]:
    """Return the videos that have images under `index`. A video without images is an error, or skipped."""
    sources = []
    for video, frames in match(index, videos, "skip" if allow_missing else "error"):
        one = frames[0] if isinstance(frames, tuple) else frames  # flow has two, x and y
        sources.append(Source(video, frames, one.count, str(index.root / one.folder)))
    return sources


@dataclass(frozen=True)
class ReadFrame:
    """Read RGB frames under `root`."""

    root: Path

    def __call__(self, frames: Frames, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield each frame of `steps`, from 0, as (3, height, width) uint8, colours interleaved in memory."""
        for path, data in frames.read(self.root, steps):
            yield decode_rgb(data, path).transpose(2, 0, 1)


@dataclass(frozen=True)
class ReadFlow:
    """Read the flow of frame pairs under `root`.

    A clip concatenates the pairs, so its channels are x1, y1, ..., x10, y10, as in Simonyan and Zisserman
    2014, section 3, equation 1.
    """

    root: Path

    def __call__(self, frames: tuple[Frames, Frames], steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield each pair of `steps`, from 0, as (2, height, width) uint8: x, then y."""
        for files in zip(*(component.read(self.root, steps) for component in frames), strict=True):
            x, y = (decode_gray(data, path) for path, data in files)
            if x.shape != y.shape:
                paths = " and ".join(path for path, _ in files)
                raise InputError(f"{paths} are of different size; extract this video again")
            yield np.stack((x, y))


def decode_rgb(data: bytes, path: str | Path) -> np.ndarray:
    """Decode an image, also grey, CMYK, RGBA or palette, to (H, W, 3) uint8 RGB. `path`: for messages."""
    return _decode(data, path, "RGB")


def decode_gray(data: bytes, path: str | Path) -> np.ndarray:
    """Decode a JPEG of one flow component to (H, W) uint8. `path`: for messages."""
    return _decode(data, path, "GRAY")


def _decode(data: bytes, path: str | Path, wanted: str) -> np.ndarray:
    try:
        colour, pixels = _header(data)
        if pixels > MOST_PIXELS:
            raise InputError(f"{path} claims {pixels / 1e6:,.0f} million pixels; {AGAIN}")
        if colour == wanted and simplejpeg is not None and data[:2] == b"\xff\xd8":
            image = simplejpeg.decode_jpeg(data, wanted)  # strict: a truncated file raises
            return image if wanted == "RGB" else image[..., 0]
        if colour == wanted:
            return np.asarray(Image.open(io.BytesIO(data)))
        if colour == "RGB" or (wanted == "RGB" and colour in CONVERTED):
            image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            # Flow may be stored as three equal planes.
            if wanted == "GRAY" and np.ptp(image.astype(np.int16), axis=2).max() <= 2:
                return np.ascontiguousarray(image[..., 0])
            if wanted == "RGB":
                if not _said[0] and rank() == 0:
                    _said[0] = 1
                    print(f"note: {path} is {colour}; such frames are converted to RGB (unless it is flow: use "
                          "--flow-dir)")
                return image
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
        if isinstance(error, UnidentifiedImageError):  # its message only names a BytesIO object
            reason = f"it begins with {data[:12]!r}"
        raise InputError(f"{path} is not a whole JPEG ({reason}); {AGAIN}") from None
    if wanted == "GRAY":
        raise InputError(f"{path} is {colour}, and flow is grayscale; is --flow-dir a folder of RGB frames?")
    raise InputError(f"{path} is {colour}, not RGB; {AGAIN}")


def _header(data: bytes) -> tuple[str, int]:
    """Return (colour: RGB, GRAY or another name; number of pixels), from the header alone."""
    if not data:
        raise ValueError("the file is empty")
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        return {"Gray": "GRAY", "YCbCr": "RGB"}.get(colour, colour), height * width
    with Image.open(io.BytesIO(data)) as image:
        return {"L": "GRAY"}.get(image.mode, image.mode), image.width * image.height
