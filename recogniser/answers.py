"""The streams' answer to a video or a part of it, as a table, a line or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils import plural


@dataclass(frozen=True)
class Answer:
    """The streams' scores for one window of a video: `frames` frames from `start` to `end` seconds."""

    names: list[str]  # of the classes, in label order
    start: float
    end: float
    frames: int
    logits: dict[str, np.ndarray]  # stream -> (moments, classes), in time order; their mean is the video's
    times: dict[str, np.ndarray]  # stream -> (moments,) seconds: the middle of each clip
    samples: dict[str, int]  # stream -> number of clips it saw
    weights: Sequence[float]  # of the streams in `logits`
    temperature: float = 1.0  # of the weighted mean; the one that fusion.py learns calibrates it
    notes: Sequence[str] = ()  # what was left out, as text

    def fused(self) -> np.ndarray:
        """Return logits (classes,): the weighted mean of the streams' mean logits, as in fusion.py."""
        means = [logits.mean(0, dtype=np.float64) for logits in self.logits.values()]
        with np.errstate(all="ignore"):  # Recogniser.answer refuses what is not finite
            return np.average(means, axis=0, weights=self.weights) / self.temperature

    def probabilities(self) -> dict[str, np.ndarray]:
        """Return probabilities (classes,) by name: "fused", then each stream's own, which a lone one shares."""
        fused = softmax(self.fused())
        own = {stream: softmax(logits.mean(0, dtype=np.float64)) for stream, logits in self.logits.items()}
        return {"fused": fused} | (own if len(own) > 1 else dict.fromkeys(own, fused))

    @property
    def class_name(self) -> str:
        """Return the likeliest class after fusion."""
        return self.top(1)[0][0]

    def top(self, k: int = 5, stream: str = "fused") -> list[tuple[str, float]]:
        """Return the k likeliest classes with their probabilities, the likeliest first."""
        shares = self.probabilities()[stream]
        return [(self.names[label], float(shares[label])) for label in best(shares, k)]

    def moments(self, k: int = 3) -> list[tuple[float, float]]:
        """Return the k moments that decide, strongest first: (second, the first class's probability then).

        At these moments the fused first class leads the second one most.
        """
        first, *others = best(self.fused(), 2)
        times, logits = self.over_time()
        lead = logits[:, first] - (logits[:, others[0]] if others else 0)
        shares = softmax(logits)[:, first]
        return [(float(times[place]), float(shares[place])) for place in best(lead, k)]

    def over_time(self) -> tuple[np.ndarray, np.ndarray]:
        """Return times (T,) in seconds and fused logits (T, classes), at the last stream's clip middles."""
        times = np.unique(list(self.times.values())[-1])
        logits = []
        for stream, samples in self.logits.items():
            own, place = np.unique(self.times[stream], return_index=True)
            logits.append(np.stack([np.interp(times, own, column) for column in samples[place].T], 1))
        return times, np.average(logits, axis=0, weights=self.weights) / self.temperature

    def guess(self, stream: str = "fused") -> str:
        """Return the first class and its probability as text."""
        name, share = self.top(1, stream)[0]
        return f"{name} {100 * share:.1f} %"

    def alone(self) -> dict[str, str]:
        """Return each stream's own first guess; empty if there is only one stream."""
        return {name: self.guess(name) for name in self.logits} if len(self.logits) > 1 else {}


def best(scores: np.ndarray, k: int = 5) -> list[int]:
    """Return the labels of the k highest of (classes,) scores, highest first. The lower label wins ties."""
    return np.argsort(-scores, kind="stable")[:k].tolist()


def as_table(video: str, answer: Answer) -> str:
    """Return the fused top 5 with each stream's probabilities, and the streams' own first guesses."""
    shares = answer.probabilities()
    columns = list(shares) if len(shares) > 2 else list(shares)[1:]
    lines = [f"{video}  ({plural(answer.frames, 'frame')}, {answer.end - answer.start:.1f} s)",
             "   " + "".join(f"{name:>10}" for name in columns)]  # fmt: skip
    for place, label in enumerate(best(shares["fused"]), start=1):
        figures = "".join(f"{100 * shares[name][label]:8.1f} %" for name in columns)
        lines.append(f"  {place}{figures}  {answer.names[label]}")
    if alone := answer.alone():
        lines.append("   " + ", ".join(f"{name} alone: {guess}" for name, guess in alone.items()))
    lines += [f"   {note}" for note in answer.notes]
    return "\n".join(lines)


def as_line(answer: Answer) -> str:
    """Return the answer to a window: seconds, the fused first guess, and the streams' own."""
    beside = [f"{name} {guess}" for name, guess in answer.alone().items()] + list(answer.notes)
    line = f"{answer.start:7.1f} - {answer.end:5.1f} s   {answer.guess()}"
    return line + (f"   ({', '.join(beside)})" if beside else "")


def as_json(video: str, answer: Answer) -> str:
    """Return a line of JSON: the class, each top 5 with probabilities, the streams' mean logits by class."""
    result: dict[str, Any] = {
        "video": video, "start": round(answer.start, 3), "end": round(answer.end, 3), "frames": answer.frames,
        "class": answer.class_name,
        "moments": [{"second": round(at, 3), "probability": round(p, 6)} for at, p in answer.moments()],
        "notes": list(answer.notes),
    }
    for name in answer.probabilities():
        result[name] = {"top5": [{"class": c, "probability": round(p, 6)} for c, p in answer.top(5, name)]}
        if name in answer.logits:
            means = answer.logits[name].mean(0, dtype=np.float64)
            result[name]["samples"] = answer.samples[name]
            result[name]["logits"] = {c: round(float(v), 6) for c, v in zip(answer.names, means, strict=True)}
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, float64."""
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(-1).numpy()
