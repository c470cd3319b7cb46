"""Fuse the saved predictions of two or more streams: accuracies, intervals, results.json and a report.

    python fusion.py                                         # record/spatial and record/motion
    python fusion.py --spatial A.pickle --motion B.pickle    # any two pickles, video or frame level
    python fusion.py A.pickle B.pickle C.pickle              # any number of streams (ensembles)
    python fusion.py --splits 1 2 3                          # record/spatial_split1 ...: the mean over splits

The result is the plain average of the streams' logits unless --normalize, --weights or --scores say otherwise.
Temperature and standard deviation are found without a label. The best weight of the sweep is found with the
test labels: it shows how much a weight could give, and is no result to quote.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from report.metrics import METRICS, bootstrap, interval, mcnemar, softmax
from report.predictions import TestSet, align, load_predictions
from utils import HelpFormatter, InputError, accuracy, run_main, write_json

CONFIDENCE = (
    0.6  # the common mean confidence of confidence matching; on UCF101, 0.5 to 0.7 are all within 0.1 %
)
SWEEP = np.round(np.arange(0, 3.001, 0.05), 2)  # one stream's weight, the others' being 1
SPATIAL, MOTION = "record/spatial", "record/motion"


# ---------------------------------------------------------------------------------------------- fusing scores


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


@dataclass(frozen=True)
class Sweep:
    """Top-1 on the test set against one stream's weight, the others' being 1."""

    stream: str
    weights: np.ndarray  # (steps,)
    top1: np.ndarray  # (steps,) in per cent
    best: list[float]  # the best weights found, one per stream
    scores: np.ndarray  # (videos, classes), fused by them


def sweep_weights(test_set: TestSet) -> Sweep:
    """The best weight in hindsight, found on the test labels themselves.

    Two streams: the weight of the one with the larger logits, which a plain average listens to most. More:
    each stream's weight in turn, and the best of all.
    """
    names, logits = list(test_set.streams), list(test_set.streams.values())
    total = np.sum(logits, axis=0)
    louder = int(np.argmax([one.std() for one in logits]))
    found = []
    for place in [louder] if len(names) == 2 else range(len(names)):
        others = total - logits[place]
        top1 = np.array(
            [100 * np.mean((others + w * logits[place]).argmax(axis=1) == test_set.labels) for w in SWEEP]
        )
        best = [1.0] * len(names)
        best[place] = float(SWEEP[top1.argmax()])
        found.append(Sweep(names[place], SWEEP, top1, best, np.average(logits, axis=0, weights=best)))
    return max(found, key=lambda sweep: sweep.top1.max())


# ----------------------------------------------------------------------------------------------- one test set


@dataclass(frozen=True)
class Outcome:
    """Everything found out about one test set."""

    test_set: TestSet
    fused: np.ndarray  # (videos, classes), the fusion asked for
    sweep: Sweep
    results: dict  # what results.json says
    draws: dict[str, dict[str, np.ndarray]]  # row of the table -> metric -> bootstrap draws


def evaluate(test_set: TestSet, args: argparse.Namespace) -> Outcome:
    """Accuracies of each stream, of the fusion asked for and of the fixed comparisons beside it."""
    streams, labels = test_set.streams, test_set.labels
    logits = list(streams.values())
    fused = fuse(logits, args.weights, args.normalize, args.scores)
    sweep = sweep_weights(test_set)
    rows = {
        **streams,
        "fusion": fused,
        "average": fuse(logits),
        "std": fuse(logits, normalize="std"),
        "confidence": fuse(logits, normalize="confidence"),
    }
    figures = {name: accuracy(scores, labels) for name, scores in rows.items()}
    draws = {name: bootstrap(scores, labels, args.seed) for name, scores in rows.items()}
    better = max(streams, key=lambda name: figures[name]["top1"])
    test = mcnemar(fused.argmax(axis=1) == labels, streams[better].argmax(axis=1) == labels)
    results = {
        "videos": len(test_set.videos),
        **figures,
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
            "normalize": args.normalize,
            "weights": args.weights or [1.0] * len(streams),
            "scores": args.scores,
            "seed": args.seed,
        },
        "streams": {
            name: {
                "path": str(source.path),
                "level": source.level,
                "divided_by": scale(streams[name], args.normalize),
                **{
                    key: source.meta[key]
                    for key in ("dataset", "split", "protocol", "checkpoint")
                    if key in source.meta
                },
            }
            for name, source in test_set.sources.items()
        },
    }
    return Outcome(test_set, fused, sweep, results, draws)


def mean_over_splits(outcomes: dict[str, Outcome]) -> dict:
    """results.json of several splits: each figure is the mean over the splits, as papers report it.

    The intervals come from the mean of the splits' independent bootstrap draws.
    """
    each = [outcome.results for outcome in outcomes.values()]
    rows = list(each[0]["interval_95"])
    intervals = {
        row: {m: interval(np.mean([o.draws[row][m] for o in outcomes.values()], axis=0)) for m in METRICS}
        for row in rows
    }
    return {
        "videos": sum(one["videos"] for one in each),
        **{
            row: {m: float(np.mean([one[row][m] for one in each])) for m in METRICS}
            for row in [*rows, "best_weight"]
        },
        "interval_95": intervals,
        "classes": each[0]["classes"],
        "settings": each[0]["settings"],
        "splits": dict(zip(outcomes, each, strict=True)),
    }


# ------------------------------------------------------------------------------------------- what is printed


def describe(settings: dict) -> str:
    """The fusion asked for, in words: "average" unless a flag changed it."""
    parts = []
    if settings["normalize"] != "none":
        parts.append(settings["normalize"])
    if len(set(settings["weights"])) > 1:
        parts.append(" : ".join(f"{weight:g}" for weight in settings["weights"]))
    if settings["scores"] != "logits":
        parts.append(settings["scores"])
    return ", ".join(parts) or "average"


def table(results: dict, streams: Sequence[str]) -> str:
    """The accuracies as aligned text; `streams` are the names of the rows that aren't fusions."""
    asked = describe(results["settings"])
    tuned = "best weight *"
    if "weights" in results["best_weight"]:
        tuned = f"best weight {' : '.join(f'{weight:g}' for weight in results['best_weight']['weights'])} *"
    rows = [(name, name) for name in streams]
    rows.append((f"fusion: {asked}", "fusion"))
    rows += [(f"  {name}", name) for name in ("average", "std", "confidence") if name != asked]
    rows.append((f"  {tuned}", "best_weight"))
    width = max(len(label) for label, _ in rows)
    lines = [f"{'':{width}}   top-1   95 % interval    top-5   mean class"]
    for label, name in rows:
        figures = results[name]
        low, high = results["interval_95"].get(name, {}).get("top1", (None, None))
        spread = f"{low:6.2f} - {high:6.2f}" if low is not None else ""
        lines.append(
            f"{label:{width}}  {figures['top1']:6.2f}   {spread:15}  {figures['top5']:6.2f}   {figures['mean_class']:10.2f}"
        )
    lines.append("* chosen on the test labels themselves: what a weight could give at most, not a result")
    return "\n".join(lines)


