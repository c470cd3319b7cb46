"""Other projects' checkpoints: source, weights in torchvision's names, preparation and evaluation protocol.

Layer names identify the project; the file's name is never used. Preparations, evaluation protocols and epoch
numbering follow the projects' own code:
- the original: github.com/jeffreyyihuang/two-stream-action-recognition, spatial_cnn.py and motion_cnn.py
- two-stream-pytorch: github.com/bryanyzhu/two-stream-pytorch, main_single_gpu.py, scripts/eval_ucf101_pytorch
- tsn-pytorch: github.com/yjxiong/tsn-pytorch, main.py, models.py, test_models.py
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dataloader.names import first_few
from dataloader.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from saved.safe import check_weights, show
from utils import InputError, plural

# Each project's names for parts of torchvision's ResNet. The first one found in a file identifies the source.
NAMES = {
    "original": {"conv1_custom.": "conv1.", "fc_custom.": "fc."},
    "two-stream-pytorch": {"fc_action.": "fc."},
    "tsn-pytorch": {"base_model.": "", "new_fc.": "fc."},
}
# The authors' evaluation protocols: clips per video, views, and where the clips start.
PROTOCOLS = {"original": (19, 1, "original"), "two-stream-pytorch": (25, 10, "spread"), "tsn-pytorch": (25, 10, "tsn")}
# The number of channels by which conv1 of the original's motion network is rolled to get our order [f0..f9].
# The original's loader put frame j at position j - 1, older revisions at j - 5, and the oldest at j.
FLOW_ORDERS = {"original": 2, "older": 10, "oldest": 0}
# TSN's class_list of HMDB51 has these pairs of classes the other way round; the official lists are sorted.
HMDB51_SWAPPED = {"kick": "kick_ball", "kick_ball": "kick", "sword": "sword_exercise", "sword_exercise": "sword"}
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


def find_weights(content: dict, path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the state_dict in any project's file: finite, float32, with the names used in the file."""
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        found = first_few(map(show, state)) or "nothing"
        raise InputError(f"{path} holds no weights: instead of a state_dict it has {found}")
    if isinstance(average := content.get("ema"), dict):  # ours, once trained with --ema: what its tests used
        state = {name: value for name, value in average.items() if name != "n_averaged"}
    while all(name.startswith("module.") for name in state):  # added by torch.nn.DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    check_weights(weights, path)
    return weights


def rename(state: Mapping[str, Tensor], flow_order: str) -> tuple[str, dict[str, Tensor]]:
    """Return the project that wrote `state`, and its weights in torchvision's names and our channel order."""
    known = (source for source, names in NAMES.items() if any(name.startswith(tuple(names)) for name in state))
    source = next(known, "torchvision")
    names, weights = NAMES.get(source, {}), {}
    for name, value in state.items():
        theirs = next((prefix for prefix in names if name.startswith(prefix)), "")
        name = names.get(theirs, "") + name.removeprefix(theirs)
        weights[name] = value
        if name.endswith("running_var"):  # PyTorch before 0.4.1 did not count batches
            weights.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    first = weights.get("conv1.weight")
    if source == "original" and first is not None and first.ndim == 4 and first.shape[1] == 20:
        weights["conv1.weight"] = first.roll(FLOW_ORDERS[flow_order], dims=1)
    return source, weights


def describe(content: dict, state: Mapping[str, Tensor], path: str | os.PathLike, flow_order: str) -> dict[str, Any]:
    """Return the fields of a saved.checkpoint_reader.Checkpoint that can be read from another project's file."""
    source, weights = rename(state, flow_order)
    arch = guess_arch(weights)
    if arch is None:
        raise InputError(f"{path} holds no ResNet of torchvision; its layers are {first_few(map(show, weights))}")
    channels = weights["conv1.weight"].shape[1]
    preparation = _preparation(source, channels)
    if preparation.channels != channels:
        inputs = plural(channels, "input channel")
        raise InputError(f"{path} is a network for {inputs}: neither RGB nor pairs of flow")
    protocol = zip(("test_samples", "test_views", "test_starts"), PROTOCOLS.get(source, ()), strict=False)
    finished = _number(content, "epoch")  # the original saved this epoch's number, the others the next one's
    return {
        "source": source, "state_dict": weights, "arch": arch, "num_classes": weights["fc.weight"].shape[0],
        "in_channels": channels, "preparation": preparation.as_dict(), "args": dict(protocol) | _learning_rate(content),
        "epoch": -1 if finished is None else int(finished) - (source != "original"),
        "best_prec1": _number(content, "best_prec1") or 0.0,
    }  # fmt: skip


def guess_arch(state: Mapping[str, Tensor]) -> str | None:
    """torchvision's name for the ResNet with these weights; None if it is not in ARCHITECTURES."""
    needed = {"conv1.weight": 4, "fc.weight": 2, "layer1.0.conv1.weight": 4, "layer1.0.conv2.weight": 4}
    if any(name not in state or state[name].ndim != ndim for name, ndim in needed.items()):
        return None
    blocks = {tuple(name.split(".")[:2]) for name in state}
    depths = tuple(sum(layer == f"layer{number}" for layer, *_ in blocks) for number in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    return ARCHITECTURES.get((depths, *state["layer1.0.conv2.weight"].shape[:2], bottleneck))


def _preparation(source: str, in_channels: int) -> Preparation:
    """The preparation that `source` used for a network with this many input channels."""
    if in_channels == 3:
        resize = "squash" if source == "original" else "center"
        return Preparation("rgb", 224, resize, IMAGENET_MEAN, IMAGENET_STD)
    if in_channels == 15 and source == "tsn-pytorch":  # differences of six frames, not normalised by main.py
        return Preparation("rgbdiff", 224, "center", (0.0,) * 3, (1.0,) * 3, 5)
    if source in ("two-stream-pytorch", "tsn-pytorch"):
        return Preparation("flow", 224, "center", (0.5,), (0.226,), in_channels // 2, "tvl1", 20.0)
    return Preparation("flow", 224, "squash", (0.0,), (1.0,), in_channels // 2, "tvl1", 20.0)


def _learning_rate(content: dict) -> dict[str, float]:
    """The flags that its optimizer's state tells: the rate that the training had come down to, and its like."""
    try:
        group = content["optimizer"]["param_groups"][0]
    except (KeyError, TypeError, IndexError):
        return {}
    return {name: value for name in ("lr", "weight_decay") if (value := _number(group, name)) is not None}


def _number(content: Any, name: str) -> float | None:
    """A number, or the only element of a tensor or array; None for anything else and for NaN or infinity."""
    try:
        value = float(content[name])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return value if math.isfinite(value) else None
