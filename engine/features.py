"""Pooled features of all training and test videos of a split, from any network, for heads.py to train on."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from common.progress import progress_bar
from dataloader.clips import ClipDataset, Data, Loader, clips_of, sent_ahead
from dataloader.extracted import fingerprint
from dataloader.frames import Source
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from engine.evaluation import InferenceNet
from engine.owner import owned
from engine.training import amp_dtype
from network import Network, ResNet, trained_model
from saved.checkpoints import Checkpoint, weights_hash
from saved.feature_file import FORMAT, check_target, read_about, read_features, write_features
from utils import InputError, check_name, plural, processes

MIDDLE = 5  # the frame in the middle of a stack of 10 flow pairs, counted from the stack's first
SYNC_SECONDS = 10.0  # work lost in a power cut, at most; a killed process loses one batch


STAGES = ("layer1", "layer2", "layer3", "layer4")
POOLINGS = tuple(f"{stage}.{pool}" for stage in STAGES for pool in ("mean", "max"))
# If the task is far from ImageNet, the last stage's mean is the least informative: docs/results.md.
DEFAULT_POOLING = {"spatial": ("layer3.mean", "layer4.mean"), "motion": ("layer3.mean",)}


def last_pooling(model: Network) -> tuple[str, ...]:
    """Return the pooling that the last layer sees. timm networks, without stages here, have no other."""
    return ("layer4.mean",) if model.stages else ("pre-logits",)


def default_pooling(model: Network, stream: str) -> tuple[str, ...]:
    return DEFAULT_POOLING[stream] if model.stages else last_pooling(model)


class PooledTrunk(nn.Module):
    """A ResNet without its last layer: (N, channels, H, W) -> (N, features), the poolings concatenated."""

    def __init__(self, trunk: ResNet, pooling: Sequence[str]) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, tuple(pooling)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.trunk
        x = trunk.stem(x)
        found: dict[str, Tensor] = {}
        for stage in STAGES:
            if len(found) == len(self.pooling):  # later stages are not needed
                break
            x = getattr(trunk, stage)(x)  # (N, C, H / 4, W / 4); later stages double C and halve the sides
            if f"{stage}.mean" in self.pooling:
                found[f"{stage}.mean"] = x.mean((2, 3), dtype=torch.float32)  # (N, C)
            if f"{stage}.max" in self.pooling:
                found[f"{stage}.max"] = x.amax((2, 3)).float()
        return torch.cat([found[name] for name in self.pooling], 1)


def feature_net(
    model: Network, preparation: Preparation, pooling: Sequence[str], dtype: torch.dtype, compiled: bool = False
) -> InferenceNet:
    """Return an InferenceNet whose two outputs are both the pooled features."""
    check_pooling(pooling, model)
    trunk = (lambda own: PooledTrunk(own, pooling)) if model.stages else None
    net = InferenceNet(model, preparation, dtype, trunk=trunk, head=nn.Identity())
    if compiled:
        net.trunk.compile()
    return net


def feature_count(model: Network, pooling: Sequence[str]) -> int:
    """Return the number of features that the poolings produce."""
    if not model.stages:
        return model.fc.in_features
    widths = {}
    for stage in STAGES:
        block = getattr(model, stage)[-1]
        widths[stage] = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
    return sum(widths[name.partition(".")[0]] for name in pooling)


def check_pooling(pooling: Sequence[str], model: Network | None = None) -> None:
    known = POOLINGS if model is None or model.stages else last_pooling(model)
    unknown = [name for name in pooling if name not in known]
    if unknown or len(set(pooling)) < len(pooling):
        raise InputError(f"--pooling {' '.join(pooling)}: name some of {', '.join(known)}, each once")


def extract_features(
    args: argparse.Namespace,
    model: Network,
    checkpoint: Checkpoint | None,
    data: Data,
    preparation: Preparation,
    device: torch.device,
) -> int:
    """Write --features OUT.npz (saved.feature_file) for all videos of the split; return the exit code.

    `args` are a stream's flags; `checkpoint` is --resume's, else `model` has the weights that --weights
    names. Clips are sampled and prepared as in evaluation, but RGB frames are taken at the middle of the
    motion stream's stacks. Each row is keyed by the network, the settings and the content of the video's
    images. Rows with the same key are reused from an older OUT.npz or from the OUT.npz.partial of a killed
    run; only the others are computed.
    """
    path = Path(args.features)
    stream = "spatial" if preparation.modality == "rgb" else "motion"
    pooling = args.pooling or default_pooling(model, stream)
    check_pooling(pooling, model)
    check_target(path)
    check_name(data.root)
    if processes() > 1:
        raise InputError("--features works in one process: start it without torchrun")
    if checkpoint is not None:  # its classes do not matter here
        model = trained_model(checkpoint, preparation.size)
    preparation = at_stack_middles(preparation)
    sampling = data.test.dataset.sampling
    assert isinstance(sampling, TestSampling)
    dtype = amp_dtype(args.amp, device)
    sources, subset = sources_of(data)
    keys = [made_of(data.root, source) for source in sources]
    row = {"preparation": preparation.as_dict(), **sampling.about(), "pooling": list(pooling),
           "dtype": str(dtype).removeprefix("torch.")}  # fmt: skip
    weights = str(args.resume or args.weights)
    weights = str(Path(weights).resolve()) if Path(weights).is_file() else weights  # valid in any folder
    trunk = {"arch": args.arch, "sha256": trunk_hash(model)}
    about = {
        "stream": stream, **data.about(), **row,
        "network": {**trunk, "checkpoint" if checkpoint else "weights": weights,
                    "flow_order": getattr(args, "flow_order", "original"), "seed": args.seed},
        "videos_sha256": list_hash(sources, subset),
        "frames": {**data.frames(sources), "made_of": keys},
    }  # fmt: skip
    about, wanted = (json.loads(json.dumps(one)) for one in (about, {**row, **trunk}))  # as JSON reads them
    with owned(path.parent, path.name, "--features"):
        if read_about(path) == {"format": FORMAT, **about}:
            print(f"{path} is there already, of this network, these videos and these settings")
            return 0
        net = feature_net(model, preparation, pooling, dtype, args.compile).to(device)
        shape = (sampling.samples, feature_count(model, pooling))
        head = json.dumps(wanted).encode() + b"\n"
        partial = path.with_name(path.name + ".partial")
        record = np.dtype([("key", f"S{len(keys[0])}"), ("values", "<f2", shape)])
        rows = read_rows(path, wanted)
        with append_to(partial, head, record) as (file, done):
            todo = {key: s for key, s in zip(keys, sources, strict=True) if key not in rows and key not in done}
            say_todo(path, len(set(keys)), len(todo), f"{args.arch} on {device.type}, {sampling.clips} clips each")
            if todo:
                dataset = ClipDataset(
                    list(todo.values()), data.test.dataset.read, preparation, sampling, seed=args.seed
                )
                batch = max(1, (256 if device.type == "cuda" else 32) // sampling.clips)
                loader = Loader(dataset, batch, args.workers, device)
                _compute(net, loader, sampling, preparation, device, file, list(todo))
        rows |= logged(partial, head, record)
        values = np.stack([rows[key] for key in keys])
        write_features(
            path, [s.video.name for s in sources], [s.video.label for s in sources], subset, values, about,
            [s.video.group for s in sources],
        )  # fmt: skip
        rows.clear()  # Windows cannot remove a file that is still mapped
        partial.unlink()
    print(f"written: {path}, {len(sources):,} x {shape[0]} x {shape[1]}")
    return 0


def say_todo(path: Path, videos: int, todo: int, how: str) -> None:
    kept = f", {videos - todo:,} of them there already" if todo < videos else ""
    print(f"features of {plural(videos, 'video')}{kept}: {how} -> {path}", flush=True)


@torch.inference_mode()
def _compute(
    net, loader, sampling: TestSampling, preparation: Preparation, device, file: BinaryIO, keys: list[str]
) -> None:
    """Compute the features of the loader's videos and append each video's key and features to `file`."""
    synced, left = time.monotonic(), iter(keys)
    with progress_bar(len(keys), "features", "video") as bar:
        for batch in sent_ahead(loader.epoch(0), device):
            values = net(clips_of(batch, preparation.modality, device))[1]  # (videos * views * samples, features)
            values = values.unflatten(0, (len(batch.names), sampling.views, sampling.samples))
            values = values.mean(1)  # over views: (videos, samples, features)
            for one in values.half().cpu().numpy():
                file.write(next(left).encode() + one.tobytes())
            file.flush()
            if time.monotonic() - synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                synced = time.monotonic()
            bar.update(len(batch.names))


def made_of(root: Path, source: Source) -> str:
    """Return a fingerprint of a video's images, 32 hexadecimal digits; for flow, of both components."""
    parts = source.frames if isinstance(source.frames, tuple) else (source.frames,)
    return hashlib.sha256("".join(fingerprint(root, part) for part in parts).encode()).hexdigest()[:32]


