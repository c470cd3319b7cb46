"""The report's figures, one function each. Every function returns a matplotlib Figure; `save` writes it as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from utils import atomic_path

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"spatial": "#0072b2", "motion": "#d55e00", "fusion": "#00795a"}
OTHERS = ("#0072b2", "#d55e00", "#cc79a7", "#b58900", "#56b4e9", "#7a5195")
INK, FAINT = "#22282f", "#d9dee3"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#cfe3f1", "#5ba0cf", "#08508a", "#062a4a"])


def colour(name: str, place: int) -> str:
    return COLOURS.get(name, OTHERS[place % len(OTHERS)])


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn off screen: no window and no pyplot state."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def save(drawn: Figure, path: Path, dpi: int = 144) -> None:
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def tidy(axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)


def accuracy(rows: Sequence[tuple[str, str, float, Sequence[float] | None]]) -> Figure:
    """Top-1 bars with their 95 % intervals. rows: (label, colour, top-1 in per cent, interval or None)."""
    drawn = figure(6.4, 0.42 * len(rows) + 0.7)
    axes = drawn.subplots()
    for place, (label, hue, top1, spread) in enumerate(rows):
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
    """One line per class, best gain on top: a dot for each stream and for fusion. columns: name -> (classes,) %."""
    drawn = figure(6.4, 0.185 * len(names) + 1.1)
    axes = drawn.subplots()
    rows = np.arange(len(names))
    values = np.stack(list(columns.values()))
    axes.hlines(rows, values.min(axis=0), values.max(axis=0), color=FAINT, linewidth=2)
    for place, (name, accuracies) in enumerate(columns.items()):
        fusion = name == "fusion"
        axes.scatter(
            accuracies,
            rows,
            s=26 if fusion else 18,
            color=colour(name, place),
            label=name,
            zorder=3 if fusion else 2,
        )
    for row, value in zip(rows, gain, strict=True):
        axes.text(104, row, f"{value:+.0f}", va="center", ha="left", fontsize=8, color=INK)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-2, 103)
    axes.set_xlabel("accuracy in the class, %", fontsize=9, color=INK)
    tidy(axes)
    axes.tick_params(axis="y", labelsize=8)
    axes.text(104, -1, "gain", ha="left", va="center", fontsize=8, color=INK)
    drawn.legend(loc="outside upper center", ncols=len(columns), frameon=False, fontsize=9)
    return drawn


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """The row-normalised confusion matrix as a heat map. matrix (classes, classes): true in rows, guessed across."""
    count = len(names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.34 * count + 1.8, 4.6), 6.4) if count <= 25 else 0.115 * count + 2
    drawn = figure(side, side)
    axes = drawn.subplots()
    image = axes.imshow(share, cmap=HEAT, vmin=0, vmax=1)
    size = 9 if count <= 25 else 5.5
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, color=INK)
    axes.set_yticks(range(count), names, fontsize=size, color=INK)
    axes.tick_params(length=0)
    axes.set_xlabel("guessed", fontsize=10, color=INK)
    axes.set_ylabel("true", fontsize=10, color=INK)
    axes.spines[:].set_color(FAINT)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#eef1f4", linewidth=0.3)
    axes.tick_params(which="minor", length=0)
    if count <= 25:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = share[row, column] > 0.45
            axes.text(
                column,
                row,
                int(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
            )
    bar = drawn.colorbar(image, ax=axes, fraction=0.04, pad=0.01, ticks=[0, 0.5, 1], aspect=30)
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return drawn


def confused_pairs(pairs: Sequence[tuple[str, str, int, float]]) -> Figure:
    """The most frequent mistakes as bars. pairs: (true, guessed, videos, per cent of the true class)."""
    drawn = figure(6.4, 0.27 * len(pairs) + 0.7)
    axes = drawn.subplots()
    axes.barh(range(len(pairs)), [videos for _, _, videos, _ in pairs], color="#5ba0cf", height=0.66)
    for place, (_, _, videos, share) in enumerate(pairs):
        axes.text(videos, place, f" {videos} ({share:.0f} %)", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(pairs)), [f"{true} → {guessed}" for true, guessed, _, _ in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("videos (share of the true class)", fontsize=9, color=INK)
    tidy(axes, "x")
    axes.tick_params(axis="y", labelsize=8)
    return drawn


def agreement(rows: Sequence[tuple[str, int, int]]) -> Figure:
    """Who is right, split by whether fusion is. rows: (who, videos, videos that fusion gets right)."""
    drawn = figure(6.4, 0.42 * len(rows) + 1.0)
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
    axes.set_xlabel("videos", fontsize=9, color=INK)
    tidy(axes, "x")
    drawn.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return drawn


def calibration(found: Mapping[str, dict]) -> Figure:
    """Reliability diagrams side by side. found: name -> what report.metrics.calibration returns."""
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    drawn = figure(2.7 * columns + 0.4, 2.9 * lines + 0.2)
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    for place, (panel, (name, one)) in enumerate(zip(panels.flat, found.items(), strict=False)):
        bins = len(one["count"])
        centres = (np.arange(bins) + 0.5) / bins
        panel.bar(centres, np.nan_to_num(one["correct"]), width=0.9 / bins, color=colour(name, place))
        panel.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.plot(centres, one["count"] / one["count"].sum(), color="#8a929b", linewidth=1.2)
        panel.set_title(f"{name}, ECE {100 * one['ece']:.1f} %", fontsize=10, color=INK)
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
        panel.set_xticks([0, 0.5, 1])
        panel.set_yticks([0, 0.5, 1])
        tidy(panel)
    drawn.supxlabel("probability of the first guess", fontsize=9, color=INK)
    drawn.supylabel("share correct (grey line: share of videos)", fontsize=9, color=INK)
    return drawn


def sweep(stream: str, weights: np.ndarray, top1: np.ndarray, levels: Mapping[str, float]) -> Figure:
    """Top-1 against one stream's weight, with the untuned fusions as level lines. levels: name -> top-1 in %."""
    drawn = figure(6.4, 3.3)
    axes = drawn.subplots()
    axes.plot(weights, top1, color=INK, linewidth=1.8)
    best = int(top1.argmax())
    axes.scatter(weights[best], top1[best], color=INK, zorder=3)
    note = f"{top1[best]:.2f} at {weights[best]:g}\n(tuned on the test labels)"
    axes.annotate(
        note, (weights[best], top1[best]), (8, -26), textcoords="offset points", fontsize=8, color=INK
    )
    for place, (name, level) in enumerate(levels.items()):
        axes.axhline(
            level, color=OTHERS[place], linewidth=1, linestyle=(0, (4, 3)), label=f"{name} {level:.2f}"
        )
    axes.set_xlabel(f"weight of {stream} (the other streams: 1)", fontsize=9, color=INK)
    axes.set_ylabel("top-1, %", fontsize=9, color=INK)
    tidy(axes)
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return drawn
