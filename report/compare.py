"""Put runs side by side: their curves, best epochs, fused results, and the settings in which they differ.

    python report/compare.py record                          # one run: its training curves
    python report/compare.py record/baseline record/tsn      # several

A RUN is a stream's record folder, or a folder of such: what lies in it and one level below is found.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report import curves
from report.curves import Phases
from saved.provenance import provenance
from utils import ArgumentParser, InputError, check_writable, duration, run_main


@dataclass(frozen=True)
class Run:
    name: str
    streams: dict[str, Phases]
    about: dict[str, dict]  # stream -> its predictions.json
    fusion: dict  # results.json, {} where there is none


def find(folder: Path, name: str) -> Run:
    """Everything of one run. Raises InputError for a folder that holds no record and no result."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name record folders, such as record/spatial")
    folders = [folder, *sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))]
    about: dict[str, dict] = {}
    for one in folders:
        meta = read_json(one / "predictions.json")
        if isinstance(stream := meta.get("stream"), str):
            about.setdefault(stream, meta)
    fusion = next((found for one in folders if "fusion" in (found := read_json(one / "results.json"))), {})
    streams = curves.find_records(folders)
    if not streams and not fusion:
        raise InputError(
            f"no rgb_train.csv, rgb_test.csv, opf_train.csv, opf_test.csv or results.json in {folder}; "
            "train a stream first"
        )
    return Run(name, streams, about, fusion)


def read_json(path: Path) -> dict:
    """A JSON object, {} where there is none that can be read: a comparison can do without."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def rows(runs: list[Run]) -> list[list[str]]:
    """run, stream, epochs, best top-1, its epoch, last top-1, last training loss, time: a row per run and stream."""
    found = []
    for run in runs:
        for stream, phases in run.streams.items():
            epochs = max(len(table) for table in phases.values())
            best, last_loss = ["", "", ""], ""
            if "test" in phases and len(top1 := phases["test"]["Prec@1"].dropna()):
                best = [f"{top1.max():.2f}", f"{top1.idxmax():g}", f"{top1.iloc[-1]:.2f}"]
            if "train" in phases and len(loss := phases["train"]["Loss"].dropna()):
                last_loss = f"{loss.iloc[-1]:.4f}"
            seconds = made(run, stream).get("seconds")
            time = duration(seconds) if isinstance(seconds, (int, float)) else ""
            found.append([run.name, stream, f"{epochs}", *best, last_loss, time])
        if run.fusion:
            found.append([run.name, "fusion", "", f"{run.fusion['fusion']['top1']:.2f}", "", "", "", ""])
    return found


HEADINGS = ["run", "stream", "epochs", "best top-1", "at epoch", "last top-1", "last loss", "time"]


def made(run: Run, stream: str) -> dict[str, Any]:
    found = run.about.get(stream, {}).get("made")
    return found if isinstance(found, dict) else {}


def differences(runs: list[Run]) -> list[list[str]]:
    """stream, setting, its value in each run: the settings of the trainings that are not the same in all runs."""
    found = []
    for stream in dict.fromkeys(stream for run in runs for stream in run.about):
        each = [made(run, stream).get("settings") for run in runs]
        known = [one for one in each if isinstance(one, dict)]
        for setting in dict.fromkeys(setting for one in known for setting in one):
            values = [str(one.get(setting, "")) if isinstance(one, dict) else "?" for one in each]
            if len({value for value in values if value != "?"}) > 1:
                found.append([stream, setting, *values])
    return found


def text(table: list[list[str]]) -> str:
    """A table for the terminal, its columns lined up: words to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_page(runs: list[Run], output: Path, table: list[list[str]], differing: list[list[str]]) -> Path:
    from report import page
    from report.blocks import Report, Section, Table, Text
    from saved.provenance import in_words

    names = [run.name for run in runs]
    sections = [
        Section(
            "Runs",
            [
                Text("Accuracies in per cent, of the videos that the run tested after each epoch."),
                Table(HEADINGS, table, words=2),
            ],
        )
    ]
    plots = curves.plots_of({run.name: run.streams for run in runs})
    if plots:
        sections.append(Section("Curves", [Text("In full the test, dashed the training."), *plots]))
    if differing:
        sections.append(
            Section("Settings that differ", [Table(["stream", "setting", *names], differing, words=2 + len(names))])
        )
    commands = [(f"{run.name}, {stream}", in_words(made(run, stream))) for run in runs for stream in run.about]
    known = [line for line in commands if line[1]]
    title = f"Runs: {', '.join(names)}"
    report = Report(title, "", sections, made=[*known, ("this page", in_words(provenance({})))])
    return page.write(report, output / "compare.html")


def main() -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, default=[Path("record")], metavar="RUN", help="folders of runs")
    add("--output", type=Path, default=Path("record/compare"), metavar="DIR", help="for compare.html and its figures")
    args = parser.parse_args()
    paths = list(dict.fromkeys(args.runs))
    runs = [find(path, str(path)) for path in paths]
    table, differing = rows(runs), differences(runs)
    print(text([HEADINGS, *table]))
    if differing:
        print("\n" + text([["stream", "setting", *(run.name for run in runs)], *differing]))
    check_writable(args.output)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no page: its plots need matplotlib; pip install matplotlib and run this again")
        return
    from matplotlib import rc_context

    from report.plots import text_settings

    with rc_context(text_settings(run.name for run in runs)):
        print(f"\nwritten: {write_page(runs, args.output, table, differing)}")


if __name__ == "__main__":
    run_main(main)