def headline(results: dict, name: str) -> str:
    return f"{name}: {results['videos']:,} videos, {results['classes']} classes, accuracy in %"


def mcnemar_line(results: dict) -> str:
    test = results["mcnemar"]
    return (
        f"McNemar's exact test, fusion against {test['against']} alone: right only by fusion "
        f"{test['only_fusion_right']:,}, only by {test['against']} {test['only_stream_right']:,}, p = {test['p']:.2g}"
    )


def scale_warning(streams: dict[str, np.ndarray]) -> str | None:
    """A line for streams of very different scale, such as a sum of 19 logits beside a mean of 19."""
    spread = {name: float(logits.std()) for name, logits in streams.items()}
    small, large = min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)
    ratio = spread[large] / spread[small]
    if (
        ratio < 5
    ):  # 3 is usual between two streams of one project (PEERS); 19 / 3 = 6 where a sum meets a mean
        return None
    return (
        f"warning: {large}'s logits are {ratio:.0f} times as large as {small}'s and decide a plain average; is one file "
        "a sum over samples, the other a mean? Consider --normalize std or confidence"
    )


# --------------------------------------------------------------------------------------------------- the script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="A path is a pickle, or a folder that holds one. With --splits, {} in it stands for the split's number.",
        formatter_class=HelpFormatter,
    )
    inputs = parser.add_argument_group("predictions")
    inputs.add_argument(
        "pickles", nargs="*", metavar="PICKLE", help="streams to fuse, instead of --spatial and --motion"
    )
    inputs.add_argument(
        "--spatial", metavar="PATH", help=f"(default: {SPATIAL}; with --splits {SPATIAL}_split{{}})"
    )
    inputs.add_argument(
        "--motion", metavar="PATH", help=f"(default: {MOTION}; with --splits {MOTION}_split{{}})"
    )
    inputs.add_argument(
        "--splits", nargs="+", metavar="N", help="fuse each of these splits and report the mean"
    )
    fusing = parser.add_argument_group("fusion")
    fusing.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one per stream (default: all 1)"
    )
    fusing.add_argument(
        "--normalize",
        choices=("none", "std", "confidence"),
        default="none",
        help="divide each stream's logits by nothing, by their standard deviation, or by the temperature at which "
        f"its mean confidence is {CONFIDENCE}",
    )
    fusing.add_argument("--scores", choices=("logits", "softmax"), default="logits", help="what is averaged")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, default=Path("record/fusion"), metavar="DIR", help="results and report"
    )
    output.add_argument("--no-report", action="store_true", help="write results.json only")
    output.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args()


