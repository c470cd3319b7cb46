"""Make clips from a video's decoded frames in memory, as extraction would write and a loader read them."""

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
from dataloader.frames import Source, decode_gray, decode_rgb
from dataloader.names import Video
from dataloader.packed import consecutive_runs
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from utils import plural

PAIRS_AT_ONCE = 8  # frame pairs per flow call: enough for RAFT's batches, few enough to spread over cores


@dataclass(frozen=True)
class Flow:
    """A method of data.flow that maps frames to the flow between them, and how many threads may run it."""

    method: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
    threads: int = 1
    on_gpu: bool = False


@dataclass(frozen=True)
class ClipMaker:
    """How one stream's clips are made."""

    name: str  # of the stream, or of one of several inputs of a head
    preparation: Preparation
    sampling: TestSampling
    flow: Flow | None


class DecodedFrames:
    """One stream's images of one video, made from decoded frames when a clip first needs them.

    They are made as by data/extract_rgb.py and data/extract_flow.py and read as by the loaders: flow is
    computed and quantised, and all images are JPEG-coded and decoded. If the preparation lacks a setting of
    the extraction, its default holds, except for the sampling rate: then every frame, as in others' frame
    sets.
    """

    def __init__(self, maker: ClipMaker, video: str) -> None:
        self.maker, self.preparation, self.video = maker, maker.preparation, video
        self.is_flow = self.preparation.modality == "flow"
        self.rate = self.preparation.sampling_rate or 1 if self.preparation.modality == "rgb" else 1
        self.sampling = replace(maker.sampling, every=self.rate)
        self.short_side = 256 if self.preparation.short_side is None else self.preparation.short_side
        self.quality = self.preparation.quality or 90
        # frame number -> uint8 (planes, height, width): the frame, or the flow from it to the next
        self.images: dict[int, np.ndarray] = {}

    @property
    def fewest(self) -> int:
        """Return the number of frames that one clip needs."""
        length = self.preparation.clip_length
        return length + 1 if self.is_flow else (length - 1) * self.rate + 1

    def too_few(self, count: int) -> str:
        """Say what is wrong with a video of `count` frames."""
        return f"has {plural(count, 'frame')}, and one clip of the {self.maker.name} stream needs {self.fewest}"

    def starts(self, count: int) -> np.ndarray:
        """Return the frames at which the clips of a video of `count` frames begin, in time order. Shape (samples,)."""
        if count < self.fewest:
            raise VideoError(self.too_few(count))
        return self.rate * self.sampling.starts_in(self._on_disk(count), self.preparation)

    def needed(self, count: int) -> list[int]:
        """Return the numbers of the frames, of `count`, that `clips` needs. Raises VideoError for too few."""
        return np.unique(self.starts(count)[:, None] + np.arange(0, self.fewest, self.rate)).tolist()

    def clips(self, frames: Mapping[int, np.ndarray], count: int, first: int = 0) -> Batch:
        """Return the clips of `count` frames from frame `first` on, as a loader would.

        `frames` maps a frame's number to RGB uint8 (height, width, 3), already scaled to `short_side`. Images
        before `first` are dropped, later ones kept for the next call. Raises VideoError for too few frames.
        """
        self.images = {number: image for number, image in self.images.items() if number >= first}
        steps = first + self.starts(count)[:, None] + np.arange(self.preparation.clip_length) * self.rate
        missing = [number for number in np.unique(steps).tolist() if number not in self.images]
        if self.is_flow:
            self.images.update(self._flows(frames, missing))
        else:
            for number in missing:
                data = encode_jpeg(frames[number], self.quality)
                self.images[number] = decode_rgb(data, self.video).transpose(2, 0, 1)

        def read(images: Mapping[int, np.ndarray], chosen: Sequence[int]) -> list[np.ndarray]:
            return [images[first + step * self.rate] for step in chosen]

        source = Source(Video(self.video, -1, self.video), self.images, self._on_disk(count), self.video)
        return ClipDataset([source], read, self.preparation, self.sampling).clips(source, np.random.default_rng())

    def _on_disk(self, count: int) -> int:
        """Return how many images extraction would write for `count` frames."""
        return count - 1 if self.is_flow else -(-count // self.rate)

    def _flows(self, frames: Mapping[int, np.ndarray], pairs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of a pair's first frame, its flow as read from disk) for all `pairs`, which are sorted."""
        flow = self.maker.flow
        assert flow is not None

        def compute(run: list[int]) -> list[np.ndarray]:
            return [self._coded(one) for one in flow.method(frames[n] for n in range(run[0], run[-1] + 2))]

        runs = list(consecutive_runs(pairs, PAIRS_AT_ONCE))
        with ThreadPoolExecutor(flow.threads) as pool:
            done: Iterable = zip(runs, pool.map(compute, runs), strict=True)
            if multiprocessing.parent_process() is None:  # workers leave the bar to the main process
                done = tqdm(done, f"flow of {self.video}", len(runs), leave=False, delay=1, disable=None)
            for run, flows in done:
                yield from zip(run, flows, strict=True)

    def _coded(self, flow: np.ndarray) -> np.ndarray:
        images = quantise(flow, self.preparation.flow_bound or 20.0)
        return np.stack([decode_gray(encode_jpeg(images[:, :, axis], self.quality), self.video) for axis in (0, 1)])
