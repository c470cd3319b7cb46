"""The networks alone: testing and a training step of ResNet101, the classic way against ours, in one process.

  python benchmarks/bench_model.py [--rounds 3] [--compile] [--threads N]

Testing: the motion network on clips that are in memory, 64 at once the classic way (the original's batch), a video's
19 our way, from the loader's uint8 on. Training: forward, backward and SGD on the same batch, through engine's own
train_step; motion one stack per video, spatial three frames. Both are set beside plain products of matrices with as
many operations, which are as fast as the hardware goes.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.classic import classic_model, classic_step
from benchmarks.measure import HEADER, Stopwatch, Times, bench_parser, in_turns, machine, operations, ratio_line
from dataloader.clips import Batch, clips_of
from dataloader.preparation import default_preparation, to_input
from engine.epoch import train_step
from engine.state import Training, TrainingSettings, amp_dtype
from network import InferenceNet, build_model
from utils import run_main

CPU = torch.device("cpu")
CLASSES = 101
FLOW = default_preparation("flow", 224, "squash", 10)
RGB = default_preparation("rgb", 224, "squash")


def random_batch(videos: int, planes: int, clips: int, length: int, shared: bool = False) -> Batch:
    """A loader's batch of random images; `shared`: a video's clips overlap by all images but one, as in a test."""
    images = clips + length - 1 if shared else clips * length
    first = torch.arange(clips) * (1 if shared else length)
    rows = torch.cat([video * images + first[:, None] + torch.arange(length) for video in range(videos)])
    pixels = torch.randint(0, 256, (videos * images, planes, 224, 224), dtype=torch.uint8)
    if planes == 3:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    flip = torch.zeros(len(rows), dtype=torch.bool)
    names, labels = [str(i) for i in range(videos)], torch.arange(videos) % CLASSES
    return Batch(names, labels, pixels, rows, flip, 1 / videos)


def timed(work: Any, clips: float) -> Any:
    def run() -> tuple[float, float, float]:
        watch = Stopwatch()
        work()
        return *watch.read(), clips

    return run


def products(per_clip: float) -> dict[str, Any]:
    """Large products of matrices with a clip's number of operations: what the hardware can give at most."""
    ways = {}
    for dtype in (torch.float32, amp_dtype("auto", CPU)):
        a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
        ways[f"{str(dtype).removeprefix('torch.')} products"] = timed(lambda a=a, b=b: a @ b, 2 * 2048**3 / per_clip)
    return ways


def hardware_line(times: dict[str, Times]) -> str:
    """How near both ways come to the products' speed, by wall time."""
    names = [name.removesuffix(" products") for name in times if name.endswith(" products")]
    plain, half = times["float32 products"], times[f"{names[-1]} products"]  # one and the same without bfloat16
    ratio, classic, ours = (
        statistics.median(a / b for a, b in zip(one.wall, two.wall, strict=True))
        for one, two in ((plain, half), (plain, times["classic"]), (half, times["ours"]))
    )
    return (
        f"  as many operations in large matrix products: float32 {statistics.median(plain.wall):.0f} ms, {names[-1]} "
        f"{statistics.median(half.wall):.0f} ms, {ratio:.1f}x; classic reaches {100 * classic:.0f} % of their speed, "
        f"ours {100 * ours:.0f} %"
    )


def testing(rounds: int, compiled: bool) -> None:
    """The motion network on clips in memory."""
    model = build_model("resnet101", FLOW.channels, CLASSES).eval()
    classic = classic_model(FLOW.channels, CLASSES, model.state_dict()).eval()
    batch = random_batch(1, 2, 19, 10, shared=True)
    dtype = amp_dtype("auto", CPU)
    nets = {"ours": InferenceNet(model, FLOW, dtype)}
    if compiled:
        nets["ours, --compile"] = InferenceNet(model, FLOW, dtype, compiled=True)
    floats = torch.rand(64, FLOW.channels, 224, 224)

    def run(net: InferenceNet) -> None:
        net(clips_of(batch, FLOW.modality, CPU))

    with torch.inference_mode():
        ways = {"classic": timed(lambda: classic(floats), 64)}
        ways |= {name: timed(lambda net=net: run(net), 19) for name, net in nets.items()}
        ways |= products(operations("resnet101", FLOW, training=False))
        in_turns(ways, 1)
        times = in_turns(ways, rounds)
    for name in nets:
        print(ratio_line(f"motion network, {name}", times["classic"], times[name]), flush=True)
    print(hardware_line(times), flush=True)


def training(stream: str, rounds: int, videos: int) -> None:
    """One step of SGD on `videos` videos."""
    preparation, segments, clip = (FLOW, 1, 10) if stream == "motion" else (RGB, 3, 1)
    settings = TrainingSettings(lr=1e-4, batch_size=videos)
    ours = Training(build_model("resnet101", preparation.channels, CLASSES), preparation, CPU, settings)
    ours.model.train()
    classic = classic_model(preparation.channels, CLASSES).train()
    optimizer = torch.optim.SGD(classic.parameters(), lr=1e-4, momentum=0.9)
    batch = random_batch(videos, len(preparation.mean) + (stream == "motion"), segments, clip)
    floats = to_input(clips_of(batch, preparation.modality, CPU), preparation).contiguous()
    parts = [floats[segment::segments].contiguous() for segment in range(segments)]
    ways = {
        "classic": timed(lambda: classic_step(classic, optimizer, parts, batch.labels), len(floats)),
        "ours": timed(lambda: train_step(ours, batch), len(floats)),
        **products(operations("resnet101", preparation, training=True)),
    }
    in_turns(ways, 1)
    times = in_turns(ways, rounds)
    print(ratio_line(f"{stream} training step, {len(floats)} clips", times["classic"], times["ours"], 2.5), flush=True)
    print(hardware_line(times), flush=True)


def main() -> int:
    parser = bench_parser(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--compile", action="store_true", help="also measure --compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, for both ways")
    parser.add_argument("--train-videos", type=int, nargs=2, default=(32, 10), metavar=("MOTION", "SPATIAL"),
                        help="per training step; the defaults need 8 GB")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(machine())
    print(HEADER)
    testing(args.rounds, args.compile)
    for stream, videos in zip(("motion", "spatial"), args.train_videos, strict=True):
        training(stream, args.rounds, videos)
    return 0


if __name__ == "__main__":
    run_main(main)
