"""The spatial stream's data: RGB frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloader.clips import Source
from dataloader.folders import Frames
from dataloader.images import decode_rgb
from dataloader.layouts import Index, match
from dataloader.splits import Video


@dataclass(frozen=True)
class ReadFrame:
    """Read RGB frames under `root`."""

    root: Path

    def __call__(self, frames: Frames, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Each frame of `steps`, from 0, as (3, height, width) uint8, colours interleaved in memory."""
        for path, data in frames.read(self.root, steps):
            yield decode_rgb(data, path).transpose(2, 0, 1)


def spatial_sources(index: Index, videos: list[Video], allow_missing: bool = False) -> list[Source]:
    """The videos that have frames under `index`; one that has none is an error, or left out."""
    found = match(index, videos, "skip" if allow_missing else "error")
    sources = []
    for video, frames in found:
        assert not isinstance(frames, tuple)  # the index of flow has two
        sources.append(Source(video, frames, frames.count, str(index.root / frames.folder)))
    return sources
