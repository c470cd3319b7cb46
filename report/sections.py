"""The report's sections: what a fusion found, told in the order in which one asks, as the data of blocks.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context

from report import gallery, metrics, page, plots, summary, tables
from report.outcome import Outcome
from report.page import Link, Plot, Report, Section, Table, Text, Tile
from saved.records import Phases, find_records, in_words, provenance
from utils import plural

PAIRS = 20  # kinds of mistake that are listed; the CSV has all
LISTED = 10  # classes listed where one stream beats the other most, and the surest mistakes
WIDE = 25  # classes from which a confusion matrix needs more than the page's width
CHOSEN = {  # what an accuracy is worth where predictions.json says of its network's epoch that it was chosen by ...
    "test": "The epoch of {} was chosen by the accuracy on these same test videos, as in the original work: its "
    "figures here are somewhat too high. --val-groups chooses without the test set.",
    "val": "The epoch of {} was chosen on videos held out of training, not on these.",
    "last": "The epoch of {} is the last of a number that was fixed before.",
    "unknown": "How the epoch of {} was chosen is not recorded. The original training chooses it by the accuracy on "
    "the test videos themselves, which makes such figures somewhat too high.",
}


def write_report(outcome: Outcome, output: Path, title: str) -> Path:
    """Write report.html with the files that it shows into `output`; returns the page's path."""
    with rc_context(plots.STYLE):
        chances = probabilities(outcome)
        sections = [
            accuracy(outcome.results),
            weight_sweep(outcome),
            per_class(outcome),
            confusion(outcome),
            agreement(outcome),
            calibration(outcome, chances),
            mistakes(outcome, chances),
            *training_curves(outcome),
        ]
        return page.write(build_report(outcome.results, title, sections, sources(outcome)), output / "report.html")


def write_overview(total: dict, output: Path, title: str) -> Path:
    """The same for the mean over several splits."""
    with rc_context(plots.STYLE):
        return page.write(build_report(total, title, [accuracy(total), each_split(total)], []), output / "report.html")


def build_report(results: dict, title: str, sections: list[Section], made: list[tuple[str, str]]) -> Report:
    """`sections` with an opening above them; below, `made` and how this fusion came about."""
    settings = ", ".join(f"{key} {value}" for key, value in results["settings"].items())
    return Report(
        title=f"Two-stream fusion: {title}",
        summary=f"{plural(results['videos'], 'test video')}, {results['classes']} classes. Top-1 accuracy in per cent, "
        f"with bootstrap 95 % intervals over {results['resampled']['unit']}s.",
        tiles=tiles(results),
        notes=[*summary.warnings(results), selection(results)],
        sections=sections,
        made=[*made, ("fusion", in_words(provenance({}))), ("settings", settings)],
    )


def tiles(results: dict) -> list[Tile]:
    """The main figures in large type: each stream's top-1 and fusion's, with their intervals."""
    made = []
    for place, name in enumerate([*results["streams"], "fusion"]):
        low, high = results["interval_95"][name]["top1"]
        made.append(Tile(name, f"{results[name]['top1']:.2f}", f"{low:.1f} – {high:.1f}", plots.hue(name, place)))
    return made


def selection(results: dict) -> str:
    """How the networks' epochs were chosen, in the test or in each of several splits."""
    streams: dict[str, dict[str, None]] = {how: {} for how in CHOSEN}  # in order, each once
    for one in results.get("splits", {"": results}).values():
        for name, about in one["streams"].items():
            how = str(about.get("chosen_by"))
            streams[how if how in CHOSEN else "unknown"][name] = None
    return " ".join(CHOSEN[how].format(" and ".join(names)) for how, names in streams.items() if names)


def sources(outcome: Outcome) -> list[tuple[str, str]]:
    """Where each stream's predictions came from."""
    lines = []
    for name, source in outcome.test_set.sources.items():
        line = f"{source.path}, {source.level}-level logits"
        if isinstance(checkpoint := source.meta.get("checkpoint"), dict):
            line += f"; checkpoint {checkpoint.get('name')}, epoch {checkpoint.get('epoch')}"
        if isinstance(protocol := source.meta.get("protocol"), dict):
            line += "; " + ", ".join(f"{key} {value}" for key, value in protocol.items())
        lines.append((name, line))
        if made := in_words(source.meta.get("made")):
            lines.append((f"{name}'s run", made))
    return lines


# --- sections ------------------------------------------------------------------------------------------


