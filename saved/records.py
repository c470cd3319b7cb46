"""Training records: one CSV for a stream's training and one for its evaluations, with a row per epoch.

A run's folder holds rgb_train.csv and rgb_test.csv (spatial) or opf_train.csv and opf_test.csv (motion). The
original's records have the same names and columns and can be read, too.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from common.progress import duration
from utils import BEGAN, InputError, atomic_path

PREFIXES = {"rgb": "spatial", "opf": "motion"}
COLUMNS = ("Epoch", "Batch Time", "Data Time", "Loss", "Prec@1", "Prec@5", "lr")
Phases = dict[str, pd.DataFrame]  # "train" and "test" -> a row per epoch


def record_path(folder: Path, prefix: str, phase: str) -> Path:
    return folder / f"{prefix}_{phase}.csv"


def write_record(path: str | os.PathLike, row: Mapping[str, float]) -> None:
    """Write one epoch's row to a record; it replaces the rows of that epoch and all later ones.

    An epoch that is repeated after a kill is therefore listed once.
    """
    rows = [dict(row)]
    if os.path.exists(path):
        try:
            old = pd.read_csv(path)
            rows = old[old["Epoch"] < row["Epoch"]].to_dict("records") + rows
        except (ValueError, KeyError) as error:
            raise InputError(f"{path} is no record of this program ({error}); move it away") from None
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=list(COLUMNS)).astype({"Epoch": int}).to_csv(temporary, index=False)


def read_record(path: str | os.PathLike) -> pd.DataFrame:
    """Read a record: numeric, one row per epoch (the last one if the original wrote an epoch twice)."""
    try:
        table = pd.read_csv(path)
        epochs = pd.to_numeric(table["Epoch"])
    except (ValueError, KeyError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a training record (a CSV with a column Epoch); remove it") from error
    numbers = table.reindex(columns=list(COLUMNS[1:])).apply(pd.to_numeric, errors="coerce")
    return numbers.set_index(epochs).groupby(level=0).last()


def find_records(folders: Iterable[Path]) -> dict[str, Phases]:
    """Read the records in `folders`: stream name -> phases. Empty records are left out."""
    found: dict[str, Phases] = {}
    for folder in dict.fromkeys(folders):
        for prefix, stream in PREFIXES.items():
            phases = {}
            for phase in ("train", "test"):
                path = record_path(folder, prefix, phase)
                if path.is_file() and len(table := read_record(path)):
                    phases[phase] = table
            if phases:
                found[stream if stream not in found else f"{stream} ({folder})"] = phases
    return found


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return command, settings, finished (local time, ISO 8601), seconds since start, versions, system."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "settings": dict(settings),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.time() - BEGAN, 1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy")},
        "system": f"{platform.system()} {platform.machine()}",
    }


def in_words(made: Any) -> str:
    """Format the result of `provenance` in a line or two; "" for anything else, as older files may hold."""
    try:
        finished = f"finished {made['finished'][:16].replace('T', ' ')} after {duration(made['seconds'])}"
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        return f"{made['command']}; {finished}; {versions}; {made['system']}"
    except (KeyError, TypeError, AttributeError):
        return ""
