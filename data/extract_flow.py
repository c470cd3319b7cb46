"""Extract optical flow from a folder of videos: OUT/u/<video>/frame000001.jpg (x) and OUT/v/<video>/... (y).

Image k is the flow from frame k to frame k + 1, as round(255 (clip(flow) + bound) / (2 bound)): 0 px is 128.
<video> is the path under VIDEOS without suffix (fight/fi001); for UCF101's names it is the file name alone
(v_Biking_g01_c04). If it was killed, start it again: it continues with the unfinished videos.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.commandline import ArgumentParser, bounded
from data.extraction import add_arguments, extract_all, open_output
from data.flow import BATCH_FRAMES, PLAIN_METHODS, best_backend, load_raft, quantise, raft_flow, raft_weights, tvl1_flow
from data.videos import VideoError, encode_jpeg, find_videos, read_frames
from utils import InputError, cpu_count, file_digest, run_main

WORKERS_PER_GPU = 4  # so that decoding and writing keep up with the GPU
Method = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]  # see data.flow: frames -> flows


def write_flow(method: Method, bound: float, short_side: int, quality: int, video: Path, folder: Path) -> int:
    """Write the flow of `video` to `folder`/{u,v}/frame%06d.jpg. Returns the number of pairs."""
    number = 0
    for number, flow in enumerate(method(read_frames(video, short_side)), 1):
        images = quantise(flow, bound)
        for axis, name in enumerate("uv"):
            (folder / name / f"frame{number:06d}.jpg").write_bytes(encode_jpeg(images[:, :, axis], quality))
    if not number:
        raise VideoError("has a single frame, so no flow")
    return number


def find_devices(args: argparse.Namespace) -> list[str]:
    """Return the devices to compute on: all GPUs, or the CPU."""
    if args.method not in ("tvl1", "raft") or args.device == "cpu":
        return ["cpu"]
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if args.device == "cuda" and not gpus:
        raise InputError("--device cuda: PyTorch finds no GPU here; leave it out to compute on the CPU")
    return gpus or ["cpu"]


def choose_methods(args: argparse.Namespace, devices: list[str]) -> tuple[list[Any], dict[str, str]]:
    """Return the flow method on each device, and settings that aren't flags.

    The settings identify what else determines the output's bytes. TV-L1 by numba has none: it gives OpenCV's.
    """
    if args.method == "raft":
        weights = raft_weights(args.weights)
        made_by = {"model": load_raft(weights)[0], "weights": file_digest(weights)[:16]}
        method = partial(raft_flow, weights=weights)
    elif args.method == "tvl1":
        device, backend = devices[0], best_backend(devices[0])
        made_by = {} if backend == "numba" else {"backend": backend} if device == "cpu" else {"device": "cuda"}
        slow = "; pip install numba to have it ten times as fast" if "backend" in made_by else ""
        print(f"tvl1: {backend}, on {device}{slow}; --method dis is coarser and many times as fast", flush=True)
        method = partial(tvl1_flow, backend=backend)
    else:
        return [PLAIN_METHODS[args.method]], {}
    return [partial(method, device=device, batch_frames=args.batch_frames) for device in devices], made_by


def main() -> int:
    parser = ArgumentParser(__doc__)
    images = add_arguments(parser)
    images.add_argument("--method", choices=("tvl1", *PLAIN_METHODS, "raft"), default="tvl1",
                        help="tvl1: what published two-stream models use; dis: coarser, many times as fast on a CPU; "
                        "raft: a network, for GPUs")
    images.add_argument("--bound", type=bounded(float, 0.01, 1e4), default=20.0, metavar="PIXELS",
                        help="flow beyond this many pixels is clipped")
    device = parser.add_argument_group("tvl1 and raft")
    device.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help=f"auto: all GPUs, {WORKERS_PER_GPU} processes each, else the CPU. A GPU rounds "
                        "differently, so a folder is of one of both")
    device.add_argument("--batch-frames", type=bounded(int, 1), default=BATCH_FRAMES, metavar="N",
                        help="frames at once on a GPU; more need more memory")
    raft = parser.add_argument_group("raft")
    raft.add_argument("--weights", default="large", metavar="large|small|PATH",
                      help="torchvision's weights, downloaded once, or a file of them")
    args = parser.parse_args()
    videos = find_videos(args.videos, skip=args.out)
    devices = find_devices(args)
    workers = args.workers or (cpu_count() if devices == ["cpu"] else WORKERS_PER_GPU * len(devices))
    methods, made_by = choose_methods(args, devices)
    look = {"bound": args.bound, "short_side": args.short_side, "quality": args.quality}
    writers = [partial(write_flow, methods[index % len(methods)], *look.values()) for index in range(workers)]
    with open_output(args.out, "flow", ("u", "v"), {"method": args.method} | look | made_by) as output:
        return extract_all(videos, output, writers, args.shard)


if __name__ == "__main__":
    run_main(main)
