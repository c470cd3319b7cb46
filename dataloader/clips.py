"""Clips of videos: sampled, cropped and read by a loader's workers, joined to batches, laid out on the device.

disk -> decode (each image of a video once) -> crop -> resize -> Batch of uint8 images -> device -> `clips_of`
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataloader.extracted import extraction_settings
from dataloader.frames import Index
from dataloader.images import ReadSteps, Source, find_sources
from dataloader.lists import Split, Video, hold_out_groups, load_split
from dataloader.preparation import (
    TSN_SCALES,
    Box,
    Preparation,
    empty_images,
    flip_clips,
    flow_picture,
    multiscale_crop,
    random_crop,
    stack_resized,
    test_boxes,
)
from dataloader.sampling import (
    EpochBatches,
    TestSampling,
    TrainSampling,
    rng_for,
    train_starts,
)
from utils import InputError, cpu_count, plural, processes, rank

SENT_AS_ARRAYS = ("labels", "clips", "flip")
PREFETCHED = 2  # batches that each worker makes ahead


class Batch(NamedTuple):
    """Some videos' clips. Images that several clips share travel once; `clips` says which make a clip."""

    names: list[str]
    labels: Tensor  # (videos,) int64
    images: Tensor  # (images, planes, size, size) uint8; of engine.frozen, float activations, one a clip
    clips: Tensor  # (videos * clips per video, time steps) int64: rows of `images`
    flip: Tensor  # (videos * clips per video,) bool
    weight: float = 1.0  # of each video's loss in the step of all processes; 0: a repeat that keeps them in step
    problems: tuple[tuple[str, str], ...] = ()  # (video, reason) of those replaced by another


class ClipDataset(Dataset):
    """Videos as uint8 clips. Item (epoch, index) depends on (seed, epoch, index) alone.

    `sampling` makes it a training or a test set. A video that can't be read is an item, too, an InputError, because an
    exception from a worker would arrive as a traceback; with `skip_errors` the next video that can be read stands in
    and the problem is reported in the batch.
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

    def __getitem__(self, key: tuple[int, int]) -> Batch | InputError:
        epoch, index = key
        problems: list[tuple[str, str]] = []
        for offset in range(len(self) if self.skip_errors else 1):
            source = self.sources[(index + offset) % len(self)]
            try:
                return self.clips(source, rng_for(self.seed, epoch, index))._replace(problems=tuple(problems))
            except InputError as error:
                problems.append((source.video.name, str(error)))
        # a test leaves no video out
        advice = ", or use --on-error skip to train without it" if isinstance(self.sampling, TrainSampling) else ""
        return InputError(problems[-1][1] + advice)

    def clips(self, source: Source, rng: np.random.Generator) -> Batch:
        """One video's clips. Raises InputError for images that can't be read."""
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
        return Batch([source.video.name], torch.tensor([source.video.label]), images, clips, torch.tensor(flip))

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


class Collate:
    """Joins videos to one batch: images one behind the other, clips renumbered to match.

    A worker puts the images into shared memory that it uses again, because the system takes longer to provide fresh
    memory than the worker to fill it. PREFETCHED batches of a worker are ready or under way, and one is at work in
    the main process until that asks for the next (Loader.epoch): what was used before these is free.
    """

    def __init__(self) -> None:
        self.memory = [torch.empty(0, dtype=torch.uint8)] * (PREFETCHED + 1)
        self.batches = 0

    def __call__(self, items: list[Batch | InputError]) -> Batch | InputError:
        batches = []
        for item in items:
            if isinstance(item, InputError):
                return item
            batches.append(item)
        offsets = np.cumsum([0] + [len(one.images) for one in batches])
        in_worker = get_worker_info() is not None
        count, (planes, height, width) = int(offsets[-1]), batches[0].images.shape[1:]
        memory = self._memory(count * planes * height * width) if in_worker else None
        images = empty_images(count, planes, height, width, memory)
        torch.cat([one.images for one in batches], out=images)  # (all images, planes, size, size)
        batch = Batch(
            names=[name for one in batches for name in one.names],
            labels=torch.cat([one.labels for one in batches]),
            images=images,
            clips=torch.cat([one.clips + int(offset) for one, offset in zip(batches, offsets, strict=False)]),
            flip=torch.cat([one.flip for one in batches]),
            problems=tuple(problem for one in batches for problem in one.problems),
        )
        if in_worker:  # a tensor takes a shared file to send; small ones travel faster as plain arrays
            return batch._replace(**{name: getattr(batch, name).numpy() for name in SENT_AS_ARRAYS})
        return batch

    def _memory(self, size: int) -> Tensor:
        self.batches += 1
        place = self.batches % len(self.memory)
        if len(self.memory[place]) < size:
            self.memory[place] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self.memory[place][:size]


def sent_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their images on `device`, each sent to a GPU while the one before is at work there."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, clips = (t.to(device, non_blocking=True) for t in (batch.images, batch.clips))
        sent = batch._replace(images=images, clips=clips), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = sent
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(event)
    for tensor in (batch.images, batch.clips):
        tensor.record_stream(current)  # its memory is not to be used again before this stream is done with it
    return batch


def each_once(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with equal clips of a video only once, and where each clip is now. Shorter videos repeat some.

    What is computed of the clips becomes what it is of all by `output[place]`.
    """
    rows = torch.cat([batch.clips, batch.flip[:, None].to(batch.clips.device)], 1)
    different, place = rows.unique(dim=0, return_inverse=True)
    return batch._replace(clips=different[:, :-1], flip=different[:, -1].bool()), place


