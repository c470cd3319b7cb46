"""The spatial stream's data: RGB frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloader.clips import Source
from dataloader.images import decode_rgb, read_bytes
from dataloader.layouts import Frames, Index, match
from dataloader.splits import Video


@dataclass(frozen=True)
class ReadFrame:
    """Read one RGB frame under `root`."""

    root: Path

    def __call__(self, frames: Frames, step: int) -> np.ndarray:
        """Frame `step`, from 0, as (3, height, width) uint8."""
        path = frames.path(self.root, step)
        return decode_rgb(read_bytes(path), path).transpose(2, 0, 1)


def spatial_sources(index: Index, videos: list[Video], allow_missing: bool = False) -> list[Source]:
    """The videos that have frames under `index`; one that has none is an error, or left out."""
    found = match(index, videos, "skip" if allow_missing else "error")
    return [Source(video, frames, frames.count, str(index.root / frames.folder)) for video, frames in found]
