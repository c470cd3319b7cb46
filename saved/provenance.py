"""How a result came about, as predictions.json and reports keep it: command, settings, time, versions."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from utils import BEGAN, duration

PACKAGES = ("torch", "torchvision", "numpy")


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """command, settings, finished (local time, ISO 8601), seconds since this process began, versions."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["python", *sys.argv]),
        "settings": dict(settings),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.time() - BEGAN, 1),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
    }


def in_words(made: Any) -> str:
    """What `provenance` gave, in a line or two; "" for anything else: it may come from a file of another version."""
    if not isinstance(made, dict) or not isinstance(made.get("command"), str):
        return ""
    parts = [made["command"]]
    if isinstance(made.get("finished"), str):
        parts.append(f"finished {made['finished'][:16].replace('T', ' ')}")
    if isinstance(made.get("seconds"), (int, float)):
        parts.append(f"after {duration(made['seconds'])}")
    if isinstance(made.get("versions"), dict):
        parts.append(", ".join(f"{name} {number}" for name, number in made["versions"].items()))
    if isinstance(made.get("system"), str):
        parts.append(made["system"])
    return "; ".join(parts)
