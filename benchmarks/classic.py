"""The classic way to train and test a two-stream network, which every ratio in docs/performance.md is against.

One item per clip; each image opened by Pillow, resized to 224 x 224 and made a float32 tensor by torchvision, in
worker processes that are started anew for every epoch; a float32 network in PyTorch's default memory order (NCHW);
a loop over segments; a look at the loss after every batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from dataloader.sampling import test_starts

STACK = 10
Clip = list[Path]  # the images of one clip: an RGB frame, or x1, y1, ..., x10, y10


class ClassicClips(Dataset):
    """Item i is the float32 clips of one item: (3, 224, 224) each, or (20, 224, 224) of flow."""

    def __init__(self, items: list[list[Clip]]) -> None:
        self.items = items
        self.transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> list[Tensor]:
        return [torch.cat([self.transform(Image.open(path)) for path in clip]) for clip in self.items[i]]


def clip_at(sequences: list[list[Path]], start: int) -> Clip:
    """The images of the clip that begins at `start`, of RGB frames alone or of x and y flow."""
    return [sequence[start + k] for k in range(STACK if len(sequences) == 2 else 1) for sequence in sequences]


def train_items(videos: list[list[list[Path]]]) -> list[list[Clip]]:
    """A video an item: a random stack of flow, or a random frame in each third."""
    rng, items = np.random.default_rng(0), []
    for sequences in videos:
        segments, stack = (1, STACK) if len(sequences) == 2 else (3, 1)
        length = (len(sequences[0]) - stack + 1) // segments
        starts = [int(rng.integers(length)) + part * length for part in range(segments)]
        items.append([clip_at(sequences, start) for start in starts])
    return items


def test_items(videos: list[list[list[Path]]], samples: int = 19) -> list[list[Clip]]:
    """A clip an item, `samples` of every video: the very clips that the streams test on."""
    return [
        [clip_at(sequences, int(start))]
        for sequences in videos
        for start in test_starts(len(sequences[0]) - (STACK - 1 if len(sequences) == 2 else 0), samples)
    ]


def classic_loader(items: list[list[Clip]], batch_size: int) -> DataLoader:
    return DataLoader(ClassicClips(items), batch_size, num_workers=1)


def classic_model(channels: int, classes: int) -> nn.Module:
    """ResNet101 for `channels` input channels, float32, NCHW."""
    model = models.resnet101(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def classic_step(model: nn.Module, optimizer: torch.optim.Optimizer, segments: list[Tensor], labels: Tensor) -> float:
    """One step of SGD on the sum of the segments' logits, one forward pass for each. Returns the loss."""
    logits = sum(model(segment) for segment in segments)
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    (logits.argmax(1) == labels).float().mean().item()  # the accuracy so far, looked at after every batch
    return loss.item()
