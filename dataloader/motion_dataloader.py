"""The motion stream's data: optical flow images, x and y of each frame pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloader.clips import Source
from dataloader.images import decode_gray, read_bytes
from dataloader.layouts import Frames, Index, match
from dataloader.splits import Video
from utils import InputError


@dataclass(frozen=True)
class ReadFlow:
    """Read one frame pair's flow under `root`.

    A clip puts the pairs one behind the other, so its channels are x1, y1, ..., x10, y10, as in
    Simonyan and Zisserman 2014, section 3, equation 1.
    """

    root: Path

    def __call__(self, frames: tuple[Frames, Frames], step: int) -> np.ndarray:
        """Pair `step`, from 0, as (2, height, width) uint8: x, then y."""
        paths = [component.path(self.root, step) for component in frames]
        x, y = (decode_gray(read_bytes(path), path) for path in paths)
        if x.shape != y.shape:
            raise InputError(
                f"{paths[0]} and {paths[1].parent.parent.name}'s are of different size; extract this video again"
            )
        return np.stack((x, y))


def motion_sources(index: Index, videos: list[Video], allow_missing: bool = False) -> list[Source]:
    """The videos that have flow under `index`; one that has none is an error, or left out."""
    found = match(index, videos, "skip" if allow_missing else "error")
    return [Source(video, (x, y), x.count, str(index.root / x.folder)) for video, (x, y) in found]
