"""Training curves from the records of runs, for the report on a fusion and for compare.py."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from report import plots
from report.blocks import Plot
from saved.records import Phases

PANELS = {"Loss": "loss", "Prec@1": "top-1, %", "lr": "learning rate"}


def plots_of(runs: Mapping[str, Mapping[str, Phases]]) -> list[Plot]:
    """A plot per stream. runs: run's name -> stream -> phases; of a single run its name isn't shown."""
    streams = dict.fromkeys(stream for found in runs.values() for stream in found)
    made = []
    for stream in streams:
        drawn = draw(stream, {run: found[stream] for run, found in runs.items() if stream in found}, len(runs) > 1)
        name = "curves_" + "".join(c if c.isalnum() else "_" for c in stream)
        made.append(Plot(name, drawn, f"Training curves of the {stream} stream"))
    return made


def draw(stream: str, runs: Mapping[str, Phases], named: bool) -> Figure:
    """Loss, top-1 and learning rate over epochs, one below the other; training dashed, test in full."""
    drawn = plots.figure(plots.WIDTH, 5.2)
    panels = drawn.subplots(len(PANELS), sharex=True)
    for axes, (column, label) in zip(panels, PANELS.items(), strict=True):
        for place, (run, phases) in enumerate(runs.items()):
            tone = plots.RUNS[place % len(plots.RUNS)] if named else plots.colour(stream, place)
            for phase, table in phases.items():
                values = table[column].dropna()
                if column == "lr" and phase == "test" and "train" in phases:
                    continue  # the same once more
                style = "--" if phase == "train" and column != "lr" else "-"
                words = run if named else phase
                shown = column == "Prec@1" and (phase == "test" or not named or len(phases) == 1)
                axes.plot(
                    values.index, values, style, color=tone, linewidth=1.1 if phase == "train" else 1.8,
                    marker="o" if len(values) < 30 else None, markersize=3, label=words if shown else None,
                )  # fmt: skip
        if column == "Prec@1":
            axes.set_ylim(-2, 102)
        if column == "lr" and axes.lines and min(min(line.get_ydata(), default=0) for line in axes.lines) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(label, fontsize=9, color=plots.INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        plots.tidy(axes)
    panels[0].set_title(stream, fontsize=10, color=plots.INK)
    panels[-1].set_xlabel("epoch", fontsize=9, color=plots.INK)
    plots.legend(drawn, 1 if named else 2)
    return drawn
