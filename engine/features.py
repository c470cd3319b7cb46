"""Pooled features of all training and test videos of a split, from any network, for heads.py to train on."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.progress import progress_bar
from dataloader.clips import ClipDataset, Data, Loader, clips_of, sent_ahead
from dataloader.extracted import fingerprint
from dataloader.frames import Source
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from engine.evaluation import PRE_LOGITS, InferenceNet, trained_model
from engine.owner import owned
from network import Network
from saved.checkpoint_reader import Checkpoint
from saved.checkpoints import weights_hash
from saved.feature_file import FORMAT, read_about, read_features, write_features
from utils import InputError, amp_dtype, check_name, plural, processes

MIDDLE = 5  # the frame in the middle of a stack of 10 flow pairs, counted from the stack's first

# If the task is far from ImageNet, the last stage's mean is the least informative: docs/results.md.
DEFAULT_POOLING = {"spatial": ("layer3.mean", "layer4.mean"), "motion": ("layer3.mean",)}

Rows = dict[str, np.ndarray]  # fingerprint of a video's images -> features (samples, features) float16


def trunk_hash(model: Network) -> str:
    """SHA-256 of a network's weights without the last layer, which does not affect features."""
    return weights_hash({name: value for name, value in model.state_dict().items() if not name.startswith("fc.")})


def extract_features(
    args: argparse.Namespace, model: Network, checkpoint: Checkpoint | None, data: Data, preparation: Preparation,
    device: torch.device,
) -> int:  # fmt: skip
    """Write --features OUT.npz (saved.feature_file) for all videos of the split; return the exit code.

    `args` are a stream's flags; `checkpoint` is --resume's, else `model` has the weights that --weights names.
    Clips are sampled and prepared as in evaluation, but RGB frames are taken at the middle of the motion
    stream's stacks. Each row is keyed by the network, the settings and the content of the video's images; only
    rows that are not there already (`kept_rows`) are computed.
    """
    path = Path(args.features)
    if path.is_dir():
        raise InputError(f"--features {path} is a folder; name a file in it, such as out.npz")
    check_name(data.root)
    if processes() > 1:
        raise InputError("--features works in one process: start it without torchrun")
    if checkpoint is not None:  # its classes do not matter here
        model = trained_model(checkpoint, preparation.size)
    stream = "spatial" if preparation.modality == "rgb" else "motion"
    pooling = args.pooling or (DEFAULT_POOLING[stream] if model.stages else (PRE_LOGITS,))
    preparation = at_stack_middles(preparation)
    sampling = data.test.dataset.sampling
    net = InferenceNet(model, preparation, amp_dtype(args.amp, device), args.compile, pooling).to(device)
    assert data.train is not None
    loaders = [data.train, *([] if data.select is data.test else [data.select]), data.test]
    sources = [source for loader in loaders for source in loader.dataset.sources]
    subset = ["test" if loader is data.test else "train" for loader in loaders for _ in range(len(loader.dataset))]
    listed = [(s.video.name, s.video.label, s.video.group, part) for s, part in zip(sources, subset, strict=True)]
    keys = [made_of(data.root, source) for source in sources]
    about = json.loads(json.dumps({  # as it is read from a file: without tuples
        **data.about(),
        **describe(net, sampling, args.arch, model, "checkpoint" if checkpoint else "weights",
                   args.resume or args.weights, flow_order=getattr(args, "flow_order", "original"), seed=args.seed),
        "videos_sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        "frames": {**data.frames(sources), "made_of": keys},
    }))  # fmt: skip
    with owned(path.parent, path.name, "--features"):
        if read_about(path) == {"format": FORMAT, **about}:
            print(f"{path} is there already, of this network, these videos and these settings")
            return 0
        with kept_rows(path, about) as (rows, add):
            todo = {key: source for key, source in zip(keys, sources, strict=True) if key not in rows}
            videos = len(set(keys))
            kept = f", {videos - len(todo):,} of them there already" if len(todo) < videos else ""
            print(f"features of {plural(videos, 'video')}{kept}: {args.arch} on {device.type}, {sampling.clips} clips "
                  f"each -> {path}", flush=True)  # fmt: skip
            if todo:
                read = data.test.dataset.read
                dataset = ClipDataset(list(todo.values()), read, preparation, sampling, seed=args.seed)
                loader = Loader(dataset, data.test.batch_size, args.workers, device)
                for key, values in zip(todo, compute(net, loader, device), strict=True):
                    add(key, values)
            values = np.stack([rows[key] for key in keys])
            names, labels, groups, _ = zip(*listed, strict=True)
            write_features(path, names, labels, subset, values, about, groups)
    print(f"written: {path}, {len(sources):,} x {values.shape[1]} x {values.shape[2]}")
    return 0


