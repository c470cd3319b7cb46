"""The results of fusion on one test set: as data, as stored in results.json, and as text for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, model_validator

from common.formats import Natural, read_json
from saved.predictions import TestSet
from utils import plural

LARGEST = 1e12  # limit of weights, temperatures and their inverses, so that fused logits stay finite
FUSIONS = ("average", "std")  # rows of every table of several streams, whatever fusion is requested
FEW_CLASSES = 10  # with up to this many classes, the top 5 are at least half of them
STD_NOTE = "std: each stream's logits divided by their standard deviation over the test set, then averaged"


class LearntOn(BaseModel):
    """The videos on which a fusion was chosen."""

    videos: Natural
    groups: Natural  # number of recordings; equal to videos if none are known
    paths: list[str]  # of their predictions


class Learnt(BaseModel):
    """The fusion chosen on held-out videos: `learnt` in results.json.

    `chosen` is a stream's name (the others' weights are 0), "average", "learnt" (weights), or "joined": one
    head on both streams' features. It is two checkpoints in the folder `joined`; predict.py loads them
    instead.
    """

    weights: dict[str, Annotated[float, Field(ge=0, le=LARGEST, strict=True)]]  # of each stream's logits
    temperature: Annotated[float, Field(ge=1 / LARGEST, le=LARGEST, strict=True)]  # softmax(sum / this)
    learnt_on: LearntOn
    chosen: str = "learnt"
    log_loss: dict[str, float] = {}  # of each candidate on the held-out videos, cross-validated, nats
    held_out_top1: float | None = None  # of the chosen fusion on these videos, per cent
    joined: str | None = None  # the folder of the joined head, if it was chosen

    @model_validator(mode="after")
    def _some_weight(self) -> "Learnt":
        if sum(self.weights.values()) < 1 / LARGEST:
            raise ValueError("all weights are 0")
        return self

    def fuse(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Fuse the streams' logits (videos, classes), given in order. Softmax of the result is calibrated."""
        return np.average(logits, axis=0, weights=list(self.weights.values())) / self.temperature


class ResultsFile(BaseModel):
    """The part of results.json that predict.py reads."""

    learnt: Learnt


def read_learnt(path: str | Path) -> Learnt:
    """Read the chosen fusion from a results.json. Raises InputError for a file without it."""
    remedy = "`python fusion.py --learn` writes a results.json that holds weights"
    return read_json(path, ResultsFile, remedy).learnt


