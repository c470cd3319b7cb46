"""Small strips of a video's frames for the report, as far as the frames are on disk."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from saved.predictions import Predictions

SUFFIXES = (".jpg", ".jpeg", ".png")
HEIGHT, FRAMES = 80, 4  # of a strip: about 8 kB
MOST = 600  # strips on one page, which they make 6 MB large


def strips(sources: Mapping[str, Predictions], videos: Sequence[str]) -> dict[str, str]:
    """Strips of the first MOST of `videos` whose RGB frames are on disk: video's key -> JPEG data URI.

    Where the frames lie is what predictions.json of a spatial stream says.
    """
    for source in sources.values():
        frames = source.meta.get("frames")
        if source.meta.get("stream") == "spatial" and isinstance(frames, dict):
            root, folders = frames.get("root"), frames.get("folders")
            if isinstance(root, str) and isinstance(folders, dict):
                known = [video for video in videos if video in folders][:MOST]
                with ThreadPoolExecutor() as pool:
                    made = pool.map(strip, repeat(Path(root)), [str(folders[video]) for video in known])
                    return {video: one for video, one in zip(known, made, strict=True) if one}
    return {}


def frame_files(folder: Path) -> list[Path]:
    """The RGB frames in a folder in time order, by the number their names end in (padded or not)."""
    numbered = []
    for file in folder.iterdir():
        number = re.search(r"(\d+)$", file.stem)
        flow = file.name.startswith("flow_")  # beside the frames in some layouts
        if number and file.suffix.lower() in SUFFIXES and not flow and not file.name.startswith("."):
            numbered.append((int(number[1]), file))
    return [file for _, file in sorted(numbered)]


def strip(root: Path, folder: str) -> str | None:
    """A strip of frames spread over the video as a JPEG data URI; None if they can't be read.

    `folder` must lie inside `root`: the names come from a file, and a report embeds what they lead to.
    """
    try:
        place = (root / folder).resolve()
        if not place.is_relative_to(root.resolve()) or not (files := frame_files(place)):
            return None
        chosen = np.linspace(0, len(files) - 1, min(FRAMES, len(files))).round().astype(int)
        pictures = [_thumbnail(files[i]) for i in chosen]
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # a folder or frame that is missing or broken costs the strip, not the report
    joined = Image.new("RGB", (sum(p.width for p in pictures) + 2 * (len(pictures) - 1), HEIGHT), "#808890")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + 2
    data = io.BytesIO()
    joined.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (4 * HEIGHT, 2 * HEIGHT))  # lets the JPEG decoder work at a reduced size
        width = min(max(round(image.width * HEIGHT / image.height), 1), 4 * HEIGHT)
        return image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR)
