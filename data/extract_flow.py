"""Extract optical flow from a folder of videos: OUT/u/<video>/frame000001.jpg (x) and OUT/v/<video>/... (y).

Image k is the flow from frame k to frame k + 1, as round(255 (clip(flow) + bound) / (2 bound)): 0 px is 128.
<video> is the file's name without suffix for UCF101's names (v_Biking_g01_c04), else its path under VIDEOS
without suffix (fight/fi001). Kill it at any moment and start it again: it goes on with the videos that aren't
done.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.extraction import (
    Reporter,
    add_arguments,
    check_arguments,
    extract_all,
    open_output,
)
from data.flow import (
    dis_flow,
    download_raft_weights,
    farneback_flow,
    flo_flow,
    quantise,
    raft_flow,
    read_raft_weights,
    tvl1_flow,
)
from data.flow_picture import draw_flow
from data.jobs import Report, cpu_count
from data.videos import VideoError, find_flo_folders, find_videos, import_cv2, read_frames, write_jpeg
from utils import HelpFormatter, InputError, run_main

METHODS = ("tvl1", "dis", "farneback", "raft", "flo")
RAFT_WORKERS_PER_GPU = 4  # so that decoding and writing keep pace with the GPU


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
            write_jpeg(folder / name / f"frame{written.count + 1:06d}.jpg", images[:, :, axis], quality)
        written.add()
    written.flush()
    if not written.count:
        raise VideoError("has a single frame, so no flow")
    return written.count


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    images = add_arguments(parser, quality=90)
    images.add_argument(
        "--method",
        choices=METHODS,
        default="tvl1",
        help="tvl1: what published two-stream models use, seconds per frame; dis: fast; farneback; "
        "raft: a network, for GPUs; flo: convert .flo files, one folder of them per video",
    )
    images.add_argument(
        "--bound", type=float, default=20.0, metavar="PIXELS", help="flow beyond this many pixels is clipped"
    )
    parser.add_argument(
        "--visualize", type=Path, metavar="PNG", help="also draw the first video's flow and one stack of it, to look at"
    )
    raft = parser.add_argument_group("raft")
    raft.add_argument(
        "--weights",
        default="large",
        metavar="large|small|PATH",
        help="torchvision's weights, downloaded once, or a file of them",
    )
    raft.add_argument(
        "--batch-frames", type=int, default=16, metavar="N", help="frames at once; more takes more memory"
    )
    return parser.parse_args()


def flow_methods(args: argparse.Namespace) -> tuple[list, dict]:
    """One flow method per worker process, and the settings that tell what they compute."""
    if args.method == "raft":
        import torch

        weights = download_raft_weights(args.weights) if args.weights in ("large", "small") else Path(args.weights)
        name, _ = read_raft_weights(weights)
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
        per_device = RAFT_WORKERS_PER_GPU if torch.cuda.is_available() else cpu_count()
        workers = args.workers or len(devices) * per_device
        methods = [
            functools.partial(
                raft_flow, weights=weights, device=devices[index % len(devices)], batch_frames=args.batch_frames
            )
            for index in range(workers)
        ]
        return methods, {"model": name, "weights": hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}
    cv2 = import_cv2()
    if args.method == "tvl1" and not hasattr(cv2, "optflow"):
        raise InputError("this OpenCV has no TV-L1; pip uninstall it and pip install opencv-contrib-python-headless")
    method = {"tvl1": tvl1_flow, "dis": dis_flow, "farneback": farneback_flow, "flo": None}[args.method]
    return [method] * (args.workers or cpu_count()), {}


def main() -> int:
    args = parse_arguments()
    check_arguments(args)
    if not args.bound > 0:
        raise InputError(f"--bound {args.bound}: give pixels, more than 0")
    if args.visualize and args.visualize.suffix.lower() != ".png":
        raise InputError(f"--visualize {args.visualize}: give the name of a .png file to write")
    if args.batch_frames < 1:
        raise InputError(f"--batch-frames {args.batch_frames}: give 1 or more")
    videos = (find_flo_folders if args.method == "flo" else find_videos)(args.videos, skip=args.out)
    methods, made_by = flow_methods(args)
    settings = {"method": args.method, "bound": args.bound, "short_side": args.short_side, "quality": args.quality}
    writers = [functools.partial(write_flow, method, args.bound, args.short_side, args.quality) for method in methods]
    with open_output(args.out, "flow", ("u", "v"), settings | made_by, args.overwrite) as output:
        code = extract_all(videos, output, writers, args.shard)
        if args.visualize:
            done = next((video for video in videos if output.is_done(video)), None)
            if done is None:
                raise InputError(f"{args.out} holds no finished video to draw")
            title = f"{done.name}: {args.method}"
            draw_flow(args.visualize, output.folders(done), done.path, args.short_side, args.bound, title)
            print(f"flow of {done.name} -> {args.visualize}")
    return code


if __name__ == "__main__":
    run_main(main)
