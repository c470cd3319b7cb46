"""The classic way to train and test a two-stream network, which every ratio in docs/performance.md is against.

One item per clip; each image opened by Pillow, resized to 224 x 224 and made a float32 tensor by torchvision, in
worker processes that are started anew for every epoch; a float32 network in PyTorch's default memory order (NCHW);
a loop over segments; a look at the loss after every batch.

  python benchmarks/classic.py FLOW_DIR --checkpoint PATH --output PICKLE   # a whole test of the motion stream
"""

from __future__ import annotations

import pickle
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from common.commandline import ArgumentParser
from dataloader.frames import CHANNELS, index_frames
from dataloader.packed import Frames
from dataloader.sampling import test_starts
from utils import atomic_path, cpu_count, run_main

STACK = 10
Sequences = list[Frames]  # of a video: its RGB frames, or its x and its y flow


class ClassicClips(Dataset):
    """Item i is (video, float32 images of the clips in `clips[i]`): (3, 224, 224) each, or (20, 224, 224) of flow."""

    def __init__(self, root: Path, clips: list[tuple[str, Sequences, list[int]]]) -> None:
        self.root, self.clips = root, clips
        self.transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[str, list[Tensor]]:
        name, sequences, starts = self.clips[i]
        return name, [self.clip(sequences, start) for start in starts]

    def clip(self, sequences: Sequences, start: int) -> Tensor:
        if len(sequences) == 1:
            return self.image(sequences[0], start)
        stack = torch.empty(2 * STACK, 224, 224)
        for k in range(STACK):
            for channel, sequence in enumerate(sequences):
                stack[2 * k + channel] = self.image(sequence, start + k)
        return stack

    def image(self, sequence: Frames, i: int) -> Tensor:
        return self.transform(Image.open(sequence.path(self.root, i)))


def videos_of(root: Path, kind: str) -> dict[str, Sequences]:
    """Every video under `root` with its images."""
    index = index_frames(root, kind)  # type: ignore[arg-type]
    return {name: [found[channel] for channel in CHANNELS[kind]] for name, found in sorted(index.videos.items())}


def train_clips(videos: dict[str, Sequences], repeats: int = 1) -> list[tuple[str, Sequences, list[int]]]:
    """A video an item: a random stack of flow, or a random frame in each third. All of them `repeats` times."""
    rng = np.random.default_rng(0)
    clips = []
    for name, sequences in [*videos.items()] * repeats:
        if len(sequences) == 2:
            starts = [int(rng.integers(sequences[0].count - STACK + 1))]
        else:
            third = sequences[0].count // 3
            starts = [int(rng.integers(third)) + part * third for part in range(3)]
        clips.append((name, sequences, starts))
    return clips


def test_clips(videos: dict[str, Sequences], samples: int = 19) -> list[tuple[str, Sequences, list[int]]]:
    """A clip an item, `samples` of every video: the very clips that the streams test on."""
    return [
        (name, sequences, [int(start)])
        for name, sequences in videos.items()
        for start in test_starts(sequences[0].count - (STACK - 1 if len(sequences) == 2 else 0), samples)
    ]


def classic_loader(root: Path, clips: list, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(ClassicClips(root, clips), batch_size, num_workers=workers)


def classic_model(channels: int, classes: int, state: dict[str, Tensor] | None = None) -> nn.Module:
    """ResNet101 for `channels` input channels, float32, NCHW."""
    model = models.resnet101(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if state is not None:
        model.load_state_dict(state)
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


def classic_test(model: nn.Module, loader: Iterator | DataLoader) -> dict[str, np.ndarray]:
    """video -> sum of its clips' logits."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(0, np.float32))
    model.eval()
    with torch.no_grad():
        for names, (clips,) in loader:
            for name, logits in zip(names, model(clips).numpy(), strict=True):
                sums[name] = sums[name] + logits if len(sums[name]) else logits
    return dict(sums)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("flow_dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of motion_cnn.py")
    parser.add_argument("--output", type=Path, required=True, help="pickle to write")
    parser.add_argument("--list", type=Path, help="test only the videos in this list, one v_X.avi a line")
    parser.add_argument("--batch-size", type=int, default=64, help="of the original motion_cnn.py, for tests too")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=True)["state_dict"]
    model = classic_model(state["conv1.weight"].shape[1], len(state["fc.bias"]), state)
    videos = videos_of(args.flow_dir, "flow")
    if args.list:
        videos = {Path(line).stem[2:]: videos[Path(line).stem[2:]] for line in args.list.read_text().split()}
    loader = classic_loader(args.flow_dir, test_clips(videos), args.batch_size, cpu_count())
    with atomic_path(args.output) as temporary:
        temporary.write_bytes(pickle.dumps(classic_test(model, loader), protocol=4))
    return 0


if __name__ == "__main__":
    run_main(main)
