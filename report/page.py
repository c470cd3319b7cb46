"""report.html: what a fusion found, on one self-contained page, with the PNGs and CSVs that it shows."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from report import curves, metrics, plots, tables, thumbnails
from utils import atomic_path

if TYPE_CHECKING:
    from fusion import Outcome

PAIRS = 20  # confused pairs drawn and listed
CARDS = 24  # videos that every stream got wrong, shown with their guesses; the CSV has all
LISTED_CLASSES = 10  # classes listed where one stream beats the other most


def write_report(outcome: Outcome, output: Path, title: str) -> Path:
    """Write report.html and the PNGs and CSVs that it shows into `output`; returns the page's path."""
    page = Page(output)
    overview(page, outcome)
    weight_sweep(page, outcome)
    per_class(page, outcome)
    confusion(page, outcome)
    disagreement(page, outcome)
    calibration(page, outcome)
    wrong_videos(page, outcome)
    training_curves(page, outcome)
    return page.write(output / "report.html", title, lead(outcome), sources(outcome))


class Page:
    """The page's sections as they come, and the files they embed."""

    def __init__(self, output: Path):
        self.output = output
        self.sections: list[tuple[str, str, list[str]]] = []  # (anchor, heading, HTML)

    def section(self, heading: str) -> None:
        self.sections.append((f"s{len(self.sections)}", heading, []))

    def add(self, html: str) -> None:
        self.sections[-1][2].append(html)

    def paragraph(self, text: str, soft: bool = False) -> None:
        self.add(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")

    def figure(self, name: str, drawn, alt: str, least: int | None = None) -> None:
        """Save a figure as PNG and embed it; one with a least width in pixels scrolls sideways on a phone."""
        path = self.output / f"{name}.png"
        plots.save(drawn, path)
        data = base64.b64encode(path.read_bytes()).decode()
        width, height = (drawn.get_size_inches() * 96).round().astype(int)
        style = f' class="heat" style="--least:{least}px"' if least else ""
        image = (
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
        )
        self.add(f"<figure{style}>{image}</figure>")

    def csv(self, name: str, table: pd.DataFrame) -> None:
        tables.write(table, self.output / f"{name}.csv")

    def files(self, *names: str) -> None:
        links = ", ".join(f'<a href="{name}">{name}</a>' for name in names)
        self.add(f'<p class="soft">Beside this page: {links}</p>')

    def write(self, path: Path, title: str, opening: str, closing: str) -> Path:
        style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in self.sections)
        body = "".join(
            f'<h2 id="{anchor}">{escape(name)}</h2>\n' + "\n".join(parts) + "\n"
            for anchor, name, parts in self.sections
        )
        html = (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(title)}</h1>\n{opening}\n<nav>{links}</nav>\n{body}<footer>{closing}</footer>\n"
            "</main>\n</body>\n</html>\n"
        )
        with atomic_path(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
        return path


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    main: int | None = None,
) -> str:
    """A table of escaped cells; columns of numbers (or of text set like them) stand to the right.

    A heading that begins with ">" marks such a column; `main` is the row to stress.
    """
    right = [name.startswith(">") for name in columns]

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if n else ''}>{escape(str(value))}</{tag}>"
            for value, n in zip(values, right, strict=True)
        )

    head = f"<tr>{cells('th', [name.lstrip('>') for name in columns])}</tr>"
    body = "".join(
        f"<tr{' class=main' if place == main else ''}>{cells('td', row)}</tr>"
        for place, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


# ------------------------------------------------------------------------------------------------- the sections


def lead(outcome: Outcome) -> str:
    """The line under the title and the tiles with the main figures."""
    results, names = outcome.results, list(outcome.test_set.streams)
    tiles = ""
    for place, name in enumerate([*names, "fusion"]):
        low, high = results["interval_95"][name]["top1"]
        note = f"{low:.1f} to {high:.1f}"
        tiles += (
            f'<div class="tile" style="--hue:{plots.colour(name, place)}"><span>{escape(name)}</span>'
            f"<b>{results[name]['top1']:.2f}</b><span>{note}</span></div>"
        )
    opening = (
        f"{results['videos']:,} test videos, {results['classes']} classes. Top-1 accuracy in per cent, "
        "with bootstrap 95 % intervals over videos."
    )
    return f'<p class="soft">{opening}</p>\n<div class="tiles">{tiles}</div>'


def sources(outcome: Outcome) -> str:
    """Where the predictions came from."""
    lines = []
    for name, source in outcome.test_set.sources.items():
        parts = [str(source.path), f"{source.level}-level logits"]
        checkpoint = source.meta.get("checkpoint")
        if isinstance(checkpoint, dict):
            epoch = checkpoint.get("epoch")
            parts.append(
                f"checkpoint {checkpoint.get('name')}" + (f", epoch {epoch}" if epoch is not None else "")
            )
        lines.append(escape(f"{name}: {', '.join(parts)}"))
    return "<br>".join(lines)


def overview(page: Page, outcome: Outcome) -> None:
    from fusion import describe  # here: fusion.py runs as a script and imports this module

    results, names = outcome.results, list(outcome.test_set.streams)
    asked = describe(results["settings"])
    rows = [(name, name) for name in names] + [(f"fusion: {asked}", "fusion")]
    rows += [(name, name) for name in ("average", "std", "confidence") if name != asked]
    weights = " : ".join(f"{weight:g}" for weight in results["best_weight"]["weights"])
    rows.append((f"best weight {weights} *", "best_weight"))
    cells = []
    bars = []
    for place, (label, name) in enumerate(rows):
        spread = results["interval_95"].get(name, {}).get("top1")
        figures = results[name]
        words = f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else ""
        cells.append([label, *(f"{figures[metric]:.2f}" for metric in ("top1",)), words])
        cells[-1] += [f"{figures['top5']:.2f}", f"{figures['mean_class']:.2f}"]
        hue = plots.colour(name, place) if name in names or name == "fusion" else "#9aa5ad"
        bars.append((label, hue, figures["top1"], spread))
    page.section("Accuracy")
    page.add(html_table(["", ">top-1", ">95 % interval", ">top-5", ">mean class"], cells, main=len(names)))
    page.paragraph(
        "* Chosen on the test labels themselves: what a weight could give at most, not a result.", soft=True
    )
    page.paragraph(
        "average: the plain mean of the streams' logits. std: each stream's logits divided by their standard deviation "
        "first. confidence: divided by the temperature at which their mean confidence is 0.6. Neither uses a label."
    )
    page.figure("accuracy", plots.accuracy(bars), "Top-1 accuracy of each stream and fusion")
    test = results["mcnemar"]
    verdict = "more than chance explains" if test["p"] < 0.05 else "no more than chance explains"
    page.paragraph(
        f"Fusion against {test['against']} alone: {test['only_fusion_right']:,} videos are right only by fusion, "
        f"{test['only_stream_right']:,} only by {test['against']}. The difference is {verdict} "
        f"(McNemar's exact test, p = {test['p']:.2g})."
    )
    page.paragraph(
        "The intervals and the test take the videos as independent. Clips cut from one recording are alike, so the "
        "true uncertainty is larger.",
        soft=True,
    )


def weight_sweep(page: Page, outcome: Outcome) -> None:
    sweep, results = outcome.sweep, outcome.results
    page.section("Weight sweep")
    page.paragraph(
        f"Top-1 against the weight of {sweep.stream}. The curve needs the test labels, so its highest point is tuned "
        "on the test set; the dashed lines are not."
    )
    levels = {name: results[name]["top1"] for name in ("average", "std", "confidence")}
    page.figure(
        "weights", plots.sweep(sweep.stream, sweep.weights, sweep.top1, levels), "Top-1 against weight"
    )
    page.csv("weights", pd.DataFrame({f"weight of {sweep.stream}": sweep.weights, "top1": sweep.top1}))
    page.files("weights.png", "weights.csv")


def per_class(page: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    better = outcome.results["mcnemar"]["against"]
    columns = [*test_set.streams, "fusion"]
    table = tables.per_class(
        {**test_set.streams, "fusion": outcome.fused}, test_set.labels, test_set.class_names, better
    )
    page.section("Class by class")
    up, down = int((table["gain"] > 0).sum()), int((table["gain"] < 0).sum())
    page.paragraph(
        f"Sorted by what fusion gains over {better}, the better stream: {up} classes gain, {down} lose. The mean of "
        f"the gains is the gain in mean-class accuracy, {table['gain'].mean():+.2f}."
    )
    figure = plots.per_class(
        table["class"].tolist(), {name: table[name].to_numpy() for name in columns}, table["gain"].to_numpy()
    )
    page.figure("per_class", figure, "Accuracy of each class by stream and fusion")
    rows = [
        [row["class"], row["videos"], *(f"{row[name]:.1f}" for name in columns), f"{row['gain']:+.1f}"]
        for row in table.to_dict("records")
    ]
    heading = ["class", ">videos", *(f">{name}" for name in columns), ">gain"]
    page.add(f"<details><summary>The same as numbers</summary>{html_table(heading, rows)}</details>")
    page.csv("per_class", table)
    page.files("per_class.png", "per_class.csv")


def confusion(page: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    names = test_set.class_names
    table = tables.confusion(outcome.fused.argmax(axis=1), test_set.labels, names)
    matrix = table.iloc[:, 1:].to_numpy()
    pairs = tables.confused_pairs(matrix, names)
    page.section("What is confused")
    if len(pairs):
        wrong = int(pairs["videos"].sum())
        shown = pairs.head(PAIRS)
        part = f"the {PAIRS} most frequent kinds of {len(pairs)}" if len(pairs) > PAIRS else "all kinds"
        page.paragraph(f"Fusion gets {wrong:,} videos wrong. Shown: {part} (true class → guess).")
        drawn = plots.confused_pairs(list(shown.itertuples(index=False, name=None)))
        page.figure("confused_pairs", drawn, "The most frequent mistakes")
    else:
        page.paragraph("Fusion makes no mistake.")
    page.csv("confused_pairs", pairs)
    wide = len(names) > 25
    hint = " Scroll sideways on a narrow screen." if wide else ""
    page.paragraph(f"The whole matrix: each row is a true class and adds up to 100 %.{hint}")
    page.figure(
        "confusion",
        plots.confusion(matrix, names),
        "Confusion matrix of fusion",
        least=1150 if wide else None,
    )
    page.csv("confusion", table)
    page.files("confusion.png", "confusion.csv", "confused_pairs.csv")


def disagreement(page: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    guesses = {name: logits.argmax(axis=1) for name, logits in test_set.streams.items()}
    table = tables.agreement(guesses, outcome.fused.argmax(axis=1), test_set.labels)
    if len(table) > 10:
        table = table.sort_values("videos", ascending=False, ignore_index=True).head(10)
    first = next(iter(guesses.values()))
    apart = np.any([guess != first for guess in guesses.values()], axis=0)
    some = np.any([guess == test_set.labels for guess in guesses.values()], axis=0)
    saved = int((outcome.fused.argmax(axis=1) == test_set.labels)[apart & some].sum())
    page.section("Where the streams disagree")
    page.paragraph(
        f"The streams disagree on {int(apart.sum()):,} of {len(apart):,} videos. On {int((apart & some).sum()):,} of these one of "
        f"them is right, and fusion sides with it on {saved:,}. With an oracle that always picks a right stream, "
        f"top-1 would be {100 * some.mean():.2f} %."
    )
    page.figure(
        "agreement",
        plots.agreement(list(table[["who", "videos", "fusion_right"]].itertuples(index=False, name=None))),
        "Which streams are right",
    )
    rows = [
        [row["who"], f"{row['videos']:,}", f"{row['fusion_right']:,}", percent(row["fusion_share"])]
        for row in table.to_dict("records")
    ]
    page.add(html_table(["", ">videos", ">fusion right", ">share"], rows))
    if len(guesses) == 2:
        stronger_classes(page, outcome)
    page.csv("agreement", table)
    page.files("agreement.png", "agreement.csv")


def stronger_classes(page: Page, outcome: Outcome) -> None:
    """For each of two streams, the classes in which it beats the other most."""
    test_set = outcome.test_set
    one, other = test_set.streams
    table = tables.per_class(
        {**test_set.streams, "fusion": outcome.fused}, test_set.labels, test_set.class_names, one
    )
    for stronger, weaker in ((one, other), (other, one)):
        lead_of = (table[stronger] - table[weaker]).sort_values(ascending=False, kind="stable")
        best = table.loc[lead_of[lead_of > 0].head(LISTED_CLASSES).index]
        if best.empty:
            continue
        rows = [
            [row["class"], *(f"{row[name]:.1f}" for name in (stronger, weaker, "fusion"))]
            for row in best.to_dict("records")
        ]
        heading = html_table(["class", f">{stronger}", f">{weaker}", ">fusion"], rows)
        page.add(f"<p>Where {escape(stronger)} sees most that {escape(weaker)} misses:</p>{heading}")


def probabilities(outcome: Outcome) -> dict[str, np.ndarray]:
    """Each stream's and fusion's probabilities, (videos, classes)."""
    found = {name: metrics.softmax(logits) for name, logits in outcome.test_set.streams.items()}
    averaged = outcome.results["settings"]["scores"] == "softmax"  # then the fused scores are probabilities
    return {**found, "fusion": outcome.fused if averaged else metrics.softmax(outcome.fused)}


def calibration(page: Page, outcome: Outcome) -> None:
    found = {
        name: metrics.calibration(values, outcome.test_set.labels)
        for name, values in probabilities(outcome).items()
    }
    page.section("Calibration")
    page.paragraph(
        "How often the first guess is right, against the probability it is given. On the dashed line the two are "
        "equal; bars below it mean overconfidence. ECE is the mean distance from the line, weighted by videos "
        "(Guo et al. 2017, 15 bins). It judges the logits' scale: a sum of 19 logits is far too sure of itself, and a "
        "fusion of logits divided by anything is as sure as that divisor makes it."
    )
    page.figure("calibration", plots.calibration(found), "Reliability diagrams")
    page.csv("calibration", tables.calibration(found))
    page.files("calibration.png", "calibration.csv")


def wrong_videos(page: Page, outcome: Outcome) -> None:
    test_set = outcome.test_set
    found = probabilities(outcome)
    table = tables.videos(test_set.videos, test_set.labels, test_set.class_names, found)
    page.csv("videos", table)
    missed = table[table["streams_right"] == 0]
    missed = missed.sort_values(["fusion p(guess)", "video"], ascending=[False, True], kind="stable")
    both = "both streams" if len(test_set.streams) == 2 else "all streams"
    page.section(f"Videos that {both} got wrong")
    few = (
        f", the {CARDS} that fusion is surest about first"
        if len(missed) > CARDS
        else ", fusion's surest first"
    )
    page.paragraph(
        f"{len(missed):,} videos{few}. Under each: the three best guesses and their probabilities."
        if len(missed)
        else f"There is no video that {both} got wrong."
    )
    frames = frame_strips(outcome)
    cards = [
        card(test_set.videos[i], i, test_set.labels[i], test_set.class_names, found, frames)
        for i in missed.index[:CARDS]
    ]
    if cards:
        page.add(f'<div class="cards">{"".join(cards)}</div>')
    page.files("videos.csv")


def card(
    video: str,
    row: int,
    label: int,
    class_names: Sequence[str],
    found: Mapping[str, np.ndarray],
    frames: Callable[[str], str | None],
) -> str:
    """One video: its true class, a strip of frames, and what each stream and fusion take it for."""
    strip = frames(video)
    picture = f'<img src="{strip}" alt="frames of {escape(video)}">' if strip else ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in found)
    best = {name: np.argsort(-values[row], kind="stable")[:3] for name, values in found.items()}
    lines = ""
    for place in range(min(3, len(class_names))):
        cells = ""
        for name, values in found.items():
            guess = best[name][place]
            text = escape(class_names[guess])
            chance = f"{100 * values[row, guess]:.0f} %"
            cells += f"<td>{f'<b>{text}</b>' if guess == label else text} <i>{chance}</i></td>"
        lines += f"<tr>{cells}</tr>"
    return (
        f'<div class="card">{picture}<h3>{escape(class_names[label])}</h3><p class="soft">{escape(video)}</p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def frame_strips(outcome: Outcome) -> Callable[[str], str | None]:
    """A function from a video's key to a strip of its RGB frames, None for what isn't on disk."""
    for source in outcome.test_set.sources.values():
        frames = source.meta.get("frames")
        if source.meta.get("stream") != "spatial" or not isinstance(frames, dict):
            continue
        root, folders = frames.get("root"), frames.get("folders")
        if isinstance(root, str) and isinstance(folders, dict) and Path(root).is_dir():
            return lambda video: (
                thumbnails.strip(Path(root), folders[video]) if isinstance(folders.get(video), str) else None
            )
    return lambda video: None


def training_curves(page: Page, outcome: Outcome) -> None:
    records = curves.find_records([source.path.parent for source in outcome.test_set.sources.values()])
    if not records:
        return
    page.section("Training")
    page.paragraph("From the CSVs beside the predictions: a row per epoch.")
    page.figure("curves", curves.draw(records), "Training curves", least=640)
    page.files("curves.png")


def percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f} %"
