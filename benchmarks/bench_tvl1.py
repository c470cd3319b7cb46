"""Speed and agreement of TV-L1 flow: every backend that runs here, on the CPU and on a GPU where there is one.

    python benchmarks/bench_tvl1.py                          # a synthetic texture
    python benchmarks/bench_tvl1.py --video v_Biking_g01_c04.avi

Prints one table: pairs of frames per second, with default parameters, the median over rounds in which the backends
take turns, so that whatever else runs on the machine hits all alike. OpenCV's flow is what the others are held
against: mean end-point difference in pixels, and the share of grey levels (bound 20) that differ by at most 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from common.commandline import ArgumentParser
from data.tvl1.tensor import automatic_batch_frames, is_installed, moving_texture, tvl1_pairs
from utils import InputError, run_main


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--video", type=Path, help="take frames of this video, not a moving texture")
    parser.add_argument("--size", type=int, nargs=2, default=(340, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--pairs", type=int, default=8, help="pairs in a round on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one that isn't counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for the CPU's backends")
    parser.add_argument("--batch-frames", type=int, default=0,
                        help="pairs at once on a GPU; 0: as many as its memory takes")
    parser.add_argument("--skip", nargs="*", default=(), metavar="BACKEND", help="leave these out, as torch on a CPU")
    return parser.parse_args()


def load_pairs(video: Path | None, count: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """`count` pairs of neighbouring frames, (count, height, width) grey uint8; a short video begins again."""
    if video is None:
        return moving_texture(count, height, width)
    import cv2

    capture = cv2.VideoCapture(str(video))
    frames: list[Tensor] = []
    while len(frames) <= count and (frame := capture.read()[1]) is not None:
        grey = cv2.cvtColor(cv2.resize(frame, (width, height)), cv2.COLOR_BGR2GRAY)
        frames.append(torch.from_numpy(grey))
    if len(frames) < 2:
        raise InputError(f"{video} doesn't decode to two frames; give another --video")
    places = [place % (len(frames) - 1) for place in range(count)]
    return torch.stack([frames[place] for place in places]), torch.stack([frames[place + 1] for place in places])


def measure(cases: list[tuple[str, Tensor, Tensor]], rounds: int) -> tuple[list[list[float]], list[Tensor]]:
    """Seconds of every round of every case (backend, first, second), and every case's flow."""
    seconds: list[list[float]] = [[] for _ in cases]
    flows: list[Tensor] = [torch.empty(0) for _ in cases]
    for turn in range(rounds + 1):
        for index, (backend, first, second) in enumerate(cases):
            start = time.perf_counter()
            flows[index] = tvl1_pairs(first, second, backend=backend).cpu()  # the copy waits for a GPU
            if turn:  # the first round compiles
                seconds[index].append(time.perf_counter() - start)
    return seconds, flows


def grey_levels(flow: Tensor) -> Tensor:
    return (255 * (flow.clamp(-20, 20) + 20) / 40).round()


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    width, height = args.size
    if is_installed("opencv"):
        import cv2

        cv2.setNumThreads(args.threads)
    cpu = load_pairs(args.video, args.pairs, width, height)
    names = [name for name in ("opencv", "numba", "torch") if is_installed(name) and name not in args.skip]
    cases = [(name, *cpu) for name in names]
    gpu = ""
    if torch.cuda.is_available():
        gpu = f"; {torch.cuda.get_device_name()}"
        batch = args.batch_frames or automatic_batch_frames(height, width, "cuda")
        first, second = (images.cuda() for images in load_pairs(args.video, batch, width, height))
        cases += [(name, first, second) for name in ("compiled", "torch") if name not in args.skip]
        torch.cuda.reset_peak_memory_stats()
    seconds, flows = measure(cases, args.rounds)

    medians = [statistics.median(times) / len(first) for times, (_, first, _) in zip(seconds, cases, strict=True)]
    print(f"TV-L1, default parameters, {width}x{height}, {args.video.name if args.video else 'moving texture'}, "
          f"median of {args.rounds} rounds; {args.threads} CPU threads{gpu}; torch {torch.__version__}")
    columns = ["backend", "device", "pairs", "pairs/s", "lowest..highest", "x OpenCV", "px off", "<= 1 level, %"]
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for (name, first, _), median, times, flow in zip(cases, medians, seconds, flows, strict=True):
        rates = sorted(len(first) / second for second in times)
        versus = [f"{medians[0] / median:.1f}", "", ""] if names and names[0] == "opencv" else [""] * 3
        if versus[0]:
            same = min(len(flow), len(flows[0]))
            one, two = flow[:same], flows[0][:same]
            versus[1] = f"{(one - two).norm(dim=1).mean():.4f}"
            versus[2] = f"{100 * ((grey_levels(one) - grey_levels(two)).abs() <= 1).float().mean():.2f}"
        cells = [name, first.device.type, len(first), f"{1 / median:.2f}", f"{rates[0]:.2f}..{rates[-1]:.2f}", *versus]
        print("| " + " | ".join(map(str, cells)) + " |")
    if gpu:
        print(f"GPU memory at the peak: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB for {batch} pairs")
    return 0


if __name__ == "__main__":
    run_main(main)
