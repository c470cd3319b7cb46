"""How far to trust an accuracy: intervals, a paired test, calibration, classes one by one.

Everything here works on scores of shape (videos, classes) and labels of shape (videos,); NumPy only,
no file is read or written. Accuracies are in per cent, probabilities in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

METRICS = ("top1", "top5", "mean_class")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis; same shape, float."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of the true class among the scores, (videos,) int: 0 is a correct first guess.

    Among equal scores the lower class index comes first, as in argmax, so that constant scores earn no
    more than chance.
    """
    true = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > true) | ((scores == true) & earlier)).sum(axis=1)


def per_class(correct: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Per cent correct in each class, (classes,) float; NaN for a class without videos."""
    videos = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return 100 * np.bincount(labels, weights=correct, minlength=classes) / videos


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, seed: int | Sequence[int], draws: int = 10_000
) -> dict[str, np.ndarray]:
    """The three accuracies (those of utils.accuracy) of `draws` resamples of the videos: {metric: (draws,)}, per cent.

    All three depend on a resample only through how many videos of each class came out top-1, top-5 or
    worse. Those counts are multinomial, so they are drawn directly: the same distribution as drawing
    videos with replacement (Efron 1979), without the (draws, videos) table.
    """
    classes = scores.shape[1]
    outcome = np.digitize(ranks(scores, labels), [1, 5])  # 0: top-1, 1: in the top 5, 2: below
    cells = np.bincount(labels * 3 + outcome, minlength=classes * 3)
    occupied = np.flatnonzero(cells)
    counts = np.zeros((draws, classes * 3), dtype=np.int32)
    share = cells[occupied] / len(labels)
    counts[:, occupied] = np.random.default_rng(seed).multinomial(len(labels), share, size=draws)
    counts = counts.reshape(draws, classes, 3)
    first, five, videos = counts[:, :, 0], counts[:, :, :2].sum(axis=2), counts.sum(axis=2)
    recall = np.divide(first, videos, out=np.full(first.shape, np.nan), where=videos > 0)
    return {
        "top1": 100 * first.sum(axis=1) / len(labels),
        "top5": 100 * five.sum(axis=1) / len(labels),
        "mean_class": 100 * np.nanmean(recall, axis=1),
    }


def interval(draws: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrap draws, [low, high]."""
    return [float(bound) for bound in np.percentile(draws, [2.5, 97.5])]


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, float]:
    """McNemar's exact test on two (videos,) bool arrays: do two classifiers differ beyond chance?

    Under the null hypothesis each video that only one of them gets right falls to either with probability
    one half, so the two-sided p is twice the binomial tail (Dietterich 1998, section 2.1, in its exact form).
    """
    from scipy.special import bdtr  # here: scipy takes a moment to import and only this needs it

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    tail = bdtr(min(only_first, only_second), only_first + only_second, 0.5)
    return {"only_first": only_first, "only_second": only_second, "p": min(1.0, 2 * float(tail))}


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict:
    """Reliability of the first guess's probability in equal bins, and the expected calibration error.

    Guo et al. 2017, section 2. Returns arrays of shape (bins,): `count`, `confidence` and `correct` (0..1,
    NaN in an empty bin), and `ece` in 0..1.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, weights=confidence, minlength=bins) / count
        mean_correct = np.bincount(place, weights=correct, minlength=bins) / count
    gap = np.nan_to_num(np.abs(mean_confidence - mean_correct))
    ece = float((count * gap).sum() / len(labels))
    return {"count": count, "confidence": mean_confidence, "correct": mean_correct, "ece": ece}
