"""The report's sections: what a fusion found, told in the order in which one asks."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context

from report import curves, metrics, page, plots, summary, tables, thumbnails
from report.outcome import Outcome
from report.page import Page
from utils import plural

PAIRS = 20  # confused pairs that are drawn
CARDS = 24  # videos that every stream got wrong and that are shown; the CSV has all
LISTED = 10  # classes listed where one stream beats the other most
WIDE = 25  # classes from which a confusion matrix needs more than the page's width


def write_report(outcome: Outcome, output: Path, title: str) -> Path:
    """Write report.html and the PNGs and CSVs that it shows into `output`; returns the page's path."""
    results = outcome.results
    built = Page(output)
    with rc_context({"text.parse_math": False}):  # a class's name may hold $
        accuracy(built, results)
        weight_sweep(built, outcome)
        per_class(built, outcome)
        confusion(built, outcome)
        agreement(built, outcome)
        calibration(built, outcome)
        wrong_videos(built, outcome)
    training_curves(built, outcome)
    return built.write(
        f"Two-stream fusion: {title}", opening(results), "<br>\n".join(escape(one) for one in sources(outcome))
    )


def write_overview(total: dict, output: Path, title: str) -> Path:
    """Write report.html for the mean over several splits, with links to each split's own report."""
    built = Page(output)
    accuracy(built, total)
    built.section("Split by split")
    columns = [(label, key) for label, key in summary.rows(total) if key != "best_weight"]
    rows = [
        [split, f"{one['videos']:,}", *(f"{one[key]['top1']:.2f}" for _, key in columns)]
        for split, one in total["splits"].items()
    ]
    built.paragraph("Top-1 accuracy in per cent.")
    built.add(page.table(["split", "videos", *(label for label, _ in columns)], rows))
    links = ", ".join(f'<a href="split{escape(s)}/report.html">split {escape(s)}</a>' for s in total["splits"])
    built.add(f"<p>Each split's report: {links}</p>")
    return built.write(f"Two-stream fusion: {title}", opening(total), "")


def opening(results: dict) -> str:
    line = (
        f"{plural(results['videos'], 'test video')}, {results['classes']} classes. Top-1 accuracy in per cent, with "
        f"bootstrap 95 % intervals over {results['resampled']['unit']}s."
    )
    return f'<p class="soft">{line}</p>\n{page.tiles(results)}'


def sources(outcome: Outcome) -> list[str]:
    """Where each stream's predictions came from, a line each."""
    lines = []
    for name, source in outcome.test_set.sources.items():
        line = f"{name}: {source.path}, {source.level}-level logits"
        checkpoint = source.meta.get("checkpoint")
        if isinstance(checkpoint, dict):
            line += f", checkpoint {checkpoint.get('name')}, epoch {checkpoint.get('epoch')}"
        lines.append(line)
    return lines


def accuracy(built: Page, results: dict) -> None:
    streams = list(results["streams"])
    cells, bars = [], []
    for place, (label, key) in enumerate(summary.rows(results)):
        found, spread = results[key], results["interval_95"].get(key, {}).get("top1")
        words = f"{spread[0]:.1f} – {spread[1]:.1f}" if spread else ""
        cells.append([label, f"{found['top1']:.2f}", words, f"{found['top5']:.2f}", f"{found['mean_class']:.2f}"])
        hue = plots.colour(key, place) if key in streams or key == "fusion" else plots.GREY
        bars.append((label, hue, found["top1"], spread))
    built.section("Accuracy")
    built.add(page.table(["", "top-1", "95 % interval", "top-5", "mean class"], cells, main=len(streams)))
    built.paragraph(f"* {summary.TUNED_NOTE}.", soft=True)
    built.paragraph(
        "average: the plain mean of the streams' logits. std: each stream's logits divided by their standard "
        "deviation over the test set first. Neither uses a label."
    )
    built.figure("accuracy", plots.accuracy(bars), "Top-1 accuracy of each stream and fusion")
    for line in (summary.learnt_note(results), summary.test_line(results), summary.uncertainty_note(results)):
        if line:
            built.paragraph(line[0].upper() + line[1:] + ".")


def weight_sweep(built: Page, outcome: Outcome) -> None:
    sweep, results = outcome.sweep, outcome.results
    built.section("Weight sweep")
    built.paragraph(
        f"Top-1 against the weight of {sweep.stream}. The curve needs the test labels, so its highest point is "
        "tuned on the test set; the dashed lines are not."
    )
    levels = {name: results[name]["top1"] for name in summary.FIXED}
    drawn = plots.sweep(sweep.stream, sweep.weights, sweep.top1, sweep.best[sweep.place], levels)
    built.figure("weights", drawn, "Top-1 against weight")
    built.csv("weights", pd.DataFrame({f"weight of {sweep.stream}": sweep.weights, "top1": sweep.top1}))
    built.files("weights.png", "weights.csv")


