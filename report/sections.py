"""The report's sections: a fusion's results as data for page.py, in the order in which readers ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from scipy.special import softmax

from report import gallery, page, plots
from report import outcome as words
from report.outcome import Outcome
from report.page import Cards, Link, Plot, Report, Section, Table, Text, Tile
from saved.predictions import Predictions
from saved.records import find_records, in_words, provenance
from utils import plural

PAIRS = 20  # kinds of mistake listed; the CSV has all
WIDE = 25  # with more classes, the confusion matrix is wider than the page
CHOSEN = {  # how far to trust an accuracy, by how its network's epoch was chosen (predictions.json chosen_by)
    "test": "The epoch of {} was chosen by the accuracy on these same test videos, as in the original work: its "
    "figures here are somewhat too high. --val-groups chooses without the test set.",
    "val": "The epoch of {} was chosen on videos held out of training, not on these.",
    "last": "The epoch of {} is the last of a number that was fixed before.",
    "unknown": "How the epoch of {} was chosen is not recorded. The original training chooses it by the accuracy on "
    "the test videos themselves, which makes such figures somewhat too high.",
}


def write_report(outcome: Outcome, output: Path, title: str) -> Path:
    """Write report.html and the files that it shows into `output`. Return the page's path."""
    results, chances = outcome.results, {name: softmax(logits, axis=1) for name, logits in outcome.rows.items()}
    settings = ", ".join(f"{key} {value}" for key, value in results["settings"].items())
    with rc_context(plots.STYLE):
        report = Report(
            title=f"{'Two-stream fusion' if len(outcome.rows) > 1 else words.capital(outcome.main)}: {title}",
            summary=f"{plural(results['videos'], 'video')}, {results['classes']} classes. Top-1 accuracy in per "
            f"cent, with bootstrap 95 % intervals over {results['resampled']['unit']}s.",
            tiles=tiles(outcome),
            notes=[*(f"{line}." for line in words.warnings(results)), *selection(outcome)],
            sections=[
                accuracy(outcome),
                *look_alikes(outcome),
                per_class(outcome),
                confusion(outcome),
                mistakes(outcome, chances),
                *training_curves(outcome),
            ],
            made=[*sources(outcome), ("this page", in_words(provenance({}))), ("settings", settings)],
        )
        return page.write(report, output / "report.html")


def tiles(outcome: Outcome) -> list[Tile]:
    """Return the main figures in large type: top-1 of each stream and of fusion, with intervals."""
    made = []
    for place, name in enumerate(outcome.rows):
        low, high = outcome.results["interval_95"][name]["top1"]
        value = f"{outcome.results[name]['top1']:.2f}"
        made.append(Tile(name, value, f"{low:.1f} – {high:.1f}", plots.hue(name, place)))
    return made


def selection(outcome: Outcome) -> list[str]:
    """Say how the networks' epochs were chosen; skip heads, which have no epochs, and predict.py's videos."""
    streams: dict[str, list[str]] = {}
    for name, source in outcome.test_set.sources.items():
        if epoch_of(source) != -1 and "files" not in source.meta:
            how = source.meta.get("chosen_by")
            streams.setdefault(how if how in CHOSEN else "unknown", []).append(name)
    return [CHOSEN[how].format(" and ".join(names)) for how, names in streams.items()]


def epoch_of(source: Predictions) -> int | None:
    """Return the epoch of the network, -1 for a head."""
    return (source.meta.get("checkpoint") or {}).get("epoch")


def sources(outcome: Outcome) -> list[tuple[str, str]]:
    """Return where each stream's predictions came from, as (item, text)."""
    lines = []
    for name, source in outcome.test_set.sources.items():
        line = f"{source.path}, {source.level}-level logits"
        if checkpoint := source.meta.get("checkpoint"):
            line += f"; checkpoint {checkpoint.get('name')}"
            line += f", epoch {epoch}" if (epoch := epoch_of(source)) != -1 else ""
        if protocol := source.meta.get("protocol"):
            line += "; " + ", ".join(f"{key} {value}" for key, value in protocol.items())
        lines.append((name, line))
        if made := in_words(source.meta.get("made")):
            lines.append((f"{name}'s run", made))
    return lines


