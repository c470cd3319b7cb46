"""Clips of videos, sampled, cropped and loaded: what both streams share. A stream brings how one image is read.

disk -> decode (each image of a video once) -> crop -> resize -> Batch of uint8 images -> device -> `clips_of`
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataloader.batches import PREFETCHED, SENT_AS_ARRAYS, Batch, Collate
from dataloader.preparation import Preparation, flow_picture
from dataloader.sampling import EpochBatches, original_starts, rng_for, test_starts, train_starts, tsn_starts
from dataloader.splits import Video
from dataloader.transforms import TSN_SCALES, Box, multiscale_crop, random_crop, stack_resized, test_boxes
from utils import InputError, cpu_count, plain_cause, plural, world

# (where a video's images lie, time steps from 0) -> for each step uint8 (planes, height, width): RGB, or x and y
ReadSteps = Callable[[Any, Sequence[int]], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Source:
    """One video as a stream sees it: `frames` is what its ReadSteps takes, `count` its time steps."""

    video: Video
    frames: Any
    count: int
    folder: str  # for messages


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


STOPPING = (signal.SIGINT, signal.SIGTERM)


class ClipDataset(Dataset):
    """Videos as uint8 clips. Item (epoch, index) depends on (seed, epoch, index) alone.

    `sampling` makes it a training or a test set. A video that can't be read is an error, which travels to
    the main process as Batch.error, because an exception from a worker would arrive as a traceback; with
    `skip_errors` the next video that can be read stands in and the problem is reported in the batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        read: ReadSteps,
        preparation: Preparation,
        sampling: TrainSampling | TestSampling,
        *,
        seed: int = 0,
        skip_errors: bool = False,
    ) -> None:
        self.sources, self.read, self.preparation, self.sampling = sources, read, preparation, sampling
        self.seed, self.skip_errors = seed, skip_errors
        length = preparation.clip_length
        for source in sources:
            if source.count < length:
                unit = "flow pair" if preparation.modality == "flow" else "frame"
                raise InputError(
                    f"{source.folder} has {plural(source.count, unit)} and one clip needs {length}: take the video off "
                    "the lists, or extract it again"
                )

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        counted = index >= 0
        index = index if counted else -index - 1
        problems: list[tuple[str, str]] = []
        for offset in range(len(self)):
            source = self.sources[(index + offset) % len(self)]
            try:
                return self._item(source, rng_for(self.seed, epoch, index), counted, problems)
            except InputError as error:
                problems.append((source.video.name, str(error)))
                if not self.skip_errors:
                    break
        empty = torch.empty(0, dtype=torch.int64)
        # a test leaves no video out
        advice = ", or use --on-error skip to train without it" if isinstance(self.sampling, TrainSampling) else ""
        return Batch([], empty, empty, empty, empty, 0, problems, problems[-1][1] + advice)

    def _item(
        self, source: Source, rng: np.random.Generator, counted: bool, problems: list[tuple[str, str]]
    ) -> Batch:
        preparation, sampling = self.preparation, self.sampling
        length = preparation.clip_length
        if isinstance(sampling, TrainSampling):
            starts = train_starts(source.count - length + 1, sampling.segments, rng)  # (segments,)
            views = crops = 1
            flip = [sampling.flip and bool(rng.integers(2))] * sampling.segments
        else:
            starts = sampling.starts_in(source.count, preparation)  # (samples,)
            views, crops = sampling.views, 5 if sampling.views >= 5 else 1  # 2 and 10 are 1 and 5 crops and their flips
            flip = [view >= crops for view in range(views) for _ in starts]
        # Clips overlap: each time step is read once. steps (different,); rows: which of them, clip by clip.
        steps, rows = np.unique(starts[:, None] + np.arange(length), return_inverse=True)
        images = stack_resized(self._crops(source, steps.tolist(), rng), len(steps) * crops, preparation.size)
        if preparation.picture:  # (steps * crops, planes, size, size) uint8
            images = flow_picture(images, preparation)  # its two planes become three
        clips = torch.from_numpy(rows.reshape(len(starts), length)) * crops  # (samples, length): rows of images
        clips = torch.cat([clips + view % crops for view in range(views)])  # (views * samples, length)
        return Batch(
            [source.video.name],
            torch.tensor([source.video.label]),
            images,
            clips,
            torch.tensor(flip),
            int(counted),
            problems,
        )

    def _crops(self, source: Source, steps: Sequence[int], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """What is cut out of each step's image, one crop behind the other: (planes, height, width) uint8."""
        shape: tuple[int, ...] = ()
        boxes: list[Box] = []
        for step, image in zip(steps, self.read(source.frames, steps), strict=True):
            if not boxes:
                shape = image.shape
                boxes = self._boxes(shape[1], shape[2], rng)
            elif image.shape != shape:
                size, other = shape[1:], image.shape[1:]
                raise InputError(
                    f"{source.folder}: image {step + 1} is {other[1]}x{other[0]}, those before {size[1]}x{size[0]}; "
                    "extract this video again"
                )
            for box in boxes:
                yield image[:, box.top : box.top + box.height, box.left : box.left + box.width]

    def _boxes(self, height: int, width: int, rng: np.random.Generator) -> list[Box]:
        sampling = self.sampling
        if isinstance(sampling, TestSampling):
            return test_boxes(height, width, self.preparation.test_resize, sampling.views, self.preparation.size)
        if sampling.crop == "squash":
            return [Box(0, 0, height, width)]
        if sampling.crop == "random":
            return [random_crop(height, width, self.preparation.size, rng)]
        return [multiscale_crop(height, width, rng, sampling.scales, sampling.crop_positions)]


@dataclass
class Loader:
    """A DataLoader over one split whose epochs are numbered, and that can start in the middle of one."""

    dataset: ClipDataset
    batch_size: int  # videos in a global batch
    shuffle_seed: int | None  # None: in list order
    workers: int
    pin_memory: bool
    batches: EpochBatches = field(init=False)
    problems: dict[str, str] = field(default_factory=dict)  # videos that another stood in for, and why
    _loader: DataLoader = field(init=False)

    def __post_init__(self) -> None:
        rank, processes = world()
        self.batches = EpochBatches(
            len(self.dataset), self.batch_size, seed=self.shuffle_seed, rank=rank, world=processes
        )
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            collate_fn=Collate(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=PREFETCHED if self.workers > 0 else None,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own, so that loading never draws from the training's
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `first_batch` on. A bad file or a dead worker is an InputError.

        A batch's images are valid until the next batch is asked for.
        """
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        for number, batch in enumerate(self._checked(self._loader), first_batch):
            yield batch._replace(of_all=self.batches.size(number))

    def one_by_one(self, items: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Batches of one video, of these (epoch, index) of the dataset."""
        if items:
            yield from self._checked(
                DataLoader(self.dataset, sampler=items, collate_fn=Collate(), num_workers=self.workers,
                           pin_memory=self.pin_memory, worker_init_fn=_start_worker, generator=torch.Generator())
            )  # fmt: skip

    def _checked(self, loader: DataLoader) -> Iterator[Batch]:
        try:
            with _signals_held():
                batches = iter(loader)
            for batch in batches:
                if batch.error is not None:
                    raise InputError(batch.error)
                self.problems.update(batch.problems)
                yield batch._replace(**{name: torch.as_tensor(getattr(batch, name)) for name in SENT_AS_ARRAYS})
        except RuntimeError as error:
            cause = plain_cause(error)
            if cause is None:
                raise
            raise InputError(cause) from None


def make_loader(dataset: ClipDataset, batch_size: int, workers: int | None, device: torch.device) -> Loader:
    """The loader of a training set (shuffled by its seed) or of a test set (in list order)."""
    shuffle = dataset.seed if isinstance(dataset.sampling, TrainSampling) else None
    workers = min(cpu_count(), 16) if workers is None else workers
    return Loader(dataset, batch_size, shuffle, workers, pin_memory=device.type == "cuda")


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait while workers start: one that does not yet ignore them would die of them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    # One decoding thread per worker: the workers are the parallelism. Ctrl-C and SIGTERM, which reach a whole group
    # of processes, are the main process' to handle.
    torch.set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