def accuracy(results: dict) -> Section:
    streams = list(results["streams"])
    metrics_shown = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}
    if results["classes"] <= summary.FEW_CLASSES:
        del metrics_shown["top5"]
    cells, dots = [], []
    for place, (label, key) in enumerate(summary.rows(results)):
        found, spread = results[key], results["interval_95"].get(key, {}).get("top1")
        values = [f"{found[metric]:.2f}" for metric in metrics_shown]
        cells.append([label, values[0], f"{spread[0]:.1f} – {spread[1]:.1f}" if spread else "", *values[1:]])
        tone = plots.colour(key, place) if key in streams or key == "fusion" else plots.GREY
        dots.append((label, tone, found["top1"], spread))
    first, *others = metrics_shown.values()
    blocks: list = [
        Table(["", first, "95 % interval", *others], cells, main=len(streams), aside=len(streams) + 1),
        Text(f"* {summary.TUNED_NOTE}.", soft=True),
        Text(
            "Below fusion stand other ways to fuse, for comparison. average: the plain mean of the streams' logits. "
            "std: each stream's logits divided by their standard deviation over the test set first. Neither uses a "
            "label."
        ),
        Plot("accuracy", plots.accuracy(dots, results["videos"]), "Top-1 accuracy with its interval, row by row"),
    ]
    notes = (summary.choice_note(results), summary.test_line(results), summary.uncertainty_note(results))
    blocks += [Text(line[0].upper() + line[1:] + ".") for line in notes if line]
    return Section("Accuracy", blocks)


def each_split(total: dict) -> Section:
    columns = [(label, key) for label, key in summary.rows(total) if key != "best_weight"]
    rows = []
    for split, one in total["splits"].items():
        top1 = (f"{one[key]['top1']:.2f}" for _, key in columns)
        rows.append([Link(split, f"split{split}/report.html"), f"{one['videos']:,}", *top1])
    said = Text("Top-1 accuracy in per cent. A split's number leads to its own report.")
    return Section("Split by split", [said, Table(["split", "videos", *(label for label, _ in columns)], rows)])


def weight_sweep(outcome: Outcome) -> Section:
    sweep, results = outcome.sweep, outcome.results
    drawn = plots.sweep(sweep, {name: results[name]["top1"] for name in summary.FIXED}, results["videos"])
    said = Text(
        f"Top-1 against the weight of {sweep.stream}. The curve needs the test labels, so its highest point is tuned "
        "on the test set; the dashed lines are not."
    )
    table = pd.DataFrame({f"weight of {sweep.stream}": sweep.weights, "top1": sweep.top1})
    return Section("Weight sweep", [said, Plot("weights", drawn, "Top-1 against weight")], {"weights": table})


def class_table(outcome: Outcome) -> pd.DataFrame:
    test_set = outcome.test_set
    scores = {**test_set.streams, "fusion": outcome.fused}
    return tables.per_class(scores, test_set.labels, test_set.class_names, outcome.results["mcnemar"]["against"])


def per_class(outcome: Outcome) -> Section:
    found = class_table(outcome)
    columns = [*outcome.test_set.streams, "fusion"]
    anchors = ["#" + gallery.anchor(label) for label in found["label"]]
    up, down = int((found["gain"] > 0).sum()), int((found["gain"] < 0).sum())
    said = (
        f"Sorted by what fusion gains over {outcome.results['mcnemar']['against']}, the better stream: a gain in "
        f"{plural(up, 'class')}, a loss in {down}. The mean of the gains, {found['gain'].mean():+.2f}, is the gain in "
        "mean-class accuracy. A class's name leads to its videos."
    )
    drawn = plots.per_class(found, columns, anchors)
    rows = [
        [Link(row["class"], anchor), row["videos"], *(f"{row[name]:.1f}" for name in columns), f"{row['gain']:+.1f}"]
        for row, anchor in zip(found.to_dict("records"), anchors, strict=True)
    ]
    blocks: list = [
        Text(said),
        Plot("per_class", drawn, "Accuracy in each class, by stream and fusion"),
        Table(["class", "videos", *columns, "gain"], rows, folded="The same as numbers"),
    ]
    return Section("Class by class", blocks, {"per_class": found.drop(columns="label")})


