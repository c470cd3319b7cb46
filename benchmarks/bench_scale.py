"""Time and memory against the number of videos: 1, 10 and 100 times the clips, by links to their folders.

  python benchmarks/bench_scale.py [--data DIR] [--times 1 10 100]

Each size is a process of its own: count the images (cold: every folder is listed; warm: from the cache), make the
motion stream's training set, load 32 of its batches with one worker, and then say how much memory that took at most.
Counts should grow as the number of videos, the time per clip and the memory beyond that of one video not at all.
--times 350: as many videos as UCF101 has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ROOT, bench_parser, machine, prepare
from utils import run_main


def link(flow: Path, target: Path, times: int) -> int:
    """Links to every video's folders under `target`, `times` over. Returns how many videos that makes."""
    folders = sorted(path.name for path in (flow / "u").iterdir() if path.name.startswith("v_"))
    for folder in folders:
        for copy in range(times):
            for channel in ("u", "v"):
                place = target / channel / f"{folder.lower()}_{copy:03d}"
                place.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(flow / channel / folder, place, target_is_directory=True)
    return times * len(folders)


def child(root: str) -> None:
    """Measure one size and print it as JSON."""
    import torch

    from dataloader.clips import ClipDataset, TrainSampling
    from dataloader.frames import index_frames
    from dataloader.images import ReadFlow, find_sources
    from dataloader.loader import make_loader
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
    dataset = ClipDataset(find_sources(index, videos), ReadFlow(index.root), preparation, TrainSampling(1))
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
    print("  videos   count, cold      count, warm      to the loader    load one clip   more memory")
    for times in args.times:
        with tempfile.TemporaryDirectory(dir=args.data) as name:
            count = link(flow, Path(name), times)
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{found[key]:6.2f} s {1e6 * found[key] / count:5.0f} us" for key in ("cold", "warm", "ready")]
        print(f"{count:8} {'  '.join(cells)}   {1e3 * found['clip']:8.1f} ms   {found['memory']:8.0f} MB", flush=True)
    print("  us: microseconds per video; to the loader: warm count, matching and data set")
    return 0


if __name__ == "__main__":
    run_main(main)
