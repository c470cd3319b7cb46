"""The report's figures. Every drawing function returns a matplotlib Figure, which page.py writes as SVG.

Call them within matplotlib.rc_context(STYLE), which sets colours, sizes and grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from saved.records import Phases

# The page uses these colours, too. They follow Okabe and Ito's palette: distinct with any colour vision.
LIGHT = {
    "ink": "#22282f", "soft": "#5b6570", "grey": "#8a929b", "line": "#dfe4e8", "tint": "#f6f8f9", "paper": "#ffffff",
    "link": "#0b5c94", "warn": "#b07d00", "heat": "#08508a", "wrong": "#c9ced4",
    "spatial": "#0072b2", "motion": "#d55e00", "fusion": "#00795a",
    "other1": "#a2457d", "other2": "#7a6200", "other3": "#4b8bbe", "other4": "#7a5195",
}  # fmt: skip
INK, GREY, LINE, PAPER = LIGHT["ink"], LIGHT["grey"], LIGHT["line"], LIGHT["paper"]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "text.color": INK,  # names are plain text, even with $ in them
    "figure.facecolor": PAPER, "figure.labelsize": 9, "figure.constrained_layout.use": True,
    "axes.facecolor": PAPER, "axes.edgecolor": LINE, "axes.labelcolor": INK, "axes.labelsize": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "xtick.color": INK, "xtick.labelsize": 9, "xtick.major.size": 0, "xtick.minor.size": 0,
    "ytick.color": INK, "ytick.labelsize": 9, "ytick.major.size": 0, "ytick.minor.size": 0,
    "legend.frameon": False, "legend.fontsize": 9, "legend.labelcolor": INK,
}  # fmt: skip
WIDTH = 7.0  # inches: as wide as the page; on a phone a figure scrolls sideways


def hue(name: str, place: int) -> str:
    """Return the name in LIGHT of a stream's or run's colour."""
    return name if name in ("spatial", "motion", "fusion") else f"other{place % 4 + 1}"


def colour(name: str, place: int) -> str:
    return LIGHT[hue(name, place)]


def short(name: str) -> str:
    """Shorten a long class name to its beginning and end, to leave room for the figure."""
    return name if len(name) <= 30 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}{name[-14:]}"


def accuracy(rows: Sequence[tuple[str, str, float, float, float]]) -> Figure:
    """Plot top-1 with its 95 % interval. rows: (label, colour, top-1, low, high), in per cent."""
    drawn = Figure(figsize=(WIDTH, 0.32 * len(rows) + 0.6))
    axes = drawn.subplots()
    for place, (_, tone, top1, low, high) in enumerate(rows):
        axes.plot([low, high], [place, place], color=tone, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(
            [top1], [place], "o" if tone != GREY else "D", color=tone, markersize=6 if tone != GREY else 4
        )
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = min(row[3] for row in rows), max(row[4] for row in rows)
    # the axis spans at least ten points, so that small differences look small
    margin = max(10 - (high - low), 0.1 * (high - low)) / 2
    axes.set(xlim=(low - margin, high + margin), xlabel="top-1, %")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(False, axis="y")
    return drawn


def per_class(found: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Plot one line per class, in the table's order: a dot for each stream, a ring for fusion, fusion's gain.

    found: sections.class_table; columns: its accuracy columns, "fusion" last if there are several streams.
    """
    drawn = Figure(figsize=(WIDTH, 0.185 * len(found) + 1.1))
    axes = drawn.subplots()
    rows = np.arange(len(found))
    axes.hlines(rows, found[columns].min(axis=1), found[columns].max(axis=1), color=LINE, linewidth=2)
    shifts = np.linspace(-0.13, 0.13, len(columns) - 1)  # so that equal streams don't hide each other
    for place, name in enumerate(columns):
        tone = colour(name, place)
        if name == "fusion":
            axes.plot(found[name], rows, "o", ms=6.5, mfc="none", mec=tone, mew=1.7, label=name, zorder=3)
        else:
            shift = shifts[place] if len(columns) > 1 else 0
            axes.plot(found[name], rows + shift, "o", ms=3.8, mew=0, color=tone, label=name, zorder=4)
    if "gain" in found:
        for row, gain in enumerate(found["gain"]):
            axes.text(104, row, f"{gain:+.0f}" if abs(gain) >= 0.5 else "0", va="center", fontsize=8)
        axes.annotate(
            "gain", (104, 0), (0, 14), textcoords="offset points", fontsize=8, annotation_clip=False
        )
    axes.set_yticks(rows, found["class"].map(short))
    axes.set(xlim=(-2, 103), ylim=(len(found) - 0.4, -0.6), xlabel="accuracy in the class, %")
    axes.tick_params(axis="y", labelsize=8)
    drawn.legend(loc="outside upper center", ncols=len(columns))
    return drawn


def confusion(matrix: np.ndarray, names: Sequence[str], wide: bool) -> Figure:
    """Plot the row-normalised confusion matrix as a heat map: true classes in rows, guesses in columns.

    matrix: counts (classes, classes). Shades grow with the share, and a single mistake is still visible.
    `wide`: draw many classes as small cells without numbers, on a large figure.
    """
    count = len(names)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.3 * count + 1.8, 3.4), 7) if not wide else 0.115 * count + 2
    drawn = Figure(figsize=(side, side))
    axes = drawn.subplots()
    # with these limits, one mistake in a hundred differs from white, and the darkest blue from black
    shades = axes.imshow(
        np.where(matrix, share, np.nan), "Blues", vmin=-5, vmax=115, interpolation="none"
    )
    size, labels = 7 if wide else 8.5, list(map(short, names))
    axes.set_xticks(range(count), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.set(xlabel="guessed", ylabel="true")
    axes.spines[:].set_visible(True)
    axes.grid(False)
    steps = range(0, 101, 4)
    scale = drawn.colorbar(
        shades, ax=axes, shrink=0.6, aspect=30, label="% of the true class", boundaries=steps
    )
    scale.set_ticks([0, 25, 50, 75, 100])
    if not wide:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            tone = PAPER if share[row, column] > 60 else INK
            words = str(matrix[row, column])
            axes.text(column, row, words, ha="center", va="center", fontsize=8, color=tone)
    return drawn


def curves(stream: str, phases: Phases) -> Figure:
    """Plot loss, top-1 and learning rate over epochs, one below the other; training dashed, test solid."""
    drawn = Figure(figsize=(WIDTH, 5.2))
    shown = {"Loss": "loss", "Prec@1": "top-1, %", "lr": "learning rate"}
    panels = drawn.subplots(len(shown), sharex=True)
    for axes, (column, label) in zip(panels, shown.items(), strict=True):
        for phase, table in phases.items():
            values, training = table[column].dropna(), phase == "train"
            style = "--" if training and column != "lr" else "-"
            marker = "o" if len(values) < 30 else None
            width, name = 1.1 if training else 1.8, phase if column == "Prec@1" else None
            if column != "lr" or training or "train" not in phases:  # lr is the same in both
                tone = colour(stream, 0)
                axes.plot(values.index, values, style, color=tone, linewidth=width, marker=marker, ms=3, label=name)
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[1].set_ylim(-2, 102)
    if panels[2].lines and min(min(line.get_ydata(), default=0) for line in panels[2].lines) > 0:
        panels[2].set_yscale("log")
        panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[2].yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_title(stream, fontsize=10)
    panels[-1].set_xlabel("epoch")
    drawn.legend(loc="outside upper center", ncols=2)
    return drawn
