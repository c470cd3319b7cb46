"""From the flags to a split's loaders: training, selection and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dataloader.clips import ClipDataset, Loader, ReadSteps, Source, TestSampling, TrainSampling, make_loader
from dataloader.extracted import extraction_settings
from dataloader.layouts import Index
from dataloader.preparation import Preparation
from dataloader.splits import Split, Video, hold_out_groups, load_split
from dataloader.transforms import TSN_SCALES
from utils import InputError, plural, world

FEWEST_CHOOSERS = 100  # videos: .5 / sqrt(100) is a standard error of 5 points of accuracy


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

    flow = preparation.modality != "rgb"  # or differences: these have every frame
    every = 1 if flow else extraction_settings(index.root).get("sampling_rate") or 1
    testing = replace(settings.testing, every=every)
    test_batch = max(1, (256 if device.type == "cuda" else 32) // testing.clips)  # videos
    test = loader(split.test, testing, test_batch, "test")
    if world()[0] == 0:
        say_repeated(test.dataset, index.root)
    training, select = split.train, test
    if settings.val_groups:
        try:
            training, validation = hold_out_groups(split.train, settings.val_groups)
            select = loader(validation, testing, test_batch, "validation")
        except InputError as error:
            if settings.training is not None:
                raise
            if world()[0] == 0:  # a test alone needs no training videos
                print(f"note: no validation videos are tested beside: {error}")
    if settings.training is None:
        return Data(split, None, select, test, index.root)
    if settings.val_groups and world()[0] == 0:
        say_choosers(select.dataset)
    sampling = replace(settings.training, scales=TSN_SCALES[:3] if flow else TSN_SCALES)  # as in TSN's code
    return Data(split, loader(training, sampling, settings.batch_size, "training"), select, test, index.root)


def say_choosers(dataset: ClipDataset) -> None:
    """Warn where too few videos choose the model, by how far chance moves their accuracy."""
    videos = len(dataset.sources)
    if videos < FEWEST_CHOOSERS:
        print(
            f"warning: --val-groups holds {plural(videos, 'video')} out to choose the model by, too few to tell epochs "
            f"apart that differ by less than {50 / videos**0.5:.0f} points (a standard error at 50 %); from "
            f"{FEWEST_CHOOSERS} on it is 5: a larger --val-groups holds out more"
        )


def say_repeated(dataset: ClipDataset, root: Path) -> None:
    """Say where most test videos have fewer different clips than samples, and what to extract for more."""
    sampling, sources = dataset.sampling, dataset.sources
    assert isinstance(sampling, TestSampling)
    counts = [len(np.unique(sampling.starts_in(source.count, dataset.preparation))) for source in sources]
    repeating = [count for count in counts if count < sampling.samples]
    if 2 * len(repeating) <= len(sources):
        return
    more = ""
    if sampling.every > 1:
        more = (
            f"; {root} holds every {sampling.every}th frame, the original and TSN read every one "
            "(data/extract_rgb.py --sampling-rate 1)"
        )
    print(
        f"note: {len(repeating)} of {plural(len(sources), 'test video')} repeat some of their {sampling.samples} "
        f"samples, with {min(repeating)} different ones at least{more}"
    )
