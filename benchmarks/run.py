"""Benchmarks of five minutes on two cores: `make bench`. Ratios are against the classic way (classic.py).

  python benchmarks/run.py                       loaders, networks and training steps, TV-L1
  python benchmarks/run.py --only gpu            loader, network and both together on a GPU

Both ways take turns, so that other load on the machine affects them alike. A line gives medians in ms per
clip, and the median ratio of the rounds with its range, by CPU time of all processes and by wall time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks import classic
from common.commandline import ArgumentParser
from dataloader.clips import ClipDataset, Loader, clips_of, sent_ahead
from dataloader.frames import CHANNELS, ReadFlow, ReadFrame, find_sources, index_frames
from dataloader.names import Video
from dataloader.preparation import default_preparation, to_input
from dataloader.sampling import TestSampling, TrainSampling
from engine.evaluation import InferenceNet
from engine.training import Training, TrainingSettings, amp_dtype, train_step
from network import build_model
from utils import InputError, cpu_count, run_main

CPU = torch.device("cpu")
KIND: dict[str, Any] = {"motion": "flow", "spatial": "rgb"}
SEGMENTS = {"motion": 1, "spatial": 3}
BATCH = {"motion": 64, "spatial": 25}  # videos, the original's
Measured = tuple[float, float, float]  # CPU seconds of all processes, wall seconds, clips


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=["loaders", "networks", "tvl1"])
    parser.add_argument("--data", type=Path, default=ROOT / "data/bench", metavar="DIR",
                        help="holds rgb/ and flow/; made there from the shared UCF101 clips")
    parser.add_argument("--videos", type=int, default=6, help="of those, how many to use, evenly chosen")
    parser.add_argument("--rounds", type=int, default=3, help="each measures every way once")
    parser.add_argument("--compile", action="store_true", help="networks by torch.compile")
    parser.add_argument("--workers", type=int, default=min(cpu_count(), 16), help="of the GPU's loader")
    args = parser.parse_args()
    torch.manual_seed(0)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    print(f"{machine}, {cpu_count()} cores; torch {torch.__version__}, amp on its CPU {amp_dtype('auto', CPU)}")
    prepare(args.data)
    for part in args.only:
        print(f"\n== {part}", flush=True)
        PARTS[part](args)


def prepare(home: Path) -> None:
    """Extract frames and DIS flow of UCF101's clips, 256 pixels high, to `home`, unless they are there."""
    videos = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve() / "data/ucf101_clips"
    for kind, flags in ("rgb", ["--sampling-rate", "1"]), ("flow", ["--method", "dis"]):
        command = [f"data/extract_{kind}.py", str(videos), str(home / kind), *flags]
        if not (home / kind).is_dir() and subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            raise InputError(f"the benchmark's data could not be made; try: python {' '.join(command)}")


# --- measuring -----------------------------------------------------------------------------------------


def timed(clips: float, work: Callable[..., Any], *args: Any) -> Callable[[], Measured]:
    def run() -> Measured:
        cpu, wall = time.process_time(), time.perf_counter()
        work(*args)
        return time.process_time() - cpu, time.perf_counter() - wall, clips

    return run


