"""The classic way to train and test a two-stream network: the baseline of every ratio in docs/performance.md.

One item per clip. Pillow opens each image; torchvision resizes it to 224 x 224 and makes it a float32 tensor.
Worker processes are started anew for every epoch. The network is float32 in PyTorch's default memory order
(NCHW). Segments are processed in a loop, and the loss is read after every batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import models, transforms

from dataloader.sampling import test_starts

STACK = 10
Clip = list[Path]  # the images of one clip: an RGB frame, or x1, y1, ..., x10, y10


class ClassicClips(Dataset):
    """Dataset of items of float32 clips: (3, 224, 224) each, or (20, 224, 224) for flow."""

    def __init__(self, items: list[list[Clip]]) -> None:
        self.items = items
        self.transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> list[Tensor]:
        return [torch.cat([self.transform(Image.open(path)) for path in clip]) for clip in self.items[i]]


def clip_at(sequences: list[list[Path]], start: int) -> Clip:
    """Return the images of the clip that begins at `start`, from RGB frames or from x and y flow."""
    return [sequence[start + k] for k in range(STACK if len(sequences) == 2 else 1) for sequence in sequences]


def make_items(videos: list[list[list[Path]]], training: bool) -> list[list[Clip]]:
    """Return the items of an epoch: per video in training, a random flow stack or a random frame from each third.

    In a test, an item is one of the 19 clips that the streams are evaluated on.
    """
    rng, items = np.random.default_rng(0), []
    for sequences in videos:
        segments, stack = (1, STACK) if len(sequences) == 2 else (3, 1)
        count = len(sequences[0]) - stack + 1
        if training:
            starts = [int(rng.integers(count // segments)) + part * (count // segments) for part in range(segments)]
            items.append([clip_at(sequences, start) for start in starts])
        else:
            items += [[clip_at(sequences, int(start))] for start in test_starts(count, 19)]
    return items


def classic_model(channels: int, classes: int) -> nn.Module:
    """Return a ResNet101 for `channels` input channels, float32, NCHW."""
    model = models.resnet101(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def classic_step(model: nn.Module, optimizer: torch.optim.Optimizer, segments: list[Tensor], labels: Tensor) -> float:
    """Do one SGD step on the sum of the segments' logits, one forward pass per segment. Return the loss."""
    logits = sum(model(segment) for segment in segments)
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    (logits.argmax(1) == labels).float().mean().item()  # accuracy, read after every batch
    return loss.item()
