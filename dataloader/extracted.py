"""extraction.json, which data/extract_*.py leave beside the images that they make: written and read here only.

  {"kind": "rgb" or "flow", "version": 1, "settings": {"short_side": 256, "quality": 90, ...}}

Settings are what changes the images' bytes; images of other projects have no such file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.formats import Count, Natural, Positive, read_json
from dataloader.packed import Frames
from utils import InputError, write_json

FILE = "extraction.json"


class Settings(BaseModel):
    """What changes the images' bytes; methods may add to these."""

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

    def made_with(self) -> dict[str, Any]:
        return self.settings.model_dump(exclude_unset=True)


class Marker(BaseModel):
    """.done/<video>.json, written last: how many images were made, of which file, with which settings."""

    settings: str  # their digest
    bytes: Natural
    sha256: str  # of the file
    images: Natural
    mtime_ns: int | None = None  # earlier versions kept no time
    path: str | None = None


def read_marker(root: Path, video: str) -> Marker | None:
    """The marker of a video, by the folder of its images; None where there is none that can be read: it isn't done."""
    try:
        return read_json(root / ".done" / f"{video}.json", Marker, "")
    except InputError:
        return None


def read_extraction(root: Path) -> Extraction | None:
    """How the images under `root` were made; None where no file says so. Raises InputError for a file that isn't whole.

    A broken file isn't passed over: images would be taken for something that they aren't.
    """
    path = root / FILE
    return read_json(path, Extraction, "remove it or extract again") if path.exists() else None


def extraction_settings(root: Path) -> dict[str, Any]:
    """What the images under `root` were extracted with; empty where nothing says so. Raises InputError."""
    made = read_extraction(root)
    return made.made_with() if made else {}


def fingerprint(root: Path, frames: Frames) -> str:
    """Return a short text that says what one sequence of images was made of. It changes when they are made anew.

    For our own extraction it follows from the marker that is written last: the video file's content and the settings.
    For a pack it follows from what was packed. For images of other projects it follows from the files' sizes and times.
    Cheap: no image is read. What is computed from the images (features) is kept under this key.
    """
    if (pack := root / "pack.json").is_file():
        return _digest(pack.read_bytes(), frames.folder.encode())
    for video in (frames.folder, frames.folder.partition("/")[2]):  # flow lies one folder lower, in u/ and v/
        if made := read_marker(root, video):
            # Not the file's time: a video that was only copied or touched gives the same images.
            return _digest(*(str(part).encode() for part in (made.settings, made.bytes, made.sha256, made.images)))
    files = [os.stat(frames.path(root, i)) for i in range(frames.count)]
    return _digest(*(f"{file.st_size} {file.st_mtime_ns}".encode() for file in files))


def source_path(root: Path, folder: str) -> str | None:
    """The path of the video that the images in a folder were made of, as far as the marker tells it."""
    made = read_marker(root, folder)
    return made.path if made else None


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def claim(root: Path, kind: str, settings: dict[str, Any], overwrite: bool, empty: bool) -> None:
    """Make `root` a folder of images of this kind that are made with these settings.

    The caller holds the folder's lock. Raises InputError where it holds images made otherwise, unless `overwrite`, or
    of the other kind. An `empty` one may become anything: no video of it is done, and no other run is at work.
    """
    try:
        found = read_extraction(root)
    except InputError:
        if not (overwrite or empty):
            raise
        found = None
    was = found.made_with() if found else {}
    if found and (found.kind, was) == (kind, settings):
        return
    if found and found.kind != kind and not empty:
        raise InputError(f"{root} holds {found.kind}, not {kind}; choose another folder")
    if found and not (overwrite or empty):
        differences = [f"{key} {was.get(key, 'not set')} there, {settings.get(key, 'none')} asked"
                       for key in sorted({*was, *settings}) if was.get(key) != settings.get(key)]  # fmt: skip
        raise InputError(
            f"{root} was extracted with other settings ({'; '.join(differences)}); "
            "choose another folder or the same settings, or --overwrite to redo it"
        )
    write_json(root / FILE, {"kind": kind, "version": 1, "settings": settings})