def class_table(outcome: Outcome) -> pd.DataFrame:
    test_set = outcome.test_set
    scores = {**test_set.streams, "fusion": outcome.fused}
    return tables.per_class(scores, test_set.labels, test_set.class_names, outcome.results["mcnemar"]["against"])


def per_class(built: Page, outcome: Outcome) -> None:
    better = outcome.results["mcnemar"]["against"]
    found = class_table(outcome)
    columns = [*outcome.test_set.streams, "fusion"]
    up, down = int((found["gain"] > 0).sum()), int((found["gain"] < 0).sum())
    built.section("Class by class")
    built.paragraph(
        f"Sorted by what fusion gains over {better}, the better stream: a gain in {plural(up, 'class')}, a loss in "
        f"{down}. The mean of the gains, {found['gain'].mean():+.2f}, is the gain in mean-class accuracy."
    )
    accuracies = {name: found[name].to_numpy() for name in columns}
    drawn = plots.per_class(found["class"].tolist(), accuracies, found["gain"].to_numpy())
    built.figure("per_class", drawn, "Accuracy in each class, by stream and fusion")
    rows = [
        [row["class"], row["videos"], *(f"{row[name]:.1f}" for name in columns), f"{row['gain']:+.1f}"]
        for row in found.to_dict("records")
    ]
    numbers = page.table(["class", "videos", *columns, "gain"], rows)
    built.add(f"<details><summary>The same as numbers</summary>{numbers}</details>")
    built.csv("per_class", found)
    built.files("per_class.png", "per_class.csv")