def clips_of(batch: Batch, modality: str, device: torch.device) -> Tensor:
    """A batch's clips on `device`: uint8 (videos * clips per video, images x planes, size, size), channels last."""
    images = batch.images.to(device)  # on a GPU already there (sent_ahead); elsewhere a worker may write to it again
    clips = images[batch.clips.to(device)]  # (clips, time steps, planes, size, size)
    clips = clips.flatten(1, 2)  # (clips, time steps * planes, size, size)
    if bool(batch.flip.any()):
        clips = flip_clips(clips, batch.flip.to(device, non_blocking=True), modality)
    return clips.contiguous(memory_format=torch.channels_last)


# --- loaders ---


STOPPING = (signal.SIGINT, signal.SIGTERM)


class Loader:
    """A DataLoader over one split whose epochs are numbered, and that can start in the middle of one.

    A training set is shuffled by its dataset's seed; a test set stands in list order.
    """

    def __init__(self, dataset: ClipDataset, batch_size: int, workers: int | None, device: torch.device) -> None:
        """`batch_size`: videos in a batch of all processes. `workers`: None for one per core, at most 16."""
        self.dataset, self.batch_size = dataset, batch_size
        seed = dataset.seed if isinstance(dataset.sampling, TrainSampling) else None
        self.batches = EpochBatches(len(dataset), batch_size, seed=seed, rank=rank(), processes=processes())
        self.problems: dict[str, str] = {}  # videos that another stood in for, and why
        self.workers = min(cpu_count(), 16) if workers is None else workers
        self.pin_memory = device.type == "cuda"
        self._loader = self._make(
            batch_sampler=self.batches, persistent_workers=self.workers > 0,
            prefetch_factor=PREFETCHED if self.workers > 0 else None,
        )  # fmt: skip

    def _make(self, **options: Any) -> DataLoader:
        return DataLoader(
            self.dataset, collate_fn=Collate(), num_workers=self.workers, pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own, so that loading never draws from the training's
            **options,
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `first_batch` on. A bad file is an InputError.

        A batch's images are valid until the next batch is asked for.
        """
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        for number, batch in enumerate(self._checked(self._loader), first_batch):
            videos = self.batches.size(number)  # of all processes, whose gradients are averaged
            yield batch._replace(weight=processes() / videos if rank() < videos else 0.0)

    def one_by_one(self, items: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Batches of one video, of these (epoch, index) of the dataset."""
        if items:
            yield from self._checked(self._make(sampler=items))

    def _checked(self, loader: DataLoader) -> Iterator[Batch]:
        with _signals_held():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            self.problems.update(batch.problems)
            yield batch._replace(**{name: torch.as_tensor(getattr(batch, name)) for name in SENT_AS_ARRAYS})


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


@dataclass(frozen=True)
class Data:
    """A split's loaders. `select` chooses the model and drives the schedule: validation videos, or `test` itself."""

    split: Split
    train: Loader | None  # None where only a test is asked for
    select: Loader
    test: Loader
    root: Path  # of the images

    def about(self) -> dict[str, Any]:
        """What files say of a split: its dataset, number and classes."""
        split = self.split
        return {"dataset": split.dataset, "split": split.number, "class_names": list(split.class_names)}

    def frames(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Where the images of these videos lie, as files say it: a folder, and each video's below it."""
        folders = {source.video.name: os.path.relpath(source.folder, self.root) for source in sources}
        return {"root": str(self.root.resolve()), "folders": folders}


@dataclass(frozen=True)
class DataSettings:
    """Which videos, and how they are loaded; see the flags of the same names in spatial_cnn.py -h."""

    ucf_list: Path | None  # None: UCF101's group rule
    split: str
    testing: TestSampling
    training: TrainSampling | None  # None: only a test is asked for
    batch_size: int = 1
    val_groups: int = 0
    allow_missing: bool = False
    skip_errors: bool = False  # in training only: a test leaves no video out
    workers: int | None = None
    seed: int = 0


def make_data(
    settings: DataSettings,
    index: Index,
    read: ReadSteps,
    preparation: Preparation,
    device: torch.device,
) -> Data:
    """Match a split with the images on disk, and make its loaders."""
    split = load_split(settings.ucf_list, settings.split, index.names, verbose=rank() == 0)
    if len(split.class_names) < 2:
        raise InputError(f"all videos are of one class, {split.class_names[0]}: nothing to tell apart; add a class")

    def loader(videos: list[Video], sampling: TrainSampling | TestSampling, batch: int, subset: str) -> Loader:
        sources = find_sources(index, videos, settings.allow_missing)
        if not sources:
            raise InputError(f"no {subset} video of split {split.number} is under {index.root}; check --ucf-list")
        skip = settings.skip_errors and isinstance(sampling, TrainSampling)
        dataset = ClipDataset(sources, read, preparation, sampling, seed=settings.seed, skip_errors=skip)
        return Loader(dataset, batch, settings.workers, device)

    flow = preparation.modality != "rgb"  # or differences: these have every frame
    every = 1 if flow else extraction_settings(index.root).get("sampling_rate") or 1
    testing = replace(settings.testing, every=every)
    test_batch = max(1, (256 if device.type == "cuda" else 32) // testing.clips)  # videos
    test = loader(split.test, testing, test_batch, "test")
    training, select = split.train, test
    if settings.val_groups:
        try:
            training, validation = hold_out_groups(split.train, settings.val_groups)
            select = loader(validation, testing, test_batch, "validation")
        except InputError as error:
            if settings.training is not None:
                raise
            if rank() == 0:  # a test alone needs no training videos
                print(f"note: no validation videos are tested beside: {error}")
    if settings.training is None:
        return Data(split, None, select, test, index.root)
    sampling = replace(settings.training, scales=TSN_SCALES[:3] if flow else TSN_SCALES)  # as in TSN's code
    return Data(split, loader(training, sampling, settings.batch_size, "training"), select, test, index.root)
