"""From the flags to a split's loaders: training, selection and test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.clips import ClipDataset, Loader, ReadSteps, Source, TestSampling, TrainSampling, make_loader
from dataloader.layouts import Index
from dataloader.splits import Split, Video, hold_out_groups, load_split
from dataloader.transforms import TSN_SCALES, Preparation
from utils import InputError, plural, world

FEWEST_CHOOSERS = 100  # videos: .5 / sqrt(100) is a standard error of 5 points of accuracy


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

    every = 1
    if preparation.modality == "rgb":  # the others need every frame
        every = extraction_settings(index.root).get("sampling_rate") or 1
    testing = TestSampling(args.test_samples, args.test_views, args.test_starts, every)
    test_batch = max(1, (256 if device.type == "cuda" else 32) // testing.clips)  # videos
    test = loader(split.test, testing, test_batch, "test")
    if world()[0] == 0:
        say_repeated(test.dataset, index.root)
    if args.evaluate:
        return Data(split, None, test, test, index.root)
    training, select = split.train, test
    if args.val_groups:
        training, validation = hold_out_groups(split.train, args.val_groups)
        select = loader(validation, testing, test_batch, "validation")
        if world()[0] == 0:
            say_choosers(select.dataset)
    scales = TSN_SCALES if preparation.modality == "rgb" else TSN_SCALES[:3]  # as in TSN's code
    sampling = TrainSampling(args.segments, args.crop, args.crop_positions, scales, args.flip)
    return Data(split, loader(training, sampling, args.batch_size, "training"), select, test, index.root)


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


def list_folder(args: Any) -> Path | None:
    """The folder of split lists, or None for UCF101's group rule: 'none', or the default where it is absent."""
    if args.ucf_list == "none" or ("ucf_list" not in args.given and not Path(args.ucf_list).is_dir()):
        return None
    return Path(args.ucf_list)


def extraction_settings(root: Path) -> dict[str, Any]:
    """What the images under `root` were extracted with, if our extraction made them; else empty."""
    try:
        return json.loads((root / "extraction.json").read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{root / 'extraction.json'} cannot be read ({error}); remove it or extract again") from None
