"""Extract optical flow from a folder of videos: OUT/u/<video>/frame000001.jpg (x) and OUT/v/<video>/... (y).

Image k is the flow from frame k to frame k + 1, as round(255 (clip(flow) + bound) / (2 bound)): 0 px is 128.
<video> is the file's name without suffix for UCF101's names (v_Biking_g01_c04), else its path under VIDEOS
without suffix (fight/fi001). Kill it at any moment and start it again: it goes on with the videos that aren't
done.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.commandline import ArgumentParser, bounded
from common.progress import duration
from data.extraction import Reporter, add_arguments, extract_all, open_output
from data.flow import (
    PLAIN_METHODS,
    download_raft_weights,
    flo_flow,
    quantise,
    raft_flow,
    read_raft_weights,
    tvl1_flow,
)
from data.jobs import Report
from data.tvl1 import OPENCVS, suitable_backends
from data.videos import (
    VideoError,
    VideoFile,
    count_frames,
    encode_jpeg,
    find_flo_folders,
    find_videos,
    import_cv2,
    read_frames,
)
from dataloader.extracted import extraction_settings
from utils import InputError, cpu_count, plural, run_main

METHODS = ("tvl1", *PLAIN_METHODS, "raft", "flo")
WORKERS_PER_GPU = 4  # so that decoding and writing keep pace with the GPU
RAFT_PAIRS = 16  # at once
Method = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]  # of data.flow: from frames to flows


def write_flow(method, bound: float, short_side: int, quality: int, video: Path, folder: Path, report: Report) -> int:
    """Write the flow of `video` as `folder`/{u,v}/frame%06d.jpg; returns how many pairs.

    `method` is one of data.flow's from frames to flows, or None: `video` is then a folder of .flo files.
    """
    written = Reporter(report)
    claim = functools.partial(report, "claimed")
    if method is None:
        flows = flo_flow(video, short_side, claim)
    else:
        flows = method(read_frames(video, short_side, claim=lambda frames: claim(frames - 1)))
    for flow in flows:
        images = quantise(flow, bound)
        for axis, name in enumerate("uv"):
            data = encode_jpeg(images[:, :, axis], quality)
            (folder / name / f"frame{written.count + 1:06d}.jpg").write_bytes(data)
        written.add()
    written.flush()
    if not written.count:
        raise VideoError("has a single frame, so no flow")
    return written.count


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    images = add_arguments(parser)
    images.add_argument(
        "--method",
        choices=METHODS,
        default="tvl1",
        help="tvl1: what published two-stream models use; dis: coarser, many times as fast on a CPU; "
        "raft: a network, for GPUs; flo: convert .flo files, one folder of them per video",
    )
    images.add_argument(
        "--bound", type=float, default=20.0, metavar="PIXELS", help="flow beyond this many pixels is clipped"
    )
    device = parser.add_argument_group("tvl1 and raft")
    device.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"auto: all GPUs, {WORKERS_PER_GPU} processes each, if there are any; but tvl1 that was begun on the CPU "
        "goes on there, as a GPU rounds differently",
    )
    device.add_argument(
        "--batch-frames",
        type=bounded(int, 0),
        default=0,
        metavar="N",
        help=f"frames at once, where more take more memory; 0: for tvl1 as many as suit a GPU, for raft {RAFT_PAIRS}",
    )
    raft = parser.add_argument_group("raft")
    raft.add_argument(
        "--weights",
        default="large",
        metavar="large|small|PATH",
        help="torchvision's weights, downloaded once, or a file of them",
    )
    return parser.parse_args()


def find_devices(args: argparse.Namespace) -> list[str]:
    """The devices to compute on: every GPU, or the CPU."""
    if args.method not in ("tvl1", "raft") or args.device == "cpu":
        return ["cpu"]
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if args.device == "cuda" and not gpus:
        raise InputError("--device cuda: PyTorch finds no GPU here; leave it out to compute on the CPU")
    if gpus and args.device == "auto" and args.method == "tvl1" and not args.overwrite:
        begun = extraction_settings(args.out)
        if begun.get("method") == "tvl1" and "device" not in begun:
            print(f"{args.out} was begun on the CPU, and goes on there; --device cuda needs another folder")
            return ["cpu"]
    return gpus or ["cpu"]


def made_by(args: argparse.Namespace, device: str) -> dict:
    """Settings that tell what else than the flags makes the bytes; nothing for OpenCV's methods."""
    if args.method == "raft":
        weights = raft_weights(args)
        name, _ = read_raft_weights(weights)
        return {"model": name, "weights": hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}
    if args.method != "tvl1" or suitable_backends(device)[0] in OPENCVS:
        return {}
    return {"device": device.partition(":")[0]} if device != "cpu" else {"backend": "torch"}


