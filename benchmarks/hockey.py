"""Both recipes and their ingredients on a complete real task: Hockey Fights, 400 clips of two classes.

  python benchmarks/hockey.py RGB FLOW LISTS --weights resnet50_imagenet.pth

Trains both streams with either recipe for several seeds, fuses them, and then switches the ingredients of `tsn`
on one at a time over the baseline. Runs the scripts as a user does. Every run leaves its figures in
OUT/results.csv as soon as it ends, and is not done again: kill it and start it again as you like.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd

import motion_cnn
import spatial_cnn
from common.commandline import ArgumentParser
from saved.safe import load_pickle
from utils import atomic_path, run_main

# What the size of the task and of the machine ask for, in both recipes alike; everything else is the recipe's own.
BATCH = 16
COMMON = ["--arch", "resnet50", "--batch-size", str(BATCH), "--test-views", "1", "--test-samples", "5"]
# The recipes' rates of learning, scaled to this batch (Goyal et al. 2017, section 2.1): at the rates for 64 and 128
# videos a motion network does not learn here from batches of 16.
RATES = {
    (stream, name): recipe["lr"] * BATCH / recipe["batch_size"]
    for stream, recipes in (("spatial", spatial_cnn.RECIPES), ("motion", motion_cnn.RECIPES))
    for name, recipe in recipes.items()
}
INGREDIENTS = {
    "motion": {
        "3 segments": ["--segments", "3"],
        "multi-scale crops": ["--crop", "multiscale", "--flip"],
        "dropout .7": ["--dropout", "0.7"],
        "partial BN": ["--partial-bn"],
        "rate of tsn": ["--lr", f"{RATES['motion', 'tsn']:g}"],
        "steps at 19/34 and 30/34": ["--schedule", "step", "--milestones", "0.559", "0.882"],
        "decay 5e-4, clipping at 20": ["--weight-decay", "5e-4", "--clip-grad", "20"],
        "flow centred (mean .5, std .226)": ["--flow-mean", "0.5", "--flow-std", "0.226"],
        "centre crop at test": ["--test-resize", "center"],
    },
    "spatial": {
        "multi-scale crops": ["--crop", "multiscale"],
        "dropout .8": ["--dropout", "0.8"],
        "partial BN": ["--partial-bn"],
        "rate of tsn": ["--lr", f"{RATES['spatial', 'tsn']:g}"],
        "steps at 3/8 and 6/8": ["--schedule", "step", "--milestones", "0.375", "0.75"],
        "decay 5e-4, clipping at 40": ["--weight-decay", "5e-4", "--clip-grad", "40"],
        "centre crop at test": ["--test-resize", "center"],
    },
}

# What the motion stream sees of an image in training and in a test. Extract flow with a short side of 8/7 of --size,
# as UCF101's 256 is of 224: random crops are then as large a part of the image as they are there.
# One milestone-driven schedule with a single test, so that no test shapes a training; then each network's other test.
CROPS = {
    "random crops": ["--crop", "random", "--flip", "--test-resize", "crop"],
    "squash, no flip": ["--crop", "squash", "--no-flip", "--test-resize", "squash"],
    "squash": ["--crop", "squash", "--flip", "--test-resize", "squash"],
}
OTHER_TEST = {"crop": "squash", "squash": "crop"}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("rgb", help="frames, every one of them")
    parser.add_argument("flow", help="optical flow")
    parser.add_argument("lists", help="split lists of data/make_split.py")
    parser.add_argument("--weights", required=True, help="ImageNet weights of ResNet-50")
    parser.add_argument("--size", type=int, default=96, help="of the networks' input, in pixels")
    parser.add_argument("--epochs", type=int, nargs=2, default=(3, 10), metavar=("SPATIAL", "MOTION"),
                        help="of every run; the flow's network starts further from what it has to know")
    parser.add_argument("--parts", choices=("recipes", "ingredients", "crops"), nargs="+",
                        default=["recipes", "ingredients"],
                        help="what to measure; give each of two processes its part and its own --output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2],
                        help="of the recipes and the crops; ingredients use the first")
    parser.add_argument("--output", type=Path, default=ROOT / "record/hockey", help="runs and results.csv")
    args = parser.parse_args()

    if "recipes" in args.parts:
        for seed in args.seeds:
            for recipe in ("baseline", "tsn"):
                for stream in ("motion", "spatial"):
                    train(args, stream, recipe, f"{recipe}-{seed}", [], seed)
                fuse(args, f"{recipe}-{seed}", seed)
    if "crops" in args.parts:
        for seed in args.seeds:
            for name, flags in CROPS.items():
                steps = [*INGREDIENTS["motion"]["steps at 19/34 and 30/34"], "--eval-every", str(args.epochs[1])]
                train(args, "motion", "baseline", f"{name}, {seed}", [*flags, *steps], seed, OTHER_TEST[flags[-1]])
    if "ingredients" in args.parts:
        differences = ["--input", "rgbdiff", "--rgb-dir", args.rgb]
        train(args, "motion", "tsn", "tsn, rgbdiff", differences, args.seeds[0])
        for stream, ingredients in INGREDIENTS.items():
            for name, flags in ingredients.items():
                train(args, stream, "baseline", f"baseline + {name}", flags, args.seeds[0])


def train(
    args: argparse.Namespace, stream: str, recipe: str, name: str, flags: list[str], seed: int, other_test: str = ""
) -> None:
    """One run of a stream script; its last epoch's test goes into results.csv, and stays as predictions.

    `other_test` is a --test-resize to test the last epoch's network with, too. No epoch is chosen by the
    test set, unless by the baseline's schedule, which reads its loss.
    """
    if done(args, stream, name):
        return
    epochs = args.epochs[stream == "motion"]
    output = args.output / f"{name}-{stream}".replace(" ", "_").replace(",", "")
    folder = ["--rgb-dir", args.rgb] if stream == "spatial" else ["--flow-dir", args.flow]
    command = [sys.executable, str(ROOT / f"{stream}_cnn.py"), *folder, "--ucf-list", args.lists,
               "--weights", args.weights, "--size", str(args.size), *COMMON, "--recipe", recipe,
               "--lr", f"{RATES[stream, recipe]:g}", "--epochs", str(epochs),
               "--eval-every", str(1 if recipe == "baseline" else epochs), "--seed", str(seed),
               "--output", str(output), "--resume", "auto", *flags]  # fmt: skip
    start = time.time()
    subprocess.run(command, check=True, cwd=ROOT)
    if name == f"baseline-{seed}":  # the predictions are those of its best test so far
        subprocess.run([*command, "--evaluate"], check=True, cwd=ROOT)
    row = pd.read_csv(output / f"{'rgb' if stream == 'spatial' else 'opf'}_test.csv").iloc[-1]
    record(args, {"stream": stream, "run": name, "seed": seed, "top1": row["Prec@1"], "loss": row["Loss"],
                  "seconds": round(time.time() - start)})  # fmt: skip
    if other_test:
        subprocess.run([*command, "--evaluate", "--test-resize", other_test], check=True, cwd=ROOT)
        about = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
        logits = load_pickle(output / f"{stream}_video_preds.pickle")
        right = [np.argmax(logits[video]) == label for video, label in about["labels"].items()]
        record(args, {"stream": stream, "run": f"{name}, tested by {other_test}", "seed": seed,
                      "top1": 100 * np.mean(right)})  # fmt: skip
    for checkpoint in output.glob("*.pth.tar"):
        checkpoint.unlink()


def fuse(args: argparse.Namespace, name: str, seed: int) -> None:
    """The average of a recipe's two streams."""
    if done(args, "fusion", name):
        return
    pickles = {s: args.output / f"{name}-{s}" / f"{s}_video_preds.pickle" for s in ("spatial", "motion")}
    output = args.output / f"{name}-fusion"
    subprocess.run([sys.executable, str(ROOT / "fusion.py"), "--spatial", str(pickles["spatial"]), "--motion",
                    str(pickles["motion"]), "--output", str(output)], check=True, cwd=ROOT)  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    record(args, {"stream": "fusion", "run": name, "seed": seed, "top1": results["fusion"]["top1"]})


def done(args: argparse.Namespace, stream: str, name: str) -> bool:
    path = args.output / "results.csv"
    if not path.exists():
        return False
    table = pd.read_csv(path)
    return bool(((table["stream"] == stream) & (table["run"] == name)).any())


def record(args: argparse.Namespace, row: dict) -> None:
    path = args.output / "results.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    with atomic_path(path) as temporary:
        pd.DataFrame([*rows, row]).to_csv(temporary, index=False)


if __name__ == "__main__":
    run_main(main)
