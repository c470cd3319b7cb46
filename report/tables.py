"""What the report counts, as pandas tables; each is also written as a CSV that opens in a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils import atomic_path, csv_text


def write(table: pd.DataFrame, path: Path, **options) -> None:
    table = table.rename(columns=csv_text).map(csv_text)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n", **options)


def per_class(
    scores: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], better: str
) -> pd.DataFrame:
    """A row per class that has videos, best gain first: label, class, videos, top-1 in % of each of `scores`, gain.

    scores: name -> (videos, classes), "fusion" among them. gain is fusion minus `better`, the stream that is
    best over all videos, so that the mean of the column is the gain in mean-class accuracy.
    """
    label, videos = np.unique(labels, return_counts=True)
    table = pd.DataFrame({"label": label, "class": [class_names[one] for one in label], "videos": videos})
    for name, values in scores.items():
        right = values.argmax(axis=1) == labels
        table[name] = 100 * np.bincount(labels, weights=right)[label] / videos
    table["gain"] = table["fusion"] - table[better]
    return table.sort_values(["gain", "fusion", "class"], ascending=[False, False, True], ignore_index=True)


def confusion(guesses: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts of videos, (classes, classes): true class in rows, guess in columns."""
    return np.bincount(labels * classes + guesses, minlength=classes * classes).reshape(classes, classes)


def confused_pairs(matrix: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Every mistake that happens, most frequent first: true, guessed, videos, share (% of the true class).

    The columns label and guess are the two classes' indices.
    """
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=int))
    true, guessed = np.nonzero(mistakes)
    videos = mistakes[true, guessed]
    names = np.array(class_names, dtype=object)
    share = 100 * videos / np.maximum(matrix.sum(axis=1)[true], 1)
    columns = {"true": names[true], "guessed": names[guessed], "videos": videos, "share": share}
    table = pd.DataFrame({**columns, "label": true, "guess": guessed})
    return table.sort_values(
        ["videos", "share", "true", "guessed"], ascending=[False, False, True, True], ignore_index=True
    )


def agreement(guesses: Mapping[str, np.ndarray], fused_right: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Which streams are right, for how many videos, and how many of those fusion gets right.

    guesses: stream -> (videos,) class indices; fused_right (videos,) bool. Columns: who, videos, fusion_right.
    Videos that no stream gets right are split by whether all make the same guess.
    """
    names = list(guesses)
    stacked = np.stack(list(guesses.values()))  # (streams, videos)
    right = stacked == labels
    unanimous = (stacked == stacked[0]).all(axis=0)
    everybody = "both right" if len(names) == 2 else "all right"
    groups = []
    for pattern in np.unique(right, axis=1).T[::-1]:  # only those that occur: 2**streams could be many
        chosen = (right == pattern[:, None]).all(axis=0)
        if pattern.any():
            who = " and ".join(name for name, hit in zip(names, pattern, strict=True) if hit)
            groups.append((everybody if pattern.all() else f"only {who} right", chosen))
        else:
            groups.append(("none right, same guess", chosen & unanimous))
            groups.append(("none right, different guesses", chosen & ~unanimous))
    rows = [(who, int(chosen.sum()), int((chosen & fused_right).sum())) for who, chosen in groups]
    return pd.DataFrame(rows, columns=["who", "videos", "fusion_right"])


def videos(
    names: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    probabilities: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """A row per video: video, class, and for each stream and fusion its guess with the guess's and the class's p.

    probabilities: name -> (videos, classes). The last column, streams_right, counts the streams that are right.
    """
    classes = np.array(class_names, dtype=object)
    rows = np.arange(len(labels))
    columns: dict[str, object] = {"video": list(names), "class": classes[labels]}
    right = np.zeros(len(labels), dtype=int)
    for name, values in probabilities.items():
        guess = values.argmax(axis=1)
        columns[f"{name} guess"] = classes[guess]
        columns[f"{name} p(guess)"] = values[rows, guess]
        columns[f"{name} p(class)"] = values[rows, labels]
        if name != "fusion":
            right += guess == labels
    return pd.DataFrame({**columns, "streams_right": right})


def calibration(found: Mapping[str, dict]) -> pd.DataFrame:
    """A row per stream and bin: stream, bin's lower and upper bound, videos, mean confidence, share correct."""
    table = pd.concat([pd.DataFrame({"stream": name, **one}) for name, one in found.items()], ignore_index=True)
    return table.drop(columns="ece").rename(columns={"count": "videos"})
