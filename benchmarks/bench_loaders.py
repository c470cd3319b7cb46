"""Loader rates: the classic way against ours, one worker process each, in turns.

  python benchmarks/bench_loaders.py [--data DIR] [--rounds 5]

CPU time is that of the worker and of the main process together, from the second batch on; it is what a clip costs
a core, and the one that counts on a machine that does other things, too. Wall time is the main process' wait.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import default_collate

from benchmarks import classic
from benchmarks.measure import HEADER, ROOT, Stopwatch, bench_parser, chosen, in_turns, machine, prepare, ratio_line
from dataloader.clips import ClipDataset, TestSampling, TrainSampling, clips_of
from dataloader.frames import index_frames
from dataloader.images import ReadFlow, ReadFrame, find_sources
from dataloader.loader import make_loader
from dataloader.names import Video
from dataloader.preparation import default_preparation, to_input
from dataloader.sampling import rng_for
from utils import run_main

BARS = {("motion", "train"): 4.5, ("spatial", "train"): 3.0, ("motion", "test"): 4.0, ("spatial", "test"): 4.0}


class WithClock:
    """A collate function that adds the worker's CPU time to each batch."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: list) -> tuple[Any, float]:
        return self.collate(items), time.process_time()


def consume(loader: Any, clips_in: Any) -> tuple[float, float, int]:
    """(CPU seconds of worker and main process, wall seconds, clips), from the first batch to the last."""
    clips, started = 0, None
    for batch, worker_clock in loader:
        if started is None:
            started, watch = worker_clock, Stopwatch()
            continue
        clips += clips_in(batch)
        cpu, wall = watch.read()
        total = cpu + worker_clock - started
    return total, wall, clips


def classic_way(root: Path, clips: list, batch_size: int) -> Any:
    """One pass over the clips."""

    def run() -> tuple[float, float, int]:
        loader = classic.classic_loader(root, clips, batch_size, workers=1)
        loader.collate_fn = WithClock(default_collate)
        return consume(loader, lambda batch: len(batch[0]) * len(batch[1]))

    return run


def our_way(dataset: ClipDataset, batch_size: int) -> Any:
    """One epoch; the worker stays, as in a training."""
    loader = make_loader(dataset, batch_size, 1, torch.device("cpu"))
    loader._loader.collate_fn = WithClock(loader._loader.collate_fn)
    epoch = -1

    def run() -> tuple[float, float, int]:
        nonlocal epoch
        epoch += 1
        loader.batches.epoch = epoch
        return consume(loader._loader, lambda batch: len(batch.clips))

    return run


def our_dataset(stream: str, root: Path, names: list[str], sampling: Any, size: int = 224) -> ClipDataset:
    """The stream's data set over these videos, with the baseline's preparation."""
    once = {name: Video(name, 0, name) for name in names}
    videos = [once[name] for name in names]
    if stream == "motion":
        index = index_frames(root, "flow")
        preparation = default_preparation("flow", size, "squash", 10)
        return ClipDataset(find_sources(index, videos), ReadFlow(index.root), preparation, sampling)
    index = index_frames(root, "rgb")
    preparation = default_preparation("rgb", size, "squash")
    return ClipDataset(find_sources(index, videos), ReadFrame(index.root), preparation, sampling)


def pack(home: Path, kind: str) -> Path:
    """The packed data set of a kind, packed unless it is there."""
    target = home / f"{kind}.pack"
    command = [sys.executable, str(ROOT / "data" / "pack.py"), str(home / kind), str(target)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return target


def to_floats(dataset: ClipDataset) -> float:
    """CPU milliseconds per clip for what the classic worker does and ours leaves to the device: floats."""
    batch = dataset.clips(dataset.sources[0], rng_for(0, 0, 0))
    for _ in range(2):  # the first time is not warm
        watch = Stopwatch()
        to_input(clips_of(batch, dataset.preparation.modality, torch.device("cpu")), dataset.preparation)
    return 1e3 * watch.read()[0] / len(batch.clips)


def main() -> int:
    parser = bench_parser(__doc__)
    args = parser.parse_args()
    home = prepare(args.data)
    torch.set_num_threads(1)
    print(machine())
    print(HEADER)
    for stream, kind in (("motion", "flow"), ("spatial", "rgb")):
        root = home / kind
        videos = classic.videos_of(root, kind)
        names = chosen(list(videos), args.videos)
        videos = {name: videos[name] for name in names}
        batch_size = 64 if stream == "motion" else 25  # the original's, for its tests too
        for subset in ("train", "test"):
            if subset == "train":
                repeats = -(-4 * batch_size // len(names))  # four batches
                clips = classic.train_clips(videos, repeats)
                dataset = our_dataset(stream, root, names * repeats, TrainSampling(1 if stream == "motion" else 3))
                our_batch = batch_size
            else:
                clips = classic.test_clips(videos)
                dataset = our_dataset(stream, root, names, TestSampling(19))
                our_batch = 1  # video, of 19 clips
            packed = copy.copy(dataset)
            used = [source.video.name for source in dataset.sources]
            packed.sources = our_dataset(stream, pack(home, kind), used, None).sources
            ways = {
                "classic": classic_way(root, clips, batch_size),
                "ours": our_way(dataset, our_batch),
                "packed": our_way(packed, our_batch),
            }
            in_turns(ways, 1)  # the files come into memory
            times = in_turns(ways, args.rounds)
            print(ratio_line(f"{stream} {subset}", times["classic"], times["ours"], BARS[stream, subset]), flush=True)
            print(ratio_line("  packed, against the folder", times["ours"], times["packed"]), flush=True)
        print(f"  to floats, which ours leaves to the device: {to_floats(dataset):.2f} ms per clip if that is this CPU")
    return 0


if __name__ == "__main__":
    run_main(main)
