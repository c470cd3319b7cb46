"""Reading a head over time (heads.py's ts-lstm and inception) with the networks that make its features."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.heads import TEMPORAL
from saved.checkpoints import Checkpoint
from saved.safe import load_checkpoint
from utils import InputError


@dataclass(frozen=True)
class TrainedHead:
    """A head and its extractors, one or both streams', whose last layer is no part of them."""

    kind: str
    head: nn.Module  # in evaluation mode, on the CPU
    streams: dict[str, Checkpoint]  # in the order in which their features are joined

    @torch.inference_mode()
    def answer(
        self, features: Mapping[str, np.ndarray], times: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """One video's features (samples, F) by stream -> its logits (1, classes) and their time, by the head's name."""
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.streams], 1))
        middle = np.array([np.mean([times[name].mean() for name in self.streams])])
        return {self.kind: self.head(joined[None].float()).numpy()}, {self.kind: middle}


def read_head(path: str | os.PathLike) -> TrainedHead:
    """Read the checkpoint of a head over time. Raises InputError for any other file."""
    content = load_checkpoint(path)
    if content.get("format") != "two-stream-head" or content.get("head", {}).get("kind") not in TEMPORAL:
        raise InputError(f"{path} is no head over time of heads.py; a linear one is given to --spatial or --motion")
    kind, names = content["head"]["kind"], content["class_names"]
    streams = {}
    width = 0
    for name, part in content["streams"].items():
        state = dict(part["state_dict"])
        features = state["layer4.0.downsample.1.weight"].shape[0]
        width += features
        # a last layer that nothing looks at
        state |= {"fc.weight": torch.zeros(len(names), features), "fc.bias": torch.zeros(len(names))}
        args = {"test_samples": part["samples"], "test_views": part["views"]}
        channels = state["conv1.weight"].shape[1]
        streams[name] = Checkpoint(Path(path), "two-stream-head", state, part["arch"], len(names), channels,
                                   part["preparation"], args, -1, 0.0, names, {})  # fmt: skip
    head = TEMPORAL[kind].build(width, len(names))
    head.load_state_dict(content["state_dict"])
    return TrainedHead(kind, head.eval(), streams)
