"""A head and the networks that compute its features in one file: heads.py writes it, predict.py reads it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, InstanceOf
from torch import Tensor

from common.formats import Count, Names, check
from dataloader.preparation import SavedPreparation
from saved.checkpoint_reader import Checkpoint
from saved.checkpoints import HEAD_FORMAT, save_tensors, weights_hash
from saved.feature_file import Features
from saved.safe import check_weights, load_checkpoint


class HeadInput(BaseModel):
    """A network whose features are a head's input."""

    arch: str
    preparation: SavedPreparation
    samples: Count
    views: Count
    pooling: Names
    features: Count
    state_dict: dict[str, InstanceOf[Tensor]]


class HeadAbout(BaseModel):
    kind: str
    stream: Literal["spatial", "motion", "both"]


class HeadContent(BaseModel):
    """The content of a head file, as stored."""

    class_names: Names
    inputs: Annotated[dict[str, HeadInput], Field(min_length=1)]
    head: HeadAbout
    state_dict: dict[str, InstanceOf[Tensor]]


@dataclass(frozen=True)
class HeadFile:
    """A head file, read and checked."""

    path: Path
    kind: str
    stream: str  # spatial | motion | both: the streams it answers for
    state_dict: dict[str, Tensor]  # the head's own weights
    class_names: list[str]
    inputs: dict[str, Checkpoint]  # the networks that compute its features, in the order of concatenation
    pooling: dict[str, Sequence[str]]
    features: int  # the head's input width: the features of all inputs, concatenated


def write_head(
    path: str | os.PathLike, head: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Features],
    trunks: Mapping[str, Mapping[str, Tensor]],
) -> str:  # fmt: skip
    """Write a head: its weights `state`, its description `head` (kind, stream, choice), and its networks.

    `inputs` are its features. `trunks` are the state_dicts of the networks that computed them, under the same
    names; their last layers are left out. Returns the hash of `state`.
    """
    about = next(iter(inputs.values())).about
    parts = {
        name: {
            "arch": features.about["network"]["arch"],
            **{key: features.about[key] for key in ("preparation", "samples", "views", "pooling")},
            "features": features.values.shape[-1],
            "state_dict": {key: value for key, value in trunks[name].items() if not key.startswith("fc.")},
        }
        for name, features in inputs.items()
    }
    sha256 = weights_hash(state)
    content = {"format": HEAD_FORMAT, **{key: about[key] for key in ("class_names", "dataset", "split")},
               "inputs": parts, "head": dict(head), "state_dict": dict(state), "weights_sha256": sha256}  # fmt: skip
    save_tensors(content, path)
    return sha256


def read_head(path: str | os.PathLike) -> HeadFile | None:
    """Read the head in a file; None for another kind of checkpoint. Raises InputError if unreadable."""
    raw = load_checkpoint(path)
    if raw.get("format") != HEAD_FORMAT:
        return None
    content = check(raw, HeadContent, path, "train it again")
    check_weights(content.state_dict, path)
    names, inputs = content.class_names, {}
    for name, part in content.inputs.items():
        check_weights(part.state_dict, path)
        norm = part.state_dict.get("layer4.0.downsample.1.weight")  # None for timm: pre-logits
        features = part.features if norm is None else norm.shape[0]
        # The last layer is a placeholder; its output is never used.
        state = {**part.state_dict, "fc.weight": torch.zeros(len(names), features), "fc.bias": torch.zeros(len(names))}
        args = {"test_samples": part.samples, "test_views": part.views}
        inputs[name] = Checkpoint(
            Path(path), HEAD_FORMAT, state, part.arch, len(names), part.preparation.channels,
            raw["inputs"][name]["preparation"], args, -1, 0.0, names, {},
        )  # fmt: skip
    return HeadFile(
        Path(path), content.head.kind, content.head.stream, content.state_dict, names, inputs,
        {name: part.pooling for name, part in content.inputs.items()},
        sum(part.features for part in content.inputs.values()),
    )  # fmt: skip
