"""Fuse the saved predictions of two or more streams: accuracies, intervals, results.json and a report.

    python fusion.py                                         # record/spatial and record/motion
    python fusion.py --spatial A.pickle --motion B.pickle    # any two pickles, video or frame level
    python fusion.py A.pickle B.pickle C.pickle              # any number of streams
    python fusion.py --splits 1 2 3                          # record/spatial_split1 ...: mean over splits

The result is the plain average of the streams' logits, unless --normalize, --weights or --scores say
otherwise. The two ways to normalise need no label. The best weight of the sweep is found with the test
labels: it shows how much a weight could give, and is no result to quote.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.options import check_ranges
from report.metrics import METRICS, bootstrap, interval, mcnemar, softmax
from report.outcome import Outcome, Sweep
from report.summary import describe, text
from saved.predictions import TestSet, align, load_predictions
from utils import ArgumentParser, InputError, accuracy, check_writable, plural, run_main, write_json

CONFIDENCE = 0.6  # the common mean confidence; on UCF101's split 1, 0.5 to 0.7 give 90.64 to 90.75 % top-1
SWEEP = np.round(np.arange(0, 3.001, 0.05), 2)  # one stream's weight, the others' being 1
SPATIAL, MOTION = "record/spatial", "record/motion"


# --- fusing scores -------------------------------------------------------------------------------------


def temperature(logits: np.ndarray, confidence: float = CONFIDENCE) -> float:
    """The T at which the mean over videos of max softmax(logits / T) equals `confidence`.

    logits (videos, classes). The mean falls steadily as T grows, so T is found by bisection of log T.
    """
    below_top = logits - logits.max(axis=1, keepdims=True)
    low, high = math.log(logits.std()) - 10, math.log(logits.std()) + 10
    for _ in range(50):
        middle = (low + high) / 2
        # The largest exponential is exp(0) = 1, so the largest probability is 1 / sum.
        if (1 / np.exp(below_top / math.exp(middle)).sum(axis=1)).mean() > confidence:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def scale(logits: np.ndarray, normalize: str) -> float:
    """What a stream's logits are divided by before they are averaged; no label is used."""
    if normalize == "std":
        return float(logits.std())
    if normalize == "confidence":
        return temperature(logits)
    return 1.0


def fuse(
    streams: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    normalize: str = "none",
    scores: str = "logits",
) -> np.ndarray:
    """The weighted mean of several streams' scores, (videos, classes).

    streams: logits of shape (videos, classes), rows aligned. normalize "none", "std" or "confidence" divides
    each stream by one number of its own; scores "softmax" averages probabilities instead of logits.
    """
    scaled = [logits / scale(logits, normalize) for logits in streams]
    if scores == "softmax":
        scaled = [softmax(logits) for logits in scaled]
    return np.average(scaled, axis=0, weights=weights)


def sweep_weights(test_set: TestSet) -> Sweep:
    """The best weight in hindsight, found on the test labels themselves.

    Two streams: the weight of the one with the larger logits, which a plain average listens to most. More:
    each stream's weight in turn, and the best of all. Between equals the weight nearest 1 is taken.
    """
    names, logits = list(test_set.streams), list(test_set.streams.values())
    total = np.sum(logits, axis=0)
    louder = int(np.argmax([one.std() for one in logits]))
    found = []
    for place in [louder] if len(names) == 2 else range(len(names)):
        others = total - logits[place]
        guesses = [(others + weight * logits[place]).argmax(axis=1) for weight in SWEEP]
        top1 = np.array([100 * np.mean(guess == test_set.labels) for guess in guesses])
        best = [1.0] * len(names)
        best[place] = float(min(SWEEP[top1 == top1.max()], key=lambda weight: abs(weight - 1)))
        found.append(Sweep(names[place], place, SWEEP, top1, best, np.average(logits, axis=0, weights=best)))
    return max(found, key=lambda sweep: sweep.top1.max())


# --- one test set, or several splits -------------------------------------------------------------------


