"""From the flags to a split's loaders: training, selection and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dataloader.clips import ClipDataset, Loader, ReadSteps, Source, TestSampling, TrainSampling, make_loader
from dataloader.layouts import Index
from dataloader.splits import Split, Video, hold_out_groups, load_split
from dataloader.transforms import Preparation
from utils import InputError, world


@dataclass(frozen=True)
class Data:
    """A split's loaders. `select` chooses the model and drives the schedule: validation or test videos."""

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
    find_sources: Callable[[Index, list[Video], bool], list[Source]],
    preparation: Preparation,
    device: torch.device,
) -> Data:
    """Match a split with the images on disk, and make its loaders."""
    split = load_split(settings.ucf_list, settings.split, index.names, verbose=world()[0] == 0)
    if len(split.class_names) < 2:
        raise InputError(f"all videos are of one class, {split.class_names[0]}: nothing to tell apart; add a class")

    def loader(videos: list[Video], sampling: TrainSampling | TestSampling, batch: int, subset: str) -> Loader:
        sources = find_sources(index, videos, settings.allow_missing)
        if not sources:
            raise InputError(f"no {subset} video of split {split.number} is under {index.root}; check --ucf-list")
        skip = settings.skip_errors and isinstance(sampling, TrainSampling)
        dataset = ClipDataset(sources, read, preparation, sampling, seed=settings.seed, skip_errors=skip)
        return make_loader(dataset, batch, settings.workers, device)

    test_batch = max(1, (256 if device.type == "cuda" else 32) // settings.testing.clips)  # videos
    test = loader(split.test, settings.testing, test_batch, "test")
    if settings.training is None:
        return Data(split, None, test, test, index.root)
    training, select = split.train, test
    if settings.val_groups:
        training, validation = hold_out_groups(split.train, settings.val_groups)
        select = loader(validation, settings.testing, test_batch, "validation")
    return Data(
        split, loader(training, settings.training, settings.batch_size, "training"), select, test, index.root
    )