def confusion(built: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    names = test_set.class_names
    counts = tables.confusion(outcome.fused.argmax(axis=1), test_set.labels, len(names))
    pairs = tables.confused_pairs(counts, names)
    built.section("What is confused")
    if len(pairs):
        part = f"the {PAIRS} most frequent of {len(pairs)} kinds" if len(pairs) > PAIRS else "all kinds"
        built.paragraph(
            f"Fusion gets {plural(pairs['videos'].sum(), 'video')} wrong. Drawn: {part} of mistake, true class → guess."
        )
        drawn = plots.confused_pairs(list(pairs.head(PAIRS).itertuples(index=False, name=None)))
        built.figure("confused_pairs", drawn, "The most frequent mistakes")
    else:
        built.paragraph("Fusion makes no mistake.")
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    wide = len(used) > WIDE
    unused = plural(len(names) - len(used), "class")
    rest = "" if len(used) == len(names) else f" Left out: {unused} without a video or guess."
    hint = " It scrolls sideways on a narrow screen." if wide else ""
    built.paragraph(f"The matrix: each row is a true class and adds up to 100 %.{rest}{hint}")
    drawn = plots.confusion(counts[np.ix_(used, used)], [names[i] for i in used], wide)
    built.figure("confusion", drawn, "Confusion matrix of fusion", least=1150 if wide else None)
    matrix = pd.DataFrame(counts, columns=names)
    matrix.insert(0, "true class", names, allow_duplicates=True)
    built.csv("confusion", matrix)
    built.csv("confused_pairs", pairs)
    built.files("confusion.png", "confusion.csv", "confused_pairs.csv")


def agreement(built: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    fused_right = outcome.fused.argmax(axis=1) == test_set.labels
    guesses = np.stack([logits.argmax(axis=1) for logits in test_set.streams.values()])  # (streams, videos)
    apart = (guesses != guesses[0]).any(axis=0)
    some_right = (guesses == test_set.labels).any(axis=0)
    contested = apart & some_right
    built.section("Where the streams disagree")
    built.paragraph(
        f"The streams disagree on {apart.sum():,} of {apart.size:,} videos. On {contested.sum():,} of these at "
        f"least one is right, and fusion is right on {fused_right[contested].sum():,}. An oracle that always picked "
        f"a right stream would reach {100 * some_right.mean():.2f} % top-1."
    )
    found = tables.agreement(dict(zip(test_set.streams, guesses, strict=True)), fused_right, test_set.labels)
    shown = found.nlargest(10, "videos", keep="first") if len(found) > 10 else found
    counts = list(shown[["who", "videos", "fusion_right"]].itertuples(index=False, name=None))
    built.figure("agreement", plots.agreement(counts), "Which streams are right")
    rows = [
        [who, f"{videos:,}", f"{right:,}", f"{100 * right / videos:.1f} %" if videos else ""]
        for who, videos, right in counts
    ]
    built.add(page.table(["", "videos", "fusion right", "share"], rows))
    if len(test_set.streams) == 2:
        one, other = test_set.streams
        halves = stronger(outcome, one, other) + stronger(outcome, other, one)
        built.add(f'<div class="pair">{halves}</div>')
    built.csv("agreement", found)
    built.files("agreement.png", "agreement.csv")


def stronger(outcome: Outcome, one: str, other: str) -> str:
    """The classes in which stream `one` beats stream `other` most, as HTML; empty if there are none."""
    found = class_table(outcome)
    lead = (found[one] - found[other]).sort_values(ascending=False, kind="stable")
    best = found.loc[lead[lead > 0].head(LISTED).index]
    if best.empty:
        return ""
    columns = [one, other, "fusion"]
    rows = [[row["class"], *(f"{row[name]:.1f}" for name in columns)] for row in best.to_dict("records")]
    heading = f"<p>Where {escape(one)} sees most that {escape(other)} misses:</p>"
    return f"<div>{heading}{page.table(['class', *columns], rows)}</div>"


def probabilities(outcome: Outcome) -> dict[str, np.ndarray]:
    """Each stream's and fusion's probabilities, (videos, classes)."""
    found = {name: metrics.softmax(logits) for name, logits in outcome.test_set.streams.items()}
    averaged = outcome.results["settings"]["scores"] == "softmax"  # the fused scores then are probabilities
    return {**found, "fusion": outcome.fused if averaged else metrics.softmax(outcome.fused)}


def calibration(built: Page, outcome: Outcome) -> None:
    labels = outcome.test_set.labels
    found = {name: metrics.calibration(values, labels) for name, values in probabilities(outcome).items()}
    built.section("Calibration")
    built.paragraph(
        "How often the first guess is right, against the probability that softmax gives it. On the dashed line the "
        "two are equal; below it the stream is too sure of itself. The grey line is the share of the videos. ECE is "
        "the mean distance from the dashed line over the videos (Guo et al. 2017, 15 bins)."
    )
    built.figure("calibration", plots.calibration(found), "Reliability diagrams")
    built.paragraph(
        "This judges the scale of the logits, not their order: a sum of 19 logits is far too sure of itself, and "
        "logits divided by anything are as sure as the divisor makes them.",
        soft=True,
    )
    built.csv("calibration", tables.calibration(found))
    built.files("calibration.png", "calibration.csv")


def wrong_videos(built: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    names = test_set.class_names
    chances = probabilities(outcome)
    found = tables.videos(test_set.videos, test_set.labels, names, chances)
    missed = found[found["streams_right"] == 0]
    missed = missed.sort_values(["fusion p(guess)", "video"], ascending=[False, True], kind="stable")
    everybody = "both streams" if len(test_set.streams) == 2 else "all streams"
    built.section(f"Videos that {everybody} got wrong")
    if len(missed):
        part = f", {CARDS} of them here" if len(missed) > CARDS else ""
        built.paragraph(
            f"{plural(len(missed), 'video')}{part}, those first that fusion is surest about. Below each, the three "
            "best guesses and their probabilities; bold is the true class."
        )
    else:
        built.paragraph("There are none.")
    strip = strip_maker(outcome)
    cards = ""
    for row in missed.index[:CARDS]:
        best = {
            name: [(names[guess], values[row, guess]) for guess in np.argsort(-values[row], kind="stable")[:3]]
            for name, values in chances.items()
        }
        video = test_set.videos[row]
        cards += page.card(video, names[test_set.labels[row]], strip(video), best)
    built.add(f'<div class="cards">\n{cards}</div>')
    built.csv("videos", found)
    built.files("videos.csv")


def strip_maker(outcome: Outcome) -> Callable[[str], str | None]:
    """A function from a video's key to a strip of its RGB frames, None for what isn't on disk."""
    for source in outcome.test_set.sources.values():
        frames = source.meta.get("frames")
        if source.meta.get("stream") == "spatial" and isinstance(frames, dict):
            root, folders = frames.get("root"), frames.get("folders")
            if isinstance(root, str) and isinstance(folders, dict):
                return lambda video: thumbnails.strip(Path(root), str(folders.get(video, ".")))
    return lambda video: None


def training_curves(built: Page, outcome: Outcome) -> None:
    records = curves.find_records([source.path.parent for source in outcome.test_set.sources.values()])
    if records:
        built.section("Training")
        built.paragraph("From the records beside the predictions, a row per epoch.")
        built.figure("curves", curves.draw(records), "Training curves", least=640)
        built.files("curves.png")