def evaluate(
    test_set: TestSet,
    weights: list[float] | None = None,
    normalize: str = "none",
    scores: str = "logits",
    seed: int | Sequence[int] = 0,
) -> Outcome:
    """Accuracies of each stream, of the fusion asked for, and of the fixed comparisons beside it.

    "average", "std" and "confidence" are always those of equally weighted logits; `seed` is the bootstrap's.
    """
    streams, labels = test_set.streams, test_set.labels
    logits = list(streams.values())
    weights = weights or [1.0] * len(logits)
    fused = fuse(logits, weights, normalize, scores)
    rows = {
        **streams,
        "fusion": fused,
        "average": fuse(logits),
        "std": fuse(logits, normalize="std"),
        "confidence": fuse(logits, normalize="confidence"),
    }
    found = {name: accuracy(row, labels) for name, row in rows.items()}
    draws = {name: bootstrap(row, labels, seed) for name, row in rows.items()}
    better = max(streams, key=lambda name: found[name]["top1"])
    test = mcnemar(fused.argmax(axis=1) == labels, streams[better].argmax(axis=1) == labels)
    sweep = sweep_weights(test_set)
    results = {
        "videos": len(test_set.videos),
        **found,
        "best_weight": {**accuracy(sweep.scores, labels), "weights": sweep.best, "tuned_on": "test labels"},
        "interval_95": {
            name: {metric: interval(values) for metric, values in row.items()} for name, row in draws.items()
        },
        "mcnemar": {
            "against": better,
            "only_fusion_right": test["only_first"],
            "only_stream_right": test["only_second"],
            "p": test["p"],
        },
        "classes": len(test_set.class_names),
        "settings": {
            "fusion": describe(normalize, weights, scores),
            "normalize": normalize,
            "weights": weights,
            "scores": scores,
        },
        "streams": {
            name: {**source.about(), "divided_by": scale(streams[name], normalize)}
            for name, source in test_set.sources.items()
        },
    }
    return Outcome(test_set, fused, sweep, results, draws)


def mean_over_splits(outcomes: dict[str, Outcome]) -> dict:
    """results.json of several splits: each figure is the mean over the splits, as papers report it.

    The intervals come from the mean of the splits' bootstrap draws, which must be independent (own seeds).
    """
    each = {split: outcome.results for split, outcome in outcomes.items()}
    first = next(iter(each.values()))
    if any(list(one["streams"]) != list(first["streams"]) for one in each.values()):
        raise InputError("the splits hold different streams; look at the paths and at predictions.json in them")
    means, intervals = {}, {}
    for row in [*first["interval_95"], "best_weight"]:
        means[row] = {m: float(np.mean([one[row][m] for one in each.values()])) for m in METRICS}
    for row in first["interval_95"]:
        draws = {m: np.mean([outcome.draws[row][m] for outcome in outcomes.values()], axis=0) for m in METRICS}
        intervals[row] = {m: interval(values) for m, values in draws.items()}
    return {
        "videos": sum(one["videos"] for one in each.values()),
        **means,
        "interval_95": intervals,
        "classes": first["classes"],
        "settings": first["settings"],
        "streams": {
            name: {"path": [one["streams"][name]["path"] for one in each.values()]} for name in first["streams"]
        },
        "splits": each,
    }


def scale_warning(test_set: TestSet) -> str | None:
    """A line for streams of very different scale, which a sum of 19 logits beside a mean of 19 would be.

    None where a predictions.json beside each pickle shows that all are this project's means.
    """
    streams = test_set.streams
    if all(source.meta for source in test_set.sources.values()):
        return None
    spread = {name: float(logits.std()) for name, logits in streams.items()}
    quiet, loud = min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)
    factor = spread[loud] / spread[quiet]
    if factor < 5:  # about 3 is usual (PEERS.md), and 19 / 3 is the least where a sum meets a mean
        return None
    return (
        f"warning: the logits of {loud} are {factor:.0f} times as large as those of {quiet} and decide a plain "
        "average; is one file a sum over samples, the other a mean? --normalize std or confidence puts them level"
    )