def sources_of(data: Data) -> tuple[list[Source], list[str]]:
    """Return all videos of a split, each with "train" or "test"; validation videos count as "train" here."""
    assert data.train is not None
    train = list(data.train.dataset.sources)
    if data.select is not data.test:
        train += data.select.dataset.sources
    test = list(data.test.dataset.sources)
    return train + test, ["train"] * len(train) + ["test"] * len(test)


def at_stack_middles(preparation: Preparation) -> Preparation:
    """Move the sampling of RGB frames and flow pictures to the middles of flow stacks (Ma et al. 2017).

    A video of N frames has N - 10 stacks of 10 pairs; their middles are frames 5 to N - 6, counted from 0.
    The preparation of flow stacks is returned unchanged.
    """
    if preparation.margin or not (preparation.modality == "rgb" or preparation.picture):
        return preparation
    return replace(preparation, margin=round(MIDDLE / (preparation.sampling_rate or 1)))


def trunk_hash(model: Network) -> str:
    """SHA-256 of a network's weights without the last layer, which does not affect features."""
    return weights_hash({name: value for name, value in model.state_dict().items() if not name.startswith("fc.")})


def list_hash(sources: list[Source], subset: list[str]) -> str:
    """SHA-256 of the list of videos: their names, labels, groups and side of the split."""
    rows = [(s.video.name, s.video.label, s.video.group, part) for s, part in zip(sources, subset, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# --- rows that are there already -----------------------------------------------------------------------


def read_rows(path: Path, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the rows of a features file with these settings, keyed by fingerprint.

    Each row is (samples, features) float16. Returns no rows if the settings differ, or if the file is absent,
    damaged or from another version.
    """
    about = read_about(path) or {}
    try:
        if any({**about, **about["network"]}[name] != value for name, value in settings.items()):
            return {}
        return dict(zip(about["frames"]["made_of"], read_features(path).values, strict=True))
    except (InputError, KeyError, TypeError, ValueError):  # from another version, or damaged: it is rewritten
        return {}


@contextmanager
def append_to(path: Path, head: bytes, record: np.dtype) -> Iterator[tuple[BinaryIO, set[str]]]:
    """Open a partial file for appending records (key, values); yield (file, keys of its records).

    The file begins with `head`, a line of JSON with the settings. A file with other settings is overwritten.
    """
    try:
        with open(path, "a+b") as file:  # in append mode all writes go to the end
            file.seek(0)
            if file.read(len(head)) != head:
                if file.tell():
                    print(f"note: {path} was begun with other settings, and is begun again", file=sys.stderr)
                file.truncate(0)
                file.write(head)
                file.flush()
            whole = (file.seek(0, os.SEEK_END) - len(head)) // record.itemsize
            file.truncate(len(head) + whole * record.itemsize)  # a killed run may leave half a record
            yield file, set(logged(path, head, record))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; what is done is kept: free some space and start again"
        ) from error


def logged(path: Path, head: bytes, record: np.dtype) -> dict[str, np.ndarray]:
    """Return the rows of a partial file by key, as memory maps."""
    count = (path.stat().st_size - len(head)) // record.itemsize
    if not count:  # an empty file cannot be mapped
        return {}
    rows = np.memmap(path, record, "r", len(head), count)
    return dict(zip(rows["key"].astype(str).tolist(), rows["values"], strict=True))