def in_turns(ways: dict[str, Callable[[], Measured]], rounds: int) -> dict[str, np.ndarray]:
    """Run every way once per round, after a warm-up round: (rounds, 2) CPU and wall ms per clip of each."""
    found = [{name: way() for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {name: np.array([[1e3 * one[name][kind] / one[name][2] for kind in (0, 1)] for one in found])
            for name in ways}  # fmt: skip


def compare(what: str, classic_way: Callable[[], Measured], our_way: Callable[[], Measured], rounds: int) -> None:
    old, new = in_turns({"classic": classic_way, "ours": our_way}, rounds).values()
    cells = []
    for column, clock in enumerate(("CPU", "wall")):
        ratios = old[:, column] / new[:, column]
        cells.append(f"{clock} {np.median(old[:, column]):.2f} / {np.median(new[:, column]):.2f} ms per clip = "
                     f"{np.median(ratios):.2f}x ({ratios.min():.2f} - {ratios.max():.2f})")  # fmt: skip
    print(f"{what}, classic / ours: {'; '.join(cells)}", flush=True)


def our_dataset(home: Path, stream: str, training: bool, count: int, repeats: int = 1) -> ClipDataset:
    """Return the stream's dataset of `count` evenly chosen videos, with the baseline's preparation."""
    kind = KIND[stream]
    index = index_frames(home / kind, kind)
    names = sorted(index.names)
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    videos = [Video(names[place], place, names[place]) for place in places] * repeats
    read, stack = (ReadFlow(index.root), 10) if kind == "flow" else (ReadFrame(index.root), 1)
    preparation = default_preparation(kind, 224, "squash", stack)
    sampling = TrainSampling(SEGMENTS[stream]) if training else TestSampling(19)
    return ClipDataset(find_sources(index, videos), read, preparation, sampling)


def our_training(preparation: Any, videos: int, device: torch.device, compiled: bool) -> Training:
    settings = TrainingSettings(lr=1e-5, batch_size=videos, compile=compiled)
    training = Training(build_model("resnet101", preparation.channels, 101), preparation, device, settings)
    training.distribute()
    training.stepped.train()
    return training


def our_test(preparation: Any, device: torch.device, compiled: bool) -> InferenceNet:
    model = build_model("resnet101", preparation.channels, 101).eval()
    return InferenceNet(model, preparation, amp_dtype("auto", device), compiled).to(device)


@torch.inference_mode()
def test_step(net: InferenceNet, modality: Any, device: torch.device, batch: Any) -> None:
    net(clips_of(batch, modality, device))[0].cpu()


class WithClock:
    """A collate function that adds the worker's CPU time to each batch."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: list) -> tuple[Any, float]:
        return self.collate(items), time.process_time()


def consume(loader: Any, clips_in: Callable[[Any], int]) -> Measured:
    """Return CPU seconds of worker and main process, wall seconds and clips, between first and last batch."""
    clips, batches = 0, iter(loader)
    last = first = next(batches)[1]
    cpu, wall = time.process_time(), time.perf_counter()
    for batch, worker in batches:
        clips, last = clips + clips_in(batch), worker
    return time.process_time() - cpu + last - first, time.perf_counter() - wall, clips


# --- the parts -----------------------------------------------------------------------------------------


def loaders(args: argparse.Namespace) -> None:
    """Measure loaders, one worker each. Training batches are the original's; our test batch has 19 clips."""
    torch.set_num_threads(1)
    for stream, subset in itertools.product(KIND, ("training", "test")):
        training, kind = subset == "training", KIND[stream]
        repeats = -(-4 * BATCH[stream] // args.videos) if training else 1  # four batches
        dataset = our_dataset(args.data, stream, training, args.videos, repeats)
        frames = index_frames(args.data / kind, kind).videos
        paths = [[[frames[s.video.name][c].path(args.data / kind, i) for i in range(frames[s.video.name][c].count)]
                  for c in CHANNELS[kind]] for s in dataset.sources]  # fmt: skip
        items = classic.train_items(paths) if training else classic.test_items(paths)
        old = min(BATCH[stream], len(items) // 3)  # several batches even with few videos
        ours = Loader(dataset, BATCH[stream] if training else 1, 1, CPU)
        ours._loader.collate_fn = WithClock(ours._loader.collate_fn)
        epochs = itertools.count()

        def classic_way(items=items, old=old) -> Measured:
            loader = classic.classic_loader(items, old)
            loader.collate_fn = WithClock(torch.utils.data.default_collate)
            return consume(loader, lambda clips: sum(map(len, clips)))

        def our_way(ours=ours, epochs=epochs) -> Measured:
            ours.batches.epoch = next(epochs)  # the worker persists, as in training
            return consume(ours._loader, lambda batch: len(batch.clips))

        compare(f"{stream}, {subset}", classic_way, our_way, args.rounds)
    torch.set_num_threads(cpu_count())


def networks(args: argparse.Namespace) -> None:
    """Measure ResNet101 alone on clips in memory: motion evaluation, and a training step of both streams."""
    dataset = our_dataset(args.data, "motion", False, 1)
    preparation = dataset.preparation
    batch = next(iter(Loader(dataset, 1, 0, CPU).epoch(0)))
    net, old = our_test(preparation, CPU, args.compile), classic.classic_model(preparation.channels, 101).eval()
    floats = torch.rand(64, preparation.channels, 224, 224)  # the original's batch, also in evaluation
    compare("motion, test", timed(64, torch.inference_mode()(old), floats),
            timed(19, test_step, net, preparation.modality, CPU, batch), args.rounds)  # fmt: skip
    for stream, videos in (("motion", 8), ("spatial", 3)):
        dataset, segments = our_dataset(args.data, stream, True, args.videos, 2), SEGMENTS[stream]
        preparation = dataset.preparation
        batch = next(iter(Loader(dataset, videos, 0, CPU).epoch(0)))
        training = our_training(preparation, videos, CPU, args.compile)
        old = classic.classic_model(preparation.channels, 101).train()
        optimizer = torch.optim.SGD(old.parameters(), lr=1e-4, momentum=0.9)
        floats = to_input(clips_of(batch, preparation.modality, CPU), preparation).contiguous()
        parts = [floats[segment::segments].contiguous() for segment in range(segments)]
        compare(f"{stream}, step of {len(floats)} clips",
                timed(len(floats), classic.classic_step, old, optimizer, parts, batch.labels),
                timed(len(floats), train_step, training, batch), args.rounds)  # fmt: skip


def tvl1(args: argparse.Namespace) -> None:
    """Measure frame pairs per second of each TV-L1 on a real video, and the difference to OpenCV's flow."""
    import cv2

    from data.flow import best_backend, tvl1_flow

    dataset = our_dataset(args.data, "spatial", False, 1)
    read = dataset.read(dataset.sources[0].frames, range(9))
    frames = [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in read]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flows: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        if name == "opencv":
            method: Any = cv2.optflow.createOptFlow_DualTVL1()
            flows[name] = np.stack([method.calc(one, two, None) for one, two in itertools.pairwise(grey)])
        else:
            flows[name] = np.stack(list(tvl1_flow(frames, name)))

    names = dict.fromkeys(["opencv"] * hasattr(cv2, "optflow") + [best_backend(), "torch"])
    times = in_turns({name: timed(len(frames) - 1, run, name) for name in names}, args.rounds)
    first = next(iter(names))
    for name in names:
        off = np.linalg.norm(flows[name] - flows[first], axis=-1).mean()
        print(f"{name:8} {1e3 / np.median(times[name][:, 1]):8.2f} pairs/s, {off:.4f} px off {first}", flush=True)


def gpu(args: argparse.Namespace) -> None:
    """Measure clips/s of loader, network (with transfer) and both together, for both streams and phases."""
    if not torch.cuda.is_available():
        print("no GPU here: not measured")
        return
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True  # as in the streams
    for stream, training in itertools.product(KIND, (True, False)):
        videos = BATCH[stream] if training else 13
        repeats = -(-4 * videos * args.workers // args.videos)
        dataset = our_dataset(args.data, stream, training, args.videos, repeats)
        preparation = dataset.preparation
        loader = Loader(dataset, videos, args.workers, device)
        batches = itertools.chain.from_iterable(sent_ahead(loader.epoch(e), device) for e in itertools.count())
        step: Callable[[Any], Any]
        if training:
            step = functools.partial(train_step, our_training(preparation, videos, device, args.compile))
        else:
            net = our_test(preparation, device, args.compile)
            step = functools.partial(test_step, net, preparation.modality, device)
        here = next(batches)

        def go(source: Iterator[Any], work: Callable[[Any], Any] | None) -> None:
            for batch in itertools.islice(source, 20):
                if work:
                    work(batch)
            torch.cuda.synchronize()

        ways = {"loader": (batches, None), "network": (itertools.repeat(here), step), "together": (batches, step)}
        clips = 20 * len(here.clips)
        times = in_turns({name: timed(clips, go, *way) for name, way in ways.items()}, args.rounds)
        cells = [f"{name} {1e3 / np.median(rows[:, 1]):.0f}" for name, rows in times.items()]
        print(f"{stream}, {'training' if training else 'test'}, clips/s: {', '.join(cells)}", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "loaders": loaders, "networks": networks, "tvl1": tvl1, "gpu": gpu,
}  # fmt: skip


if __name__ == "__main__":
    run_main(main)