@dataclass(frozen=True)
class Outcome:
    """All results of one test set."""

    test_set: TestSet
    fused: np.ndarray  # (videos, classes): logits of the requested fusion, or of a single stream
    results: dict  # the content of results.json
    draws: dict[str, dict[str, np.ndarray]]  # row of the table -> metric -> bootstrap draws

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Return the logits of each stream, and of fusion if there are several streams."""
        streams = self.test_set.streams
        return {**streams, "fusion": self.fused} if len(streams) > 1 else dict(streams)

    @property
    def main(self) -> str:
        """Return the row that the report is about: fusion, or the only stream."""
        return list(self.rows)[-1]


def choice_name(candidate: str) -> str:
    names = {"average": "average", "learnt": "learnt weights", "joined": "one head on all features"}
    return names.get(candidate, f"{candidate} alone")


def fusion_name(weights: Sequence[float], learnt: Learnt | None) -> str:
    """Name the requested fusion: what was chosen on held-out videos, else "average" unless weights differ."""
    if learnt and learnt.chosen != "learnt":
        return choice_name(learnt.chosen)
    if learnt:
        return f"learnt {' : '.join(f'{weight:.3f}' for weight in weights)}"
    return " : ".join(f"{weight:g}" for weight in weights) if len(set(weights)) > 1 else "average"


def choice_note(learnt: Learnt) -> str:
    """Say which fusion was chosen and why."""
    on = learnt.learnt_on
    groups = f" in {plural(on.groups, 'group')}" if on.groups < on.videos else ""
    losses = ", ".join(f"{choice_name(name)} {loss:.3f}" for name, loss in learnt.log_loss.items())
    name, alone = choice_name(learnt.chosen), learnt.chosen in learnt.weights
    others = "fusion" if alone else "other"
    likeliest = min(learnt.log_loss, key=learnt.log_loss.__getitem__, default=learnt.chosen) == learnt.chosen
    why = "it is the likeliest" if likeliest else f"no {others} is likelier beyond chance"
    verdict = f"{name} is better here" if alone else f"fused by {name}"
    return (f"{verdict}: {why} on {plural(on.videos, 'other video')}{groups} (log loss: {losses}); "
            f"temperature {learnt.temperature:.3g}")  # fmt: skip


def gap_note(held_out: float, held_out_videos: int, test: float, test_videos: int) -> str:
    """Warn if the accuracies (per cent) on held-out and test videos are far apart; otherwise return ""."""
    mean = (held_out * held_out_videos + test * test_videos) / (held_out_videos + test_videos) / 100
    error = 100 * (mean * (1 - mean) * (1 / held_out_videos + 1 / test_videos)) ** 0.5
    if abs(held_out - test) < max(10, 3 * error):
        return ""
    differ = ("test videos differ from training videos (other recordings, other cameras?), or training videos "
              "have near copies among themselves; quote the test figure")  # fmt: skip
    why = differ if held_out > test else "are copies of training videos in the test set?"
    return f"held out {held_out:.1f}, test {test:.1f}: {why}"


def look_alike_note(alike: dict) -> str:
    """Say in one line what the look-alike check of heads.py found."""
    if not alike["warns"]:
        apart = f"look-alikes kept apart: {alike['apart']:.1f} % by a linear head on RGB"
        return f"{apart}, {alike['accuracy']:.1f} in the usual cross-validation"
    return ("Clips that look alike are on both sides of the split. Kept apart, accuracy is "
            f"{alike['apart']:.0f} % (a linear head on RGB, in place of {alike['accuracy']:.0f} %). If they "
            "are from the same recordings, take this figure. `run.py VIDEOS --groups REGEX` (or FILE.csv of "
            "video,group) splits anew and keeps each recording on one side")  # fmt: skip


def warnings(results: dict, learnt: Learnt | None) -> list[str]:
    """Return the warnings above the figures: look-alikes across the split, held-out and test far apart."""
    alike, gap = results.get("look_alikes", {}), ""
    if learnt and learnt.held_out_top1 is not None:
        on = learnt.learnt_on.videos
        gap = gap_note(learnt.held_out_top1, on, results["fusion"]["top1"], results["videos"])
    return [line for line in (look_alike_note(alike) if alike.get("warns") else "", gap) if line]


def notes(results: dict, learnt: Learnt | None) -> list[str]:
    """Return the lines below the figures: choice, test against the better stream, intervals, look-alikes."""
    found = [choice_note(learnt)] if learnt else []
    test, resampled, alike = results.get("mcnemar"), results["resampled"], results.get("look_alikes")
    if test and not (learnt and learnt.chosen == test["against"]):  # else they answer the same
        name = "McNemar's exact test" if test["over"] == "videos" else "permutation test over groups"
        right, other = plural(test["only_fusion_right"], "video"), test["against"]
        found.append(f"fusion against {other} alone: {right} right only by fusion, {test['only_stream_right']:,} only "
                     f"by {other}; {name}, p = {test['p']:.2g}")  # fmt: skip
    found.append(
        "intervals and test take videos as independent: nothing tells that two of a class are of one recording"
        if resampled["unit"] == "video" else f"intervals and test are over {plural(resampled['count'], 'group')} "
        "of videos, since clips of one recording are alike")  # fmt: skip
    return found + ([look_alike_note(alike)] if alike and not alike["warns"] else [])


def rows(results: dict) -> list[tuple[str, str]]:
    """Return (label, key in results) of each row: streams, the requested fusion, and its comparisons."""
    streams = [(name, name) for name in results["streams"]]
    if len(streams) == 1:
        return streams
    asked = results["settings"]["fusion"]
    return [*streams, (f"fusion: {asked}", "fusion"), *((name, name) for name in FUSIONS if name != asked)]


def text(results: dict, title: str) -> str:
    """Return the table as text, with the warnings above it and the notes below."""
    lines = [f"{title}: {plural(results['videos'], 'video')}, {results['classes']} classes, accuracy in %",
             *(f"!! {line}" for line in results["warnings"])]  # fmt: skip
    if len(results["streams"]) != 2:
        lines += [f"{name}: {about['path']}" for name, about in results["streams"].items()]
    table = [(f"  {label}" if label in FUSIONS else label, key) for label, key in rows(results)]
    width = max(len(label) for label, _ in table)
    many = results["classes"] > FEW_CLASSES
    lines.append(f"{'':{width}}   top-1   95 % interval   {' top-5 ' if many else ''}  mean class")
    for label, key in table:
        found, (low, high) = results[key], results["interval_95"][key]["top1"]
        spread, top5 = f"{low:6.2f} - {high:6.2f}", f" {found['top5']:6.2f}" if many else ""
        lines.append(f"{label:{width}}  {found['top1']:6.2f}   {spread:15} {top5}   {found['mean_class']:10.2f}")
    return "\n".join([*lines, *([STD_NOTE] if len(table) > 1 else []), *results["notes"]])
