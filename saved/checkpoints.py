"""Checkpoints: ours are written and read here, any other project's only read.

Of each it is said who wrote it, its weights in torchvision's names, and its preparation.

Projects are told apart by the names of their layers, never by the file's name. Preparations, test protocols and
the counting of epochs are those of the projects' own code:
- the original: github.com/jeffreyyihuang/two-stream-action-recognition, spatial_cnn.py and motion_cnn.py
- two-stream-pytorch: github.com/bryanyzhu/two-stream-pytorch, main_single_gpu.py, scripts/eval_ucf101_pytorch
- tsn-pytorch: github.com/yjxiong/tsn-pytorch, main.py, models.py, test_models.py
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from common.formats import Finite, Names, check
from dataloader.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation, SavedPreparation
from saved.safe import SAFETENSORS_KEY, load_checkpoint, safetensors_library, show
from utils import InputError, atomic_path, plural, rank

FORMAT, HEAD_FORMAT = "two-stream", "two-stream-head"  # what our own files say that they are
# What ours hold at least; those of a training, and not of weights alone, also what Training.state_dict says.
HELD = ("arch", "class_names", "preparation", "args", "epoch", "best_prec1")


class Header(BaseModel):
    """HELD of a checkpoint of ours."""

    arch: str
    class_names: Names
    preparation: SavedPreparation
    args: dict[str, Any]
    epoch: Annotated[int, Field(ge=-1, strict=True)]  # -1: none
    best_prec1: Finite


# What a project called parts of torchvision's ResNet, by source; the first name found in a file tells the source.
NAMES = {
    "original": {"conv1_custom.": "conv1.", "fc_custom.": "fc."},
    "two-stream-pytorch": {"fc_action.": "fc."},
    "tsn-pytorch": {"base_model.": "", "new_fc.": "fc."},
}
# data/hmdb51_splits/class_list.txt of github.com/yjxiong/temporal-segment-networks is sorted but for these
TSN_HMDB51_SWAPPED = (("kick", "kick_ball"), ("sword", "sword_exercise"))
# By how many channels conv1 of the original's motion network is rolled into our order [f0..f9]. Its loader put
# frame j in place j - 1, in older revisions in place j - 5, in the oldest in place j.
FLOW_ORDERS = {"original": 2, "older": 10, "oldest": 0}
# (blocks per layer, width and width per group of the first 3x3 convolution, bottleneck) -> torchvision's name
ARCHITECTURES = {
    ((2, 2, 2, 2), 64, 64, False): "resnet18",
    ((3, 4, 6, 3), 64, 64, False): "resnet34",
    ((3, 4, 6, 3), 64, 64, True): "resnet50",
    ((3, 4, 23, 3), 64, 64, True): "resnet101",
    ((3, 8, 36, 3), 64, 64, True): "resnet152",
    ((3, 4, 6, 3), 128, 4, True): "resnext50_32x4d",
    ((3, 4, 23, 3), 256, 8, True): "resnext101_32x8d",
    ((3, 4, 23, 3), 256, 4, True): "resnext101_64x4d",
    ((3, 4, 6, 3), 128, 128, True): "wide_resnet50_2",
    ((3, 4, 23, 3), 128, 128, True): "wide_resnet101_2",
}


@dataclass
class Checkpoint:
    """A network, and what its file says of its training and its input."""

    path: Path
    source: str  # "two-stream" (ours), "original", "two-stream-pytorch", "tsn-pytorch" or "torchvision"
    state_dict: dict[str, Tensor]  # torchvision's names, on the CPU; motion channels are x1, y1, x2, y2, ...
    arch: str
    num_classes: int
    in_channels: int
    preparation: dict[str, Any]  # of dataloader.preparation.Preparation
    args: dict[str, Any]  # flags that it was trained or, by its authors, tested with
    epoch: int  # the last one finished, counted from 0; -1 for none or unknown
    best_prec1: float  # top-1 in per cent; 0 for none or unknown
    class_names: list[str] | None  # in label order; only ours says
    raw: dict[str, Any]  # everything in the file

    @property
    def tested_state(self) -> dict[str, Tensor]:
        """The weights that a test uses: the moving average, where the training kept one."""
        return (_average(self.raw) if self.source == FORMAT else None) or self.state_dict

    def in_order_of(self, class_names: Sequence[str]) -> Checkpoint:
        """The same network, its classes in the order of `class_names`; says so where that changes something.

        That is only where tsn-pytorch's network meets HMDB51's official lists: TSN's class_list has two pairs of
        classes the other way round. TSN's own lists carry its order, and are taken as they are.
        """
        names = list(class_names)
        theirs = sorted(names)
        for first, second in TSN_HMDB51_SWAPPED:
            if first in names and second in names:
                i, j = theirs.index(first), theirs.index(second)
                theirs[i], theirs[j] = theirs[j], theirs[i]
        if self.source != "tsn-pytorch" or len(names) != 51 or names != sorted(names) or names == theirs:
            return self
        if rank() == 0:
            pairs = " and ".join(f"{second} before {first}" for first, second in TSN_HMDB51_SWAPPED)
            print(f"{self.path}: its classes are taken to be in TSN's order of HMDB51, {pairs}")
        rows = torch.tensor([theirs.index(name) for name in names])
        fc = {name: self.state_dict[name][rows] for name in ("fc.weight", "fc.bias")}
        return replace(self, state_dict=self.state_dict | fc)


def write_checkpoint(
    state: Mapping[str, Any],
    *paths: str | os.PathLike,
    arch: str,
    class_names: Sequence[str],
    dataset: str,
    split: str,
    preparation: Mapping[str, Any],
    args: Mapping[str, Any],
) -> None:
    """Write a network to each path: what it is, and `state`, engine.training.Training.state_dict with its weights.

    `preparation` is Preparation.as_dict's, `args` the flags that it was trained with, as plain values.
    """
    header = {
        "format": FORMAT, "arch": arch, "class_names": list(class_names), "dataset": dataset, "split": split,
        "preparation": dict(preparation), "args": dict(args),
    }  # fmt: skip
    save_tensors({**header, **state}, *paths)


def save_tensors(content: Mapping[str, Any], *paths: str | os.PathLike) -> None:
    """Write tensors and plain containers to each path in turn, as torch's weights-only loader reads them."""
    buffer = io.BytesIO()  # a full disk then fails in one plain write, not inside torch's zip writer
    torch.save(dict(content), buffer)
    for path in paths:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def write_safetensors(path: str | os.PathLike, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a state_dict as .safetensors, with `about` (HELD) as JSON in the file's own metadata.

    One file, which nothing can part from its description. Give `checkpoint.tested_state` for the weights that a test
    uses.
    """
    save = safetensors_library().torch.save
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    text = json.dumps(dict(about), default=str)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt", SAFETENSORS_KEY: text}))


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of a state_dict's tensors: which weights made a prediction."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().numpy()).data)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike, *modalities: str, flow_order: str = "original") -> Checkpoint:
    """Read the checkpoint of any project named above, or a bare state_dict.

    `modalities` ("rgb", "flow", "rgbdiff", "greydiff") are what the network may take; none given: any. `flow_order`
    names the revision of the original that stacked the flow (FLOW_ORDERS); other projects' files do not need it.
    Raises InputError, one line, if the file can't be read, holds no ResNet or one for another modality.
    """
    content = load_checkpoint(path)
    if content.get("format") == HEAD_FORMAT:
        raise InputError(f"{path} is a head with the networks that make its features: give it to predict.py --head")
    source, state = _read_weights(content, path, flow_order)
    guessed = guess_arch(state)
    if source == FORMAT:
        check(content, Header, path, "it is incomplete or damaged: get it again")
        arch, class_names, preparation, args, epoch, best_prec1 = (content[key] for key in HELD)
        if guessed not in (arch, None):  # None: no ResNet, of which the weights tell nothing
            raise InputError(f"{path} says that it is a {arch}, and holds the weights of a {guessed}: it is damaged")
        num_classes, in_channels = len(class_names), Preparation.from_dict(preparation).channels
    else:
        if guessed is None:
            raise InputError(f"{path} holds no ResNet of torchvision; its layers are {_list(state)}")
        arch, num_classes, in_channels = guessed, state["fc.weight"].shape[0], state["conv1.weight"].shape[1]
        prepared = _preparation(source, in_channels)
        if prepared.channels != in_channels:
            found = plural(in_channels, "input channel")
            raise InputError(f"{path} is a network for {found}: neither RGB nor pairs of flow")
        preparation, class_names = prepared.as_dict(), None
        args = _protocol(source) | _learning_rate(content)
        finished = _number(content, "epoch")  # only the original saved its number, the others the next one's
        epoch = -1 if finished is None else int(finished) - (source != "original")
        best_prec1 = _number(content, "best_prec1") or 0.0
    _check_modality(path, preparation["modality"], modalities, in_channels)
    return Checkpoint(
        Path(path), source, state, arch, num_classes, in_channels,
        preparation, args, epoch, best_prec1, class_names, content,
    )  # fmt: skip


def read_state_dict(path: str | os.PathLike, flow_order: str = "original") -> dict[str, Tensor]:
    """The weights of any project's checkpoint, in torchvision's names and float32, to start a training from.

    Of a training of ours that kept a moving average it is the average, which its tests used. `flow_order`: as in
    `read_checkpoint`.
    """
    content = load_checkpoint(path)
    source, state = _read_weights(content, path, flow_order)
    return (_average(content) if source == FORMAT else None) or state


def guess_arch(state: Mapping[str, Tensor]) -> str | None:
    """torchvision's name of the ResNet that has these weights; None if it is none of ARCHITECTURES."""
    needed = {"conv1.weight": 4, "fc.weight": 2, "layer1.0.conv1.weight": 4, "layer1.0.conv2.weight": 4}
    if any(name not in state or state[name].ndim != ndim for name, ndim in needed.items()):
        return None
    blocks = {tuple(name.split(".")[:2]) for name in state}
    depths = tuple(sum(layer == f"layer{number}" for layer, *_ in blocks) for number in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    return ARCHITECTURES.get((depths, *state["layer1.0.conv2.weight"].shape[:2], bottleneck))


def _read_weights(content: dict, path: str | os.PathLike, flow_order: str) -> tuple[str, dict[str, Tensor]]:
    """Who wrote the file, and its weights in torchvision's names and our channel order."""
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise InputError(f"{path} holds no weights: instead of a state_dict it has {_list(state)}")
    while all(name.startswith("module.") for name in state):  # torch.nn.DataParallel's
        state = {name.removeprefix("module."): value for name, value in state.items()}
    source = FORMAT if content.get("format") == FORMAT else "torchvision"
    if source == "torchvision":
        known = (source for source, names in NAMES.items() if any(name.startswith(tuple(names)) for name in state))
        source = next(known, source)
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        for theirs, ours in NAMES.get(source, {}).items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        weights[name] = value.float() if value.is_floating_point() else value
        if not weights[name].isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinity: its training diverged; take an earlier checkpoint")
        if name.endswith("running_var"):  # PyTorch before 0.4.1 did not count batches
            weights.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    first = weights.get("conv1.weight")
    if source == "original" and first is not None and first.ndim == 4 and first.shape[1] == 20:
        weights["conv1.weight"] = first.roll(FLOW_ORDERS[flow_order], dims=1)
    return source, weights


def _average(content: dict) -> dict[str, Tensor] | None:
    """The moving average in a checkpoint of ours, in torchvision's names; None where the training kept none."""
    average = content.get("ema")
    if average is None:
        return None
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}


def _preparation(source: str, in_channels: int) -> Preparation:
    """How `source` prepared the input of a network with this many input channels."""
    if in_channels == 3:
        resize = "squash" if source == "original" else "center"
        return Preparation("rgb", 224, resize, IMAGENET_MEAN, IMAGENET_STD)
    if in_channels == 15 and source == "tsn-pytorch":  # differences of six frames, which main.py doesn't normalise
        return Preparation("rgbdiff", 224, "center", (0.0,) * 3, (1.0,) * 3, 5)
    if source in ("two-stream-pytorch", "tsn-pytorch"):
        return Preparation("flow", 224, "center", (0.5,), (0.226,), in_channels // 2, "tvl1", 20.0)
    return Preparation("flow", 224, "squash", (0.0,), (1.0,), in_channels // 2, "tvl1", 20.0)


def _protocol(source: str) -> dict[str, Any]:
    """The flags of a test as the authors of `source` did it."""
    names = ("test_samples", "test_views", "test_starts")
    theirs = {
        "original": (19, 1, "original"), "two-stream-pytorch": (25, 10, "spread"), "tsn-pytorch": (25, 10, "tsn"),
    }  # fmt: skip
    return dict(zip(names, theirs.get(source, ()), strict=False))


def _learning_rate(content: dict) -> dict[str, Any]:
    """The flags that stand in the optimizer's state: the rate that the training had come down to, and its like."""
    optimizer = content.get("optimizer")
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    group = groups[0] if isinstance(groups, list) and groups and isinstance(groups[0], dict) else {}
    values = {name: _number(group, name) for name in ("lr", "momentum", "weight_decay")}
    return {name: value for name, value in values.items() if value is not None}


def _number(content: dict, name: str) -> float | None:
    """A number, or a tensor or array of one; None for anything else and for NaN."""
    try:
        value = float(content[name])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _check_modality(path: str | os.PathLike, found: str, wanted: Sequence[str], in_channels: int) -> None:
    if not wanted or found in wanted:
        return
    wants = " or ".join(wanted)
    script = {"rgb": "spatial_cnn.py", "flow": "motion_cnn.py"}.get(found, f"motion_cnn.py --input {found}")
    hint = f"; to start from it, name it with --weights {path}" if found == "rgb" else ""
    raise InputError(
        f"{path} is a network for {found} ({in_channels} input channels), not {wants}; give it to {script}{hint}"
    )


def _list(state: Mapping) -> str:
    names = [show(name) for name in state]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
