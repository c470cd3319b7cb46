"""Time and memory against the number of videos: 1, 10 and 100 times the clips, by links to their folders.

  python benchmarks/bench_scale.py [--data DIR] [--times 1 10 100]

Each size is a process of its own: count the images (cold: every folder is listed; warm: from the cache), make the
motion stream's training set, load 32 of its batches with one worker, and then say how much memory that took at most.
Then motion_cnn.py is started on it, and stopped when it asks for its first video. Counts should grow as the number of
videos, the time per clip and the memory beyond that of one video not at all. --times 350: as many videos as UCF101 has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ROOT, bench_parser, machine, prepare
from utils import run_main

# Runs a script as from the command line, up to the moment it asks for its first video.
FIRST_REQUEST = """
import os, sys, time
sys.argv = {argv!r}
import motion_cnn
from dataloader.clips import ClipDataset
def first(self, key):
    print("FIRST", time.time(), flush=True)
    os._exit(0)
ClipDataset.__getitem__ = first
motion_cnn.main()
"""
IMPORTS = "import time, torch, torchvision; print('FIRST', time.time())"


def link(flow: Path, target: Path, times: int) -> list[str]:
    """Links to every video's folders under `target`, `times` over. Returns the videos as lists name them."""
    folders = sorted(path.name for path in (flow / "u").iterdir() if path.name.startswith("v_"))
    videos = []
    for folder in folders:
        class_name = folder.split("_")[1]
        for copy in range(times):
            videos.append(f"{class_name}/{folder[2:].lower()}_{copy:03d}")
            for channel in ("u", "v"):
                place = target / channel / videos[-1]
                place.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(flow / channel / folder, place, target_is_directory=True)
    return videos


def until_first(code: str) -> float:
    """Seconds of a new process from its start to where `code` prints FIRST, the median of three."""
    seconds = []
    for _ in range(3):
        start = time.time()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        if "FIRST" not in done.stdout:
            raise RuntimeError(f"it did not get as far as its first video:\n{done.stdout}{done.stderr}")
        seconds.append(float(done.stdout.rpartition("FIRST ")[2]) - start)
    return statistics.median(seconds)


def training_start(flow: Path, videos: list[str], folder: Path) -> float:
    """Seconds from the start of motion_cnn.py to its first video; the counts are cached by now."""
    lists = folder / "lists"
    lists.mkdir()
    (lists / "test.txt").write_text(videos[0] + "\n")
    (lists / "train.txt").write_text("\n".join(videos[1:]) + "\n")
    argv = ["motion_cnn.py", "--flow-dir", str(flow), "--ucf-list", str(lists), "--output", str(folder / "out")]
    return until_first(FIRST_REQUEST.format(argv=[*argv, "--weights", "none", "--workers", "0"]))


def child(root: str) -> None:
    """Measure one size and print it as JSON."""
    import torch

    from dataloader.clips import ClipDataset, TrainSampling, make_loader
    from dataloader.layouts import index_frames
    from dataloader.motion_dataloader import ReadFlow, motion_sources
    from dataloader.names import Video
    from dataloader.preparation import default_preparation

    torch.set_num_threads(1)
    before = memory()
    start = time.perf_counter()
    index_frames(root, "flow")
    cold = time.perf_counter() - start
    time.sleep(2.5)  # the cache trusts no folder that changed in the last 2 s
    index_frames(root, "flow")
    start = time.perf_counter()
    index = index_frames(root, "flow")
    warm = time.perf_counter() - start
    videos = [Video(name, 0, name) for name in index.names]
    preparation = default_preparation("flow", 224, "squash", 10)
    dataset = ClipDataset(motion_sources(index, videos), ReadFlow(index.root), preparation, TrainSampling(1))
    ready = time.perf_counter() - start
    loader = make_loader(dataset, 8, 1, torch.device("cpu"))
    clips, start = 0, time.perf_counter()
    while clips < 256:
        for batch in loader.epoch(0):
            clips += len(batch.clips)
            if clips >= 256:
                break
    loading = time.perf_counter() - start
    result = {"cold": cold, "warm": warm, "ready": ready, "clip": loading / clips, "memory": memory() - before}
    print(json.dumps(result))


def memory() -> float:
    """The most memory this process has held, in MB; 0 where the system doesn't tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def main() -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100], metavar="N")
    parser.add_argument("--child", help="(what the benchmark starts itself with)")
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return 0
    flow = prepare(args.data).resolve() / "flow"
    print(machine())
    print(f"importing torch and torchvision: {until_first(IMPORTS):.2f} s")
    print("  videos   count, cold      count, warm      to the loader    load one clip   more memory   start")
    for times in args.times:
        with tempfile.TemporaryDirectory(dir=args.data) as name:
            videos = link(flow, Path(name, "flow"), times)
            command = [sys.executable, str(Path(__file__).resolve()), "--child", str(Path(name, "flow"))]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            start = training_start(Path(name, "flow"), videos, Path(name))
        found, count = json.loads(done.stdout.splitlines()[-1]), len(videos)
        cells = [f"{found[key]:6.2f} s {1e6 * found[key] / count:5.0f} us" for key in ("cold", "warm", "ready")]
        print(
            f"{count:8} {'  '.join(cells)}   {1e3 * found['clip']:8.1f} ms   {found['memory']:8.0f} MB  {start:5.2f} s",
            flush=True,
        )
    print("  us: microseconds per video; to the loader: warm count, matching and data set; start: of motion_cnn.py")
    return 0


if __name__ == "__main__":
    run_main(main)