def raft_weights(args: argparse.Namespace) -> Path:
    return download_raft_weights(args.weights) if args.weights in ("large", "small") else Path(args.weights)


def flow_methods(args: argparse.Namespace, devices: list[str], workers: int) -> list:
    """The flow method of every worker process: its function with its device."""
    if args.method not in ("tvl1", "raft"):
        return [PLAIN_METHODS.get(args.method)] * workers  # None for flo
    if args.method == "raft":
        method = functools.partial(raft_flow, weights=raft_weights(args), batch_frames=args.batch_frames or RAFT_PAIRS)
    else:
        backend = choose_tvl1(devices[0])
        per_device = -(-workers // len(devices))
        method = functools.partial(tvl1_flow, backend=backend, batch_frames=args.batch_frames, processes=per_device)
    return [functools.partial(method, device=devices[index % len(devices)]) for index in range(workers)]


def choose_tvl1(device: str) -> str:
    """Return the backend of TV-L1 on `device`: the first that works here."""
    backends = suitable_backends(device) if device == "cpu" else ["compiled", "torch"]
    backend = next((name for name in backends if works(name, device)), None)
    if backend is None:
        raise InputError("TV-L1 works neither with numba nor with OpenCV here; reinstall numba")
    slow = backend == "opencv" or (backend == "torch" and device == "cpu")
    advice = "; pip install numba to have it ten times as fast" if slow else ""
    print(f"tvl1: {backend}, on {'processors' if device == 'cpu' else 'a GPU'}{advice}")
    return backend


def works(backend: str, device: str) -> bool:
    """Return whether an installed backend computes a flow: a numba may be made for another numpy."""
    frames = [np.zeros((32, 32, 3), np.uint8)] * 2
    try:
        return bool(list(tvl1_flow(frames, backend, device)))
    except Exception:  # no compiler, another numpy, ...: whatever it is, there are the others
        return False


def announce_time(videos: Sequence[VideoFile], method: Method, processes: int, short_side: int) -> None:
    """Say how long TV-L1 will take on processors: by the packets of some files, and by its speed on them, measured."""
    counts: list[int] = []
    frames: list[list[np.ndarray]] = []  # the first of some videos
    for video in videos[:: max(1, len(videos) // 20)]:
        with contextlib.suppress(VideoError):
            counts.append(count_frames(video.path))
            if len(frames) < 3:
                frames.append(list(itertools.islice(read_frames(video.path, short_side), 4)))
    if not sum(counts):
        return
    pairs, took = len(videos) * sum(counts) / len(counts), []
    for each in (method, PLAIN_METHODS["dis"]):
        started, done = time.monotonic(), 0
        for few in frames:
            done += len(list(each(iter(few))))
        took.append(duration(pairs * (time.monotonic() - started) / max(1, done) / processes))
    print(
        f"tvl1: about {took[0]} for {pairs:,.0f} pairs of frames in {plural(processes, 'process')}; "
        f"--method dis is coarser and takes about {took[1]}",
        flush=True,
    )


def main() -> int:
    args = parse_arguments()
    if not 0 < args.bound < math.inf:
        raise InputError(f"--bound {args.bound}: give pixels, more than 0")
    import_cv2()
    videos = (find_flo_folders if args.method == "flo" else find_videos)(args.videos, skip=args.out)
    devices = find_devices(args)
    per_device = cpu_count() if devices == ["cpu"] else WORKERS_PER_GPU
    workers = args.workers or len(devices) * per_device
    settings = {"method": args.method, "bound": args.bound, "short_side": args.short_side, "quality": args.quality}

    def make_writers(todo: Sequence[VideoFile]) -> list:
        methods = flow_methods(args, devices, workers)
        if args.method == "tvl1" and devices == ["cpu"]:
            processes = min(workers, cpu_count(), len(todo))
            announce_time(todo, methods[0], processes, args.short_side)
        return [functools.partial(write_flow, method, args.bound, args.short_side, args.quality) for method in methods]

    with open_output(args.out, "flow", ("u", "v"), settings | made_by(args, devices[0]), args.overwrite) as output:
        return extract_all(videos, output, make_writers, args.shard)


if __name__ == "__main__":
    run_main(main)
