"""Loaders of a split's training, selection and test videos: from the flags to numbered epochs of batches."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataloader.clips import PREFETCHED, SENT_AS_ARRAYS, Batch, ClipDataset, Collate, TestSampling, TrainSampling
from dataloader.extracted import extraction_settings
from dataloader.frames import Index
from dataloader.images import ReadSteps, find_sources
from dataloader.lists import Split, Video, hold_out_groups, load_split
from dataloader.preparation import Preparation
from dataloader.sampling import EpochBatches
from dataloader.transforms import TSN_SCALES
from utils import InputError, cpu_count, processes, rank

STOPPING = (signal.SIGINT, signal.SIGTERM)


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
        self.batches = EpochBatches(
            len(self.dataset), self.batch_size, seed=self.shuffle_seed, rank=rank(), processes=processes()
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
            yield from self._checked(
                DataLoader(self.dataset, sampler=items, collate_fn=Collate(), num_workers=self.workers,
                           pin_memory=self.pin_memory, worker_init_fn=_start_worker, generator=torch.Generator())
            )  # fmt: skip

    def _checked(self, loader: DataLoader) -> Iterator[Batch]:
        with _signals_held():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            self.problems.update(batch.problems)
            yield batch._replace(**{name: torch.as_tensor(getattr(batch, name)) for name in SENT_AS_ARRAYS})


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


@dataclass(frozen=True)
class Data:
    """A split's loaders. `select` chooses the model and drives the schedule: validation videos, or `test` itself."""

    split: Split
    train: Loader | None  # None where only a test is asked for
    select: Loader
    test: Loader
    root: Path  # of the images


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
        return make_loader(dataset, batch, settings.workers, device)

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
