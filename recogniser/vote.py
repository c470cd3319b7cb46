"""When a video's vote is decided: which clips to compute first, and when the others can hardly change the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

ROUND = 4  # clips of each stream between two looks
CERTAINTY = 4.0  # standard errors that the first class has to lead by


def spread_order(count: int) -> list[int]:
    """The numbers below `count`, ordered so that the first few of them, however many, are spread over all.

    As in van der Corput's sequence in base 2: halves, then quarters, ...
    """
    bits = max(1, (count - 1).bit_length())
    halves = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return list(dict.fromkeys(half * count // 2**bits for half in halves))


def is_decided(logits: Sequence[np.ndarray], planned: Sequence[int], weights: Sequence[float]) -> bool:
    """Whether the first class leads every other one by CERTAINTY standard errors of what all clips would give.

    `logits` are each stream's (clips computed, classes), `planned` how many clips each would have in all. The error
    of the mean of n of N clips is sqrt(variance / n * (1 - n / N)), as in sampling without replacement, and streams
    are independent. Were leads normal, 4 errors would be 1 in 30,000; of any distribution at most 1 in 17 (Cantelli).
    It is no proof, as four clips know the variance roughly: docs/performance.md has what it costs.
    """
    if all(len(own) == all_ for own, all_ in zip(logits, planned, strict=True)):
        return True
    if min(len(own) for own in logits) < ROUND:
        return False
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    fused = sum(share * own.mean(0, dtype=np.float64) for share, own in zip(shares, logits, strict=True))
    first = int(np.argmax(fused))
    variance = np.zeros_like(fused)
    for share, own, all_ in zip(shares, logits, planned, strict=True):
        leads = own[:, first, None].astype(np.float64) - own
        variance += share**2 * leads.var(0, ddof=1) / len(own) * (1 - len(own) / all_)
    lead = fused[first] - fused
    return bool(np.delete(lead > CERTAINTY * np.sqrt(variance), first).all())


def weighted(weights: Mapping[str, float], streams: Sequence[str]) -> list[float]:
    """The weights of those streams that can see a video, 1 for one without; equal ones where they would all be 0."""
    chosen = [weights.get(name, 1.0) for name in streams]
    return chosen if sum(chosen) else [1.0] * len(chosen)
