"""Training curves from the records of a run: `python -m report.curves record/spatial record/motion`.

A record folder holds rgb_train.csv and rgb_test.csv (spatial) or opf_train.csv and opf_test.csv (motion),
with one row per epoch. The original's records, which have the same columns, are read as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import ArgumentParser, InputError, plural, run_main

PREFIXES = {"rgb": "spatial", "opf": "motion"}
PANELS = {"Loss": "loss", "Prec@1": "top-1, %", "lr": "learning rate"}


def read_record(path: Path) -> pd.DataFrame:
    """One CSV of a run, numeric, a row per epoch (the last, where a resumed run wrote an epoch again)."""
    try:
        table = pd.read_csv(path)
        epochs = pd.to_numeric(table["Epoch"])
    except (ValueError, KeyError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a training record (a CSV with a column Epoch); remove it") from error
    numbers = table.reindex(columns=list(PANELS)).apply(pd.to_numeric, errors="coerce")
    return numbers.set_index(epochs).groupby(level=0).last()


def find_records(folders: Sequence[Path]) -> dict[str, dict[str, pd.DataFrame]]:
    """The records in `folders`: stream's name -> {"train": table, "test": table}, empty ones left out."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for folder in dict.fromkeys(folders):
        for prefix, stream in PREFIXES.items():
            phases = {}
            for phase in ("train", "test"):
                path = folder / f"{prefix}_{phase}.csv"
                if path.is_file() and len(table := read_record(path)):
                    phases[phase] = table
            if phases:
                found[stream if stream not in found else f"{stream} ({folder})"] = phases
    return found


def draw(records: dict[str, dict[str, pd.DataFrame]]):
    """A matplotlib Figure: a row per stream with loss, top-1 and learning rate over epochs."""
    from matplotlib.ticker import MaxNLocator

    from report.plots import INK, OTHERS, figure, tidy

    drawn = figure(7.2, 2.1 * len(records) + 0.3)
    grid = drawn.subplots(len(records), len(PANELS), squeeze=False)
    for row, (stream, phases) in zip(grid, records.items(), strict=True):
        for axes, (column, label) in zip(row, PANELS.items(), strict=True):
            for place, (phase, table) in enumerate(phases.items()):
                values = table[column].dropna()
                if column == "lr" and phase == "test" and "train" in phases:
                    continue
                mark = "o" if len(values) < 30 else None
                axes.plot(values.index, values, color=OTHERS[place], marker=mark, markersize=3, label=phase)
            if column == "lr" and axes.lines and min(axes.lines[0].get_ydata(), default=0) > 0:
                axes.set_yscale("log")
            axes.set_title(f"{stream}: {label}", fontsize=9, color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            tidy(axes)
        row[0].legend(frameon=False, fontsize=8)
    drawn.supxlabel("epoch", fontsize=9, color=INK)
    return drawn


def main() -> None:
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("record/spatial"), Path("record/motion")],
        metavar="FOLDER",
        help="record folders",
    )
    parser.add_argument("--output", type=Path, default=Path("record/curves.png"), metavar="PNG", help="file to write")
    args = parser.parse_args()
    records = find_records(args.folders)
    if not records:
        places = ", ".join(str(folder) for folder in args.folders)
        raise InputError(
            f"no rgb_train.csv, rgb_test.csv, opf_train.csv or opf_test.csv in {places}; train a stream first"
        )
    try:
        from report.plots import save
    except ImportError as error:
        raise InputError("curves need matplotlib; install it with pip install matplotlib") from error
    save(draw(records), args.output)
    for stream, phases in records.items():
        print(f"{stream}: " + ", ".join(f"{plural(len(table), 'epoch')} of {phase}" for phase, table in phases.items()))
    print(f"written: {args.output}")


if __name__ == "__main__":
    run_main(main)
