"""Compare ways to fuse on real scores: scaled by std, weights learnt on other videos, best in hindsight.

  python benchmarks/bench_fusion.py ../shared/data/dmcnet_ucf101

FOLDER holds split<N>/<stream>/ with predictions. Every pair of streams and all together are fused on each
split. Weights are learnt, or the fusion is chosen (`choose`), on the odd groups and applied to the even ones,
and the other way round, so that each video is evaluated once, always held out. Then the same from fewer
videos.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.accuracy import accuracy
from common.commandline import ArgumentParser
from fusion import choose, fuse, learn_weights
from report.metrics import group_numbers
from saved.predictions import TestSet, align, load_predictions
from utils import run_main


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error of the top-1 probability, 0..1 (Guo et al. 2017, section 2)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, weights=confidence - right)).sum() / len(labels))


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return accuracy(scores, labels)["top1"]


def best_in_hindsight(streams: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Search weights on the test labels, one stream at a time until none helps; return the best top-1."""
    inputs, weights, best, before = [logits / logits.std() for logits in streams], np.ones(len(streams)), 0.0, -1.0
    while best > before:
        before = best
        for place, weight in itertools.product(range(len(streams)), np.geomspace(0.05, 20, 121)):
            tried = np.where(np.arange(len(streams)) == place, weight, weights)
            if (found := top1(fuse(inputs, tried), labels)) > best:
                best, weights = found, tried
    return best


def learnt(test: TestSet, videos: int | None, choosing: bool) -> np.ndarray:
    """Return fused logits / temperature of all videos, learnt or chosen on (`videos` of) the other half."""
    rng, groups = np.random.default_rng(0), group_numbers(test.videos, test.labels)
    odd = np.array([int(video[-6:-4]) % 2 == 1 for video in test.videos])
    fused = np.empty_like(next(iter(test.streams.values())))
    for half in (odd, ~odd):
        places = np.flatnonzero(half)
        if videos:
            places = rng.choice(places, videos, replace=False)
        seen, labels = {name: z[places] for name, z in test.streams.items()}, test.labels[places]
        chosen = choose(seen, None, labels, groups[places])[0] if choosing else "learnt"
        taken = [name for name in seen if chosen in (name, "average", "learnt")]
        weights, temperature = learn_weights([seen[name] for name in taken], labels)
        other = [test.streams[name][~half] for name in taken]
        fused[~half] = fuse(other) if chosen == "average" else fuse(other, weights) / temperature
    return fused


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    rows, errors = [], []
    for split in sorted(parser.parse_args().folder.glob("split*")):
        read = [load_predictions(path) for path in sorted(split.iterdir())]
        for chosen in [*itertools.combinations(read, 2), *([tuple(read)] if len(read) > 2 else [])]:
            test = align(chosen)
            streams, labels = list(test.streams.values()), test.labels
            average, fused = fuse(streams), learnt(test, None, False)
            found = {
                "streams": " + ".join(one.stream for one in chosen) if len(chosen) == 2 else "all",
                "average": top1(average, labels),
                "better stream": max(top1(one, labels) for one in streams),
                "std": top1(fuse([one / one.std() for one in streams]), labels),
                "learnt": top1(fused, labels),
                "chosen": top1(learnt(test, None, True), labels),
                "best": best_in_hindsight(streams, labels),
            }
            for videos, way in itertools.product((200, 60), ("learnt", "chosen")):
                found[f"{way} on {videos}"] = top1(learnt(test, videos, way == "chosen"), labels)
            rows.append(found)
            errors.append([calibration_error(softmax(z, axis=1), labels) for z in (average, fused)])
            print(split.name, *(f"{key} {value}" for key, value in found.items()), flush=True)
    means = pd.DataFrame(rows).set_index("streams")
    print("\nmean of the splits", means.groupby("streams", sort=False).mean().round(2).to_string(), sep="\n")
    gains = means.sub(means["average"], axis=0)
    print("\nagainst the average", pd.DataFrame({
        "mean": means.mean(), "gain": gains.mean(), "worst": gains.min(), "most": gains.max(),
        "at or above it": (gains >= 0).sum(),
    }).round(2).to_string(), sep="\n")  # fmt: skip
    print("expected calibration error, mean: average {:.3f}, learnt {:.3f}".format(*np.mean(errors, axis=0)))


if __name__ == "__main__":
    run_main(main)