# --- the script ----------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        __doc__,
        epilog="PATH is a pickle or a folder that holds one. With --splits, {} in it stands for the split.",
    )
    inputs = parser.add_argument_group("predictions")
    add = inputs.add_argument
    add("pickles", nargs="*", metavar="PATH", help="streams to fuse, in place of --spatial and --motion")
    add("--spatial", metavar="PATH", help=f"first stream (default: {SPATIAL}, with --splits {SPATIAL}_split{{}})")
    add("--motion", metavar="PATH", help=f"second stream (default: {MOTION}, with --splits {MOTION}_split{{}})")
    add("--splits", nargs="+", metavar="N", help="fuse each of these splits, and report their mean")
    fusing = parser.add_argument_group("fusion")
    add = fusing.add_argument
    add("--weights", nargs="+", type=float, metavar="W", help="one per stream (default: 1 for each)")
    add(
        "--normalize",
        choices=("none", "std", "confidence"),
        default="none",
        help="divide each stream's logits by nothing, by their standard deviation, or by the temperature at "
        f"which its mean confidence is {CONFIDENCE}",
    )
    add("--scores", choices=("logits", "softmax"), default="logits", help="what is averaged")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--output", type=Path, default=Path("record/fusion"), metavar="DIR", help="for results and report")
    add("--no-report", action="store_true", help="write results.json only")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args()


def load(args: argparse.Namespace, split: str | None) -> TestSet:
    """The streams that the flags name, lined up; `split` stands in for {} in their paths."""
    default = "_split{}" if split else ""
    named = {"spatial": args.spatial or SPATIAL + default, "motion": args.motion or MOTION + default}
    paths = args.pickles or list(named.values())
    if split:
        for path in paths:
            if "{}" not in path:
                raise InputError(f"with --splits, {path} needs a {{}} where the split's number goes")
        paths = [path.replace("{}", split) for path in paths]
    predictions = [load_predictions(path) for path in paths]
    if not args.pickles:
        predictions = [one.as_stream(kind) for one, kind in zip(predictions, named, strict=True)]
    for one in predictions:
        if split and str(one.meta.get("split", split)) != split:
            wrong = one.meta["split"]
            raise InputError(f"{one.path} was made on split {wrong}, not {split}; look at the path")
    return align(predictions)


def check(args: argparse.Namespace) -> None:
    """What argparse can't check by itself."""
    check_ranges(args)
    if args.pickles and (args.spatial or args.motion):
        raise InputError("give either a list of predictions or --spatial and --motion, not both")
    if len(args.pickles) == 1:
        raise InputError(f"fusion needs two streams or more, and {args.pickles[0]} is one; name another")
    streams, weights = len(args.pickles) or 2, args.weights or [1.0]
    if args.weights and len(weights) != streams:
        raise InputError(f"--weights gives {plural(len(weights), 'number')} for {streams} streams; give one for each")
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise InputError("--weights takes numbers from 0 up, not all of them 0")
    if args.splits and len(set(args.splits)) < len(args.splits):
        raise InputError("--splits names a split twice; name each once")


def fuse_test_set(args: argparse.Namespace, output: Path, split: str | None) -> Outcome:
    """Load, fuse, print and save one test set."""
    test_set = load(args, split)
    check_writable(output)
    title = f"split {split}" if split else test_set.title
    if args.normalize == "none" and (warning := scale_warning(test_set)):
        print(warning, file=sys.stderr)
    seed = [args.seed, args.splits.index(split)] if split else args.seed
    outcome = evaluate(test_set, args.weights, args.normalize, args.scores, seed)
    print(text(outcome.results, title))
    write_json(output / "results.json", outcome.results)
    if not args.no_report and has_matplotlib():
        from report.sections import write_report

        print(f"report: {write_report(outcome, output, title)}")
    return outcome


def has_matplotlib() -> bool:
    """Whether plots can be drawn; if not, one line says how to get them."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no report: its plots need matplotlib; pip install matplotlib and run this again")
        return False
    return True


def main() -> None:
    args = parse_args()
    check(args)
    if not args.splits:
        fuse_test_set(args, args.output, None)
        return
    outcomes = {}
    for split in args.splits:
        outcomes[split] = fuse_test_set(args, args.output / f"split{split}", split)
        print()
    total = mean_over_splits(outcomes)
    title = f"mean over splits {', '.join(args.splits)}"
    print(text(total, title))
    write_json(args.output / "results.json", total)
    if not args.no_report and has_matplotlib():
        from report.sections import write_overview

        print(f"report: {write_overview(total, args.output, title)}")


if __name__ == "__main__":
    run_main(main)
