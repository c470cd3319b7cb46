"""What a fusion found out about one test set, as plain data: fusion.py fills it, the report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, model_validator

from common.formats import Natural, read_json
from saved.predictions import TestSet

LARGEST = 1e12  # of weights, temperatures and their inverses: what is fused stays finite


@dataclass(frozen=True)
class Sweep:
    """Top-1 on the test set against one stream's weight, the others' being 1."""

    stream: str
    place: int  # of that stream among all
    weights: np.ndarray  # (steps,)
    top1: np.ndarray  # (steps,) in per cent
    best: list[float]  # the best weights found, one per stream
    scores: np.ndarray  # (videos, classes), fused by them


class LearntOn(BaseModel):
    """The videos that weights were found on."""

    videos: Natural
    groups: Natural
    paths: list[str]


class LearntFile(BaseModel):
    """`learnt` in a results.json."""

    weights: dict[str, Annotated[float, Field(ge=0, le=LARGEST, strict=True)]]
    temperature: Annotated[float, Field(ge=1 / LARGEST, le=LARGEST, strict=True)]
    learnt_on: LearntOn
    chosen: str = "learnt"
    joined: str | None = None

    @model_validator(mode="after")
    def _some_weight(self) -> LearntFile:
        if sum(self.weights.values()) < 1 / LARGEST:
            raise ValueError("all weights are 0")
        return self


class ResultsFile(BaseModel):
    """What predict.py takes of a results.json."""

    learnt: LearntFile


@dataclass(frozen=True)
class Learnt:
    """The fusion that was chosen on videos that are not tested: weights of the streams' logits, and a temperature.

    As results.json keeps it under "learnt", with `chosen`: a stream's name (the others' weights are 0), "average",
    "learnt" (weights), or "joined": one head on both streams' features, as two checkpoints in the folder `joined`
    that predict.py takes in the place of the streams', with these weights and this temperature.
    """

    streams: list[str]
    weights: list[float]  # one per stream, of sum 1
    temperature: float  # softmax(weighted sum / temperature) is calibrated
    videos: int  # that it was chosen on
    groups: int  # those videos' recordings; as many as videos where nothing tells one
    paths: list[str]  # where the predictions of these lie
    chosen: str = "learnt"
    log_loss: dict[str, float] | None = None  # of each candidate on the held-out videos, cross-validated, nats
    held_out_top1: float | None = None  # of the chosen one on these videos, per cent
    joined: str | None = None  # the folder of the joined head, where that was chosen

    def fuse(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (videos, classes) of the streams, in order, as one: softmax gives calibrated probabilities."""
        return np.average(logits, axis=0, weights=self.weights) / self.temperature

    def about(self) -> dict:
        """As results.json keeps it, beside the accuracies."""
        return {
            "weights": dict(zip(self.streams, self.weights, strict=True)),
            "temperature": self.temperature,
            "learnt_on": {"videos": self.videos, "groups": self.groups, "paths": self.paths},
            "chosen": self.chosen,
            "log_loss": self.log_loss or {},
            "held_out_top1": self.held_out_top1,
            "joined": self.joined,
        }

    @classmethod
    def from_results(cls, path: str | Path) -> Learnt:
        """What `about` wrote into a results.json. Raises InputError for a file without it."""
        remedy = "`python fusion.py --learn` writes a results.json that holds learnt weights"
        found = read_json(path, ResultsFile, remedy).learnt
        streams, weights, on = list(found.weights), list(found.weights.values()), found.learnt_on
        return cls(
            streams, weights, found.temperature, on.videos, on.groups, on.paths, found.chosen, joined=found.joined
        )


@dataclass(frozen=True)
class Outcome:
    """Everything found out about one test set."""

    test_set: TestSet
    fused: np.ndarray  # (videos, classes), the fusion asked for
    sweep: Sweep
    results: dict  # what results.json says
    draws: dict[str, dict[str, np.ndarray]]  # row of the table -> metric -> bootstrap draws
