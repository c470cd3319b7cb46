"""Read and write extraction.json, which data/extract_*.py leave beside the images. No other module does this.

  {"kind": "rgb" or "flow", "version": 1, "settings": {"short_side": 256, "quality": 90, ...}}

The settings are those that change the images' bytes. Images of other projects have no such file.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.formats import Count, Natural, Positive, read_json
from dataloader.frames import Frames
from utils import InputError, write_json

FILE = "extraction.json"


class Settings(BaseModel):
    """Extraction settings that change the images' bytes. Methods may add more."""

    model_config = ConfigDict(extra="allow")

    method: str | None = None
    model: str | None = None
    bound: Positive | None = None  # in pixels
    sampling_rate: Count | None = None
    short_side: Natural | None = None
    quality: Annotated[Natural, Field(le=100)] | None = None


class Extraction(BaseModel):
    """extraction.json: how images were made."""

    kind: Literal["rgb", "flow"]
    version: Literal[1] = 1
    settings: Settings


class Marker(BaseModel):
    """.done/<video>.json, written last: number of images, their video file and the extraction settings."""

    settings: str  # digest of the settings
    bytes: Natural
    sha256: str  # of the video file
    images: Natural
    mtime_ns: int | None = None  # earlier versions stored no time
    path: str | None = None


def read_marker(root: Path, video: str) -> Marker | None:
    """Read the marker of the video with images in folder `video`; None (not done) if it is unreadable."""
    try:
        return read_json(root / ".done" / f"{video}.json", Marker, "")
    except InputError:
        return None


def read_extraction(root: Path) -> Extraction | None:
    """Return how the images under `root` were made; None without the file. InputError if it is damaged.

    A damaged file is not ignored, because the images could be mistaken for something else.
    """
    path = root / FILE
    return read_json(path, Extraction, "remove it or extract again") if path.exists() else None


def extraction_settings(root: Path) -> dict[str, Any]:
    """Return the extraction settings of the images under `root`; {} without the file. Raises InputError."""
    made = read_extraction(root)
    return made.settings.model_dump(exclude_unset=True) if made else {}


def fingerprint(root: Path, frames: Frames) -> str:
    """Return a fingerprint of what one sequence of images was made of. It changes if they are made again.

    Features are stored under this key. No image is read for it: it comes from the marker of our own extraction
    (the video file's content and the settings), from pack.json, or from others' files' sizes and times.
    """
    flow_video = frames.folder.partition("/")[2]  # flow is one folder lower, in u/ and v/
    if (pack := root / "pack.json").is_file():
        parts = [pack.read_bytes().decode("utf-8", "surrogateescape"), frames.folder]
    elif made := read_marker(root, frames.folder) or read_marker(root, flow_video):
        # Leave out the file's time: a video that was only copied or touched gives the same images.
        parts = [made.settings, str(made.bytes), made.sha256, str(made.images)]
    else:
        files = [os.stat(frames.path(root, i)) for i in range(frames.count)]
        parts = [f"{file.st_size} {file.st_mtime_ns}" for file in files]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def claim(root: Path, kind: str, settings: dict[str, Any], empty: bool) -> None:
    """Make `root` a folder for images of this kind, made with these settings.

    The caller holds the folder's lock. An `empty` folder may become anything: none of its videos is done, and
    no other run is at work. Raises InputError if another holds images of the other kind, or of other settings.
    """
    found = None if empty else read_extraction(root)
    if found is None:
        write_json(root / FILE, {"kind": kind, "version": 1, "settings": settings})
    elif found.kind != kind:
        raise InputError(f"{root} holds {found.kind}, not {kind}; choose another folder")
    elif (was := extraction_settings(root)) != settings:
        differences = [f"{key} {was.get(key, 'not set')} there, {settings.get(key, 'none')} asked"
                       for key in sorted({*was, *settings}) if was.get(key) != settings.get(key)]  # fmt: skip
        raise InputError(f"{root} was extracted with other settings ({'; '.join(differences)}); choose another folder "
                         "or the same settings, or delete it")  # fmt: skip
