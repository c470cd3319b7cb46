"""Read a checkpoint, this project's or another's that saved/foreign.py recognises, as a network and its input."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from torch import Tensor

from common.formats import Finite, Names, check
from dataloader.preparation import SavedPreparation
from dataloader.sampling import TestSampling
from saved import foreign
from saved.checkpoints import FORMAT, HEAD_FORMAT
from saved.safe import load_checkpoint
from utils import InputError, rank


class Header(BaseModel):
    """The fields that every checkpoint of ours has; one saved in training also holds Training.state_dict."""

    arch: str
    class_names: Names
    preparation: SavedPreparation
    args: dict[str, Any]
    epoch: Annotated[int, Field(ge=-1, strict=True)]  # -1: none
    best_prec1: Finite


HELD = tuple(Header.model_fields)


@dataclass
class Checkpoint:
    """A network, with what its file records about its training and its input."""

    path: Path
    source: str  # "two-stream" (ours), "original", "two-stream-pytorch", "tsn-pytorch" or "torchvision"
    state_dict: dict[str, Tensor]  # torchvision's names, on the CPU; motion channels are x1, y1, x2, y2, ...
    arch: str
    num_classes: int
    in_channels: int
    preparation: dict[str, Any]  # the fields of dataloader.preparation.Preparation
    args: dict[str, Any]  # the flags used in training or, for other projects, in the authors' evaluation
    epoch: int  # the last finished epoch, counted from 0; -1 for none or unknown
    best_prec1: float  # top-1 in per cent; 0 for none or unknown
    class_names: list[str] | None  # in label order; None for other projects' files, which don't store them
    raw: dict[str, Any]  # everything in the file
    trained_on: frozenset[str] = frozenset()  # names of the training videos; empty if unknown

    @property
    def sampling(self) -> TestSampling:
        """The clips that its network was evaluated on."""
        flags = {name: f"test_{name}" for name in ("samples", "views", "starts")}
        return TestSampling(**{name: self.args[flag] for name, flag in flags.items() if flag in self.args})

    def in_order_of(self, class_names: Sequence[str]) -> "Checkpoint":
        """Return the network with its classes in the order of `class_names`.

        Only tsn-pytorch's HMDB51 networks need this, with the official lists; TSN's own lists match them.
        """
        names, swapped = list(class_names), foreign.HMDB51_SWAPPED
        official = len(names) == 51 and names == sorted(names) and swapped.keys() <= {*names}
        if self.source != "tsn-pytorch" or not official:
            return self
        rows = [names.index(swapped.get(name, name)) for name in names]
        if rank() == 0:
            print(f"{self.path}: its classes are taken to be in TSN's order ({', '.join(swapped)} swapped)")
        fc = {name: self.state_dict[name][rows] for name in ("fc.weight", "fc.bias")}
        return replace(self, state_dict=self.state_dict | fc)


def read_checkpoint(path: str | os.PathLike, *modalities: str, flow_order: str = "original") -> Checkpoint:
    """Read the checkpoint of any project that saved/foreign.py knows, or a bare state_dict.

    `modalities` ("rgb", "flow", "rgbdiff", "greydiff") are the accepted inputs; by default, all are accepted.
    `flow_order` names the revision of the original that stacked the flow (foreign.FLOW_ORDERS); other files
    need none. Raises a one-line InputError if the file is unreadable or holds no ResNet for these modalities.
    """
    content = load_checkpoint(path)
    if content.get("format") == HEAD_FORMAT:
        raise InputError(f"{path} is a head with the networks that make its features: give it to predict.py --head")
    state = foreign.find_weights(content, path)
    if content.get("format") == FORMAT:
        header = check(content, Header, path, "it is incomplete or damaged: get it again")
        trained_on = frozenset(check(content.get("trained_on", []), list[str], path, "get it again"))
        found = Checkpoint(Path(path), FORMAT, state, raw=content, trained_on=trained_on,
                           num_classes=len(header.class_names), in_channels=header.preparation.channels,
                           **{name: content[name] for name in HELD})  # fmt: skip
    else:
        described = foreign.describe(content, state, path, flow_order)
        found = Checkpoint(Path(path), class_names=None, raw=content, **described)
    modality = found.preparation["modality"]
    if modalities and modality not in modalities:
        script = "spatial_cnn.py" if modality == "rgb" else f"motion_cnn.py --input {modality}"
        hint = f"; to start from it, name it with --weights {path}" if modality == "rgb" else ""
        inputs = f"{modality} ({found.in_channels} input channels), not {' or '.join(modalities)}"
        raise InputError(f"{path} is a network for {inputs}; give it to {script}{hint}")
    return found


def read_state_dict(path: str | os.PathLike, flow_order: str = "original") -> dict[str, Tensor]:
    """Return the weights of any project's checkpoint, in torchvision's names and float32, for training."""
    content = load_checkpoint(path)
    state = foreign.find_weights(content, path)
    return state if content.get("format") == FORMAT else foreign.rename(state, flow_order)[1]
