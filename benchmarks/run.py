"""Benchmarks of five minutes on two cores: `make bench`. Ratios are against the classic way (classic.py).

  python benchmarks/run.py                       loaders, networks and training steps, TV-L1
  python benchmarks/run.py --only gpu            loader, network and both together on a GPU

The ways that are compared take turns, so that other load on the machine affects them alike. A line gives a way's
median in ms per clip, and how many times as fast as the first way it is: the median of the rounds and its range,
by CPU time of all processes and by wall time.
"""

import argparse
import contextlib
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from benchmarks import classic
from common.commandline import ArgumentParser, bounded
from data.flow import best_backend, tvl1_flow
from data.steps import call
from dataloader.clips import ClipDataset, Loader, clips_of, sent_ahead
from dataloader.frames import ReadFlow, ReadFrame, find_sources
from dataloader.layouts import index_frames
from dataloader.lists import Video
from dataloader.preparation import default_preparation, to_input
from dataloader.sampling import TestSampling, TrainSampling
from engine.evaluation import InferenceNet
from engine.training import Training, TrainingSettings, train_step
from network import build_model
from utils import InputError, amp_dtype, cpu_count, run_main

CPU = torch.device("cpu")
KIND: dict[str, Any] = {"motion": "flow", "spatial": "rgb"}
SEGMENTS = {"motion": 1, "spatial": 3}
BATCH = {"motion": 64, "spatial": 25}  # videos, the original's
Measured = tuple[float, float]  # ms per clip, CPU time of all processes and wall time


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=["loaders", "networks", "tvl1"])
    parser.add_argument("--data", type=Path, default=ROOT / "data/bench", metavar="DIR",
                        help="holds rgb/ and flow/; made there from the shared UCF101 clips")
    parser.add_argument("--videos", type=bounded(int, 1), default=6, help="of those, how many to use, evenly chosen")
    parser.add_argument("--rounds", type=int, default=3, help="each measures every way once")
    parser.add_argument("--compile", action="store_true", help="networks by torch.compile")
    parser.add_argument("--workers", type=int, default=min(cpu_count(), 16), help="of the GPU's loader")
    args = parser.parse_args()
    torch.manual_seed(0)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    with contextlib.suppress(OSError):  # of Linux, where Python does not know the processor's name
        machine = machine or Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    print(f"{machine}, {cpu_count()} cores; torch {torch.__version__}, amp on its CPU {amp_dtype('auto', CPU)}")
    # Frames and DIS flow of UCF101's clips, 256 pixels high, are extracted unless they are there.
    videos = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve() / "data/ucf101_clips"
    for kind, flags in ("rgb", ["--sampling-rate", "1"]), ("flow", ["--method", "dis"]):
        command = [f"data/extract_{kind}.py", str(videos), str(args.data / kind), *flags]
        if not (args.data / kind).is_dir() and call(command):
            raise InputError(f"the benchmark's data could not be made; try: python {' '.join(command)}")
    for part in args.only:
        print(f"\n== {part}", flush=True)
        PARTS[part](args)


def timed(clips: float, work: Callable[..., Any], *args: Any) -> Measured:
    """Do the work, on so many clips, and return its time."""
    cpu, wall = time.process_time(), time.perf_counter()
    work(*args)
    return 1e3 * (time.process_time() - cpu) / clips, 1e3 * (time.perf_counter() - wall) / clips


