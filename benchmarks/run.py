"""What can be measured in five minutes on two cores: `make bench`. Every ratio is against the classic way (classic.py).

  python benchmarks/run.py                       loaders, networks and training steps, TV-L1
  python benchmarks/run.py --only gpu            loader, network and both together on a GPU

Ways take turns, so that what else the machine does hits all alike. A line gives medians in ms per clip, and the median
ratio of the rounds with its range, by CPU time of all processes and by wall time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import classic
from common.commandline import ArgumentParser
from dataloader.clips import ClipDataset, clips_of, make_loader, sent_ahead
from dataloader.frames import CHANNELS, index_frames
from dataloader.images import ReadFlow, ReadFrame, find_sources
from dataloader.names import Video
from dataloader.preparation import default_preparation, to_input
from dataloader.sampling import TestSampling, TrainSampling
from engine.evaluation import InferenceNet
from engine.training import Training, TrainingSettings, amp_dtype, train_step
from network import build_model
from utils import InputError, cpu_count, run_main

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
CLASSES = 101
KIND = {"motion": "flow", "spatial": "rgb"}
Measured = tuple[float, float, float]  # CPU seconds of all processes, wall seconds, clips
HEADER = f"{'ms per clip':34}{' CPU: classic  ours  ratio':39} wall: classic  ours  ratio"


def main() -> int:
    args = parse_arguments()
    torch.manual_seed(0)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(f"{name}, {cpu_count()} cores{gpu}; torch {torch.__version__}, amp {amp_dtype('auto', CPU)}")
    prepare(args.data)
    for part in args.only:
        print(f"\n== {part}\n{HEADER if part in ('loaders', 'networks') else ''}", flush=True)
        PARTS[part](args)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=["loaders", "networks", "tvl1"])
    parser.add_argument("--data", type=Path, default=ROOT / "data/bench", metavar="DIR",
                        help="holds rgb/ and flow/; made there from the shared UCF101 clips, or from the demo's videos")
    parser.add_argument("--videos", type=int, default=6, help="of those, how many to use, evenly chosen")
    parser.add_argument("--rounds", type=int, default=3, help="each measures every way once")
    parser.add_argument("--compile", action="store_true", help="networks by torch.compile")
    parser.add_argument("--workers", type=int, default=min(cpu_count(), 16), help="of the GPU's loader")
    return parser.parse_args()


def prepare(home: Path) -> None:
    """Frames and DIS flow of real videos under `home`, 256 pixels high, made unless they are there."""
    if (home / "rgb").is_dir() and (home / "flow").is_dir():
        return
    videos = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve() / "data/ucf101_clips"
    commands = [
        ["data/extract_rgb.py", str(videos), str(home / "rgb"), "--sampling-rate", "1"],
        ["data/extract_flow.py", str(videos), str(home / "flow"), "--method", "dis"],
    ]
    if not videos.is_dir():
        commands = [["data/make_demo.py", str(home)], *[[c[0], str(home / "videos"), *c[2:]] for c in commands]]
    for command in commands:
        if subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            raise InputError(f"the benchmark's data could not be made; try: python {' '.join(command)}")


# --- measuring -----------------------------------------------------------------------------------------


def timed(clips: float, work: Callable[..., Any], *args: Any) -> Callable[[], Measured]:
    def run() -> Measured:
        cpu, wall = time.process_time(), time.perf_counter()
        work(*args)
        return time.process_time() - cpu, time.perf_counter() - wall, clips

    return run


def in_turns(ways: dict[str, Callable[[], Measured]], rounds: int) -> dict[str, np.ndarray]:
    """Run every way once per round, after one round to warm up: (rounds, 2) CPU and wall ms per clip of each."""
    times: dict[str, list] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            cpu, wall, clips = way()
            if turn:
                times[name].append((1e3 * cpu / clips, 1e3 * wall / clips))
    return {name: np.array(rows) for name, rows in times.items()}


def ratio_line(what: str, old: np.ndarray, new: np.ndarray) -> str:
    cells = [what.ljust(34)]
    for column in (0, 1):
        ratios = old[:, column] / new[:, column]
        cells.append(
            f"{np.median(old[:, column]):8.2f} {np.median(new[:, column]):8.2f} {np.median(ratios):6.2f}x "
            f"({ratios.min():.2f}-{ratios.max():.2f})".ljust(38)
        )
    return " ".join(cells)


def our_dataset(home: Path, stream: str, sampling: Any, count: int, repeats: int = 1) -> ClipDataset:
    """The stream's dataset over `count` evenly chosen videos, with the baseline's preparation."""
    kind: Any = KIND[stream]
    index = index_frames(home / kind, kind)
    names = sorted(index.names)
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    videos = [Video(names[place], place, names[place]) for place in places] * repeats
    preparation = default_preparation(kind, 224, "squash", 10)
    read = ReadFlow(index.root) if kind == "flow" else ReadFrame(index.root)
    return ClipDataset(find_sources(index, videos), read, preparation, sampling)


def image_paths(home: Path, stream: str, dataset: ClipDataset) -> list[list[list[Path]]]:
    """Of every video of `dataset` the paths of its images: of RGB, or of x and of y flow."""
    kind: Any = KIND[stream]
    videos = index_frames(home / kind, kind).videos
    return [
        [[videos[s.video.name][c].path(home / kind, i) for i in range(videos[s.video.name][c].count)]
         for c in CHANNELS[kind]]
        for s in dataset.sources
    ]  # fmt: skip


# --- the parts -----------------------------------------------------------------------------------------


class WithClock:
    """A collate function that adds the worker's CPU time to each batch."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: list) -> tuple[Any, float]:
        return self.collate(items), time.process_time()