# --- sections ------------------------------------------------------------------------------------------


def accuracy(outcome: Outcome) -> Section:
    results, streams = outcome.results, list(outcome.test_set.streams)
    shown = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}
    if results["classes"] <= words.FEW_CLASSES:
        del shown["top5"]
    cells, dots = [], []
    for place, (label, key) in enumerate(words.rows(results)):
        found, (low, high) = results[key], results["interval_95"][key]["top1"]
        first, *others = (f"{found[metric]:.2f}" for metric in shown)
        cells.append([label, first, f"{low:.1f} – {high:.1f}", *others])
        dots.append(
            (label, plots.colour(key, place) if key in outcome.rows else plots.GREY, found["top1"], low, high)
        )
    first, *others = shown.values()
    several = len(streams) > 1
    main, aside = (len(streams), len(streams) + 1) if several else (None, None)
    blocks: list = [Table(["", first, "95 % interval", *others], cells, main=main, aside=aside)]
    if several:
        said = (
            "Below fusion stand other ways to fuse, which use no label. average: the plain mean of the streams' "
            f"logits. {words.STD_NOTE}."
        )
        blocks += [Text(said)]
    blocks.append(Plot("accuracy", plots.accuracy(dots), "Top-1 accuracy with its interval"))
    blocks += [Text(f"{words.capital(line)}.") for line in words.notes(results)]
    return Section("Accuracy", blocks)


def look_alikes(outcome: Outcome) -> list[Section]:
    """Return a section of pairs of a test and a training video that look alike, if heads.py's check warns."""
    alike = outcome.results.get("look_alikes", {})
    if not alike.get("warns") or not alike.get("pairs"):
        return []
    said = (
        f"{words.look_alike_note(alike)}. The test video and the training video of each pair are the most similar ones "
        f"({100 * alike['shared']:.0f} % of the test videos have such a training video):"
    )
    return [Section("Look-alikes on both sides", [Text(said), Cards(gallery.pairs(outcome, alike["pairs"]))])]


def class_table(outcome: Outcome) -> pd.DataFrame:
    """Return a row per class with videos: label, class, videos, top-1 in % of each stream and fusion, gain.

    gain is fusion minus the stream that is better over all videos, so its mean is the gain in mean-class
    accuracy. The best gain comes first; with one stream, the best class.
    """
    labels = outcome.test_set.labels
    label, videos = np.unique(labels, return_counts=True)
    names = [outcome.test_set.class_names[one] for one in label]
    table = pd.DataFrame({"label": label, "class": names, "videos": videos})
    for name, values in outcome.rows.items():
        right = values.argmax(axis=1) == labels
        table[name] = 100 * np.bincount(labels, weights=right)[label] / videos
    by = [outcome.main, "class"]
    if len(outcome.rows) > 1:
        table["gain"] = table["fusion"] - table[outcome.results["mcnemar"]["against"]]
        by = ["gain", *by]
    return table.sort_values(by, ascending=[*[False] * (len(by) - 1), True], ignore_index=True)


def per_class(outcome: Outcome) -> Section:
    found = class_table(outcome)
    said = "Sorted by accuracy."
    if "gain" in found:
        up, down = int((found["gain"] > 0).sum()), int((found["gain"] < 0).sum())
        said = (
            f"Sorted by what fusion gains over {outcome.results['mcnemar']['against']}, the better stream: a gain in "
            f"{plural(up, 'class')}, a loss in {down}. The mean of the gains, {found['gain'].mean():+.2f}, is the gain "
            "in mean-class accuracy."
        )
    drawn = plots.per_class(found, list(outcome.rows))
    blocks: list = [Text(said), Plot("per_class", drawn, "Accuracy in each class")]
    return Section("Class by class", blocks, {"per_class": found.drop(columns="label")})


