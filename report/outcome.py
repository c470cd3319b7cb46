"""What a fusion found out about one test set, as plain data: fusion.py fills it, the report shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saved.predictions import TestSet
from utils import InputError


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
class Learnt:
    """A weighted sum of logits whose weights, and temperature, were found on videos that are not tested."""

    streams: list[str]
    weights: list[float]  # one per stream, of sum 1
    temperature: float  # softmax(weighted sum / temperature) is calibrated
    videos: int  # that they were found on
    groups: int  # those videos' recordings; as many as videos where no name tells one
    paths: list[str]  # where the predictions of these lie

    def fuse(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (videos, classes) of the streams, in order, as one: softmax gives calibrated probabilities."""
        return np.average(logits, axis=0, weights=self.weights) / self.temperature

    def about(self) -> dict:
        """As results.json keeps it, beside the accuracies."""
        return {
            "weights": dict(zip(self.streams, self.weights, strict=True)),
            "temperature": self.temperature,
            "learnt_on": {"videos": self.videos, "groups": self.groups, "paths": self.paths},
        }

    @classmethod
    def from_results(cls, path: str | Path) -> Learnt:
        """What `about` wrote into a results.json. Raises InputError for a file without it."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))["learnt"]
            streams, weights = list(found["weights"]), [float(weight) for weight in found["weights"].values()]
            temperature, on = float(found["temperature"]), found["learnt_on"]
            learnt = cls(streams, weights, temperature, int(on["videos"]), int(on["groups"]), list(on["paths"]))
            sound = (
                all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0 and 0 < temperature < math.inf
            )
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise InputError(
                f"{path} holds no learnt weights; `python fusion.py --learn` writes a results.json with them"
            )
        return learnt


@dataclass(frozen=True)
class Outcome:
    """Everything found out about one test set."""

    test_set: TestSet
    fused: np.ndarray  # (videos, classes), the fusion asked for
    sweep: Sweep
    results: dict  # what results.json says
    draws: dict[str, dict[str, np.ndarray]]  # row of the table -> metric -> bootstrap draws
