"""Clips straight from a video's decoded frames: what extraction would write and a loader read, without the disk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from data.flow import quantise
from data.videos import VideoError, encode_jpeg
from dataloader.clips import Batch, ClipDataset
from dataloader.images import Source, decode_gray, decode_rgb
from dataloader.names import Video
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling, consecutive_runs
from utils import plural

PAIRS_AT_ONCE = 8  # of a flow method: some for RAFT's batches, few enough to spread over cores


@dataclass(frozen=True)
class Flow:
    """A method of data.flow, from frames to the flow between them, and how many threads may run it at once."""

    method: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
    threads: int = 1
    on_gpu: bool = False


class DecodedFrames:
    """One stream's images of one video, made from decoded frames when a clip first needs them.

    They are made as data/extract_rgb.py and data/extract_flow.py do it and read as the loaders do it: for flow
    computed and quantised, JPEG-coded and decoded. What the preparation doesn't know of the extraction is taken
    as extraction's own default, but for the sampling rate: every frame, as in others' frame sets.
    """

    def __init__(self, name: str, preparation: Preparation, sampling: TestSampling, flow: Flow | None = None) -> None:
        self.name, self.preparation, self.flow = name, preparation, flow
        self.rate = 1 if preparation.modality != "rgb" else preparation.sampling_rate or 1
        self.sampling = replace(sampling, every=self.rate)
        self.short_side = 256 if preparation.short_side is None else preparation.short_side
        self.quality = preparation.quality or 90
        self.bound = preparation.flow_bound or 20.0
        # number of a frame -> uint8 (planes, height, width): the frame, or the flow from it to the next
        self.images: dict[int, np.ndarray] = {}

    @property
    def fewest(self) -> int:
        """Frames that one clip needs."""
        steps = self.preparation.clip_length
        return steps + 1 if self.preparation.modality == "flow" else (steps - 1) * self.rate + 1

    def too_few(self, count: int) -> str:
        """What is wrong with a video of `count` frames."""
        network = f"the {self.preparation.modality} network"
        return f"has {plural(count, 'frame')}, and one clip of {network} needs {self.fewest}"

    def starts(self, count: int) -> np.ndarray:
        """The frames at which the clips of a video of `count` frames begin, in time order. Shape (samples,)."""
        if count < self.fewest:
            raise VideoError(self.too_few(count))
        return self.rate * self.sampling.starts_in(self._steps(count), self.preparation)

    def needed(self, count: int, first: int = 0) -> list[int]:
        """Of `count` frames from frame `first` on, those that `clips` needs. Raises VideoError for too few."""
        length = self.fewest
        return np.unique(first + self.starts(count)[:, None] + np.arange(0, length, self.rate)).tolist()

    def clips(self, frames: Mapping[int, np.ndarray], count: int, first: int = 0) -> Batch:
        """The clips that stand for `count` frames from frame `first` on, as from a loader.

        `frames` maps a frame's number to RGB uint8 (height, width, 3), already scaled to `short_side`. Images
        before `first` are forgotten, later ones kept for the next call. Raises VideoError for too few frames.
        """
        self._make(frames, first + self.starts(count), first)

        def read(images: Mapping[int, np.ndarray], chosen: Sequence[int]) -> list[np.ndarray]:
            return [images[first + step * self.rate] for step in chosen]

        source = Source(Video(self.name, -1, self.name), self.images, self._steps(count), self.name)
        return ClipDataset([source], read, self.preparation, self.sampling).clips(source, np.random.default_rng())

    def _make(self, frames: Mapping[int, np.ndarray], starts: np.ndarray, first: int) -> None:
        """Make the images of clips that begin at these frames, as far as they aren't there; forget those before."""
        for number in [number for number in self.images if number < first]:
            del self.images[number]
        steps = np.arange(self.preparation.clip_length) * self.rate
        missing = [n for n in np.unique(starts[:, None] + steps).tolist() if n not in self.images]
        if self.preparation.modality == "flow":
            self.images.update(self._flows(frames, missing))
        else:
            for number in missing:
                data = encode_jpeg(frames[number], self.quality)
                self.images[number] = decode_rgb(data, self.name).transpose(2, 0, 1)

    def _steps(self, count: int) -> int:
        """Images on disk of so many frames."""
        return count - 1 if self.preparation.modality == "flow" else -(-count // self.rate)

    def _flows(self, frames: Mapping[int, np.ndarray], pairs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a pair's first frame, its flow as read from disk) for all `pairs`, which are sorted."""
        assert self.flow is not None
        method = self.flow.method

        def compute(run: list[int]) -> list[np.ndarray]:
            flows = method(frames[number] for number in range(run[0], run[-1] + 2))
            return [self._coded(flow) for flow in flows]

        runs = list(consecutive_runs(pairs, PAIRS_AT_ONCE))
        with ThreadPoolExecutor(self.flow.threads) as pool:
            done: Iterable = zip(runs, pool.map(compute, runs), strict=True)
            if multiprocessing.parent_process() is None:  # among several videos there is a bar of videos
                done = tqdm(done, f"flow of {self.name}", len(runs), leave=False, delay=1, disable=None)
            for run, flows in done:
                yield from zip(run, flows, strict=True)

    def _coded(self, flow: np.ndarray) -> np.ndarray:
        images = quantise(flow, self.bound)
        return np.stack([decode_gray(encode_jpeg(images[:, :, axis], self.quality), self.name) for axis in (0, 1)])