def load(args: argparse.Namespace, split: str | None) -> TestSet:
    """The streams the flags name, aligned; `split` replaces {} in their paths."""
    suffix = "_split{}" if args.splits else ""
    if args.pickles and (args.spatial or args.motion):
        raise InputError("give either a list of pickles or --spatial and --motion, not both")
    named = {"spatial": args.spatial or SPATIAL + suffix, "motion": args.motion or MOTION + suffix}
    patterns = args.pickles or list(named.values())
    if split is not None:
        fixed = [pattern for pattern in patterns if "{}" not in pattern]
        if fixed:
            raise InputError(f"with --splits, {fixed[0]} needs a {{}} where the split's number goes")
        patterns = [pattern.replace("{}", split) for pattern in patterns]
    predictions = [load_predictions(pattern) for pattern in patterns]
    for one in predictions:
        if split is not None and str(one.meta.get("split", split)) != split:
            raise InputError(
                f"{one.path} was made on split {one.meta['split']}, not {split}; look at the path"
            )
    if not args.pickles:
        for one, kind in zip(predictions, named, strict=True):
            if one.meta and one.stream != kind:
                raise InputError(f"--{kind} {one.path} holds the {one.stream} stream; look at the path")
        predictions = [replace(one, stream=kind) for one, kind in zip(predictions, named, strict=True)]
    if len(predictions) < 2:
        raise InputError(f"fusion needs two streams or more, but {predictions[0].path} is one; name another")
    weights = args.weights or [1.0] * len(predictions)
    if len(weights) != len(predictions):
        raise InputError(
            f"--weights gives {len(weights)} numbers for {len(predictions)} streams; give one for each"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise InputError("--weights takes numbers from 0 up that aren't all 0")
    return align(predictions)


def fuse_test_set(args: argparse.Namespace, output: Path, split: str | None) -> Outcome:
    """Load, fuse, print and save one test set."""
    test_set = load(args, split)
    if args.normalize == "none" and args.scores == "logits" and (warning := scale_warning(test_set.streams)):
        print(warning, file=sys.stderr)
    outcome = evaluate(test_set, args)
    title = title_of(test_set)
    print(headline(outcome.results, title))
    print(table(outcome.results, list(test_set.streams)))
    print(mcnemar_line(outcome.results))
    write_json(output / "results.json", outcome.results)
    if not args.no_report:
        report(outcome, output, title)
    return outcome


def report(outcome: Outcome, output: Path, title: str) -> None:
    """Write the page with its plots and tables; without matplotlib, say how to get it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no report: it needs matplotlib; pip install matplotlib, then run this again")
        return
    from report.page import write_report

    print(f"report: {write_report(outcome, output, f'Two-stream fusion, {title}')}")


def title_of(test_set: TestSet) -> str:
    """The dataset and split, as far as predictions.json beside a pickle says them."""
    for source in test_set.sources.values():
        if source.meta:
            return f"{source.meta.get('dataset', 'dataset')} split {source.meta.get('split', '?')}"
    return "ucf101"


def main() -> None:
    args = parse_args()
    if not args.splits:
        fuse_test_set(args, args.output, None)
    else:
        outcomes = {}
        for split in args.splits:
            outcomes[split] = fuse_test_set(args, args.output / f"split{split}", split)
            print()
        total = mean_over_splits(outcomes)
        print(headline(total, f"mean over splits {', '.join(args.splits)}"))
        print(table(total, list(next(iter(outcomes.values())).test_set.streams)))
        write_json(args.output / "results.json", total)


if __name__ == "__main__":
    run_main(main)
