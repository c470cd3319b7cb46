"""Reading a head of heads.py with the networks that make its features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.heads import TEMPORAL, build_head
from engine.pooling import feature_count
from network import trained_model
from saved.checkpoints import Checkpoint, read_checkpoint
from saved.heads import read_head
from utils import InputError


@dataclass(frozen=True)
class TrainedHead:
    """A head and the networks that make its features, whose last layer is no part of them."""

    path: Path
    name: str  # of what it answers: a stream's, or the head's own where it sees both
    head: nn.Module  # in evaluation mode, on the CPU
    inputs: dict[str, Checkpoint]  # in the order in which their features are joined
    pooling: dict[str, Sequence[str]]

    @torch.inference_mode()
    def answer(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """One video's features (samples, F) by input -> its logits (1, classes) float32."""
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.inputs], 1))
        return self.head(joined[None].half().float()).numpy()  # rounded as those it was trained on


def read_network(path: str | os.PathLike, flow_order: str = "original") -> Checkpoint | TrainedHead:
    """A head of heads.py, or the checkpoint of a stream from any project. Raises InputError, one line."""
    file = read_head(path)
    if file is None:
        return read_checkpoint(path, flow_order=flow_order)
    if file.kind not in ("linear", *TEMPORAL):
        raise InputError(f"{path} is a head of a kind {file.kind}, which this version does not know; update it")
    width = sum(feature_count(trained_model(one), file.pooling[name]) for name, one in file.inputs.items())
    head = build_head(file.kind, width, len(file.class_names), file.over_time)
    head.load_state_dict(file.state_dict)
    name = file.kind if file.stream == "both" else file.stream
    return TrainedHead(file.path, name, head.eval(), file.inputs, file.pooling)
