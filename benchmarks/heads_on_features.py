"""Test accuracy per epoch of linear and temporal heads on real features with an official split, by seed.

  python benchmarks/heads_on_features.py ../shared/data/ucf101_features/vgg16_fc6_14classes_split1.npz

The file holds values (V, samples, F), scale (V,), labels and subset ("train", "test"). No epoch is chosen:
the last one is the result. inception-plain has no weight decay and a constant learning rate.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser
from engine.crossfit import fit_linear
from engine.temporal_heads import TEMPORAL, train_temporal
from utils import run_main

RECIPES = {**TEMPORAL, "inception-plain": replace(TEMPORAL["inception"], decay=0.0, drop_every=0)}
CPU = torch.device("cpu")


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("features", type=Path, metavar="NPZ")
    parser.add_argument("--head", nargs="+", choices=("linear", *RECIPES), default=["linear", *RECIPES])
    parser.add_argument("--epochs", type=int, help="at most (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with np.load(args.features, allow_pickle=False) as file:
        values = (file["values"] * file["scale"][:, None, None]).astype(np.float16)
        labels = np.unique(file["labels"], return_inverse=True)[1]
        train, test = (np.flatnonzero(file["subset"] == subset) for subset in ("train", "test"))
    classes = int(labels.max()) + 1
    for head in args.head:
        last = []
        for seed in range(args.seeds if head != "linear" else 1):
            if head == "linear":
                fit = fit_linear(values, train, labels, np.arange(len(labels)), classes, 5, seed)
                curve = fit.logits[test].mean(1)[None]
            else:
                recipe = RECIPES[head]
                epochs = min(recipe.epochs, args.epochs or recipe.epochs)
                curve = train_temporal(recipe, [values], labels, classes, train, epochs, seed, CPU, test)[1]
            tops = [100 * float((logits.argmax(1) == labels[test]).mean()) for logits in curve]
            print(head, seed, *(f"{top:.1f}" for top in tops), flush=True)
            last.append(tops[-1])
        print(f"{head:16} {np.mean(last):.1f} ± {np.std(last):.1f}", flush=True)


if __name__ == "__main__":
    run_main(main)
