"""How far to trust an accuracy: bootstrap intervals and a paired significance test.

All functions take scores (videos, classes) and labels (videos,). No file is read or written. Accuracies are
in per cent and computed by common/accuracy.py; probabilities are in 0..1.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.accuracy import ranks
from dataloader.names import find_groups

METRICS = ("top1", "top5", "mean_class")


def group_numbers(videos: Sequence[str], labels: np.ndarray, groups: Sequence[str] | None = None) -> np.ndarray:
    """Return (videos,) int: the recording of its class that each video was cut from.

    `groups` names the recordings; otherwise they come from the videos' names. Clips of one recording are
    alike, so they are right or wrong together: intervals and tests resample recordings. A video without a
    recording is a group of its own. If this holds for all videos, the result is 0 to videos - 1.
    """
    if groups is None:
        classes = [video.rpartition("/")[0] or video.partition("_g")[0] for video in videos]
        groups = find_groups(videos, classes)
    keys = [f"{label}/{group or video}" for video, label, group in zip(videos, labels, groups, strict=True)]
    return pd.factorize(np.array(keys, dtype=object))[0]


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int, draws: int = 10_000
) -> dict[str, np.ndarray]:
    """Resample the three accuracies of common.accuracy.accuracy: {metric: (draws,)}, in per cent.

    groups (videos,) int: from `group_numbers`, each of one class. Whole groups are resampled with replacement
    (the cluster bootstrap: Davison and Hinkley 1997, section 3.8). Accuracies depend only on the classes and
    counts of the groups, so identical groups are counted together, and their multinomial counts are drawn.
    """
    place = ranks(scores, labels)
    count = np.bincount(groups)
    label = np.empty(len(count), dtype=np.int64)
    label[groups] = labels
    right = [np.bincount(groups, weights=place < top).astype(np.int64) for top in (1, 5)]
    kinds, repeats = np.unique([label, *right, count], axis=1, return_counts=True)  # sorted by class
    drawn = np.random.default_rng(seed).multinomial(len(count), repeats / len(count), size=draws)  # (draws, kinds)
    label, first, five, videos = kinds
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    hits, all_ = (np.add.reduceat(drawn * number, starts, axis=1) for number in (first, videos))  # (draws, classes)
    recall = np.divide(hits, all_, out=np.full(hits.shape, np.nan), where=all_ > 0)
    return {
        "top1": 100 * (drawn @ first) / (drawn @ videos),
        "top5": 100 * (drawn @ five) / (drawn @ videos),
        "mean_class": 100 * np.nanmean(recall, axis=1),
    }


def mcnemar(fusion_right: np.ndarray, stream_right: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Test whether fusion and a stream, (videos,) bool each, differ: the exact permutation test over groups.

    Under the null hypothesis the two can be exchanged in any group, so a group's difference in right videos
    has either sign with probability one half. p is the share of all 2**groups sign patterns whose sum is at
    least as far from 0 as the observed one (Good 2005, section 3.2), computed by convolution. If each video
    is a group, this is McNemar's exact test (Dietterich 1998, section 2.1); else it is its form for clustered
    pairs.
    """
    difference = fusion_right.astype(int) - stream_right.astype(int)
    per_group = np.bincount(groups, weights=difference).astype(int)
    chance = np.ones(1)  # probability of each sum, from -total to total in steps of 2
    for size in np.abs(per_group[per_group != 0]):
        chance = (np.pad(chance, (0, size)) + np.pad(chance, (size, 0))) / 2
    sums = np.arange(1 - len(chance), len(chance), 2)
    return {
        "only_fusion_right": int((difference > 0).sum()),
        "only_stream_right": int((difference < 0).sum()),
        "p": min(1.0, float(chance[np.abs(sums) >= abs(per_group.sum())].sum())),
    }
