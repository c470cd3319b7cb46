"""Measures of scores: top-k and mean-class accuracy, cross-entropy, and the mean over a video's clips."""

from collections.abc import Sequence

import numpy as np

from utils import InputError


def check_finite(scores: np.ndarray, videos: Sequence[str] | None = None) -> None:
    """Raise InputError for (videos, classes) scores that hold NaN or infinity, naming the first such video.

    Neither can be ranked: every comparison with NaN is false, so NaN would count as a correct prediction.
    """
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        first = videos[bad[0]] if videos is not None else f"video number {bad[0] + 1}"
        raise InputError(f"the scores of {first} are not finite, nor those of {len(bad) - 1:,} more of {len(scores):,} "
                         "videos: the network has most likely diverged; train again with a lower --lr or --clip-grad, "
                         "or with --amp off")  # fmt: skip


def ranks(scores: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> np.ndarray:
    """Rank of the true class among (videos, classes) scores, (videos,) int; 0 is a correct top-1 prediction.

    Of equal scores the lower class index ranks first, as in argmax, so constant scores get no more than
    chance. A class counts as ranked before the true class unless it is provably behind. Raises InputError for
    scores that aren't finite; `videos` gives the name of the row in the message.
    """
    check_finite(scores, videos)
    own = np.take_along_axis(scores, labels[:, None], 1)
    later = np.arange(scores.shape[1]) > labels[:, None]
    behind = (scores < own) | ((scores == own) & later)
    return scores.shape[1] - 1 - behind.sum(1)


def accuracy(logits: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> dict[str, float]:
    """Top-1, top-5 and mean-class accuracy in per cent, for (videos, classes) scores and (videos,) labels.

    Mean-class accuracy averages over the classes that have videos, as THUMOS and TSN report it. `ranks`
    describes ties and scores that aren't finite.
    """
    rank = ranks(logits, labels, videos)
    per_class = [float((rank[labels == c] < 1).mean()) for c in np.unique(labels)]
    return {
        "top1": 100 * float((rank < 1).mean()),
        "top5": 100 * float((rank < 5).mean()),
        "mean_class": 100 * float(np.mean(per_class)),
    }


def mean_logits(clips: np.ndarray) -> np.ndarray:
    """Average the logits of a video's clips: (..., samples, classes) to (..., classes) float32."""
    return clips.mean(-2, dtype=np.float64).astype(np.float32)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None = None) -> float:
    """Mean cross-entropy of (videos, classes) logits, in nats. Raises InputError for logits that aren't finite."""
    from scipy.special import log_softmax  # imported here because scipy is slow to import

    check_finite(logits, videos)
    return -float(np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), labels[:, None], 1).mean())