def consume(loader: Any, clips_in: Callable[[Any], int]) -> Measured:
    """CPU seconds of worker and main process, wall seconds and clips, from the first batch to the last."""
    clips, first = 0, None
    for batch, worker in loader:
        if first is None:
            first, cpu, wall = worker, time.process_time(), time.perf_counter()
            continue
        clips += clips_in(batch)
        last = time.process_time() - cpu + worker - first, time.perf_counter() - wall
    return *last, clips


def loaders(args: argparse.Namespace) -> None:
    """One worker process each; training batches are the original's, our test batch is a video of 19 clips."""
    torch.set_num_threads(1)
    for stream, batch_size in (("motion", 64), ("spatial", 25)):
        for subset in ("training", "test"):
            training = subset == "training"
            sampling: Any = TrainSampling(1 if stream == "motion" else 3) if training else TestSampling(19)
            repeats = -(-4 * batch_size // args.videos) if training else 1  # four batches
            dataset = our_dataset(args.data, stream, sampling, args.videos, repeats)
            paths = image_paths(args.data, stream, dataset)
            items = classic.train_items(paths) if training else classic.test_items(paths)
            ours = make_loader(dataset, batch_size if training else 1, 1, CPU)
            ours._loader.collate_fn = WithClock(ours._loader.collate_fn)
            epochs = itertools.count()

            old_batch = min(batch_size, len(items) // 3)  # of few videos, still several batches

            def classic_way(items=items, old_batch=old_batch) -> Measured:
                loader = classic.classic_loader(items, old_batch)
                loader.collate_fn = WithClock(torch.utils.data.default_collate)
                return consume(loader, lambda clips: sum(map(len, clips)))

            def our_way(ours=ours, epochs=epochs) -> Measured:
                ours.batches.epoch = next(epochs)  # the worker stays, as in a training
                return consume(ours._loader, lambda batch: len(batch.clips))

            times = in_turns({"classic": classic_way, "ours": our_way}, args.rounds)
            print(ratio_line(f"{stream}, {subset}", times["classic"], times["ours"]), flush=True)
    torch.set_num_threads(cpu_count())


def networks(args: argparse.Namespace) -> None:
    """ResNet101 alone: the motion stream's test, and a training step of both streams, on clips in memory."""
    dataset = our_dataset(args.data, "motion", TestSampling(19), 1)
    batch = next(iter(make_loader(dataset, 1, 0, CPU).epoch(0)))
    model = build_model("resnet101", dataset.preparation.channels, CLASSES).eval()
    old = classic.classic_model(dataset.preparation.channels, CLASSES).eval()
    net = InferenceNet(model, dataset.preparation, amp_dtype("auto", CPU), args.compile)
    floats = torch.rand(64, dataset.preparation.channels, 224, 224)  # the original's batch, in tests too
    with torch.inference_mode():
        ways = {"classic": timed(64, old, floats),
                "ours": timed(19, lambda: net(clips_of(batch, dataset.preparation.modality, CPU)))}  # fmt: skip
        times = in_turns(ways, args.rounds)
    print(ratio_line("motion, test", times["classic"], times["ours"]), flush=True)
    for stream, videos, segments in (("motion", 8, 1), ("spatial", 3, 3)):
        dataset = our_dataset(args.data, stream, TrainSampling(segments), args.videos, 2)
        preparation = dataset.preparation
        batch = next(iter(make_loader(dataset, videos, 0, CPU).epoch(0)))
        settings = TrainingSettings(lr=1e-4, batch_size=videos, compile=args.compile)
        training = Training(build_model("resnet101", preparation.channels, CLASSES), preparation, CPU, settings)
        training.distribute()
        training.stepped.train()
        old = classic.classic_model(preparation.channels, CLASSES).train()
        optimizer = torch.optim.SGD(old.parameters(), lr=1e-4, momentum=0.9)
        floats = to_input(clips_of(batch, preparation.modality, CPU), preparation).contiguous()
        parts = [floats[segment::segments].contiguous() for segment in range(segments)]
        ways = {"classic": timed(len(floats), classic.classic_step, old, optimizer, parts, batch.labels),
                "ours": timed(len(floats), train_step, training, batch)}  # fmt: skip
        times = in_turns(ways, args.rounds)
        print(ratio_line(f"{stream}, step of {len(floats)} clips", times["classic"], times["ours"]), flush=True)


def tvl1(args: argparse.Namespace) -> None:
    """Pairs of frames per second of every TV-L1 that runs here, on frames of a real video; against OpenCV's flow."""
    from data.tvl1 import is_installed
    from data.tvl1.tensor import tvl1_pairs

    dataset = our_dataset(args.data, "spatial", TestSampling(9), 1)
    frames = torch.from_numpy(np.stack([frame.mean(-1).astype(np.uint8) for frame in next(read_frames(dataset))]))
    names = [name for name in ("opencv", "numba", "torch") if is_installed(name)]
    flows: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        flows[name] = tvl1_pairs(frames[:-1], frames[1:], backend=name)

    times = in_turns({name: timed(len(frames) - 1, run, name) for name in names}, args.rounds)
    for name in names:
        off = (flows[name] - flows[names[0]]).norm(dim=1).mean()
        print(f"{name:8} {1e3 / np.median(times[name][:, 1]):8.2f} pairs/s, "
              f"{np.median(times[names[0]][:, 1] / times[name][:, 1]):6.2f} x {names[0]}, {off:.4f} px off", flush=True)


def read_frames(dataset: ClipDataset):
    """For each video its consecutive frames, (height, width, 3) uint8."""
    for source in dataset.sources:
        yield list(dataset.read(source.frames, range(9)))


def gpu(args: argparse.Namespace) -> None:
    """Clips per second of loader, network (transfer included) and both together, for both streams and phases."""
    if not torch.cuda.is_available():
        print("no GPU here: not measured")
        return
    device, seconds = torch.device("cuda"), 5.0
    torch.backends.cudnn.benchmark = True  # as the streams have it
    for stream, phase in itertools.product(KIND, ("training", "test")):
        training = phase == "training"
        videos = (64 if stream == "motion" else 25) if training else 13
        sampling: Any = TrainSampling(1 if stream == "motion" else 3) if training else TestSampling(19)
        dataset = our_dataset(args.data, stream, sampling, args.videos, -(-4 * videos * args.workers // args.videos))
        loader = make_loader(dataset, videos, args.workers, device)
        batches = itertools.chain.from_iterable(sent_ahead(loader.epoch(e), device) for e in itertools.count())
        model = build_model("resnet101", dataset.preparation.channels, CLASSES)
        if training:
            settings = TrainingSettings(lr=1e-5, batch_size=videos, compile=args.compile)
            state = Training(model, dataset.preparation, device, settings)
            state.distribute()
            state.stepped.train()
        else:
            net = InferenceNet(model, dataset.preparation, amp_dtype("auto", device), args.compile).to(device)

        def compute(batch: Any) -> int:
            if training:  # noqa: B023 (called in this round alone)
                train_step(state, batch)  # noqa: B023
            else:
                with torch.inference_mode():
                    net(clips_of(batch, dataset.preparation.modality, device))[0].cpu()  # noqa: B023
            return len(batch.clips)

        def rate(work: Callable[[], int]) -> float:
            for _ in range(3):
                work()
            torch.cuda.synchronize()
            start, clips = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                clips += work()
            torch.cuda.synchronize()
            return clips / (time.perf_counter() - start)

        here = next(batches)
        rates = [rate(lambda: len(next(batches).clips)), rate(lambda: compute(here)),  # noqa: B023
                 rate(lambda: compute(next(batches)))]  # noqa: B023  # fmt: skip
        print(f"{stream:8} {phase:9} loader {rates[0]:9.1f}, network {rates[1]:9.1f}, together {rates[2]:9.1f} clips/s",
              flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "loaders": loaders, "networks": networks, "tvl1": tvl1, "gpu": gpu,
}  # fmt: skip


if __name__ == "__main__":
    run_main(main)
