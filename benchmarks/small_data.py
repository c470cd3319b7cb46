"""What the heads reach on a few hundred clips: the features of the fast way, split again and again.

  python run.py ../shared/data/hockey_fights --weights resnet50.pth     first: makes the features
  python benchmarks/small_data.py record/hockey_fights/data
  python benchmarks/small_data.py record/weizmann/data --head linear ts-lstm inception

Where videos' names tell groups (people, recordings), each group is left out in turn; else 5 stratified folds, several
times. Everything that is chosen, strengths, epochs and the weights of the fusion, is chosen inside the training videos.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser
from engine.crossfit import fit_linear, fit_temporal
from engine.temporal_heads import TEMPORAL
from fusion import learn_weights
from saved.feature_file import Features, read_features
from utils import run_main, set_up_device

STREAMS = {"spatial": ["rgb"], "motion": ["greydiff", "flow"], "greydiff alone": ["greydiff"], "flow alone": ["flow"]}


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = set_up_device(args.device)
    files = {name: read_features(args.data / f"{name}.npz") for name in ("rgb", "greydiff", "flow")}
    one = files["rgb"]
    labels, classes = one.labels, len(one.about["class_names"])
    rows: dict[str, list[float]] = {}
    start = time.monotonic()
    for train, test in splits(one, args.repeats):
        fits = {}
        if "linear" in args.head:
            for stream, names in STREAMS.items():
                joined = np.concatenate([files[name].values for name in names], 2)
                fits[stream] = fit_linear(joined, train, labels, one.groups, classes, 5, 0)
            both = [fits[stream] for stream in ("spatial", "motion")]
            weights, _ = learn_weights([fit.held_out.astype(np.float64) for fit in both], labels[train])
            said = {f"linear, {stream}": fit.logits[test].mean(1) for stream, fit in fits.items()}
            said["linear, average"] = sum(fit.logits[test].mean(1) for fit in both)
            said["linear, learnt weights"] = sum(
                weight * fit.logits[test].mean(1) for weight, fit in zip(weights, both, strict=True)
            )
        else:
            said = {}
        for kind in set(args.head) & TEMPORAL.keys():
            values = [files[name].values for name in files]
            fit = fit_temporal(kind, values, train, labels, one.groups, classes, 5, 0, device)
            said[f"{kind}, both streams"] = fit.logits[test].mean(1)
        for name, logits in said.items():
            rows.setdefault(name, []).append(100 * float((logits.argmax(1) == labels[test]).mean()))
        print(".", end="", file=sys.stderr, flush=True)
    print(f"\n{len(labels)} videos, {len(next(iter(rows.values())))} splits, {time.monotonic() - start:.0f} s")
    for name, tops in rows.items():
        print(f"{name:28} {np.mean(tops):5.1f} ± {np.std(tops):.1f}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of rgb.npz, greydiff.npz and flow.npz")
    parser.add_argument("--head", nargs="+", choices=("linear", *TEMPORAL), default=["linear"])
    parser.add_argument("--repeats", type=int, default=2, help="of the 5 folds, where there are no groups")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto", help="of the heads over time")
    return parser.parse_args()


def splits(one: Features, repeats: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows to test) again and again, whatever subset the files say."""
    if len(np.unique(one.groups)) < len(one.groups):
        yield from LeaveOneGroupOut().split(one.labels, one.labels, one.groups)
    else:
        # in the order of names, so that a split does not depend on the list that the features were made with
        order = np.argsort(one.videos)
        for seed in range(repeats):
            for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(order, one.labels[order]):
                yield order[train], order[test]


if __name__ == "__main__":
    run_main(main)
