"""Fuse the saved predictions of one or more streams: accuracies, intervals, results.json and a report.

    python fusion.py                                         # record/spatial and record/motion
    python fusion.py --spatial A.pickle --motion B.pickle    # any two files, video or frame level
    python fusion.py A.pickle B.npz C.csv                    # any number of streams, other programs' too
    python fusion.py --learn VAL_SPATIAL VAL_MOTION          # the best of several, on held-out videos
    python fusion.py --splits 1 2 3                          # record/spatial_split1 ...: mean over splits

The result is the plain average of the streams' logits unless --learn or --weights say otherwise.
--learn chooses one stream, the average, learnt weights, or the joined head that heads.py wrote beside the
streams' linear heads. It chooses on other videos; use those that --val-groups held out of both trainings.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from common.accuracy import accuracy
from common.commandline import ArgumentParser, bounded
from report.metrics import METRICS, bootstrap, group_numbers, mcnemar
from report.outcome import Learnt, LearntOn, Outcome, fusion_name, notes, text, warnings
from saved.predictions import TestSet, align, check_same_classes, load_predictions
from utils import InputError, check_writable, plural, run_main, write_json

SPATIAL, MOTION = "record/spatial", "record/motion"
FOLDS = 5  # of the held-out videos, to compare fusions
CHANCE = 1.5  # a fusion must gain this many standard errors in likelihood over a single stream


# --- fusing scores -------------------------------------------------------------------------------------


def fuse(streams: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Return the weighted mean of several streams' logits (videos, classes), rows aligned."""
    return np.average(list(streams), axis=0, weights=weights)


