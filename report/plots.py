"""The report's figures. Every function returns a matplotlib Figure, and `save` writes one as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils import atomic_path

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"spatial": "#0072b2", "motion": "#d55e00", "fusion": "#00795a"}
OTHERS = ("#0072b2", "#d55e00", "#cc79a7", "#b58900", "#56b4e9", "#7a5195")
WIDTH = 4.8  # inches; narrow, so that the text is still read on a phone
DPI = 200
INK, FAINT, GREY = "#22282f", "#d9dee3", "#9aa5ad"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#cfe3f1", "#5ba0cf", "#08508a", "#062a4a"])


def colour(name: str, place: int) -> str:
    return COLOURS.get(name, OTHERS[place % len(OTHERS)])


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn off screen: no window and no pyplot state."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def save(drawn: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        drawn.savefig(
            temporary,
            format="png",
            dpi=DPI,
            bbox_inches="tight",
            facecolor="white",
            metadata={"Software": None},
        )


def tidy(axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)


def accuracy(rows: Sequence[tuple[str, str, float, Sequence[float] | None]]) -> Figure:
    """Top-1 bars with their 95 % intervals. rows: (label, colour, top-1 in per cent, interval or None)."""
    drawn = figure(WIDTH, 0.42 * len(rows) + 0.7)
    axes = drawn.subplots()
    for place, (_, hue, top1, spread) in enumerate(rows):
        axes.barh(place, top1, color=hue, height=0.62)
        end = top1
        if spread is not None:
            axes.plot(spread, [place, place], color=INK, linewidth=1.4)
            end = spread[1]
        axes.text(end + 1, place, f"{top1:.2f}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("top-1, %", fontsize=9, color=INK)
    tidy(axes, "x")
    return drawn


def per_class(names: Sequence[str], columns: Mapping[str, np.ndarray], gain: np.ndarray) -> Figure:
    """One line per class, best gain on top: a dot for each stream, a ring for fusion.

    columns: name -> (classes,) accuracies in per cent, "fusion" last; gain (classes,).
    """
    drawn = figure(WIDTH, 0.185 * len(names) + 1.1)
    axes = drawn.subplots()
    rows = np.arange(len(names))
    values = np.stack(list(columns.values()))
    axes.hlines(rows, values.min(axis=0), values.max(axis=0), color=FAINT, linewidth=2)
    shifts = np.linspace(-0.13, 0.13, len(columns) - 1)  # so that equal streams don't hide each other
    for place, (name, accuracies) in enumerate(columns.items()):
        hue = colour(name, place)
        if name == "fusion":
            axes.scatter(accuracies, rows, s=46, facecolor="none", edgecolor=hue, linewidth=1.7, label=name, zorder=3)
        else:
            axes.scatter(accuracies, rows + shifts[place], s=14, color=hue, label=name, zorder=4)
    for row, value in enumerate(gain):
        shown = f"{value:+.0f}" if abs(value) >= 0.5 else "0"
        axes.text(104, row, shown, va="center", ha="left", fontsize=8, color=INK)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-2, 103)
    axes.set_xlabel("accuracy in the class, %", fontsize=9, color=INK)
    tidy(axes)
    axes.tick_params(axis="y", labelsize=8)
    axes.text(104, -1, "gain", ha="left", va="center", fontsize=8, color=INK)
    drawn.legend(loc="outside upper center", ncols=len(columns), frameon=False, fontsize=9)
    return drawn


def confusion(matrix: np.ndarray, names: Sequence[str], wide: bool) -> Figure:
    """The row-normalised confusion matrix as a heat map: true classes in rows, guesses across.

    matrix (classes, classes) of counts.
    `wide`: many classes; small cells without numbers, on a large figure.
    """
    count = len(names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.3 * count + 1.8, 4), 7) if not wide else 0.115 * count + 2
    drawn = figure(side, side)
    axes = drawn.subplots()
    image = axes.imshow(share, cmap=HEAT, norm=PowerNorm(0.5, vmin=0, vmax=1))  # so that rare mistakes show
    size = 8.5 if not wide else 7
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, color=INK)
    axes.set_yticks(range(count), names, fontsize=size, color=INK)
    axes.tick_params(length=0)
    axes.set_xlabel("guessed", fontsize=10, color=INK)
    axes.set_ylabel("true", fontsize=10, color=INK)
    axes.spines[:].set_color(FAINT)
    between = np.arange(1, count) - 0.5
    axes.hlines(between, -0.5, count - 0.5, color="#eef1f4", linewidth=0.3)
    axes.vlines(between, -0.5, count - 0.5, color="#eef1f4", linewidth=0.3)
    if not wide:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = share[row, column] > 0.3
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
            )
    bar = drawn.colorbar(image, ax=axes, fraction=0.03, pad=0.01, shrink=0.5, ticks=[0, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "10 %", "25 %", "50 %", "100 %"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return drawn


def confused_pairs(pairs: Sequence[tuple[str, str, int, float]]) -> Figure:
    """The most frequent mistakes as bars. pairs: (true, guessed, videos, per cent of the true class)."""
    drawn = figure(WIDTH, 0.27 * len(pairs) + 0.7)
    axes = drawn.subplots()
    axes.barh(range(len(pairs)), [videos for _, _, videos, _ in pairs], color="#5ba0cf", height=0.66)
    for place, (_, _, videos, share) in enumerate(pairs):
        axes.text(videos, place, f" {videos} ({share:.0f} %)", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(pairs)), [f"{true} → {guessed}" for true, guessed, _, _ in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("videos (share of the true class)", fontsize=9, color=INK)
    tidy(axes, "x")
    axes.tick_params(axis="y", labelsize=8)
    return drawn


def agreement(rows: Sequence[tuple[str, int, int]]) -> Figure:
    """Who is right, split by whether fusion is. rows: (who, videos, videos that fusion gets right)."""
    drawn = figure(WIDTH, 0.42 * len(rows) + 1.0)
    axes = drawn.subplots()
    place = np.arange(len(rows))
    total = np.array([videos for _, videos, _ in rows])
    right = np.array([right for _, _, right in rows])
    axes.barh(place, right, color=COLOURS["fusion"], height=0.62, label="fusion right")
    axes.barh(place, total - right, left=right, color="#c9ced4", height=0.62, label="fusion wrong")
    for row, videos in enumerate(total):
        axes.text(videos, row, f" {videos:,}", va="center", fontsize=9, color=INK)
    axes.set_yticks(place, [who for who, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("videos", fontsize=9, color=INK)
    tidy(axes, "x")
    drawn.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
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
        panel.plot(centres, one["count"] / one["count"].sum(), color="#8a929b", linewidth=1.2)
        panel.set_title(f"{name}\nECE {100 * one['ece']:.1f} %", fontsize=9, color=INK)
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        tidy(panel)
    drawn.supxlabel("probability of the first guess", fontsize=9, color=INK)
    drawn.supylabel("share correct", fontsize=9, color=INK)
    return drawn


def sweep(stream: str, weights: np.ndarray, top1: np.ndarray, best: float, levels: Mapping[str, float]) -> Figure:
    """Top-1 against one stream's weight, the `best` marked, with the untuned fusions as level lines.

    levels: name -> top-1 in per cent.
    """
    drawn = figure(WIDTH, 2.9)
    axes = drawn.subplots()
    axes.plot(weights, top1, color=INK, linewidth=1.8)
    found = f"{top1.max():.2f} at {best:g} (tuned)"
    axes.scatter(best, top1.max(), color=INK, zorder=3, label=found)
    for place, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=OTHERS[place], linewidth=1, linestyle=(0, (4, 3)), label=f"{name} {level:.2f}")
    axes.set_xlabel(f"weight of {stream} (the rest: 1)", fontsize=9, color=INK)
    axes.set_ylabel("top-1, %", fontsize=9, color=INK)
    tidy(axes)
    drawn.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return drawn
