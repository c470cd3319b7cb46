"""What a fusion found out about one test set, as plain data: fusion.py fills it, the report shows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saved.predictions import TestSet


@dataclass(frozen=True)
class Sweep:
    """Top-1 on the test set against one stream's weight, the others' being 1."""

    stream: str
    place: int  # of that stream among all
    weights: np.ndarray  # (steps,)
    top1: np.ndarray  # (steps,) in per cent
    best: list[float]  # the best weights found, one per stream
    scores: np.ndarray  # (videos, classes), fused by them


@dataclass(frozen=True)
class Outcome:
    """Everything found out about one test set."""

    test_set: TestSet
    fused: np.ndarray  # (videos, classes), the fusion asked for
    sweep: Sweep
    results: dict  # what results.json says
    draws: dict[str, dict[str, np.ndarray]]  # row of the table -> metric -> bootstrap draws
