"""The videos of each class for the report: the mistakes with frames and guesses, the others by name."""

from __future__ import annotations

import numpy as np

from report import thumbnails
from report.blocks import Gallery, Mistakes, Video
from report.outcome import Outcome

BEST = 3  # guesses shown of each stream, beside the true class


def anchor(label: int, guess: int | None = None) -> str:
    """The anchor of a class, or of its videos that fusion takes for the class `guess`."""
    return f"c{label}" if guess is None else f"c{label}-{guess}"


def build(outcome: Outcome, chances: dict[str, np.ndarray]) -> tuple[Gallery, int]:
    """The gallery, classes with the most mistakes first, and how many mistakes lack frames.

    chances: stream and fusion -> (videos, classes) probabilities.
    """
    test_set = outcome.test_set
    names, labels = test_set.class_names, test_set.labels
    guesses = outcome.fused.argmax(axis=1)
    sure = chances["fusion"].max(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    frames = thumbnails.strips(test_set.sources, [test_set.videos[row] for row in wrong])

    def video(row: int) -> Video:
        best = {name: guesses_of(values[row], labels[row]) for name, values in chances.items()}
        name = test_set.videos[row]
        return Video(f"v{row}", name, best, frames.get(name))

    def guesses_of(values: np.ndarray, own: int) -> list[tuple[str, float]]:
        """The best guesses, those of less than half a per cent left out, and the true class, however small."""
        first, *others = np.argsort(-values, kind="stable")[:BEST].tolist()
        shown = [first, *(guess for guess in others if values[guess] >= 0.005 or guess == own)]
        return [(names[guess], values[guess]) for guess in dict.fromkeys([*shown, int(own)])]

    def remark(row: int) -> str:
        """Which streams are wrong where fusion is right."""
        others = {name: logits[row].argmax() for name, logits in test_set.streams.items()}
        return ", ".join(f"{name}: {names[guess]}" for name, guess in others.items() if guess != labels[row])

    classes = []
    for label in np.unique(labels):
        mine = wrong[labels[wrong] == label]
        kinds, counts = np.unique(guesses[mine], return_counts=True)
        right = np.flatnonzero((labels == label) & (guesses == label))
        classes.append(
            Mistakes(
                anchor=anchor(label),
                name=names[label],
                videos=len(mine) + len(right),
                wrong=[
                    (anchor(label, guess), names[guess], [video(row) for row in mine if guesses[row] == guess])
                    for guess in kinds[np.argsort(-counts, kind="stable")]
                ],
                right=[(test_set.videos[row], remark(row)) for row in right.tolist()],
                right_anchor=anchor(label, label),
            )
        )
    classes.sort(key=lambda one: len(one.right) - one.videos)
    return Gallery(classes), len(wrong) - len(frames)
