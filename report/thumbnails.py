"""Small strips of a video's frames for the report, as far as the frames are on disk."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")


def frame_files(folder: Path) -> list[Path]:
    """The RGB frames in a folder in time order, by the number their names end in (padded or not)."""
    numbered = []
    for file in folder.iterdir():
        number = re.search(r"(\d+)$", file.stem)
        flow = file.name.startswith("flow_")  # beside the frames in some layouts
        if number and file.suffix.lower() in SUFFIXES and not flow and not file.name.startswith("."):
            numbered.append((int(number[1]), file))
    return [file for _, file in sorted(numbered)]


def strip(root: Path, folder: str, frames: int = 6, height: int = 84) -> str | None:
    """A strip of frames spread over the video as a JPEG data URI; None if they can't be read.

    `folder` must lie inside `root`: the names come from a file, and a report embeds what they lead to.
    """
    try:
        place = (root / folder).resolve()
        if not place.is_relative_to(root.resolve()) or not (files := frame_files(place)):
            return None
        chosen = np.linspace(0, len(files) - 1, min(frames, len(files))).round().astype(int)
        pictures = [_thumbnail(files[i], height) for i in chosen]
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # a folder or frame that is missing or broken costs the strip, not the report
    joined = Image.new("RGB", (sum(p.width for p in pictures) + 2 * (len(pictures) - 1), height), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + 2
    data = io.BytesIO()
    joined.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _thumbnail(file: Path, height: int) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (4 * height, 2 * height))  # lets the JPEG decoder work at a reduced size
        width = min(max(round(image.width * height / image.height), 1), 4 * height)
        return image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
