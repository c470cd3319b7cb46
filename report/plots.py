"""The report's figures. Every function returns a matplotlib Figure; page.py makes SVG of them.

Figures are drawn in the light theme's colours, and the page replaces each by its name in the theme: draw with LIGHT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from report import fonts

# Of Okabe and Ito's palette: told apart with any colour vision. No two colours of LIGHT may be the same.
LIGHT = {
    "ink": "#22282f", "soft": "#5b6570", "grey": "#8a929b", "line": "#dfe4e8", "tint": "#f6f8f9", "paper": "#ffffff",
    "link": "#0b5c94", "warn": "#b07d00", "heat": "#08508a", "wrong": "#c9ced4",
    "spatial": "#0072b2", "motion": "#d55e00", "fusion": "#00795a",
    "other1": "#a2457d", "other2": "#7a6200", "other3": "#4b8bbe", "other4": "#7a5195",
}  # fmt: skip
DARK = {
    "ink": "#e6e9ec", "soft": "#a3adb7", "grey": "#8d979f", "line": "#343b43", "tint": "#1d2228", "paper": "#14181c",
    "link": "#6db7ea", "warn": "#e0a92e", "heat": "#7cc0f0", "wrong": "#4d565f",
    "spatial": "#4fabe3", "motion": "#f08a3c", "fusion": "#35c497",
    "other1": "#e08fbe", "other2": "#d8bd4a", "other3": "#8cc4ec", "other4": "#b695d4",
}  # fmt: skip
INK, GREY, LINE, PAPER = LIGHT["ink"], LIGHT["grey"], LIGHT["line"], LIGHT["paper"]
RUNS = [LIGHT[name] for name in ("spatial", "motion", "fusion", "other1", "other2", "other4")]  # side by side
WIDTH = 4.6  # inches; narrow, so that the text is still read on a phone


def text_settings(names: Iterable[str]) -> dict:
    """matplotlib's settings for figures with class names: plain text, even of $, in fonts that have the names."""
    return {"svg.fonttype": "none", "text.parse_math": False, "font.family": fonts.families(names)}


def hue(name: str, place: int) -> str:
    """The name of a stream's or run's colour in LIGHT and DARK."""
    return name if name in ("spatial", "motion", "fusion") else f"other{place % 4 + 1}"


def colour(name: str, place: int) -> str:
    return LIGHT[hue(name, place)]


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn off screen: no window and no pyplot state."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def tidy(axes, grid: str = "both") -> None:
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=LINE, linewidth=0.6)


def legend(drawn: Figure, columns: int) -> None:
    drawn.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def span(low: float, high: float, videos: int) -> tuple[float, float]:
    """Limits of an axis of accuracy in per cent around `low` and `high`, on which one video is no cliff.

    At least ten points, and at least eight videos' worth, as far as 0 to 100 goes.
    """
    length = min(100.0, max(1.15 * (high - low), 10, 800 / videos))
    start = min(max(0.0, (low + high - length) / 2), 100 - length)
    return start - 0.02 * length, start + 1.02 * length


def accuracy(rows: Sequence[tuple[str, str, float, Sequence[float] | None]], videos: int) -> Figure:
    """Top-1 with its 95 % interval. rows: (label, colour, top-1 in per cent, interval or None)."""
    drawn = figure(WIDTH, 0.32 * len(rows) + 0.6)
    axes = drawn.subplots()
    for place, (_, tone, top1, spread) in enumerate(rows):
        if spread is not None:
            axes.plot(spread, [place, place], color=tone, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([top1], [place], "o" if tone != GREY else "D", color=tone, markersize=6 if tone != GREY else 4)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    ends = [end for *_, top1, spread in rows for end in (top1, *(spread or ()))]
    axes.set_xlim(span(min(ends), max(ends), videos))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("top-1, %", fontsize=9, color=INK)
    tidy(axes, "x")
    return drawn


def per_class(
    names: Sequence[str], columns: Mapping[str, np.ndarray], gain: np.ndarray, anchors: Sequence[str]
) -> Figure:
    """One line per class, best gain on top: a dot for each stream, a ring for fusion.

    columns: name -> (classes,) accuracies in per cent, "fusion" last; gain (classes,); anchors: where names lead.
    """
    drawn = figure(WIDTH, 0.185 * len(names) + 1.1)
    axes = drawn.subplots()
    rows = np.arange(len(names))
    values = np.stack(list(columns.values()))
    axes.hlines(rows, values.min(axis=0), values.max(axis=0), color=LINE, linewidth=2)
    shifts = np.linspace(-0.13, 0.13, len(columns) - 1)  # so that equal streams don't hide each other
    for place, (name, accuracies) in enumerate(columns.items()):
        tone = colour(name, place)
        if name == "fusion":
            axes.plot(accuracies, rows, "o", ms=6.5, mfc="none", mec=tone, mew=1.7, label=name, zorder=3)
        else:
            axes.plot(accuracies, rows + shifts[place], "o", ms=3.8, mew=0, color=tone, label=name, zorder=4)
    for row, value in enumerate(gain):
        shown = f"{value:+.0f}" if abs(value) >= 0.5 else "0"
        axes.text(104, row, shown, va="center", ha="left", fontsize=8, color=INK)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-2, 103)
    axes.set_xlabel("accuracy in the class, %", fontsize=9, color=INK)
    tidy(axes)
    axes.tick_params(axis="y", labelsize=8)
    for label, anchor in zip(axes.get_yticklabels(), anchors, strict=True):
        label.set_url(anchor)
    axes.annotate("gain", (104, 0), (0, 14), textcoords="offset points", fontsize=8, color=INK, annotation_clip=False)
    legend(drawn, len(columns))
    return drawn