def confusion(outcome: Outcome) -> Section:
    test_set = outcome.test_set
    names = test_set.class_names
    counts = tables.confusion(outcome.fused.argmax(axis=1), test_set.labels, len(names))
    pairs = tables.confused_pairs(counts, names)
    blocks: list = []
    if len(pairs):
        part = f"The {PAIRS} most frequent of {len(pairs)} kinds of mistake" if len(pairs) > PAIRS else "The mistakes"
        said = f"Fusion gets {plural(pairs['videos'].sum(), 'video')} wrong. {part}, each leading to its videos:"
        rows = []
        for row in pairs.head(PAIRS).itertuples():
            link = Link(f"{row.true} → {row.guessed}", f"#{gallery.anchor(row.label, row.guess)}")
            rows.append([link, row.videos, f"{row.share:.0f} %"])
        blocks += [Text(said), Table(["true class → guess", "videos", "of the class"], rows)]
    else:
        blocks.append(Text("Fusion makes no mistake."))
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    wide = len(used) > WIDE
    said = "The matrix: each row is a true class and adds up to 100 %. A cell leads to its videos."
    if unused := len(names) - len(used):
        said += f" Left out: {plural(unused, 'class')} without a video or guess."
    if len(used) > 8:
        said += " It scrolls sideways on a narrow screen."
    blocks.append(Text(said))
    shown = counts[np.ix_(used, used)]
    anchors = {
        (row, column): f"#{gallery.anchor(used[row], used[column])}"
        for row, column in zip(*np.nonzero(shown), strict=True)
    }
    drawn = plots.confusion(shown, [names[i] for i in used], anchors, wide)
    least = 1150 if wide else min(480, 42 * len(used) + 150)
    blocks.append(Plot("confusion", drawn, "Confusion matrix of fusion", least))
    matrix = pd.DataFrame(counts, columns=names)
    matrix.insert(0, "true class", names, allow_duplicates=True)
    csvs = {"confusion": matrix, "confused_pairs": pairs.drop(columns=["label", "guess"])}
    return Section("What is confused", blocks, csvs)


def agreement(outcome: Outcome) -> Section:
    test_set = outcome.test_set
    fused_right = outcome.fused.argmax(axis=1) == test_set.labels
    guesses = np.stack([logits.argmax(axis=1) for logits in test_set.streams.values()])  # (streams, videos)
    apart = (guesses != guesses[0]).any(axis=0)
    some_right = (guesses == test_set.labels).any(axis=0)
    contested = apart & some_right
    found = tables.agreement(dict(zip(test_set.streams, guesses, strict=True)), fused_right, test_set.labels)
    shown = found.nlargest(10, "videos", keep="first") if len(found) > 10 else found
    blocks: list = [
        Text(
            f"The streams disagree on {apart.sum():,} of {apart.size:,} videos. On {contested.sum():,} of these at "
            f"least one is right, and fusion is right on {fused_right[contested].sum():,}. An oracle that always "
            f"picked a right stream would reach {100 * some_right.mean():.2f} % top-1."
        ),
        Plot("agreement", plots.agreement(shown), "Which streams are right, and how often fusion is"),
    ]
    if len(test_set.streams) == 2:
        one, other = test_set.streams
        blocks += [*stronger(outcome, one, other), *stronger(outcome, other, one)]
    return Section("Where the streams disagree", blocks, {"agreement": found})


def stronger(outcome: Outcome, one: str, other: str) -> list[Text | Table]:
    """The classes in which stream `one` beats stream `other` most; nothing if there are none."""
    found = class_table(outcome)
    lead = (found[one] - found[other]).sort_values(ascending=False, kind="stable")
    best = found.loc[lead[lead > 0].head(LISTED).index]
    if best.empty:
        return []
    columns = [one, other, "fusion"]
    rows = [
        [Link(row["class"], f"#{gallery.anchor(row['label'])}"), *(f"{row[name]:.1f}" for name in columns)]
        for row in best.to_dict("records")
    ]
    return [Text(f"Where {one} sees most that {other} misses:"), Table(["class", *columns], rows)]


def probabilities(outcome: Outcome) -> dict[str, np.ndarray]:
    """Each stream's and fusion's probabilities, (videos, classes)."""
    found = {name: metrics.softmax(logits) for name, logits in outcome.test_set.streams.items()}
    averaged = outcome.results["settings"]["scores"] == "softmax"  # the fused scores then are probabilities
    return {**found, "fusion": outcome.fused if averaged else metrics.softmax(outcome.fused)}


