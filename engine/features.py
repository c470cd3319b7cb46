"""Pooled features of all videos of a split, training and test, from any network: what heads.py trains on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from common.progress import progress_bar
from dataloader.clips import ClipDataset, TestSampling, clips_of, sent_ahead
from dataloader.images import Source
from dataloader.loader import Data, make_loader
from dataloader.preparation import Preparation
from engine.pooling import check_pooling, default_pooling, feature_count, feature_net
from engine.state import amp_dtype
from network import Network, trained_model
from saved.checkpoints import Checkpoint, weights_hash
from saved.feature_file import FORMAT, check_target, read_about, write_features
from utils import InputError, plural, processes

MIDDLE = 5  # the frame of a stack of 10 flow pairs that stands for it, counted from the stack's first
SYNC_SECONDS = 10.0  # at most so much work is lost in a power cut; a killed process loses one batch


@dataclass(frozen=True)
class FeatureSettings:
    """What is written, and of which network; see the flags of the same names in spatial_cnn.py -h."""

    path: Path  # OUT.npz
    pooling: Sequence[str] | None  # None: default_pooling of the stream
    arch: str
    weights: str  # where the network's are: a file, or the name of torchvision's
    flow_order: str = "original"
    seed: int = 0
    amp: str = "auto"
    compile: bool = False
    workers: int | None = None


def extract_features(
    settings: FeatureSettings,
    model: Network,
    checkpoint: Checkpoint | None,
    data: Data,
    preparation: Preparation,
    device: torch.device,
) -> int:
    """Write --features OUT.npz (saved.feature_file) of the split's training and test videos. Returns the exit code.

    Clips are sampled and prepared as in a test; RGB frames lie in the middle of the motion stream's stacks. What is
    done stands in OUT.npz.partial: started again with the same settings, it goes on there.
    """
    path = settings.path
    stream = "spatial" if preparation.modality == "rgb" else "motion"
    pooling = settings.pooling or default_pooling(model, stream)
    check_pooling(pooling, model)
    check_target(path)
    if processes() > 1:
        raise InputError("--features works in one process: start it without torchrun")
    if checkpoint is not None:  # whatever its classes are
        model = trained_model(checkpoint, preparation.size)
    preparation = at_stack_middles(preparation)
    sampling = data.test.dataset.sampling
    assert isinstance(sampling, TestSampling)
    sources, subset = sources_of(data)
    about = {
        "stream": stream,
        "dataset": data.split.dataset, "split": data.split.number, "class_names": list(data.split.class_names),
        "preparation": preparation.as_dict(), "samples": sampling.samples, "views": sampling.views,
        "pooling": list(pooling), "network": {
            "arch": settings.arch, "checkpoint" if checkpoint else "weights": settings.weights,
            "sha256": trunk_hash(model), "flow_order": settings.flow_order, "seed": settings.seed,
        },
        "videos_sha256": list_hash(sources, subset),
        "frames": {"root": str(data.root.resolve()), "folders": {
            s.video.name: os.path.relpath(s.folder, data.root) for s in sources}},
    }  # fmt: skip
    about = json.loads(json.dumps(about))  # as a file gives it back
    if read_about(path) == {"format": FORMAT, **about}:
        print(f"{path} is there already, of this network, these videos and these settings")
        return 0
    net = feature_net(model, preparation, pooling, amp_dtype(settings.amp, device), settings.compile).to(device)
    shape = (sampling.samples, feature_count(model, pooling))
    print(
        f"features of {plural(len(sources), 'video')}: {settings.arch} on {device.type}, "
        f"{plural(sampling.clips, 'clip')} each -> {path}", flush=True,
    )  # fmt: skip
    partial = path.with_name(path.name + ".partial")
    with append_to(partial, about, shape) as (file, start, done):
        if done < len(sources):
            dataset = ClipDataset(sources[done:], data.test.dataset.read, preparation, sampling, seed=settings.seed)
            batch = max(1, (256 if device.type == "cuda" else 32) // sampling.clips)
            loader = make_loader(dataset, batch, settings.workers, device)
            _compute(net, loader, sampling, preparation, device, file, done)
    values = np.memmap(partial, np.float16, "r", start, (len(sources), *shape))
    write_features(
        path, [s.video.name for s in sources], [s.video.label for s in sources], subset, values, about,
        [s.video.group for s in sources],
    )  # fmt: skip
    del values  # Windows removes no file that is open
    partial.unlink()
    print(f"written: {path}, {len(sources):,} x {shape[0]} x {shape[1]}")
    return 0


@torch.inference_mode()
def _compute(net, loader, sampling: TestSampling, preparation: Preparation, device, file: BinaryIO, done: int) -> None:
    """Append the features of the loader's videos to `file`, in list order."""
    synced = time.monotonic()
    with progress_bar(done + len(loader.dataset), "features", "video", done) as bar:
        for batch in sent_ahead(loader.epoch(0), device):
            values = net(clips_of(batch, preparation.modality, device))[1]  # (videos * views * samples, features)
            values = values.unflatten(0, (len(batch.names), sampling.views, sampling.samples))
            values = values.mean(1)  # over views: (videos, samples, features)
            file.write(values.half().cpu().numpy().tobytes())
            file.flush()
            if time.monotonic() - synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                synced = time.monotonic()
            bar.update(len(batch.names))


def sources_of(data: Data) -> tuple[list[Source], list[str]]:
    """All videos of a split, each with "train" or "test"; validation videos are training videos here."""
    assert data.train is not None
    train = list(data.train.dataset.sources)
    if data.select is not data.test:
        train += data.select.dataset.sources
    test = list(data.test.dataset.sources)
    return train + test, ["train"] * len(train) + ["test"] * len(test)


def at_stack_middles(preparation: Preparation) -> Preparation:
    """RGB frames and flow pictures sampled where stacks of flow have their middle (Ma et al. 2017); stacks as they are.

    A video of N frames has N - 10 stacks of 10 pairs: spread evenly, their middles are frames 5 to N - 6, from 0.
    """
    if preparation.margin or not (preparation.modality == "rgb" or preparation.picture):
        return preparation
    return replace(preparation, margin=round(MIDDLE / (preparation.sampling_rate or 1)))


def trunk_hash(model: Network) -> str:
    """SHA-256 of a network's weights, but for the last layer, which has no part in features."""
    return weights_hash({name: value for name, value in model.state_dict().items() if not name.startswith("fc.")})


def list_hash(sources: list[Source], subset: list[str]) -> str:
    """SHA-256 of which videos, with which labels and groups, in how many images: another list means other features."""
    rows = [
        (s.video.name, s.video.label, s.video.group, part, s.count) for s, part in zip(sources, subset, strict=True)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@contextmanager
def append_to(path: Path, about: dict[str, Any], shape: tuple[int, int]) -> Iterator[tuple[BinaryIO, int, int]]:
    """Open a partial file for appending: (file, where its float16 rows begin, how many videos are in it).

    It begins with a line of JSON that says what it is of. One of other settings is begun again.
    """
    head = json.dumps(about).encode() + b"\n"
    size = 2 * shape[0] * shape[1]
    with open(path, "a+b") as file:  # what is written goes to its end
        file.seek(0)
        if file.read(len(head)) != head:
            if file.tell():
                print(f"note: {path} was begun with other settings or videos, and is begun again", file=sys.stderr)
            file.truncate(0)
            file.write(head)
        done = (file.seek(0, os.SEEK_END) - len(head)) // size
        file.truncate(len(head) + done * size)  # a killed run may leave half a video
        yield file, len(head), done
