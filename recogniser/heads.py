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
from saved.safe import load_checkpoint
from utils import InputError


@dataclass(frozen=True)
class TrainedHead:
    """A head and its extractors, one or both streams', whose last layer is no part of them."""

    path: Path
    name: str  # of what it answers: a stream's, or the head's own where it sees both
    head: nn.Module  # in evaluation mode, on the CPU
    streams: dict[str, Checkpoint]  # in the order in which their features are joined
    pooling: dict[str, Sequence[str]]

    @torch.inference_mode()
    def answer(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """One video's features (samples, F) by stream -> its logits (1, classes) float32."""
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.streams], 1))
        return self.head(joined[None].half().float()).numpy()  # rounded as those it was trained on


def read_network(path: str | os.PathLike, flow_order: str = "original") -> Checkpoint | TrainedHead:
    """A head of heads.py, or the checkpoint of a stream from any project. Raises InputError, one line."""
    content = load_checkpoint(path)
    if content.get("format") != "two-stream-head":
        return read_checkpoint(path, flow_order=flow_order)
    about, names = content["head"], content["class_names"]
    if about["kind"] not in ("linear", *TEMPORAL):
        raise InputError(f"{path} is a head of a kind {about['kind']}, which this version does not know; update it")
    streams = {}
    width = 0
    for name, part in content["streams"].items():
        state = dict(part["state_dict"])
        features = state["layer4.0.downsample.1.weight"].shape[0]
        # a last layer that nothing looks at
        state |= {"fc.weight": torch.zeros(len(names), features), "fc.bias": torch.zeros(len(names))}
        args = {"test_samples": part["samples"], "test_views": part["views"]}
        channels = state["conv1.weight"].shape[1]
        streams[name] = Checkpoint(Path(path), "two-stream-head", state, part["arch"], len(names), channels,
                                   part["preparation"], args, -1, 0.0, names, {})  # fmt: skip
        width += feature_count(trained_model(streams[name]), part["pooling"])
    head = build_head(about["kind"], width, len(names), about["over_time"])
    head.load_state_dict(content["state_dict"])
    name = about["kind"] if len(streams) == 2 else next(iter(streams))
    pooling = {name: part["pooling"] for name, part in content["streams"].items()}
    return TrainedHead(Path(path), name, head.eval(), streams, pooling)
