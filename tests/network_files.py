"""Checkpoints of small random networks that tell pictures and classes apart, written without a training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.models import resnet18

from dataloader.preparation import Preparation


def save_network(
    path: Path, preparation: Preparation, classes: Sequence[str], sharp: float = 8, **tested: object
) -> torch.nn.Module:
    """Write a ResNet-18 with batch norms that have seen pictures; `tested` are flags such as test_samples."""
    torch.manual_seed(1)
    model = resnet18(num_classes=len(classes))
    channels = preparation.channels
    model.conv1 = torch.nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        for _ in range(3):
            pictures = torch.randn(8, channels, 5, 6)
            model(torch.nn.functional.interpolate(2 * pictures, (preparation.size,) * 2, mode="bicubic"))
        model.fc.weight *= sharp
    about = {
        "format": "two-stream", "epoch": 3, "arch": "resnet18", "best_prec1": 50.0, "class_names": list(classes),
        "preparation": preparation.as_dict(), "args": tested, "ema": None, "batch": 0,
    }  # fmt: skip
    torch.save({**about, "state_dict": model.state_dict()}, path)
    return model.eval()
