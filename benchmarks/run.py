"""What can be measured in five minutes on two cores: `make bench`. Ratios are against the classic way (classic.py).

  python benchmarks/run.py [--data DIR]

Each line: medians in ms per clip, the median ratio of rounds in turns, and its spread. Leave the machine alone
meanwhile. The single benchmarks take more videos and rounds; docs/performance.md has their figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ROOT, bench_parser, prepare
from utils import run_main

PARTS = {
    "Loaders, one worker": ["bench_loaders.py", "--videos", "6", "--rounds", "3"],
    "Network and training step alone": ["bench_model.py", "--rounds", "2", "--train-videos", "8", "3"],
    "A whole test as a process": ["bench_test.py", "--videos", "4", "--rounds", "1"],
    "1 and 10 times the videos": ["bench_scale.py", "--times", "1", "10"],
    "GPU": ["bench_gpu.py"],
}


def main() -> int:
    parser = bench_parser(__doc__)
    parser.set_defaults(videos=None, rounds=None)
    args = parser.parse_args()
    start = time.perf_counter()
    home = prepare(args.data)
    print(f"data ready after {time.perf_counter() - start:.0f} s", flush=True)
    failed = []
    for title, (script, *flags) in PARTS.items():
        print(f"\n== {title}", flush=True)
        if args.videos and script != "bench_model.py":
            flags += ["--videos", str(args.videos)]
        if args.rounds:
            flags += ["--rounds", str(args.rounds)]
        command = [sys.executable, str(Path(__file__).with_name(script)), "--data", str(home), *flags]
        if subprocess.run(command, check=False, cwd=ROOT).returncode:
            failed.append(script)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    run_main(main)
