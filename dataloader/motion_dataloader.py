"""The motion stream's data: optical flow images, x and y of each frame pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloader.clips import Source
from dataloader.folders import Frames
from dataloader.images import decode_gray
from dataloader.layouts import Index, match
from dataloader.splits import Video
from utils import InputError


@dataclass(frozen=True)
class ReadFlow:
    """Read frame pairs' flow under `root`.

    A clip puts the pairs one behind the other, so its channels are x1, y1, ..., x10, y10, as in
    Simonyan and Zisserman 2014, section 3, equation 1.
    """

    root: Path

    def __call__(self, frames: tuple[Frames, Frames], steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Each pair of `steps`, from 0, as (2, height, width) uint8: x, then y."""
        for files in zip(*(component.read(self.root, steps) for component in frames), strict=True):
            x, y = (decode_gray(data, path) for path, data in files)
            if x.shape != y.shape:
                paths = " and ".join(path for path, _ in files)
                raise InputError(f"{paths} are of different size; extract this video again")
            yield np.stack((x, y))


def motion_sources(index: Index, videos: list[Video], allow_missing: bool = False) -> list[Source]:
    """The videos that have flow under `index`; one that has none is an error, or left out."""
    found = match(index, videos, "skip" if allow_missing else "error")
    sources = []
    for video, pair in found:
        assert isinstance(pair, tuple)
        sources.append(Source(video, pair, pair[0].count, str(index.root / pair[0].folder)))
    return sources