def confused_pairs(matrix: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """Count each kind of mistake, most frequent first: true, guessed, videos, share (% of true class), ...

    The last two columns, label and guess, are the true and the guessed class as numbers.
    """
    true, guessed = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=int)))
    videos = matrix[true, guessed]
    names = np.array(class_names, dtype=object)
    columns = {"true": names[true], "guessed": names[guessed], "videos": videos}
    table = pd.DataFrame(
        {**columns, "share": 100 * videos / matrix.sum(axis=1)[true], "label": true, "guess": guessed}
    )
    order = ["videos", "share", "true", "guessed"]
    return table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)


def confusion(outcome: Outcome) -> Section:
    names, labels = outcome.test_set.class_names, outcome.test_set.labels
    guesses, classes = outcome.fused.argmax(axis=1), len(outcome.test_set.class_names)
    counts = np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)
    pairs = confused_pairs(counts, names)
    blocks: list = [Text(f"{words.capital(outcome.main)} makes no mistake.")]
    if len(pairs):
        part = (
            f"The {PAIRS} most frequent of {len(pairs)} kinds of mistake"
            if len(pairs) > PAIRS
            else "The mistakes"
        )
        count = plural(pairs["videos"].sum(), "video")
        said = f"{words.capital(outcome.main)} gets {count} wrong. {part}, each leading to its videos:"
        rows = [
            [
                Link(f"{row.true} → {row.guessed}", gallery.anchor(row.label, row.guess)),
                row.videos,
                f"{row.share:.0f} %",
            ]
            for row in pairs.head(PAIRS).itertuples()
        ]
        blocks = [Text(said), Table(["true class → guess", "videos", "of the class"], rows)]
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    wide = len(used) > WIDE
    said = "The matrix: each row is a true class and adds up to 100 %."
    if unused := len(names) - len(used):
        said += f" Left out: {plural(unused, 'class')} without a video or guess."
    drawn = plots.confusion(counts[np.ix_(used, used)], [names[i] for i in used], wide)
    least = 1150 if wide else min(480, 42 * len(used) + 150)
    blocks += [Text(said), Plot("confusion", drawn, "Confusion matrix", least)]
    matrix = pd.DataFrame(counts, columns=names)
    matrix.insert(0, "true class", names, allow_duplicates=True)
    csvs = {"confusion": matrix, "confused_pairs": pairs.drop(columns=["label", "guess"])}
    return Section("What is confused", blocks, csvs)


def mistakes(outcome: Outcome, chances: Mapping[str, np.ndarray]) -> Section:
    main, labels = words.capital(outcome.main), outcome.test_set.labels
    wrong = outcome.fused.argmax(axis=1) != labels
    if not wrong.any():
        return Section("Every mistake", [Text(f"{main} gets every video right.")])
    said = f"{main} gets {plural(wrong.sum(), 'video')} wrong"
    if len(outcome.rows) > 1:
        right = [logits.argmax(axis=1) == labels for logits in outcome.test_set.streams.values()]
        some, all_ = np.any(right, axis=0), np.all(right, axis=0)
        said += (
            f"; no stream is right on {(~some).sum():,} of them. Where some streams are right and others wrong, fusion "
            f"is right on {(some & ~all_ & ~wrong).sum():,} of {plural((some & ~all_).sum(), 'video')}; an oracle that "
            f"always picked a right stream would reach {100 * some.mean():.2f} %"
        )
    kinds, without = gallery.mistakes(outcome, chances)
    blocks: list = [
        Text(
            f"{said}. The most frequent kind stands first. Each video has its frames and its flow, where they are on "
            "disk, and the best guesses with their probabilities; bold is the true class. White in a picture of flow "
            "is no motion, and each direction has its colour."
        ),
    ]
    if without:
        blocks.append(Text(f"Without frames here: {plural(without, 'video')}.", soft=True))
    return Section("Every mistake", [*blocks, *kinds])


def training_curves(outcome: Outcome) -> list[Section]:
    """Return the section of training curves, if there are records beside the predictions."""
    streams = find_records(source.path.parent for source in outcome.test_set.sources.values())
    drawn = [
        Plot(f"curves_{place}", plots.curves(stream, phases), f"Training curves of the {stream} stream")
        for place, (stream, phases) in enumerate(streams.items())
    ]
    said = Text("From the records beside the predictions, a row per epoch.")
    return [Section("Training", [said, *drawn])] if streams else []
