"""Put runs side by side: their curves, best epochs, fused results, and the settings in which they differ.

    python report/compare.py record                          # one run: its training curves
    python report/compare.py record/baseline record/tsn      # several

A RUN is a stream's record folder, or a folder of such: what lies in it and one level below is found.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
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
Made = dict[str, dict[str, Any]]  # stream -> what saved.provenance says of its predictions


def find(folder: Path) -> tuple[dict[str, Phases], Made, dict[str, Any]]:
    """One run's records, how its predictions were made, and its results.json, {} where there is none.

    Raises InputError for a folder that holds no record and no result.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name record folders, such as record/spatial")
    folders = [
        folder,
        *sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")),
    ]
    made: Made = {}
    for meta in (read(one / "predictions.json") for one in folders):
        if "stream" in meta:
            made.setdefault(str(meta["stream"]), meta.get("made") or {})
    streams = find_records(folders)
    fusion = next((found for one in folders if "fusion" in (found := read(one / "results.json"))), {})
    if not streams and not fusion:
        raise InputError(
            f"no rgb_train.csv, rgb_test.csv, opf_train.csv, opf_test.csv or results.json in {folder}; "
            "train a stream first"
        )
    return streams, made, fusion


def read(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is none that can be read: a comparison can do without."""
    try:
        return read_json(path, dict[str, Any], "")
    except InputError:
        return {}


def rows(run: str, streams: dict[str, Phases], made: Made, fusion: dict[str, Any]) -> list[list[str]]:
    """A row of HEADINGS for each stream, and one for the fusion."""
    found = []
    for stream, phases in streams.items():
        best, loss = ["", "", ""], ""
        if "test" in phases and len(top1 := phases["test"]["Prec@1"].dropna()):
            best = [f"{top1.max():.2f}", f"{top1.idxmax():g}", f"{top1.iloc[-1]:.2f}"]
        if "train" in phases and len(losses := phases["train"]["Loss"].dropna()):
            loss = f"{losses.iloc[-1]:.4f}"
        seconds = made.get(stream, {}).get("seconds")
        time = duration(seconds) if seconds else ""
        found.append([run, stream, f"{max(map(len, phases.values()))}", *best, loss, time])
    if fusion:
        found.append([run, "fusion", "", f"{fusion['fusion']['top1']:.2f}", "", "", "", ""])
    return found


def differences(runs: dict[str, Made]) -> list[list[str]]:
    """stream, setting, its value in each run: the settings of the trainings that are not the same in all runs."""
    tables = {run: {(stream, setting): str(value) for stream, one in made.items()
                    for setting, value in one.get("settings", {}).items()} for run, made in runs.items()}  # fmt: skip
    table = pd.DataFrame(tables).fillna("?")
    differing = table[table.apply(lambda row: len({*row} - {"?"}) > 1, axis=1)] if len(table) else table
    return [[*index, *row] for index, row in zip(differing.index, differing.to_numpy().tolist(), strict=True)]


def main() -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, default=[Path("record")], metavar="RUN", help="folders of runs")
    add(
        "--output",
        type=Path,
        default=Path("record/compare"),
        metavar="DIR",
        help="for compare.html and its figures",
    )
    args = parser.parse_args()
    runs = {str(path): find(path) for path in args.runs}
    table = [row for run, found in runs.items() for row in rows(run, *found)]
    differing = differences({run: made for run, (_, made, _) in runs.items()})
    said = Text("Accuracies in per cent, of the videos that the run tested after each epoch.")
    columns = ["stream", "setting", *runs]
    print(pd.DataFrame(table, columns=HEADINGS).to_string(index=False))
    if differing:
        print("\n" + pd.DataFrame(differing, columns=columns).to_string(index=False))
    check_writable(args.output)
    sections = [Section("Runs", [said, Table(HEADINGS, table, words=2)])]
    with rc_context(plots.STYLE):
        if curves := curve_plots({run: streams for run, (streams, *_) in runs.items()}):
            sections.append(Section("Curves", [Text("In full the test, dashed the training."), *curves]))
        if differing:
            sections.append(Section("Settings that differ", [Table(columns, differing, words=len(columns))]))
        made = [
            (f"{run}, {stream}", in_words(one))
            for run, (_, own, _) in runs.items()
            for stream, one in own.items()
        ]
        made = [*(line for line in made if line[1]), ("this page", in_words(provenance({})))]
        report = Report(f"Runs: {', '.join(runs)}", "", sections, made=made)
        print(f"\nwritten: {page.write(report, args.output / 'compare.html')}")


if __name__ == "__main__":
    run_main(main)
