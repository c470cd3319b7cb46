"""Which clips of a video are used, and in which order videos are visited.

All randomness is a function of (seed, epoch, index) alone. It does not depend on the number of workers or
processes, or on earlier draws. This makes a resumed run exact.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from dataloader.preparation import TSN_SCALES, Box, Preparation, multiscale_crop, random_crop, test_boxes


def rng_for(*key: int) -> np.random.Generator:
    """Return a separate random generator for (seed, epoch) or (seed, epoch, index)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def train_starts(valid: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one random start from each of `segments` equal parts of the starts 0..valid-1. Shape (segments,).

    TSN (Wang et al. 2016), section 3.1. Part s holds the starts from floor(s*valid/segments) to before
    floor((s+1)*valid/segments). With fewer starts than parts, empty parts take the nearest start.
    """
    edges = np.arange(segments + 1) * valid // segments
    low = edges[:-1]
    return rng.integers(low, np.maximum(edges[1:], low + 1))


def test_starts(valid: int, samples: int, margin: int = 0) -> np.ndarray:
    """Return `samples` starts spread evenly over 0..valid-1, first and last included. Shape (samples,).

    A single sample is the middle one. Starts repeat if there are fewer than `samples`. The first and last
    `margin` starts are left out, or as many as possible while one remains.
    """
    margin = min(margin, (valid - 1) // 2)
    last = valid - 1 - 2 * margin
    if samples == 1:
        return np.array([margin + last // 2])
    steps = np.arange(samples)
    return margin + (2 * steps * last + samples - 1) // (2 * (samples - 1))  # round half up, in integers


@dataclass(frozen=True)
class TrainSampling:
    """One random clip per segment. A random crop and flip are shared by all clips of a video."""

    segments: int = 3
    crop: str = "random"  # random | multiscale | squash: the whole image
    crop_positions: int = 5
    scales: Sequence[float] = TSN_SCALES
    flip: bool = True

    def boxes(self, height: int, width: int, preparation: Preparation, rng: np.random.Generator) -> list[Box]:
        """Return the crop box of all images of a video, in a list."""
        if self.crop == "squash":
            return [Box(0, 0, height, width)]
        if self.crop == "random":
            return [random_crop(height, width, preparation.size, rng)]
        return [multiscale_crop(height, width, rng, self.scales, self.crop_positions)]


@dataclass(frozen=True)
class TestSampling:
    """Clips from the whole video, each seen in `views` crops: 1 or 5, or 2 or 10 with their flips.

    `starts` says where clips begin: "spread" evenly from the first to the last possible start, or as in the
    "original" or in "tsn". `every`: the images are every N-th frame.
    """

    samples: int = 19
    views: int = 1
    starts: str = "spread"
    every: int = 1

    @property
    def clips(self) -> int:
        """Number of clips per video, including views."""
        return self.samples * self.views

    def boxes(self, height: int, width: int, preparation: Preparation, rng: np.random.Generator) -> list[Box]:
        """Return the crop boxes of one image of a video."""
        return test_boxes(height, width, preparation.test_resize, self.views, preparation.size)

    def about(self) -> dict[str, Any]:
        """Return the evaluation protocol as files store it."""
        return {"samples": self.samples, "views": self.views, "starts": self.starts}

    def starts_in(self, count: int, preparation: Preparation) -> np.ndarray:
        """Return the sorted first time steps of clips in a video of `count` time steps. Shape (samples,).

        The original's are 0, i, 2i, ... with i = int((frames - 10) / samples): val_sample20 and val_sample19.
        They never reach the end of the video. With images of every N-th frame, the nearest is taken.
        TSN's are the middles of equal parts: tsn-pytorch's _get_test_indices, with the same rounding.
        """
        valid = count - preparation.clip_length + 1
        if self.starts == "original":
            frames = count + 1 if preparation.modality == "flow" else (count - 1) * self.every + 1
            interval = max(0, frames - 10) // self.samples
            return np.minimum((np.arange(self.samples) * interval + self.every // 2) // self.every, valid - 1)
        if self.starts == "tsn":
            tick = valid / self.samples
            return (tick / 2 + tick * np.arange(self.samples)).astype(np.int64)
        return test_starts(valid, self.samples, preparation.margin)


class EpochBatches(Sampler):
    """Batches of (epoch, index), each video once per epoch, divided among the processes.

    `batch_size` is global: process `rank` of `processes` takes its share of each batch, so flags mean the
    same on one GPU and on eight. Batches are as even as possible: a last one of a few videos would be a whole
    step from their batch statistics (9,537 = 149 x 64 + 1). A process whose rank is not below a batch's `size`
    repeats its first video, which counts nowhere but keeps the process in step. `first_batch` skips what a run
    resumed within an epoch has already seen.
    """

    def __init__(
        self, videos: int, batch_size: int, *, seed: int | None = None, rank: int = 0, processes: int = 1
    ) -> None:
        self.videos, self.seed = videos, seed  # seed None: in list order
        batches = -(-videos // batch_size)
        self.edges = [batch * videos // batches for batch in range(batches + 1)]
        self.rank, self.processes = rank, processes
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return len(self.edges) - 1 - self.first_batch

    def size(self, batch: int) -> int:
        """Return the number of videos in a batch of the epoch, over all processes."""
        return self.edges[batch + 1] - self.edges[batch]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.videos)
        if self.seed is not None:
            order = rng_for(self.seed, self.epoch).permutation(self.videos)
        for low, high in itertools.pairwise(self.edges[self.first_batch :]):
            batch = order[low:high]
            share = batch[self.rank :: self.processes] if self.rank < len(batch) else batch[:1]
            yield [(self.epoch, index) for index in share.tolist()]
