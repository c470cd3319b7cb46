"""From the flags to a split's loaders: training, selection and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def make_data(
    args: Any,
    index: Index,
    read: ReadSteps,
    find_sources: Callable[[Index, list[Video], bool], list[Source]],
    preparation: Preparation,
    device: torch.device,
) -> Data:
    """Match the split that `args` name with the images on disk, and make its loaders."""
    split = load_split(list_folder(args), args.split, index.names, verbose=world()[0] == 0)

    def loader(videos: list[Video], sampling: TrainSampling | TestSampling, batch: int, subset: str) -> Loader:
        sources = find_sources(index, videos, args.allow_missing)
        if not sources:
            raise InputError(f"no {subset} video of split {split.number} is under {index.root}; check --ucf-list")
        skip = args.on_error == "skip" and isinstance(sampling, TrainSampling)
        dataset = ClipDataset(sources, read, preparation, sampling, seed=args.seed, skip_errors=skip)
        return make_loader(dataset, batch, args.workers, device)

    testing = TestSampling(args.test_samples, args.test_views)
    test_batch = max(1, (256 if device.type == "cuda" else 32) // testing.clips)  # videos
    test = loader(split.test, testing, test_batch, "test")
    if args.evaluate:
        return Data(split, None, test, test, index.root)
    training, select = split.train, test
    if args.val_groups:
        training, validation = hold_out_groups(split.train, args.val_groups)
        select = loader(validation, testing, test_batch, "validation")
    sampling = TrainSampling(args.segments, args.crop, args.crop_positions, flip=args.flip)
    return Data(split, loader(training, sampling, args.batch_size, "training"), select, test, index.root)


def list_folder(args: Any) -> Path | None:
    """The folder of split lists, or None for UCF101's group rule: 'none', or the default where it is absent."""
    if args.ucf_list == "none" or ("ucf_list" not in args.given and not Path(args.ucf_list).is_dir()):
        return None
    return Path(args.ucf_list)
