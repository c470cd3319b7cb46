"""Put runs side by side: their curves, best epochs, fused results, and the settings in which they differ.

    python report/compare.py record                          # one run: its training curves
    python report/compare.py record/baseline record/tsn      # several

A RUN is a stream's record folder, or a folder of such: what lies in it and one level below is found.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser
from common.formats import read_json
from common.progress import duration
from report import page, plots
from report.page import Report, Section, Table, Text
from report.sections import curve_plots
from saved.records import Phases, find_records, in_words, provenance
from utils import InputError, check_writable, run_main

HEADINGS = ["run", "stream", "epochs", "best top-1", "at epoch", "last top-1", "training loss", "time"]


@dataclass(frozen=True)
class Run:
    name: str
    streams: dict[str, Phases]
    made: dict[str, dict]  # stream -> what saved.provenance says of its predictions, {} where that is not known
    fusion: dict  # results.json, {} where there is none


def find(folder: Path) -> Run:
    """Everything of one run. Raises InputError for a folder that holds no record and no result."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name record folders, such as record/spatial")
    folders = [folder, *sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))]
    made: dict[str, dict] = {}
    for one in folders:
        meta = _object(one / "predictions.json")
        if isinstance(stream := meta.get("stream"), str):
            found = meta.get("made")
            made.setdefault(stream, found if isinstance(found, dict) else {})
    fusion = next((found for one in folders if "fusion" in (found := _object(one / "results.json"))), {})
    streams = find_records(folders)
    if not streams and not fusion:
        raise InputError(
            f"no rgb_train.csv, rgb_test.csv, opf_train.csv, opf_test.csv or results.json in {folder}; "
            "train a stream first"
        )
    return Run(str(folder), streams, made, fusion)


def _object(path: Path) -> dict:
    """A JSON object, {} where there is none that can be read: a comparison can do without."""
    try:
        return read_json(path, dict[str, Any], "")
    except InputError:
        return {}


def rows(runs: list[Run]) -> list[list[str]]:
    """A row of HEADINGS per run and stream, and one for the run's fusion."""
    found = []
    for run in runs:
        for stream, phases in run.streams.items():
            epochs = max(len(table) for table in phases.values())
            best, last_loss = ["", "", ""], ""
            if "test" in phases and len(top1 := phases["test"]["Prec@1"].dropna()):
                best = [f"{top1.max():.2f}", f"{top1.idxmax():g}", f"{top1.iloc[-1]:.2f}"]
            if "train" in phases and len(loss := phases["train"]["Loss"].dropna()):
                last_loss = f"{loss.iloc[-1]:.4f}"
            seconds = run.made.get(stream, {}).get("seconds")
            time = duration(seconds) if isinstance(seconds, (int, float)) else ""
            found.append([run.name, stream, f"{epochs}", *best, last_loss, time])
        if run.fusion:
            found.append([run.name, "fusion", "", f"{run.fusion['fusion']['top1']:.2f}", "", "", "", ""])
    return found


def differences(runs: list[Run]) -> list[list[str]]:
    """stream, setting, its value in each run: the settings of the trainings that are not the same in all runs."""
    found = []
    for stream in dict.fromkeys(stream for run in runs for stream in run.made):
        each = [run.made.get(stream, {}).get("settings") for run in runs]
        known = [one for one in each if isinstance(one, dict)]
        for setting in dict.fromkeys(setting for one in known for setting in one):
            values = [str(one.get(setting, "")) if isinstance(one, dict) else "?" for one in each]
            if len({*values} - {"?"}) > 1:
                found.append([stream, setting, *values])
    return found


def text(table: list[list[str]]) -> str:
    """A table for the terminal, its columns lined up: two of words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = "<<" + ">" * (len(widths) - 2)
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)


def comparison(runs: list[Run], table: list[list[str]], differing: list[list[str]]) -> Report:
    """The page: the tables that the terminal shows, and the curves."""
    names = [run.name for run in runs]
    said = Text("Accuracies in per cent, of the videos that the run tested after each epoch.")
    sections = [Section("Runs", [said, Table(HEADINGS, table, words=2)])]
    if curves := curve_plots({run.name: run.streams for run in runs}):
        sections.append(Section("Curves", [Text("In full the test, dashed the training."), *curves]))
    if differing:
        settings = Table(["stream", "setting", *names], differing, words=2 + len(names))
        sections.append(Section("Settings that differ", [settings]))
    made = [(f"{run.name}, {stream}", in_words(one)) for run in runs for stream, one in run.made.items()]
    made = [*(line for line in made if line[1]), ("this page", in_words(provenance({})))]
    return Report(f"Runs: {', '.join(names)}", "", sections, made=made)


def main() -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, default=[Path("record")], metavar="RUN", help="folders of runs")
    add("--output", type=Path, default=Path("record/compare"), metavar="DIR", help="for compare.html and its figures")
    args = parser.parse_args()
    runs = [find(path) for path in dict.fromkeys(args.runs)]
    table, differing = rows(runs), differences(runs)
    print(text([HEADINGS, *table]))
    if differing:
        print("\n" + text([["stream", "setting", *(run.name for run in runs)], *differing]))
    check_writable(args.output)
    with rc_context(plots.STYLE):
        print(f"\nwritten: {page.write(comparison(runs, table, differing), args.output / 'compare.html')}")


if __name__ == "__main__":
    run_main(main)
