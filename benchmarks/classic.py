"""The classic way to train and test a two-stream network: the baseline of every ratio in docs/performance.md.

One item per clip. Pillow opens each image; torchvision resizes it to 224 x 224 and makes it a float32 tensor.
Worker processes are started anew for every epoch. The network is float32 in PyTorch's default memory order
(NCHW). Segments are processed in a loop, and the loss is read after every batch.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import models, transforms

from dataloader.clips import ClipDataset
from dataloader.sampling import TrainSampling, rng_for, test_starts, train_starts


class ClassicClips(Dataset):
    """Items of float32 clips: (3, 224, 224) each, or (20, 224, 224) for flow.

    They are of the videos of `ours`. In training, an item holds a video's segments: three random frames, or
    one random flow stack. In a test, it is one of the 19 clips that the streams are evaluated on.
    """

    def __init__(self, ours: ClipDataset, root: Path) -> None:
        self.items: list[list[list[Path]]] = []  # the images of each clip of each item: x1, y1, ..., x10, y10
        self.transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
        rng, length = rng_for(0), ours.preparation.clip_length
        segments = ours.sampling.segments if isinstance(ours.sampling, TrainSampling) else 0  # 0: a test
        for source in ours.sources:
            sequences = source.frames if isinstance(source.frames, tuple) else (source.frames,)
            valid = source.count - length + 1
            starts = train_starts(valid, segments, rng) if segments else test_starts(valid, 19)
            clips = [[frames.path(root, int(start) + k) for k in range(length) for frames in sequences]
                     for start in starts]  # fmt: skip
            self.items += [clips] if segments else [[clip] for clip in clips]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> list[Tensor]:
        return [torch.cat([self.transform(Image.open(path)) for path in clip]) for clip in self.items[i]]


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
