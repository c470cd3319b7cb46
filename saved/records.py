"""Training records: one CSV for a stream's training and one for its evaluations, with a row per epoch.

A run's folder holds rgb_train.csv and rgb_test.csv (spatial) or opf_train.csv and opf_test.csv (motion), with
the names and columns of the original's records.
"""

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd

from common.progress import duration
from utils import BEGAN, InputError, atomic_path

COLUMNS = ("Epoch", "Batch Time", "Data Time", "Loss", "Prec@1", "Prec@5", "lr")


def write_record(path: str | os.PathLike, row: Mapping[str, float]) -> None:
    """Write one epoch's row to a record, in place of those of this and later epochs, which a killed run left."""
    rows = [dict(row)]
    if os.path.exists(path):
        try:
            old = pd.read_csv(path)
            rows = old[old["Epoch"] < row["Epoch"]].to_dict("records") + rows
        except (ValueError, KeyError) as error:
            raise InputError(f"{path} is no record of this program ({error}); move it away") from None
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=list(COLUMNS)).astype({"Epoch": int}).to_csv(temporary, index=False)


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return command, settings, finished (local time, ISO 8601), seconds since start, versions, system."""
    return {
        "command": shlex.join(["python", *sys.argv]), "settings": dict(settings),
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
