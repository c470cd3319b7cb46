"""A whole test of the motion stream, as a process from start to end: the classic way against motion_cnn.py --evaluate.

  python benchmarks/bench_test.py [--data DIR] [--videos 6] [--rounds 3] [--compile]

All ways test the same clips of the same videos with the same ResNet101, whose last layer is fitted to the clips, so
that its answers mean something. "per clip" is what one more clip costs: the start of the process is taken off by a
run on one video. The video-level predictions are compared.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import classic
from benchmarks.bench_loaders import our_dataset
from benchmarks.measure import HEADER, ROOT, Times, bench_parser, chosen, machine, prepare, ratio_line
from dataloader.clips import TestSampling, clips_of
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import to_input
from dataloader.sampling import rng_for
from engine.state import amp_dtype
from network import InferenceNet, build_model
from saved.checkpoints import save_tensors
from utils import run_main

CPU = torch.device("cpu")
BARS = {"ours": 3.3, "ours, --compile": 4.0}


def children_cpu() -> float:
    """CPU seconds of all finished child processes; wall seconds on Windows, which doesn't tell."""
    times = os.times()
    return time.perf_counter() if os.name == "nt" else times.children_user + times.children_system


def timed(command: list[str]) -> tuple[float, float]:
    """(CPU seconds with all its workers, wall seconds) of a process."""
    cpu, wall = children_cpu(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return children_cpu() - cpu, time.perf_counter() - wall


@torch.inference_mode()
def make_network(path: Path, flow: Path, names: list[str]) -> None:
    """A ResNet101 for flow: random, batch norms set by real clips, the last layer fitted to the videos' classes."""
    torch.manual_seed(0)
    model = build_model("resnet101", 20, len(UCF101_CLASSES))
    dataset = our_dataset("motion", flow, names, TestSampling(2))
    clips = [clips_of(dataset.clips(source, rng_for(0)), "flow", CPU) for source in dataset.sources]
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean over what it sees
    model.train()(to_input(torch.cat(clips)[:16], dataset.preparation))
    net = InferenceNet(model.eval(), dataset.preparation, amp_dtype("auto", CPU))
    features = torch.cat([net(some)[1] for some in clips]).double()
    labels = [UCF101_CLASSES.index(name.split("_")[0]) for name in names for _ in range(2)]
    wanted = 10 * torch.nn.functional.one_hot(torch.tensor(labels), len(UCF101_CLASSES)).double()
    centre = features.mean(0)
    centred = features - centre
    kernel = centred @ centred.T
    fit = centred.T @ torch.linalg.solve(kernel + 1e-2 * kernel.diag().mean() * torch.eye(len(kernel)), wanted)
    model.fc.weight.copy_(fit.T.float())
    model.fc.bias.copy_((-centre @ fit).float())
    save_tensors({"state_dict": model.state_dict()}, path)


def compare(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """How far two sets of video-level logits agree; the difference is relative to the largest logit of a video."""
    names = sorted(a)
    assert names == sorted(b), "the two ways tested different videos"
    same = [a[name].argmax() == b[name].argmax() for name in names]
    differences = [np.abs(a[name] - b[name]).max() / np.abs(a[name]).max() for name in names]
    return (
        f"same top-1 on {100 * np.mean(same):.1f} % of {len(names)} videos; logits differ by {max(differences):.1e} at "
        f"most, {np.median(differences):.1e} in the median video, of a video's largest"
    )


def whole_tests(home: Path, count: int, rounds: int, compiled: bool) -> None:
    """Run every way as a process, on one video and on `count`, in turns."""
    flow = home / "flow"
    names = chosen(list(classic.videos_of(flow, "flow")), count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_network(folder / "network.pth", flow, names)
        commands, written = {}, {}
        for few, some in (("one", names[:1]), ("all", names)):
            lists = folder / few
            lists.mkdir()
            (lists / "test.txt").write_text("".join(f"{name.split('_')[0]}/v_{name}.avi\n" for name in some))
            (lists / "train.txt").write_text("Archery/v_Archery_g25_c01.avi\n")
            common = ["--flow-dir", str(flow), "--ucf-list", str(lists), "--weights", "none", "--evaluate"]
            ours = [sys.executable, "motion_cnn.py", "--resume", str(folder / "network.pth"), *common]
            old = [sys.executable, "benchmarks/classic.py", str(flow), "--checkpoint", str(folder / "network.pth")]
            old += ["--list", str(lists / "test.txt")]
            ways = {"classic": (old, "--output", "classic.pickle"), "ours": (ours, "--output", "ours")}
            if compiled:
                ways["ours, --compile"] = ([*ours, "--compile"], "--output", "compiled")
            for way, (command, flag, output) in ways.items():
                commands[way, few] = [*command, flag, str(lists / output)]
                written[way, few] = lists / output
        whole = {way: Times() for way in ways}
        marginal = {way: Times() for way in ways}
        starts = {}
        clips = 19 * len(names)
        if compiled:  # once for all: what is compiled stays on disk
            timed(commands["ours, --compile", "one"])
        for _ in range(rounds):
            for way in ways:
                one, many = timed(commands[way, "one"]), timed(commands[way, "all"])
                starts[way] = one
                whole[way].add(*many, clips)
                marginal[way].add(many[0] - one[0], many[1] - one[1], clips - 19)
        for way in list(ways)[1:]:
            print(ratio_line(f"test, {way}: whole process", whole["classic"], whole[way]))
            print(ratio_line(f"test, {way}: per clip", marginal["classic"], marginal[way], BARS[way]), flush=True)
        sums = pickle.loads(written["classic", "all"].read_bytes())  # our own, written a moment ago
        expected = {name: logits / 19 for name, logits in sums.items()}
        for way in list(ways)[1:]:
            got = pickle.loads((written[way, "all"] / "motion_video_preds.pickle").read_bytes())
            print(f"  {way} against classic float32: {compare(expected, got)}")
        for way, (cpu, wall) in starts.items():
            print(f"  {way}: a test of one video takes {wall:.1f} s, {cpu:.1f} s of CPU")


def main() -> int:
    parser = bench_parser(__doc__)
    parser.set_defaults(videos=6, rounds=3)
    parser.add_argument("--compile", action="store_true", help="also measure --compile, whose start takes a while")
    args = parser.parse_args()
    home = prepare(args.data)
    print(machine())
    print(HEADER)
    whole_tests(home, args.videos, args.rounds, args.compile)
    return 0


if __name__ == "__main__":
    run_main(main)
