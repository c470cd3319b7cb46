"""Small strips of a video's frames for the report, as far as the frames are on disk."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dataloader.frames import Index, find, index_frames
from saved.predictions import Predictions
from utils import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
HEIGHT, FRAMES = 80, 4  # of a strip: about 8 kB
MOST = 600  # strips on one page, which they make 6 MB large


def strips(sources: Mapping[str, Predictions], videos: Sequence[str]) -> dict[str, str]:
    """Strips of the first MOST of `videos` whose RGB frames are on disk: video's key -> JPEG data URI.

    Where the frames lie, in folders or in a pack, is what predictions.json of a spatial stream says.
    """
    for source in sources.values():
        frames = source.meta.get("frames")
        if source.meta.get("stream") == "spatial" and isinstance(frames, dict):
            root, folders = frames.get("root"), frames.get("folders")
            if isinstance(root, str) and isinstance(folders, dict):
                break
    else:
        return {}
    pack = _pack(Path(root))

    def one(video: str) -> str | None:
        return strip(Path(root), str(folders[video])) if pack is None else packed_strip(pack, video)

    known = [video for video in videos if video in folders][:MOST]
    with ThreadPoolExecutor() as pool:
        return {video: made for video, made in zip(known, pool.map(one, known), strict=True) if made}


def packed_strip(pack: Index, video: str) -> str | None:
    """The same as `strip` of a video in a pack."""
    try:
        frames = find(pack, video)
        assert not isinstance(frames, tuple)  # which only flow is
        return _joined([io.BytesIO(data) for _, data in frames.read(pack.root, _chosen(frames.count))])
    except (InputError, OSError, ValueError, Image.DecompressionBombError):
        return None


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
        return _joined([files[i] for i in _chosen(len(files))])
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # a folder or frame that is missing or broken costs the strip, not the report


def _pack(root: Path) -> Index | None:
    """The index of a pack; None for a folder, and for a pack that is not whole, in which no frame will be found."""
    try:
        return index_frames(root, "rgb") if (root / "pack.json").is_file() else None
    except (InputError, OSError):
        return None


def _chosen(count: int) -> list[int]:
    """Which of a video's frames are shown: the first, the last, and some between."""
    return np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int).tolist()


def _joined(files: Sequence[Path | io.BytesIO]) -> str:
    pictures = [_thumbnail(file) for file in files]
    joined = Image.new("RGB", (sum(p.width for p in pictures) + 2 * (len(pictures) - 1), HEIGHT), "#808890")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + 2
    data = io.BytesIO()
    joined.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _thumbnail(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (4 * HEIGHT, 2 * HEIGHT))  # lets the JPEG decoder work at a reduced size
        width = min(max(round(image.width * HEIGHT / image.height), 1), 4 * HEIGHT)
        return image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR)
