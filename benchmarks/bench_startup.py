"""How long a training takes to start on a data set of UCF101's size: 13,320 videos, frames counted from the cache.

  python benchmarks/bench_startup.py               12 images a video and channel: a minute to build
  python benchmarks/bench_startup.py --images 186  UCF101's 2.5 million frames, and as many u and v images

It builds a tree of hard links to a few small JPEGs, measures cold and warm counts of it, and then starts
spatial_cnn.py and motion_cnn.py on it and stops them when the first video is asked for.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from common.commandline import ArgumentParser
from dataloader.folders import CACHE_NAME
from dataloader.layouts import index_frames, match
from dataloader.names import UCF101_CLASSES
from dataloader.splits import load_split
from utils import run_main

LINKS_PER_FILE = 30_000  # ext4 allows 65,000
VIDEOS = 13_320

# Runs a script as from the command line, up to the moment it asks for its first video.
FIRST_REQUEST = """
import os, sys, time
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
import {script}
from dataloader.clips import ClipDataset
def first(self, key):
    print("FIRST", time.time(), time.process_time(), flush=True)
    os._exit(0)
ClipDataset.__getitem__ = first
{script}.main()
"""
IMPORTS = "import time, torch, torchvision; print('FIRST', time.time(), time.process_time())"


def video_names() -> list[str]:
    """13,320 names of UCF101's form: 101 classes, 25 groups, 5 or 6 clips."""
    per_clip = len(UCF101_CLASSES) * 25
    return [
        f"v_{UCF101_CLASSES[i % 101]}_g{i // 101 % 25 + 1:02d}_c{i // per_clip + 1:02d}" for i in range(VIDEOS)
    ]


def build(folder: Path, subfolders: list[str], images: int, gray: bool) -> None:
    """One folder per video of `images` hard links, frame000001.jpg on."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 85) if gray else (64, 85, 3), dtype=np.uint8)
    linked = 0
    source = folder
    for subfolder in subfolders:
        for name in video_names():
            video = folder / subfolder / name
            video.mkdir(parents=True)
            for i in range(1, images + 1):
                if linked % LINKS_PER_FILE == 0:
                    source = folder / f".source{linked // LINKS_PER_FILE}.jpg"
                    Image.fromarray(pixels).save(source)
                os.link(source, f"{video}/frame{i:06d}.jpg")
                linked += 1


def here(function, *args) -> tuple[float, float]:
    """(seconds on the clock, seconds of processor) of one call in this process."""
    start, processor = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - start, time.process_time() - processor


def there(code: str) -> tuple[float, float]:
    """The same of a new Python process, from its start to where `code` prints FIRST."""
    start = time.time()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    if "FIRST" not in run.stdout:
        raise RuntimeError(f"the script did not get as far as its first video:\n{run.stdout}{run.stderr}")
    end, processor = map(float, run.stdout.rpartition("FIRST ")[2].split())
    return end - start, processor


def report(what: str, repeats: int, measure, *args) -> None:
    """One line: median and best by the clock, median by the processor."""
    clock, processor = zip(*(measure(*args) for _ in range(repeats)), strict=True)
    wall = f"{statistics.median(clock):6.2f} s, best {min(clock):6.2f} s"
    print(f"{what:34} {wall}, processor {statistics.median(processor):6.2f} s   ({repeats} runs)", flush=True)


def main() -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--images", type=int, default=12, metavar="N", help="images per video and channel")
    parser.add_argument("--folder", type=Path, help="where to build the tree (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=5, help="of each warm measurement")
    args = parser.parse_args()
    tree = Path(tempfile.mkdtemp(prefix="startup_", dir=args.folder))
    try:
        rgb, flow = tree / "rgb", tree / "flow"
        print(f"building {VIDEOS} videos x 3 channels x {args.images} images under {tree} ...", flush=True)
        build(rgb, [""], args.images, gray=False)
        build(flow, ["u", "v"], args.images, gray=True)
        time.sleep(3)  # the cache trusts no folder that changed in the last 2 s
        for kind, root in (("rgb", rgb), ("flow", flow)):
            report(f"count {kind}, cold", 1, here, index_frames, root, kind)
            report(f"count {kind}, warm", args.repeats, here, index_frames, root, kind)
            print(f"  the cache: {(root / CACHE_NAME).stat().st_size / 1e6:.1f} MB")
        index = index_frames(rgb, "rgb")
        split = load_split(None, 1, index.names, verbose=False)
        report("split by the group rule", args.repeats, here, load_split, None, 1, index.names, False)
        report("find all videos of the split", args.repeats, here, match, index, split.train + split.test)
        report("import torch, torchvision", args.repeats, there, IMPORTS)
        for script, flag, root in (("spatial_cnn", "--rgb-dir", rgb), ("motion_cnn", "--flow-dir", flow)):
            argv = [script, flag, str(root), "--output", str(tree / script), "--ucf-list", "none", "--weights", "none"]
            code = FIRST_REQUEST.format(root=str(ROOT), argv=[*argv, "--workers", "0"], script=script)
            report(f"{script}.py to its first video", args.repeats, there, code)
    finally:
        shutil.rmtree(tree)
    return 0


if __name__ == "__main__":
    run_main(main)
