"""What the benchmarks share: real data, ways measured in turns, and lines with medians and spread."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.commandline import ArgumentParser
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import Preparation
from network import build_model
from utils import InputError, cpu_count

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "data" / "bench"  # git-ignored
SIZE = (320, 240)  # of UCF101's videos: width, height


@dataclass
class Times:
    """What one way cost, round by round, in milliseconds per clip."""

    cpu: list[float] = field(default_factory=list)  # of all cores together, in all of its processes
    wall: list[float] = field(default_factory=list)

    def add(self, cpu: float, wall: float, clips: float) -> None:
        self.cpu.append(1e3 * cpu / clips)
        self.wall.append(1e3 * wall / clips)


class Stopwatch:
    """CPU and wall seconds of this process since the start."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        return time.process_time() - self._cpu, time.perf_counter() - self._wall


def in_turns(ways: dict[str, Callable[[], tuple[float, float, float]]], rounds: int) -> dict[str, Times]:
    """Run every way once per round, so that what else the machine does hits all alike.

    A way returns (CPU seconds, wall seconds, clips).
    """
    times = {name: Times() for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].add(*way())
    return times


def ratio_line(what: str, classic: Times, ours: Times, bar: float | None = None) -> str:
    """One line of a table: medians, and the ratios of the rounds with their spread, by CPU time and by wall time."""
    cells = [what.ljust(34)]
    for kind in ("cpu", "wall"):
        old, new = getattr(classic, kind), getattr(ours, kind)
        ratios = sorted(a / b for a, b in zip(old, new, strict=True))
        cells.append(
            f"{statistics.median(old):8.2f} {statistics.median(new):8.2f} {statistics.median(ratios):6.2f}x "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f})".ljust(38)
        )
    return " ".join(cells) + (f" bar {bar}x" if bar else "")


def operations(arch: str, preparation: Preparation, training: bool) -> float:
    """Multiplications and additions of one clip: the forward pass, three times that in training."""
    with torch.device("meta"):
        net = build_model(arch, preparation.channels, len(UCF101_CLASSES)).eval()
        clip = torch.empty(1, preparation.channels, preparation.size, preparation.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(clip)
    return counter.get_total_flops() * (3 if training else 1)


HEADER = (
    "ms per clip".ljust(34) + " CPU: classic   ours  ratio (min-max)".ljust(39)
    + " wall: classic  ours  ratio (min-max)"
)  # fmt: skip


def machine() -> str:
    """The machine in a line: processor, cores, load, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    load = f"load {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {cpu_count()} cores{gpu}; {load}torch {torch.__version__}, Python {platform.python_version()}"


def bench_parser(description: str | None) -> ArgumentParser:
    """The flags that all benchmarks have."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=HOME, metavar="DIR",
                        help="holds rgb/ and flow/; made there from the shared UCF101 clips, or from drawn ones")
    parser.add_argument("--videos", type=int, default=12, help="of those, how many to use, evenly chosen")
    parser.add_argument("--rounds", type=int, default=5, help="each measures every way once")
    return parser


def chosen(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, evenly spread."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]


def prepare(home: Path) -> Path:
    """Frames and DIS flow of real videos under `home`, 256 pixels high, made unless they are there."""
    if (home / "rgb").is_dir() and (home / "flow" / "v").is_dir():
        return home
    shared = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve() / "data" / "ucf101_clips"
    videos = shared if shared.is_dir() else draw_videos(home / "videos")
    print(f"extracting frames and flow of {videos} to {home}: a minute or two, once", flush=True)
    for script, flags in (("extract_rgb.py", ("--sampling-rate", "1")), ("extract_flow.py", ("--method", "dis"))):
        command = [sys.executable, str(ROOT / "data" / script), str(videos), str(home / script[8:-3]), *flags]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise InputError(f"the benchmark's data could not be made; try: {' '.join(command)}")
    return home


def draw_videos(folder: Path, count: int = 12) -> Path:
    """Videos of UCF101's size and names: a smooth texture that drifts and turns, with a camera's noise."""
    import cv2

    rng = np.random.default_rng(0)
    for number in range(count):
        name = ("Archery", "Biking", "Diving", "Surfing")[number % 4]
        path = folder / name / f"v_{name}_g{number // 4 + 1:02d}_c01.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"XVID"), 25, SIZE)
        noise = rng.integers(0, 256, (700, 700, 3), dtype=np.uint8)
        texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 4)
        texture = np.interp(texture, (texture.min(), texture.max()), (0, 255)).astype(np.float32)
        drift, turn = rng.uniform(-2, 2, 2), rng.uniform(-0.5, 0.5)
        for t in range(60 + 20 * number):
            matrix = cv2.getRotationMatrix2D((350, 350), turn * t, 1)
            matrix[:, 2] = matrix[:, 2] + drift * t - 200
            frame = cv2.warpAffine(texture, matrix, SIZE, borderMode=cv2.BORDER_REFLECT)
            writer.write(np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8))
        writer.release()
    return folder
