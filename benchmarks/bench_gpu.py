"""Loader, transfer and network on a GPU, each alone and together, in one table.

  python benchmarks/bench_gpu.py [--workers 16] [--compile] [--seconds 20]

The aim: training and testing end to end at 90 % of the network alone, and the network within 70 % of what the card's
matrix units reach in a large bfloat16 product; "bare" is what plain PyTorch makes of them.
--device cpu --arch resnet18 --size 64 --seconds 1 tries the script without a GPU.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import classic
from benchmarks.bench_loaders import our_dataset
from benchmarks.measure import bench_parser, chosen, machine, operations, prepare
from dataloader.clips import Batch, TestSampling, TrainSampling, clips_of, sent_ahead
from dataloader.loader import Loader, make_loader
from engine.epoch import train_step
from engine.state import Training, TrainingSettings, amp_dtype
from network import InferenceNet, build_model
from utils import cpu_count, run_main

CLASSES = 101


def rate(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Units per second that `work` does (it returns how many it did), after some rounds that aren't counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    wait()
    start, units = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        units += work()
    wait()
    return units / (time.perf_counter() - start)


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Operations per second of a large product of matrices."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def work() -> int:
        for _ in range(10):
            a @ b
        return 10 * 2 * side**3

    return rate(work, seconds, device)


def endless(loader: Loader, device: torch.device) -> Iterator[Batch]:
    """Epoch after epoch. Not of Bench: a loader in a circle of references does not end its workers."""
    for epoch in itertools.count():
        yield from sent_ahead(loader.epoch(epoch), device)


class Bench:
    """One stream and one phase (training or testing) on the device."""

    def __init__(self, stream: str, phase: str, root: Path, names: list[str], args: Any, device: torch.device) -> None:
        self.args, self.device, self.phase, self.seconds = args, device, phase, args.seconds
        training = phase == "training"
        self.videos = (64 if stream == "motion" else 25) if training else 13
        sampling = TrainSampling(1 if stream == "motion" else 3) if training else TestSampling(19)
        count = 4 * self.videos * max(1, args.workers)  # whole batches: cuDNN would tune itself anew for a smaller one
        names = list(itertools.islice(itertools.cycle(names), count))
        self.dataset = our_dataset(stream, root, names, sampling, args.size)
        self.preparation = self.dataset.preparation
        self.loader = make_loader(self.dataset, self.videos, args.workers, device)
        self.endless = endless(self.loader, device)
        self.dtype = amp_dtype("auto", device)
        model = build_model(args.arch, self.preparation.channels, CLASSES)
        if training:
            settings = TrainingSettings(lr=1e-5, batch_size=self.videos, compile=args.compile)
            self.training = Training(model, self.preparation, device, settings)
            self.training.distribute()
            self.training.stepped.train()
        else:
            self.net = InferenceNet(model, self.preparation, self.dtype, args.compile).to(device)

    def load(self) -> int:
        return len(next(self.endless).clips)

    def send(self, batch: Batch) -> int:
        return len(clips_of(batch, self.preparation.modality, self.device))

    def compute(self, batch: Batch) -> int:
        """What is done with a batch after loading, transfer included."""
        if self.phase == "training":
            self.training.batch = 0  # of an epoch that never ends
            train_step(self.training, batch)
        else:
            with torch.inference_mode():
                for output in self.net(clips_of(batch, self.preparation.modality, self.device)):
                    output.cpu()
        return len(batch.clips)

    def bare(self, clips: int) -> float:
        """Clips per second of plain PyTorch's training step, eager: a batch of `clips` that lies on the device."""
        channels, size = self.preparation.channels, self.args.size
        model = build_model(self.args.arch, channels, CLASSES).to(self.device).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)
        x = torch.randn(clips, channels, size, size, device=self.device).contiguous(memory_format=torch.channels_last)
        y = torch.zeros(clips, dtype=torch.int64, device=self.device)

        def work() -> int:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return clips

        return rate(work, self.seconds, self.device)

    def table(self, what: str, matrix: float) -> None:
        """Print this phase's lines."""
        batch = next(iter(self.loader.epoch(0)))  # where the loader leaves it: in pinned memory
        here = next(self.endless)
        per_clip = operations(self.args.arch, self.preparation, self.phase == "training")
        alone = rate(lambda: self.compute(here), self.seconds, self.device)
        rows = {
            "loader": rate(self.load, self.seconds, self.device),
            "transfer": rate(lambda: self.send(batch), self.seconds, self.device),
            "network": alone,
            "together": rate(lambda: self.compute(next(self.endless)), self.seconds, self.device),
        }
        if self.phase == "training":
            rows["bare"] = self.bare(len(here.clips))
        for name, clips in rows.items():
            note = ""
            if name == "network":
                note = f"{100 * clips * per_clip / matrix:5.1f} % of the matrix units' {matrix / 1e12:.1f} TFLOP/s"
            if name == "bare":
                note = f"plain PyTorch's step, eager; the network is at {100 * alone / clips:.1f} % of it"
            if name == "together":
                note = f"{100 * clips / alone:5.1f} % of the network alone"
            print(f"{what:16} {self.phase:9} {name:9} {clips:10.1f} clips/s  {note}", flush=True)


def main() -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--arch", default="resnet101", help="the network")
    parser.add_argument("--size", type=int, default=224, help="of the network's input")
    parser.add_argument("--workers", type=int, default=min(cpu_count(), 16), help="loader processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: not measured")
        return 0
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # as the streams have it
    home = prepare(args.data)
    print(machine())
    dtype = amp_dtype("auto", device)
    matrix = matrix_rate(device, dtype, min(args.seconds, 5))
    print(f"matrix units: {matrix / 1e12:.1f} TFLOP/s in {str(dtype).removeprefix('torch.')}")
    for stream, kind in (("motion", "flow"), ("spatial", "rgb")):
        names = chosen(list(classic.videos_of(home / kind, kind)), args.videos)
        for phase in ("training", "testing"):
            bench = Bench(stream, phase, home / kind, names, args, device)
            bench.table(stream, matrix)
            del bench
    return 0


if __name__ == "__main__":
    run_main(main)