def calibration(outcome: Outcome, chances: dict[str, np.ndarray]) -> Section:
    labels = outcome.test_set.labels
    bins = min(15, max(5, len(labels) // 20))  # Guo et al. have 15, for thousands of images
    found = {name: metrics.calibration(values, labels, bins) for name, values in chances.items()}
    verdicts = " ".join(
        sureness(name, values, labels, outcome.results["interval_95"][name]["top1"]) for name, values in chances.items()
    )
    drawn = Plot("calibration", plots.calibration(found), "Reliability diagrams")
    legend = Text(
        "How often the first guess is right, against the probability that softmax gives it. On the dashed line the two "
        "are equal; a bar below it is too sure of itself, one above it not sure enough. The grey line is the share of "
        f"the videos. ECE is the mean distance from the dashed line over the videos (Guo et al. 2017, {bins} bins). It "
        "judges the scale of the logits, not their order: dividing them by a number changes how sure they are and no "
        "guess.",
        soft=True,
    )
    return Section("Calibration", [Text(verdicts), drawn, legend], {"calibration": tables.calibration(found)})


def sureness(name: str, values: np.ndarray, labels: np.ndarray, spread: list[float]) -> str:
    """What one stream's mean confidence is worth, in a sentence; `spread` is the interval of its top-1, per cent."""
    confidence = 100 * float(values.max(axis=1).mean())
    right = 100 * float((values.argmax(axis=1) == labels).mean())
    said = f"gives its first guesses {confidence:.0f} % on average and gets {right:.0f} % right"
    if abs(confidence - right) < 3:
        return f"{name} {said}: as sure as it should be."
    if spread[0] <= confidence <= spread[1]:
        return f"{name} {said}, on too few videos to tell whether that is too much or too little."
    return f"{name} {said}: {'too sure of itself' if confidence > right else 'not sure enough (underconfident)'}."


def mistakes(outcome: Outcome, chances: dict[str, np.ndarray]) -> Section:
    test_set = outcome.test_set
    found = tables.videos(test_set.videos, test_set.labels, test_set.class_names, chances)
    guesses = outcome.fused.argmax(axis=1)
    wrong = found[guesses != test_set.labels].sort_values(
        ["fusion p(guess)", "video"], ascending=[False, True], kind="stable"
    )
    blocks: list = []
    if len(wrong):
        none_right = int((wrong["streams_right"] == 0).sum())
        everybody = "both streams" if len(test_set.streams) == 2 else "all streams"
        said = (
            f"Fusion gets {plural(len(wrong), 'video')} wrong; in {none_right:,} of them {everybody} are wrong, too. "
            "Those that fusion is surest about:"
        )
        rows = []
        for place, row in wrong.head(LISTED).to_dict("index").items():
            mistake, sure = f"{row['class']} → {row['fusion guess']}", f"{100 * row['fusion p(guess)']:.0f} %"
            rows.append([Link(row["video"], f"#v{place}"), mistake, sure])
        blocks += [Text(said), Table(["video", "true class → guess", "sure"], rows, words=2)]
    else:
        blocks.append(Text("There are none: fusion gets every video right."))
    blocks.append(
        Text(
            "By class, the most mistakes first. Each video with its frames, where they are on disk, and the best "
            "guesses of every stream with their probabilities; bold is the true class."
        )
    )
    shown, without = gallery.build(outcome, chances)
    if without:
        blocks.append(Text(f"Without frames here: {plural(without, 'video')}.", soft=True))
    return Section("Every mistake", [*blocks, shown], {"videos": found})


def training_curves(outcome: Outcome) -> list[Section]:
    """The section, where there are records beside the predictions."""
    streams = find_records(source.path.parent for source in outcome.test_set.sources.values())
    said = Text("From the records beside the predictions, a row per epoch.")
    return [Section("Training", [said, *curve_plots({"": streams})])] if streams else []


def curve_plots(runs: Mapping[str, Mapping[str, Phases]]) -> list[Plot]:
    """A plot per stream. runs: run's name -> stream -> phases; of a single run its name isn't shown."""
    made = []
    for stream in dict.fromkeys(stream for found in runs.values() for stream in found):
        drawn = plots.curves(
            stream, {run: found[stream] for run, found in runs.items() if stream in found}, len(runs) > 1
        )
        name = "curves_" + "".join(c if c.isalnum() else "_" for c in stream)
        made.append(Plot(name, drawn, f"Training curves of the {stream} stream"))
    return made
