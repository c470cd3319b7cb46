"""What is taken as a clip's features: means or maxima over the image of a ResNet's stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataloader.preparation import Preparation
from network import InferenceNet, Network, ResNet
from utils import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")
POOLINGS = tuple(f"{stage}.{pool}" for stage in STAGES for pool in ("mean", "max"))
# Where ImageNet's classes are far from the task, the last stage's mean says least: docs/results.md.
DEFAULT = {"spatial": ("layer3.mean", "layer4.mean"), "motion": ("layer3.mean",)}


def last_pooling(model: Network) -> tuple[str, ...]:
    """What a network's last layer sees; of timm's, which have no stages here, there are no other features."""
    return ("layer4.mean",) if model.stages else ("pre-logits",)


def default_pooling(model: Network, stream: str) -> tuple[str, ...]:
    return DEFAULT[stream] if model.stages else last_pooling(model)


class PooledTrunk(nn.Module):
    """A ResNet without its last layer: (N, channels, H, W) -> (N, features), the poolings one behind the other."""

    def __init__(self, trunk: ResNet, pooling: Sequence[str]) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, tuple(pooling)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.trunk
        x = trunk.stem(x)
        found: dict[str, Tensor] = {}
        for stage in STAGES:
            if len(found) == len(self.pooling):  # later stages would be for nothing
                break
            x = getattr(trunk, stage)(x)  # (N, C, H / 4, W / 4) and at each later stage twice the C, half the sides
            if f"{stage}.mean" in self.pooling:
                found[f"{stage}.mean"] = x.mean((2, 3), dtype=torch.float32)  # (N, C)
            if f"{stage}.max" in self.pooling:
                found[f"{stage}.max"] = x.amax((2, 3)).float()
        return torch.cat([found[name] for name in self.pooling], 1)


def feature_net(
    model: Network, preparation: Preparation, pooling: Sequence[str], dtype: torch.dtype, compiled: bool = False
) -> InferenceNet:
    """A network made for testing whose both outputs are the pooled features."""
    check_pooling(pooling, model)
    trunk = (lambda own: PooledTrunk(own, pooling)) if model.stages else None
    net = InferenceNet(model, preparation, dtype, trunk=trunk, head=nn.Identity())
    if compiled:
        net.trunk.compile()
    return net


def feature_count(model: Network, pooling: Sequence[str]) -> int:
    """How many features the poolings make."""
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