def compare(what: str, ways: Mapping[str, Callable[..., Measured]], rounds: int) -> None:
    """Run every way once per round, after a warm-up round, and print their times beside the first one's."""
    found = [{name: way() for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    times = {name: np.array([one[name] for one in found]) for name in ways}  # (rounds, 2) each
    for name, rows in times.items():
        ratios = times[next(iter(ways))] / rows
        cells = [f"{clock} {np.median(rows[:, i]):.2f} ms, {np.median(ratios[:, i]):.2f}x "
                 f"({ratios[:, i].min():.2f} - {ratios[:, i].max():.2f})" for i, clock in enumerate(("CPU", "wall"))]
        print(f"{what:24} {name:8} {'; '.join(cells)}", flush=True)


def our_dataset(args: argparse.Namespace, stream: str, training: bool, least: int = 1) -> ClipDataset:
    """Return the stream's dataset of --videos, repeated to be `least` or more, with the baseline's preparation."""
    kind = KIND[stream]
    index = index_frames(args.data / kind, kind)
    names = sorted(index.names)
    places = np.linspace(0, len(names) - 1, min(args.videos, len(names))).round().astype(int)
    videos = [Video(names[place], place, names[place]) for place in places] * -(-least // len(places))
    read, stack = (ReadFlow(index.root), 10) if kind == "flow" else (ReadFrame(index.root), 1)
    preparation = default_preparation(kind, 224, "squash", stack)
    sampling = TrainSampling(SEGMENTS[stream]) if training else TestSampling(19)
    return ClipDataset(find_sources(index, videos), read, preparation, sampling)


def our_step(preparation: Any, training: bool, videos: int, device: torch.device, compiled: bool) -> Callable:
    """Return a function that trains a ResNet101 on a batch, or evaluates it, as the streams do."""
    model = build_model("resnet101", preparation.channels, 101)
    if training:
        settings = TrainingSettings(lr=1e-5, batch_size=videos, compile=compiled)
        trained = Training(model, preparation, device, settings)
        trained.distribute()
        trained.stepped.train()
        return partial(train_step, trained)
    net = InferenceNet(model.eval(), preparation, amp_dtype("auto", device), compiled).to(device)
    return torch.inference_mode()(lambda batch: net(clips_of(batch, preparation.modality, device))[0].cpu())


def with_clock(collate: Callable, items: list) -> tuple[Any, float]:
    """Collate, and add the worker's CPU time."""
    return collate(items), time.process_time()


def consume(loader: Any, clips_in: Callable[[Any], int]) -> Measured:
    """Return the time of worker and main process, between first and last batch."""
    clips, batches = 0, iter(loader)
    last = first = next(batches)[1]
    cpu, wall = time.process_time(), time.perf_counter()
    for batch, worker in batches:
        clips, last = clips + clips_in(batch), worker
    return 1e3 * (time.process_time() - cpu + last - first) / clips, 1e3 * (time.perf_counter() - wall) / clips


def loaders(args: argparse.Namespace) -> None:
    """Measure loaders, one worker each. Training batches are the original's; our test batch has 19 clips."""
    torch.set_num_threads(1)
    for stream, training in itertools.product(KIND, (True, False)):
        videos = BATCH[stream] if training else 1
        dataset = our_dataset(args, stream, training, 4 * videos)  # four batches
        clips = classic.ClassicClips(dataset, args.data / KIND[stream])
        few = min(BATCH[stream], len(clips) // 3)  # several batches even with few videos
        old = DataLoader(clips, few, num_workers=1, collate_fn=partial(with_clock, default_collate))
        ours = Loader(dataset, videos, 1, CPU).loader  # its worker persists
        ours.collate_fn = partial(with_clock, ours.collate_fn)
        ways = {"classic": partial(consume, old, lambda batch: sum(map(len, batch))),
                "ours": partial(consume, ours, lambda batch: len(batch.clips))}  # fmt: skip
        compare(f"{stream}, {'training' if training else 'test'}", ways, args.rounds)
    torch.set_num_threads(cpu_count())


def networks(args: argparse.Namespace) -> None:
    """Measure ResNet101 alone on clips in memory: motion evaluation, and a training step of both streams."""
    for stream, videos, training in (("motion", 1, False), ("motion", 8, True), ("spatial", 3, True)):
        dataset = our_dataset(args, stream, training, videos)
        preparation, segments = dataset.preparation, SEGMENTS[stream]
        batch = next(iter(Loader(dataset, videos, 0, CPU).epoch(0)))
        step = our_step(preparation, training, videos, CPU, args.compile)
        ours = partial(timed, len(batch.clips), step, batch)
        old = classic.classic_model(preparation.channels, 101).train(training)
        if training:
            optimizer = torch.optim.SGD(old.parameters(), lr=1e-4, momentum=0.9)
            floats = to_input(clips_of(batch, preparation.modality, CPU), preparation).contiguous()
            parts = [floats[segment::segments].contiguous() for segment in range(segments)]
            theirs = partial(timed, len(floats), classic.classic_step, old, optimizer, parts, batch.labels)
        else:
            floats = torch.rand(64, preparation.channels, 224, 224)  # the original's batch, also in evaluation
            theirs = partial(timed, 64, torch.inference_mode()(old), floats)
        what = f"step of {len(batch.clips)} clips" if training else "test"
        compare(f"{stream}, {what}", {"classic": theirs, "ours": ours}, args.rounds)


def tvl1(args: argparse.Namespace) -> None:
    """Measure the time per frame pair of each TV-L1 on a real video, and the difference to OpenCV's flow."""
    dataset = our_dataset(args, "spatial", False)
    read = dataset.read(dataset.sources[0].frames, range(9))
    frames = [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in read]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flows: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        method: Any = cv2.optflow.createOptFlow_DualTVL1() if name == "opencv" else None
        flows[name] = np.stack(list(
            (method.calc(*pair, None) for pair in itertools.pairwise(grey)) if method else tvl1_flow(frames, name)
        ))  # fmt: skip

    names = dict.fromkeys(["opencv"] * hasattr(cv2, "optflow") + [best_backend(), "torch"])
    compare("tvl1, a pair", {name: partial(timed, len(frames) - 1, run, name) for name in names}, args.rounds)
    for name, flow in flows.items():
        print(f"{name}: {np.linalg.norm(flow - next(iter(flows.values())), axis=-1).mean():.4f} px off the first")


def gpu(args: argparse.Namespace) -> None:
    """Measure loader, network (with transfer) and both together, for both streams and phases."""
    if not torch.cuda.is_available():
        print("no GPU here: not measured")
        return
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True  # as in the streams
    for stream, training in itertools.product(KIND, (True, False)):
        videos = BATCH[stream] if training else 13
        dataset = our_dataset(args, stream, training, 4 * videos * args.workers)
        loader = Loader(dataset, videos, args.workers, device)
        batches = itertools.chain.from_iterable(sent_ahead(loader.epoch(e), device) for e in itertools.count())
        step = our_step(dataset.preparation, training, videos, device, args.compile)
        here = next(batches)

        def go(source: Iterator[Any], work: Callable[[Any], Any]) -> None:
            for batch in itertools.islice(source, 20):
                work(batch)
            torch.cuda.synchronize()

        ways = {"loader": (batches, lambda batch: None), "network": (itertools.repeat(here), step),
                "together": (batches, step)}  # fmt: skip
        timed_ways = {name: partial(timed, 20 * len(here.clips), go, *way) for name, way in ways.items()}
        compare(f"{stream}, {'training' if training else 'test'}", timed_ways, args.rounds)


PARTS = {part.__name__: part for part in (loaders, networks, tvl1, gpu)}


if __name__ == "__main__":
    run_main(main)
