"""Ways to fuse, on real scores: each divided by a number of its own, weights learnt on other videos, best in hindsight.

  python benchmarks/bench_fusion.py ../shared/data/dmcnet_ucf101

FOLDER holds split<N>/<stream>/ with predictions. Every pair of streams and all together are fused on each split. The
weights are learnt, or the fusion is chosen (`choose`), on the odd groups and applied to the even ones, and the other
way round, so that each video is tested once by what it took no part in. Then the same from fewer videos.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.accuracy import accuracy
from common.commandline import ArgumentParser
from fusion import choose, fuse, learn_weights
from report.metrics import calibration_error, group_numbers, softmax
from saved.predictions import TestSet, align, load_predictions
from utils import run_main

DRAWS = 1  # of few videos


def confidence_matched(streams: Sequence[np.ndarray], confidence: float = 0.6) -> np.ndarray:
    """Each stream divided by the temperature at which its mean largest probability is `confidence`."""
    found = []
    for logits in streams:
        inverse = brentq(lambda t, z=logits: softmax(z * np.exp(t)).max(1).mean() - confidence, -12, 12)  # type: ignore
        found.append(logits * np.exp(inverse))
    return fuse(found)


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return accuracy(scores, labels)["top1"]


def best_in_hindsight(streams: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """The best top-1 of weights searched on the test labels: each stream's in turn, until none helps."""
    inputs = [logits / logits.std() for logits in streams]
    weights, best = np.ones(len(streams)), 0.0
    while True:
        before = best
        for place in range(len(streams) if len(streams) > 2 else 1):
            rest = sum(w * x for i, (w, x) in enumerate(zip(weights, inputs, strict=True)) if i != place)
            for weight in np.geomspace(0.05, 20, 121):
                found = top1(rest + weight * inputs[place], labels)
                if found > best:
                    best, weights[place] = found, weight
        if best == before:
            return best


def learnt(test: TestSet, odd: np.ndarray, videos: int | None, seed: int, choosing: bool) -> np.ndarray:
    """Fused logits / temperature of all videos, by weights learnt or a fusion chosen on (some of) the other half."""
    streams, rng = list(test.streams.values()), np.random.default_rng(seed)
    groups = group_numbers(test.videos, test.labels)
    fused = np.empty_like(streams[0])
    for half in (odd, ~odd):
        places = np.flatnonzero(half)
        if videos:
            places = rng.choice(places, videos, replace=False)
        seen, labels = {name: z[places] for name, z in test.streams.items()}, test.labels[places]
        chosen = choose(seen, None, labels, groups[places])[0] if choosing else "learnt"
        taken = [name for name in seen if chosen in (name, "average", "learnt")]
        weights, temperature = learn_weights([seen[name] for name in taken], labels)
        if chosen == "average":
            weights, temperature = np.full(len(taken), 1 / len(taken)), 1.0
        fused[~half] = fuse([test.streams[name][~half] for name in taken], weights) / temperature
    return fused


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    rows: dict[str, list[tuple[str, dict[str, float]]]] = {}
    few: dict[tuple[int, bool], list[float]] = {}
    errors = []
    for split in sorted(folder.glob("split*")):
        read = [load_predictions(path) for path in sorted(split.iterdir())]
        together = [tuple(read)] if len(read) > 2 else []
        for chosen in [*itertools.combinations(read, 2), *together]:
            test = align(chosen)
            streams, labels = list(test.streams.values()), test.labels
            odd = np.array([int(video[-6:-4]) % 2 == 1 for video in test.videos])
            average = fuse(streams)
            fused = learnt(test, odd, None, 0, False)
            found = {
                "average": top1(average, labels),
                "better stream": max(top1(one, labels) for one in streams),
                "std": top1(fuse(streams, normalize="std"), labels),
                "confidence": top1(confidence_matched(streams), labels),
                "learnt": top1(fused, labels),
                "chosen": top1(learnt(test, odd, None, 0, True), labels),
                "best": best_in_hindsight(streams, labels),
            }
            name = " + ".join(one.stream for one in chosen) if len(chosen) == 2 else "all"
            rows.setdefault(name, []).append((split.name, found))
            errors.append([calibration_error(softmax(z), labels) for z in (average, fused)])
            for videos, choosing in itertools.product((60, 200), (False, True)):
                for seed in range(DRAWS):
                    gain = top1(learnt(test, odd, videos, seed, choosing), labels) - found["average"]
                    few.setdefault((videos, choosing), []).append(gain)
            print(split.name, name, *(f"{key} {value:.2f}" for key, value in found.items()), flush=True)
    ways = list(next(iter(rows.values()))[0][1])
    print(f"\n| mean of the splits | {' | '.join(ways)} |")
    for name, splits in rows.items():
        print(f"| {name} | {' | '.join(f'{np.mean([found[way] for _, found in splits]):.2f}' for way in ways)} |")
    everything = [found for splits in rows.values() for _, found in splits]
    print(f"| mean | {' | '.join(f'{np.mean([found[way] for found in everything]):.2f}' for way in ways)} |\n")
    for way in ways[1:]:
        gains = np.array([found[way] - found["average"] for found in everything])
        print(
            f"{way}: {gains.mean():+.2f} over the average, worst {gains.min():+.2f}, best {gains.max():+.2f}, "
            f"at or above it on {(gains >= 0).sum()} of {len(gains)} sets"
        )
    for (videos, choosing), values in few.items():
        way = "chosen" if choosing else "learnt"
        print(f"{way} on {videos} videos: {np.mean(values):+.2f}, worst {min(values):+.2f}")
    plain, calibrated = np.mean(errors, axis=0)
    print(f"expected calibration error, mean: average {plain:.3f}, learnt {calibrated:.3f}")


if __name__ == "__main__":
    run_main(main)