def learn_weights(streams: Sequence[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit weights (streams,) of sum 1 and a temperature by maximum likelihood, and return both.

    The model is softmax(sum of weight * logits / temperature). streams: logits (videos, classes) of videos
    that took no part in training. The problem is convex: one weight >= 0 per stream, for logits in units of
    their standard deviation. The label gets 1 - 1 / (videos + 2) (Platt 1999); otherwise the temperature
    would be 0 if all videos were right.
    """
    from scipy.optimize import minimize  # here: it takes a moment to import

    scales = np.array([logits.std() for logits in streams])
    inputs = np.array(streams) / scales[:, None, None]  # (streams, videos, classes)
    targets = np.full(inputs.shape[1:], 1 / (len(labels) + 2) / inputs.shape[2])
    targets[np.arange(len(labels)), labels] += 1 - 1 / (len(labels) + 2)

    def loss(shares: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the cross-entropy summed over the videos, in nats, and its gradient."""
        log_p = log_softmax(np.tensordot(shares, inputs, 1), axis=1)
        return -float((targets * log_p).sum()), np.tensordot(inputs, np.exp(log_p) - targets, 2)

    start, bounds = np.ones(len(streams)), [(0, None)] * len(streams)
    shares = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    if not shares.any():  # every stream makes the labels less likely: guess instead
        shares = np.full(len(streams), 1e-3)
    weights = shares / scales
    return weights / weights.sum(), 1 / float(weights.sum())


def choose(
    streams: Mapping[str, np.ndarray], joined: np.ndarray | None, labels: np.ndarray, groups: np.ndarray
) -> tuple[str, dict[str, np.ndarray]]:
    """Choose a fusion on held-out videos. Return its name and the log loss (videos,) of each candidate.

    Candidates are each stream, their average, learnt weights, and `joined`, the logits of one head on all
    features. Temperatures and learnt weights come from the other folds; folds keep `groups` (videos,)
    together. The likeliest candidate wins, with two exceptions. A single stream wins if it is within CHANCE
    standard errors (over groups) of the likeliest, and the joined head must beat the others by as much.
    """
    logits = list(streams.values())
    candidates = {name: [one] for name, one in streams.items()}
    candidates |= {"average": [np.mean(logits, axis=0)], "learnt": logits}
    if joined is not None:
        candidates["joined"] = [joined]
    numbers = np.unique(groups, return_inverse=True)[1].ravel()
    fold = np.random.default_rng(0).permutation(numbers.max() + 1)[numbers] % FOLDS
    losses = {name: np.empty(len(labels)) for name in candidates}
    for held in (fold == number for number in np.unique(fold)):
        rest = ~held if not held.all() else held  # a single group is judged by itself
        for name, parts in candidates.items():
            weights, temperature = learn_weights([part[rest] for part in parts], labels[rest])
            fused = np.tensordot(weights, [part[held] for part in parts], 1) / temperature
            losses[name][held] = -np.take_along_axis(log_softmax(fused, axis=1), labels[held, None], 1)[:, 0]

    def within_chance(one: str, other: str) -> bool:
        """Return whether `one` is not likelier than `other` beyond chance."""
        gain = losses[other] - losses[one]
        sums = np.bincount(numbers, weights=gain - gain.mean())
        return gain.sum() <= CHANCE * np.sqrt(np.square(sums).sum())

    means = {name: loss.mean() for name, loss in losses.items()}
    best = min((name for name in means if name != "joined"), key=means.__getitem__)
    if joined is not None and not within_chance("joined", best):
        best = "joined"
    single = min(streams, key=means.__getitem__)
    return single if within_chance(best, single) else best, losses


# --- one test set, or several splits -------------------------------------------------------------------


def evaluate(
    test_set: TestSet, weights: list[float] | None = None, seed: int = 0, learnt: Learnt | None = None,
    joined: np.ndarray | None = None,
) -> Outcome:  # fmt: skip
    """Compute the accuracies of each stream, of the requested fusion, and of the fixed comparisons.

    "average" and "std" always weight the streams equally. `learnt`, if given, is the requested fusion. If it
    chose the joined head, `joined` holds that head's logits (videos, classes). `seed` is for the bootstrap.
    With one stream, "fusion" is that stream, and nothing is compared.
    """
    streams, labels, videos = test_set.streams, test_set.labels, test_set.videos
    logits = list(streams.values())
    weights = weights or [1.0] * len(logits)
    rows = {**streams, "fusion": fuse(logits, weights)}
    if len(streams) > 1:
        rows |= {"average": fuse(logits), "std": fuse([one / one.std() for one in logits])}
    if learnt:
        # predict.py averages the two parts of a joined head, which gives half of its logits
        rows["fusion"] = learnt.fuse(logits) if joined is None else joined / 2 / learnt.temperature
        weights = list(learnt.weights.values())
    groups = groups_of(test_set)
    count = int(groups.max()) + 1
    draws = {name: bootstrap(row, labels, groups, seed) for name, row in rows.items()}
    unit = "group" if count < len(videos) else "video"
    results: dict = {
        "videos": len(videos),
        **{name: accuracy(row, labels, videos) for name, row in rows.items()},
        "interval_95": {name: intervals(row) for name, row in draws.items()},
        "resampled": {"unit": unit, "count": count},
        "classes": len(test_set.class_names),
        "settings": {"fusion": fusion_name(weights, learnt), "weights": weights},
        "streams": {name: source.about() for name, source in test_set.sources.items()},
    }
    if len(streams) > 1:
        better = max(streams, key=lambda name: results[name]["top1"])
        ours, theirs = (rows[name].argmax(axis=1) == labels for name in ("fusion", better))
        results["mcnemar"] = {"against": better, **mcnemar(ours, theirs, groups), "over": f"{unit}s"}
    if learnt:
        results["learnt"] = learnt.model_dump()
    for source in test_set.sources.values():
        if "look_alikes" in source.meta:
            results["look_alikes"] = source.meta["look_alikes"]
    results |= {"warnings": warnings(results, learnt), "notes": notes(results, learnt)}
    return Outcome(test_set, rows["fusion"], results, draws)


def groups_of(test_set: TestSet) -> np.ndarray:
    """Return (videos,) int: each video's recording, as predictions.json or else its name tells it."""
    known = next((one.meta["groups"] for one in test_set.sources.values() if "groups" in one.meta), None)
    named = None if known is None else [str(known.get(video, "")) for video in test_set.videos]
    return group_numbers(test_set.videos, test_set.labels, named)


def intervals(draws: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the middle 95 % of each metric's bootstrap draws as [low, high]."""
    return {metric: np.percentile(values, [2.5, 97.5]).tolist() for metric, values in draws.items()}


def mean_over_splits(outcomes: Mapping[str, Outcome]) -> dict:
    """Return results.json for several splits: each figure is the mean over the splits, as papers report it.

    The intervals come from the mean of the splits' bootstrap draws, which must be independent (own seeds).
    """
    found = list(outcomes.values())
    if any(list(one.test_set.streams) != list(found[0].test_set.streams) for one in found):
        raise InputError("the splits hold different streams; look at the paths and their predictions.json")
    total: dict = {"videos": sum(len(one.test_set.videos) for one in found), "interval_95": {}}
    for row in found[0].draws:
        total[row] = {m: float(np.mean([one.results[row][m] for one in found])) for m in METRICS}
        draws = {m: np.mean([one.draws[row][m] for one in found], axis=0) for m in METRICS}
        total["interval_95"][row] = intervals(draws)
    return {**total, "splits": {split: one.results for split, one in outcomes.items()}}


# --- the script ----------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        __doc__,
        epilog="PATH is a prediction pickle, a folder that holds one, or a .npz, .npy or .csv file with "
        "names, labels and scores. With --splits, {} in PATH stands for N.",
    )
    add = parser.add_argument_group("predictions").add_argument
    add("pickles", nargs="*", metavar="PATH", help="streams, instead of --spatial and --motion")
    add("--spatial", metavar="PATH", help=f"folder or file (default: {SPATIAL}, or {SPATIAL}_split{{}})")
    add("--motion", metavar="PATH", help=f"folder or file (default: {MOTION}, or {MOTION}_split{{}})")
    add("--splits", nargs="+", metavar="N", help="fuse each of these splits, and report their mean")
    add = parser.add_argument_group("fusion").add_argument
    add("--learn", nargs="*", metavar="PATH",
        help="choose one stream, the average, learnt weights or heads.py's joined head by likelihood on predictions "
             "of other videos: one PATH per stream (default: the folder val beside each)")
    add("--weights", nargs="+", type=bounded(float, 0, 1e6), metavar="W", help="one per stream (default: 1 for each)")
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, default=Path("record/fusion"), metavar="DIR", help="for results and report")
    add("--no-report", action="store_true", help="write results.json only")
    args = parser.parse_args()
    streams = len(args.pickles) or 2
    if args.pickles and (args.spatial or args.motion):
        raise InputError("give either a list of predictions or --spatial and --motion, not both")
    if args.weights and (len(args.weights) != streams or not any(args.weights)):
        raise InputError(f"--weights takes {plural(streams, 'number')}, one for each stream, not all 0")
    if args.learn is not None and args.weights:
        raise InputError("--learn finds the weights itself; leave out --weights")
    if args.learn is not None and (streams == 1 or len(args.learn) not in (0, streams)):
        raise InputError(f"--learn chooses between several streams; give {plural(streams, 'path')}, or none")
    for split in args.splits or []:
        if not split.isdecimal() or args.splits.count(split) > 1:
            raise InputError(f"--splits takes different numbers, not {split!r}; name streams before it")
    return args


def load(args: argparse.Namespace, split: str | None, paths: Sequence[str] = ()) -> TestSet:
    """Load the streams' predictions, by default of the test set, with aligned videos. `split` replaces {} in paths.

    Without a list of predictions, they must be the spatial and the motion stream. `paths` are of held-out videos.
    Those that a stream lacks are left out: heads hold out more videos than trainings.
    """
    default, predictions = "_split{}" if args.splits else "", []
    tested = args.pickles or [args.spatial or SPATIAL + default, args.motion or MOTION + default]
    for place, path in enumerate(paths or tested):
        if split and "{}" not in path:
            raise InputError(f"with --splits, {path} needs a {{}} where the split's number goes")
        one = load_predictions(path.replace("{}", split) if split else path)
        if split and str(one.meta.get("split", split)) != split:
            raise InputError(f"{one.path} is of split {one.meta['split']}, not {split}; look at the path")
        predictions.append(one if args.pickles else one.as_stream(("spatial", "motion")[place]))
    common = set.intersection(*(set(one.logits) for one in predictions))
    most = max(len(one.logits) for one in predictions)
    if paths and 0 < len(common) < most:
        print(f"held-out videos: the {len(common):,} that all streams have, of {most:,}")
        predictions = [one.only(common) for one in predictions]
    return align(predictions)


def learn(args: argparse.Namespace, test_set: TestSet, split: str | None) -> Learnt:
    """Choose a fusion on --learn's predictions, or on those in the folder val beside each test set's."""
    beside = [str(source.path.parent / "val") for source in test_set.sources.values()]
    held_out = load(args, split if args.learn else None, args.learn or beside)
    for (name, source), other in zip(test_set.sources.items(), held_out.sources.values(), strict=True):
        check_same_classes(source, other)
        if source.meta and other.meta and source.stream != other.stream:
            raise InputError(f"{other.path} is of {other.stream}, {source.path} of {name}; order them alike")
    if both := sorted(set(test_set.videos) & set(held_out.videos)):
        raise InputError(f"{len(both):,} of the {plural(len(held_out.videos), 'video')} to learn from are tested, too "
                         f"({both[0]} ...); that tunes the weights on the test: learn from other videos")  # fmt: skip
    folder = joined_head(test_set, held_out.videos)
    joined = load_predictions(folder / "val").matrix(held_out.videos) if folder else None
    groups, labels = groups_of(held_out), held_out.labels
    streams = dict(zip(test_set.streams, held_out.streams.values(), strict=True))
    chosen, losses = choose(streams, joined, labels, groups)
    logits = list(streams.values())
    weights, temperature = learn_weights(logits, labels)
    if chosen != "learnt":
        weights = np.array([float(chosen in (name, "average", "joined")) for name in streams])
        weights /= weights.sum()
    # The joined head is the sum of two parts, but predict.py takes their mean.
    fused = joined / 2 if joined is not None and chosen == "joined" else fuse(logits, weights)
    if chosen != "learnt":
        _, temperature = learn_weights([fused], labels)
    return Learnt(
        weights=dict(zip(streams, weights.tolist(), strict=True)),
        temperature=temperature,
        learnt_on=LearntOn(videos=len(held_out.videos), groups=int(groups.max()) + 1,
                           paths=[str(source.path) for source in held_out.sources.values()]),
        chosen=chosen,
        log_loss={name: float(loss.mean()) for name, loss in losses.items()},
        held_out_top1=accuracy(fused, labels)["top1"],
        joined=folder.as_posix() if folder and chosen == "joined" else None,
    )  # fmt: skip


def joined_head(test_set: TestSet, videos: list[str]) -> Path | None:
    """Return the folder of heads.py's joined head, None if it is missing or unlike the streams.

    The streams must be its linear heads; the joined head must cover `videos` (held out) and the test set.
    """
    linear, *others = {source.path.parent.parent for source in test_set.sources.values()}
    folder = linear.parent / "joined"
    if others or linear.name != "linear" or not (folder / "val").is_dir():
        return None
    same = sorted(load_predictions(folder / "val").logits) == videos
    return folder if same and sorted(load_predictions(folder).logits) == test_set.videos else None


def fuse_test_set(args: argparse.Namespace, output: Path, split: str | None) -> Outcome:
    """Load, fuse, print and save one test set."""
    test_set = load(args, split)
    learnt = None if args.learn is None else learn(args, test_set, split)
    check_writable(output)
    title = f"split {split}" if split else test_set.title
    seed = args.splits.index(split) if split else 0
    joined = load_predictions(learnt.joined).matrix(test_set.videos) if learnt and learnt.joined else None
    outcome = evaluate(test_set, args.weights, seed, learnt, joined)
    write_json(output / "results.json", outcome.results)
    print(text(outcome.results, title))
    if not args.no_report:
        from report.page import write_report  # here: matplotlib takes a moment to import

        print(f"report: {write_report(outcome, output, title)}")
    return outcome


def main() -> None:
    args = parse_args()
    if not args.splits:
        fuse_test_set(args, args.output, None)
        return
    outcomes = {}
    for split in args.splits:
        outcomes[split] = fuse_test_set(args, args.output / f"split{split}", split)
        print()
    total = mean_over_splits(outcomes)
    write_json(args.output / "results.json", total)
    print(f"mean over splits {', '.join(args.splits)}: {plural(total['videos'], 'video')}, accuracy in %")
    print(f"{'':10}   top-1   95 % interval   mean class")
    for row, bounds in total["interval_95"].items():
        low, high = bounds["top1"]
        top1, mean_class = total[row]["top1"], total[row]["mean_class"]
        print(f"{row:10}  {top1:6.2f}   {low:6.2f} - {high:6.2f}   {mean_class:10.2f}")


if __name__ == "__main__":
    run_main(main)
