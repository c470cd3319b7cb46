"""Which clips of a video are used, and in which order videos are visited.

Everything random here is a function of (seed, epoch, index) and of nothing else: not of the number of
workers, of processes, or of what was drawn before. That is what makes a resumed run exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from dataloader.preparation import TSN_SCALES, Preparation


def rng_for(*key: int) -> np.random.Generator:
    """A random generator of its own for (seed, epoch) or (seed, epoch, index)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def train_starts(valid: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """One random start in each of `segments` equal parts of the `valid` starts 0..valid-1. Shape (segments,).

    TSN (Wang et al. 2016), section 3.1. Part s holds the starts from floor(s*valid/segments) to before
    floor((s+1)*valid/segments); a part left empty, because there are fewer starts than parts, takes the
    nearest start.
    """
    edges = np.arange(segments + 1) * valid // segments
    low = edges[:-1]
    return rng.integers(low, np.maximum(edges[1:], low + 1))


def test_starts(valid: int, samples: int, margin: int = 0) -> np.ndarray:
    """`samples` starts spread evenly over 0..valid-1, the first and the last included. Shape (samples,).

    A single sample is the middle one. Starts repeat where there are fewer than `samples`. The first and the last
    `margin` starts are left out, or as many as leave one.
    """
    if margin:
        margin = min(margin, (valid - 1) // 2)
        return margin + test_starts(valid - 2 * margin, samples)
    if samples == 1:
        return np.array([(valid - 1) // 2])
    steps = np.arange(samples)
    return (2 * steps * (valid - 1) + samples - 1) // (2 * (samples - 1))  # round half up, in integers


def original_starts(frames: int, samples: int, every: int = 1) -> np.ndarray:
    """The original's starts, 0, i, 2i, ... with i = int((frames - 10) / samples), for both streams. Shape (samples,).

    Its val_sample20 and val_sample19; they never reach the end, and in a short video all are 0. `frames` are the
    video's; of images of every N-th frame the nearest is taken.
    """
    interval = max(0, frames - 10) // samples
    return (np.arange(samples) * interval + every // 2) // every


def tsn_starts(valid: int, samples: int) -> np.ndarray:
    """TSN's starts: the middle of each of `samples` equal parts of the starts 0..valid-1. Shape (samples,).

    tsn-pytorch's _get_test_indices, rounded as there.
    """
    tick = valid / samples
    return (tick / 2 + tick * np.arange(samples)).astype(np.int64)


@dataclass(frozen=True)
class TrainSampling:
    """One random clip in each segment; a random crop and flip that all of a video's clips share."""

    segments: int = 3
    crop: str = "random"  # random | multiscale | squash: the whole image
    crop_positions: int = 5
    scales: Sequence[float] = TSN_SCALES
    flip: bool = True


@dataclass(frozen=True)
class TestSampling:
    """Clips from all over the video, each seen in `views` crops: 1 or 5, or 2 or 10 with their flips.

    `starts` says where they begin: "spread" evenly from the first possible start to the last, or as the "original"
    or "tsn" has it. `every`: the images are of every N-th frame.
    """

    samples: int = 19
    views: int = 1
    starts: str = "spread"
    every: int = 1

    @property
    def clips(self) -> int:
        """Clips of one video, views included."""
        return self.samples * self.views

    def about(self) -> dict[str, Any]:
        """The test protocol, as files keep it."""
        return {"samples": self.samples, "views": self.views, "starts": self.starts}

    def starts_in(self, count: int, preparation: Preparation) -> np.ndarray:
        """The time steps at which the clips of a video of `count` time steps begin, in order. Shape (samples,)."""
        if self.starts == "original":
            frames = count + 1 if preparation.modality == "flow" else (count - 1) * self.every + 1
            starts = original_starts(frames, self.samples, self.every)
            return np.minimum(starts, count - preparation.clip_length)
        valid = count - preparation.clip_length + 1
        if self.starts == "tsn":
            return tsn_starts(valid, self.samples)
        return test_starts(valid, self.samples, preparation.margin)


class EpochBatches(Sampler):
    """Batches of (epoch, index), each video once per epoch, split over the processes.

    `batch_size` is the global batch: process `rank` of `processes` takes its share of each, so that flags mean
    the same on one GPU and on eight. Batches are as even as they can be and none is larger than `batch_size`: a last
    one of a few videos would be a whole step from their batch statistics (9,537 = 149 x 64 + 1). A process whose rank
    is not below a batch's `size` gets a repeat of its first video, which counts nowhere but keeps it in step.
    `first_batch` skips what a run resumed in mid-epoch has already seen.
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
        """Videos in a batch of the epoch, over all processes."""
        return self.edges[batch + 1] - self.edges[batch]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.videos)
        if self.seed is not None:
            order = rng_for(self.seed, self.epoch).permutation(self.videos)
        for low, high in itertools.pairwise(self.edges[self.first_batch :]):
            batch = order[low:high]
            share = batch[self.rank :: self.processes] if self.rank < len(batch) else batch[:1]
            yield [(self.epoch, index) for index in share.tolist()]
