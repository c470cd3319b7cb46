"""The streams' answer to a video or a part of it, as a table, a line or JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

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

    def means(self) -> dict[str, np.ndarray]:
        """Return each stream's logits (classes,) for the whole window, float64."""
        return {stream: logits.mean(0, dtype=np.float64) for stream, logits in self.logits.items()}

    def fused(self) -> np.ndarray:
        """Return logits (classes,): the weighted mean of the streams' mean logits, as in fusion.py."""
        with np.errstate(all="ignore"):  # Recogniser.answer refuses what is not finite
            return np.average(list(self.means().values()), axis=0, weights=self.weights) / self.temperature

    def probabilities(self) -> dict[str, np.ndarray]:
        """Return probabilities (classes,) by name: "fused", then each stream's own, which a lone one shares."""
        own = self.means() if len(self.logits) > 1 else dict.fromkeys(self.logits, self.fused())
        return {name: softmax(logits) for name, logits in {"fused": self.fused(), **own}.items()}

    @property
    def class_name(self) -> str:
        return self.top(1)[0][0]

    def top(self, k: int = 5, stream: str = "fused") -> list[tuple[str, float]]:
        """Return the k likeliest classes with their probabilities, the likeliest first."""
        shares = self.probabilities()[stream]
        return [(self.names[label], float(shares[label])) for label in best(shares, k)]

    def moments(self, k: int = 3) -> list[tuple[float, float]]:
        """Return the k moments that decide, strongest first: (second, the first class's probability then).

        At these moments the fused first class leads the second one most.
        """
        leading = best(self.fused(), 2)
        times, logits = self.over_time()
        shares, lead = softmax(logits, axis=1)[:, leading[0]], logits[:, leading[0]] - logits[:, leading[-1]]
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
    lines = [f"{video}  ({plural(answer.frames, 'frame')}, {answer.end - answer.start:.1f} s)"]
    lines.append("   " + "".join(f"{name:>10}" for name in columns))
    for place, label in enumerate(best(shares["fused"]), start=1):
        figures = "".join(f"{100 * shares[name][label]:8.1f} %" for name in columns)
        lines.append(f"  {place}{figures}  {answer.names[label]}")
    if alone := answer.alone():
        lines.append("   " + ", ".join(f"{name} alone: {guess}" for name, guess in alone.items()))
    lines += [f"   {note}" for note in answer.notes]
    return "\n".join(lines)


def as_line(answer: Answer) -> str:
    """Return the answer to a window: seconds, the fused first guess, and the streams' own."""
    beside = ", ".join([*(f"{name} {guess}" for name, guess in answer.alone().items()), *answer.notes])
    shown = f"   ({beside})" if beside else ""
    return f"{answer.start:7.1f} - {answer.end:5.1f} s   {answer.guess()}{shown}"


def as_json(video: str, answer: Answer) -> str:
    """Return a line of JSON: the class, each top 5 with probabilities, the streams' mean logits by class."""
    result: dict[str, Any] = {
        "video": video, "start": round(answer.start, 3), "end": round(answer.end, 3), "frames": answer.frames,
        "class": answer.class_name,
        "moments": [{"second": round(at, 3), "probability": round(p, 6)} for at, p in answer.moments()],
        "notes": list(answer.notes),
    }
    for name in ("fused", *answer.logits):
        result[name] = {"top5": [{"class": c, "probability": round(p, 6)} for c, p in answer.top(5, name)]}
    for name, means in answer.means().items():
        logits = {c: round(float(v), 6) for c, v in zip(answer.names, means, strict=True)}
        result[name] |= {"samples": answer.samples[name], "logits": logits}
    return json.dumps(result, ensure_ascii=False, allow_nan=False)
