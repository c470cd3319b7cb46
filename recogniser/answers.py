"""What streams say of a video or a part of it: as a table, as a line, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from report.metrics import softmax
from utils import plural


@dataclass(frozen=True)
class Answer:
    """What each stream says of the `frames` frames of a video from `start` to `end` seconds."""

    names: list[str]  # of the classes, in label order
    start: float
    end: float
    frames: int
    logits: dict[str, np.ndarray]  # stream -> (samples, classes), in time order
    times: dict[str, np.ndarray]  # stream -> (samples,) seconds: the middle of each clip
    weights: Sequence[float]  # of the streams
    temperature: float = 1.0  # of the weighted mean: fusion.py's learnt one calibrates it

    def opinions(self) -> dict[str, np.ndarray]:
        """Probabilities (classes,): "fused", then each stream's own.

        As in fusion.py, fused is the weighted mean of the streams' mean logits.
        """
        means = {stream: logits.mean(0, dtype=np.float64) for stream, logits in self.logits.items()}
        fused = np.average(list(means.values()), axis=0, weights=self.weights) / self.temperature
        return {"fused": softmax(fused)} | {stream: softmax(mean) for stream, mean in means.items()}

    def over_time(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (T,) in seconds and the fused probabilities (T, classes), at the middles of the last stream's clips."""
        times = np.unique(list(self.times.values())[-1])
        logits = []
        for stream, samples in self.logits.items():
            own, place = np.unique(self.times[stream], return_index=True)
            logits.append(np.stack([np.interp(times, own, column) for column in samples[place].T], 1))
        return times, softmax(np.average(logits, axis=0, weights=self.weights) / self.temperature)

    def first_guess(self, probabilities: np.ndarray) -> str:
        label = best(probabilities)[0]
        return f"{self.names[label]} {100 * probabilities[label]:.1f} %"

    def alone(self) -> dict[str, str]:
        """Each stream's own first guess; empty where there is one stream only."""
        guesses = {name: self.first_guess(p) for name, p in self.opinions().items() if name != "fused"}
        return guesses if len(guesses) > 1 else {}


def best(scores: np.ndarray, k: int = 5) -> list[int]:
    """The k highest of (classes,) scores, the highest first; among equal ones the lower label, as argmax has it."""
    return np.argsort(-scores, kind="stable")[:k].tolist()


def as_table(video: str, answer: Answer) -> str:
    """The fused top 5 with each stream's probabilities of them, and the streams' own first guesses."""
    opinions = answer.opinions()
    columns = list(opinions) if len(opinions) > 2 else list(opinions)[1:]
    lines = [
        f"{video}  ({plural(answer.frames, 'frame')}, {answer.end - answer.start:.1f} s)",
        "   " + "".join(f"{name:>10}" for name in columns),
    ]
    for place, label in enumerate(best(opinions["fused"]), start=1):
        figures = "".join(f"{100 * opinions[name][label]:8.1f} %" for name in columns)
        lines.append(f"  {place}{figures}  {answer.names[label]}")
    if alone := answer.alone():
        lines.append("   " + ", ".join(f"{name} alone: {guess}" for name, guess in alone.items()))
    return "\n".join(lines)


def as_line(answer: Answer) -> str:
    """A rolling answer: seconds, the fused first guess, the streams' own."""
    alone = ", ".join(f"{name} {guess}" for name, guess in answer.alone().items())
    fused = answer.first_guess(answer.opinions()["fused"])
    return f"{answer.start:7.1f} - {answer.end:5.1f} s   {fused}" + (f"   ({alone})" if alone else "")


def as_json(video: str, answer: Answer) -> str:
    """One line: the top 5 of each opinion with probabilities, and each stream's mean logits by class."""
    result: dict[str, Any] = {
        "video": video,
        "start": round(answer.start, 3),
        "end": round(answer.end, 3),
        "frames": answer.frames,
    }
    for name, probabilities in answer.opinions().items():
        top = [(answer.names[k], round(float(probabilities[k]), 6)) for k in best(probabilities)]
        result[name] = {"top5": [{"class": c, "probability": p} for c, p in top]}
        if name in answer.logits:
            means = answer.logits[name].mean(0, dtype=np.float64)
            result[name]["samples"] = len(answer.logits[name])
            result[name]["logits"] = {c: round(float(v), 6) for c, v in zip(answer.names, means, strict=True)}
    return json.dumps(result, ensure_ascii=False)