def confusion(matrix: np.ndarray, names: Sequence[str], anchors: Mapping[tuple[int, int], str], wide: bool) -> Figure:
    """The row-normalised confusion matrix as a heat map: true classes in rows, guesses across.

    matrix (classes, classes) of counts; anchors: (row, column) -> where the cell leads. Shades grow with the root of
    the share, so that rare mistakes show. `wide`: many classes; small cells without numbers, on a large figure.
    """
    count = len(names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.3 * count + 1.8, 3.4), 7) if not wide else 0.115 * count + 2
    drawn = figure(side, side)
    axes = drawn.subplots()
    size = 8.5 if not wide else 7
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, color=INK)
    axes.set_yticks(range(count), names, fontsize=size, color=INK)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_facecolor(PAPER)
    axes.set_xlabel("guessed", fontsize=10, color=INK)
    axes.set_ylabel("true", fontsize=10, color=INK)
    axes.spines[:].set_color(LINE)
    between = np.arange(1, count) - 0.5
    axes.hlines(between, -0.5, count - 0.5, color=LINE, linewidth=0.3)
    axes.vlines(between, -0.5, count - 0.5, color=LINE, linewidth=0.3)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        depth = 0.2 + 0.8 * share[row, column] ** 0.5
        url = anchors.get((row, column))
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=LIGHT["heat"], alpha=depth, linewidth=0, zorder=2, url=url))
        if not wide:
            tone = PAPER if depth > 0.6 else INK
            words = str(matrix[row, column])
            axes.text(column, row, words, ha="center", va="center", fontsize=8, color=tone, zorder=3)
    return drawn


def agreement(rows: Sequence[tuple[str, int, int]]) -> Figure:
    """Who is right, split by whether fusion is. rows: (who, videos, videos that fusion gets right)."""
    drawn = figure(WIDTH, 0.36 * len(rows) + 1.0)
    axes = drawn.subplots()
    place = np.arange(len(rows))
    total = np.array([videos for _, videos, _ in rows])
    right = np.array([right for _, _, right in rows])
    axes.barh(place, right, color=LIGHT["fusion"], height=0.62, label="fusion right")
    axes.barh(place, total - right, left=right, color=LIGHT["wrong"], height=0.62, label="fusion wrong")
    for row, videos in enumerate(total):
        words = f"{videos:,}" + (f" ({100 * right[row] / videos:.0f} %)" if videos else "")
        axes.annotate(words, (videos, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(place, [who for who, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * max(total))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("videos (share that fusion gets right)", fontsize=9, color=INK)
    tidy(axes, "x")
    legend(drawn, 2)
    return drawn


def calibration(found: Mapping[str, dict]) -> Figure:
    """Reliability diagrams side by side. found: name -> what report.metrics.calibration returns."""
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    drawn = figure(WIDTH, WIDTH / columns * lines + 0.5)
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    for place, (panel, (name, one)) in enumerate(zip(panels.flat, found.items(), strict=False)):
        bins = len(one["count"])
        centres = (np.arange(bins) + 0.5) / bins
        panel.bar(centres, np.nan_to_num(one["correct"]), width=0.9 / bins, color=colour(name, place))
        panel.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.plot(centres, one["count"] / one["count"].sum(), color=GREY, linewidth=1.2)
        panel.set_title(f"{name}\nECE {100 * one['ece']:.1f} %", fontsize=9, color=INK)
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        tidy(panel)
    drawn.supxlabel("probability of the first guess", fontsize=9, color=INK)
    drawn.supylabel("share correct", fontsize=9, color=INK)
    return drawn


def sweep(
    stream: str, weights: np.ndarray, top1: np.ndarray, best: float, levels: Mapping[str, float], videos: int
) -> Figure:
    """Top-1 against one stream's weight, the `best` marked, with the untuned fusions as level lines.

    levels: name -> top-1 in per cent.
    """
    drawn = figure(WIDTH, 2.9)
    axes = drawn.subplots()
    axes.plot(weights, top1, color=INK, linewidth=1.8)
    axes.plot([best], [top1.max()], "o", color=INK, zorder=3, label=f"{top1.max():.2f} at {best:g} (tuned)")
    for place, (name, level) in enumerate(levels.items()):
        dashes = ((6, 2), (3, 2), (1, 1.5), (6, 2, 1, 2))[place % 4]
        axes.axhline(level, color=GREY, linewidth=1.1, linestyle=(0, dashes), label=f"{name} {level:.2f}")
    ends = [*top1, *levels.values()]
    axes.set_ylim(span(min(ends), max(ends), videos))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"weight of {stream} (the rest: 1)", fontsize=9, color=INK)
    axes.set_ylabel("top-1, %", fontsize=9, color=INK)
    tidy(axes)
    legend(drawn, 2)
    return drawn
