"""Augmentation of pixel values, on the device, of training batches alone: another one has its place in `augment`.

Where an image is cut out and whether it is flipped is decided before, by a loader's workers (transforms.py, clips.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision's grey


def augment(clips: Tensor, names: Sequence[str], jitter: float, seed: int, epoch: int) -> Tensor:
    """uint8 clips (videos x clips, images x planes, H, W) -> the same, each video's changed in one random way.

    What is drawn is a function of (seed, epoch, video's name): the same in any batch and over any number of processes.
    """
    if jitter:
        draws = [np.random.default_rng((seed, epoch, zlib.crc32(name.encode()))).uniform(-1, 1, 3) for name in names]
        factors = torch.tensor(1 + jitter * np.array(draws), dtype=torch.float32)  # (videos, 3)
        clips = colour_jitter(clips, factors.to(clips.device, non_blocking=True))
    return clips


def colour_jitter(clips: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of RGB, in this order, as torchvision's functions do.

    clips: uint8 (videos x clips, images x 3, H, W); factors: (videos, 3) on the same device, 1 for no change. The grey
    that contrast is relative to is the mean of all of a video's clips, so that differences of its frames stay motion.
    """
    x = clips.unflatten(1, (-1, 3)).unflatten(0, (len(factors), -1)).float()  # (videos, clips, images, 3, H, W)
    brightness, contrast, saturation = factors[:, :, None, None, None, None, None].unbind(1)  # (videos, 1, ..., 1)
    luma = torch.stack([x.new_full((1, 1), weight) for weight in LUMA])  # (3, 1, 1)
    x = x.mul_(brightness).clamp_(max=255)
    mean = (x * luma).sum(3).mean((1, 2, 3, 4))[:, None, None, None, None, None]  # (videos, 1, ..., 1)
    x = x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    grey = (x * luma).sum(3, keepdim=True)  # (videos, clips, images, 1, H, W)
    x = x.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 255)
    x = x.round_().to(torch.uint8).flatten(0, 1).flatten(1, 2)  # (videos x clips, images x 3, H, W)
    return x.contiguous(memory_format=torch.channels_last)