@torch.inference_mode()
def compute(net: InferenceNet, loader: Loader, device: torch.device) -> Iterator[np.ndarray]:
    """Yield each video's features, (samples, features) float16, averaged over views."""
    sampling = loader.dataset.sampling
    with progress_bar(len(loader.dataset), "features", "video") as bar:
        for batch in sent_ahead(loader.epoch(0), device):
            values = net(clips_of(batch, net.preparation.modality, device))[1]  # (videos * views * samples, features)
            values = values.unflatten(0, (len(batch.names), sampling.views, sampling.samples)).mean(1)
            yield from values.half().cpu().numpy()  # (videos, samples, features)
            bar.update(len(batch.names))


def made_of(root: Path, source: Source) -> str:
    """Return a fingerprint of a video's images, 32 hexadecimal digits; for flow, of both components."""
    parts = source.frames if isinstance(source.frames, tuple) else (source.frames,)
    return hashlib.sha256("".join(fingerprint(root, part) for part in parts).encode()).hexdigest()[:32]


def describe(
    net: InferenceNet, sampling: TestSampling, arch: str, model: Network, origin: str, weights: str | Path, **more: Any
) -> dict[str, Any]:
    """Return what a features file says of its clips and network; `origin` is what `weights` are called there."""
    found = str(Path(weights).resolve()) if Path(weights).is_file() else str(weights)  # valid in any folder
    return {
        "stream": "spatial" if net.preparation.modality == "rgb" else "motion",
        "preparation": net.preparation.as_dict(), **sampling.about(), "pooling": list(net.pooling),
        "dtype": str(net.dtype).removeprefix("torch."),
        "network": {"arch": arch, "sha256": trunk_hash(model), origin: found, **more},
    }  # fmt: skip


def at_stack_middles(preparation: Preparation) -> Preparation:
    """Move the sampling of RGB frames and flow pictures to the middles of flow stacks (Ma et al. 2017).

    A video of N frames has N - 10 stacks of 10 pairs; their middles are frames 5 to N - 6, counted from 0.
    The preparation of flow stacks is returned unchanged.
    """
    if preparation.margin or not (preparation.modality == "rgb" or preparation.picture):
        return preparation
    return replace(preparation, margin=round(MIDDLE / (preparation.sampling_rate or 1)))


def settings_of(about: dict[str, Any]) -> str:
    """Return what a row depends on, beside the video, as JSON."""
    row = {key: about[key] for key in ("preparation", "samples", "views", "starts", "pooling", "dtype")}
    return json.dumps(row | {key: about["network"][key] for key in ("arch", "sha256")}, sort_keys=True)


@contextlib.contextmanager
def kept_rows(path: Path, about: dict[str, Any]) -> Iterator[tuple[Rows, Callable[[str, np.ndarray], None]]]:
    """Yield the rows that exist with the settings of `about`, and a function that adds one and stores it at once.

    Rows are taken from the features file at `path`, and from its .partial, which a killed run leaves and the end
    of the block removes. That file holds arrays as np.save writes them: the settings, then the key and the values
    of each row. With other settings it is overwritten. Half a row at its end is cut off, and what follows damage.
    """
    settings, partial = settings_of(about), path.with_name(path.name + ".partial")
    rows: Rows = {}
    with contextlib.suppress(InputError, KeyError, TypeError, ValueError):  # absent, damaged or of another version
        old = read_about(path) or {}
        made_of = old.get("made_of") or old["frames"]["made_of"]
        if settings_of(old) == settings:
            rows = dict(zip(made_of, read_features(path).values, strict=True))
    try:
        partial.touch()
        with open(partial, "r+b") as file:
            whole = 0  # bytes
            with contextlib.suppress(Exception):  # np.load's, at the end or in half a row; of damage, any
                same = str(np.load(file)) == settings
                while same:
                    whole = file.tell()
                    key, values = str(np.load(file)), np.load(file)
                    rows[key] = values
            file.seek(whole)
            file.truncate()
            if not whole:
                np.save(file, np.array(settings))

            def add(key: str, values: np.ndarray) -> None:
                for array in (np.array(key), values):
                    np.save(file, array)
                file.flush()
                rows[key] = values

            yield rows, add
        partial.unlink()
    except OSError as error:
        remedy = "what is done is kept: free some space and start again"
        raise InputError(f"cannot write {partial}: {error.strerror or error}; {remedy}") from error
