"""Fit a head on training videos alone, and choose what it needs choosing by videos held out of them.

Each choice is made by the cross-entropy of out-of-fold logits: those that each training video gets from a head that
was fitted without its fold. They are also what weights of a fusion may be learned from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from common.accuracy import cross_entropy
from engine.temporal_heads import TEMPORAL, predict_temporal, train_temporal
from utils import InputError

# C of logistic regression, on z-scores of mean square length 1
STRENGTHS = tuple((10.0 ** np.arange(-1, 5.01, 0.5)).tolist())
ABSENT = 20.0  # how far below all others the logit of a class without a training video is


@dataclass(frozen=True)
class Fit:
    """A head fitted on all training videos, and what its folds said."""

    logits: np.ndarray  # (V, samples or 1, classes) float32 of all videos, training videos included
    held_out: np.ndarray  # (training videos, classes) float32, out of fold
    choice: dict[str, Any]  # what was chosen, and how
    state: dict[str, torch.Tensor]  # the head's weights; of a linear head fc.weight and fc.bias


def make_folds(labels: np.ndarray, groups: np.ndarray, number: int, seed: int) -> tuple[list[np.ndarray], str]:
    """Stratified folds that keep groups together: (each fold's held-out indices, how they were made).

    There are fewer than `number` where the classes have fewer groups. A class of one group is held out once, by heads
    that never saw it, which is honest and no help.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    present = np.unique(labels)
    if len(present) < 2:
        raise InputError("all training videos are of one class: nothing to tell apart; add a class")
    most = int(np.median([len(np.unique(groups[labels == label])) for label in present]))
    number = min(number, most)
    if number < 2:
        raise InputError("most classes have a single training video, or group of them: nothing can be held out")
    alone = len(np.unique(groups)) == len(groups)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer videos than folds
        splits = kind(number, shuffle=True, random_state=seed).split(labels, labels, groups)
        folds = [held for _, held in splits if len(held)]
    return folds, f"{len(folds)} folds by {'video' if alone else 'group'}"


def out_of_fold(folds: Sequence[np.ndarray], fit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Run `fit(rows to train on, rows held out)` for each fold, and put what it says of the held-out rows in order.

    What it returns is (..., held out, classes), and in order float32.
    """
    order = np.concatenate(folds)
    found = [fit(np.setdiff1d(order, held), held).astype(np.float32) for held in folds]
    return np.concatenate(found, -2)[..., np.argsort(order), :]


# --- logistic regression -------------------------------------------------------------------------------


def fit_linear(
    values: np.ndarray, train: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, folds: int, seed: int
) -> Fit:
    """Logistic regression on each video's mean feature, its strength C chosen by cross-validation.

    values (V, samples, F); labels and groups (V,); train (n,) indices. Logits are of each sample's own features, so
    that their mean is the video's; as a network's last layer it takes the features as they are.
    """
    means = video_means(values)[train]  # (n, F)
    chosen, how = make_folds(labels[train], groups[train], folds, seed)
    y = labels[train]

    def path(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        weights, biases = logistic_path(means[rows], y[rows], classes, STRENGTHS)
        return np.moveaxis(np.tensordot(weights, means[held], (2, 1)), 1, 2) + biases[:, None]

    curve = out_of_fold(chosen, path)  # (strengths, n, classes)
    losses = [cross_entropy(logits, y) for logits in curve]
    best = int(np.argmin(losses))
    weights, biases = logistic_path(means, y, classes, STRENGTHS[: best + 1])
    weight, bias = weights[-1].astype(np.float32), biases[-1].astype(np.float32)
    choice = {
        "C": STRENGTHS[best], "chosen_by": f"cross-entropy of {how} of the training videos",
        "tried": dict(zip(map(str, STRENGTHS), losses, strict=True)),
    }  # fmt: skip
    logits = np.stack([row.astype(np.float32) @ weight.T + bias for row in values])
    return Fit(logits, curve[best], choice, {"fc.weight": torch.from_numpy(weight), "fc.bias": torch.from_numpy(bias)})


def fit_first_or_all(first: int, values: np.ndarray, *rest: Any) -> Fit:
    """`fit_linear` on the first so many features or on all, whichever has less cross-entropy on held-out videos.

    Few videos are often told apart best by a network's middle stage alone: docs/small_data.md.
    """
    part, whole = fit_linear(values[..., :first], *rest), fit_linear(values, *rest)
    if min(whole.choice["tried"].values()) <= min(part.choice["tried"].values()):
        return whole
    weight = torch.zeros_like(whole.state["fc.weight"])
    weight[:, :first] = part.state["fc.weight"]
    return replace(part, choice={**part.choice, "features": first}, state={**part.state, "fc.weight": weight})


def video_means(values: np.ndarray) -> np.ndarray:
    """The mean over samples: (n, samples, F) float16 -> (n, F) float64."""
    return np.stack([row.mean(0, dtype=np.float64) for row in values])


def logistic_path(
    x: np.ndarray, y: np.ndarray, classes: int, strengths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression at each C, from weak to strong: weights (C, classes, F) and biases (C, classes) for x itself.

    Each feature of x (n, F) is centred and divided by its standard deviation, and all by one number, so that the mean
    square length is 1. With fewer videos than features x is rotated to its n principal axes. The optimum stays the
    same, because the penalty is round, and each step costs n instead of F. All classes have equal weight,
    however many videos they have: mean-class accuracy gains 1.5 points where they differ (docs/results.md).
    """
    from sklearn.linear_model import LogisticRegression

    centre = x.mean(0)
    spread = x.std(0)
    moving = spread > 1e-6 * spread.max()  # the others say nothing
    scale = np.where(moving, 1 / np.where(moving, spread, 1), 0) / np.sqrt(max(1, moving.sum()))
    moved = (x - centre) * scale
    if len(x) < x.shape[1]:  # the eigenvectors of the Gram matrix: a tenth of the time that svd(moved) takes
        values, vectors = np.linalg.eigh(moved @ moved.T)
        kept = values > 1e-12 * values[-1]
        roots = np.sqrt(values[kept])
        turn, turned = (vectors[:, kept] / roots).T @ moved, vectors[:, kept] * roots  # (axes, F), (n, axes)
    else:
        turn, turned = None, moved
    present, y = np.unique(y, return_inverse=True)
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True, class_weight="balanced")
    weights = np.zeros((len(strengths), classes, x.shape[1]))
    biases = np.zeros((len(strengths), classes))
    for place, strength in enumerate(strengths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no convergence, at strengths that the folds do not choose
            model.set_params(C=strength).fit(turned, y)
        coefficients, intercepts = model.coef_ if turn is None else model.coef_ @ turn, model.intercept_
        if len(present) == 2:  # one row: the log odds
            coefficients = np.concatenate((-coefficients, coefficients)) / 2
            intercepts = np.concatenate((-intercepts, intercepts)) / 2
        weights[place, present] = coefficients * scale
        biases[place] = intercepts.min() - ABSENT
        biases[place, present] = intercepts - weights[place, present] @ centre
    return weights, biases


# --- heads over time -----------------------------------------------------------------------------------


def fit_temporal(
    kind: str, streams: Sequence[np.ndarray], train: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int,
    folds: int, seed: int, device: torch.device, tick: Callable[[], Any] = lambda: None,
) -> Fit:  # fmt: skip
    """TS-LSTM or Temporal-Inception on the features of one or two streams, joined; its epochs chosen on the folds.

    `tick` is called after each epoch of each fold, and of the training on all.
    """
    recipe = TEMPORAL[kind]
    chosen, how = make_folds(labels[train], groups[train], folds, seed)

    def curve(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        return train_temporal(
            recipe, streams, labels, classes, train[rows], recipe.epochs, seed, device, train[held], tick
        )[1]  # fmt: skip

    curves = out_of_fold(chosen, curve)  # (epochs, n, classes)
    losses = [cross_entropy(logits, labels[train]) for logits in curves]
    best = int(np.argmin(losses))
    head, _ = train_temporal(recipe, streams, labels, classes, train, best + 1, seed, device, tick=tick)
    choice = {
        "epochs": best + 1, "of": recipe.epochs, "chosen_by": f"cross-entropy of {how} of the training videos",
        "tried": losses,
    }  # fmt: skip
    everyone = predict_temporal(head, streams, np.arange(len(labels)), device)
    state = {name: value.cpu() for name, value in head.state_dict().items()}
    return Fit(everyone[:, None], curves[best], choice, state)


# --- look-alikes ---------------------------------------------------------------------------------------

FAR = 8.0  # points that accuracy loses before the look-alike check warns: docs/results.md has the sets
CHANCE = 0.01  # and the largest p of McNemar's test of that loss
PAIRS = 12  # of look-alikes, that are named


def look_alikes(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, videos: Sequence[str], test: np.ndarray,
    classes: int, folds: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Cluster videos by how they look, and compare cross-validation that keeps clusters together with the usual one.

    values (V, samples, F), best of RGB; test (V,) bool. Clips of one recording look alike and are easy to recognise
    by their background. Ward's clusters of z-scored mean features by cosine: a fifth as many as videos, and at least
    three for each class, so that no class is a single cluster.

    Returns accuracy: top-1 in per cent, cross-validated by video or by `groups`, the lower one; apart: with look-alikes
    kept together; p of the difference (McNemar's exact test over videos); shared: the share of test videos with a
    training video in their cluster; pairs: the most similar of these, {"test", "training", "similarity" (cosine)};
    warns: whether the split has most likely put one recording on both sides.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.stats import binomtest

    means = video_means(values)
    z = (means - means.mean(0)) / np.maximum(means.std(0), 1e-6)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    number = min(max(len(z) // 5, 3 * len(np.unique(labels))), len(z))
    clusters = fcluster(linkage(z, "ward"), number, "maxclust")

    def right(together: np.ndarray) -> np.ndarray:
        def fit(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
            weights, biases = logistic_path(means[rows], labels[rows], classes, [100.0])
            return means[held] @ weights[0].T + biases[0]

        return out_of_fold(make_folds(labels, together, folds, seed)[0], fit).argmax(1) == labels

    # folds by person may be easier than random ones, where everybody stands in a place of their own: the harder count
    known = min((right(together) for together in (np.arange(len(z)), groups)), key=np.sum)
    apart = right(clusters)
    lost, won = int((known & ~apart).sum()), int((apart & ~known).sum())
    mixed = np.isin(clusters, clusters[~test])
    cosines = np.where(clusters[test][:, None] == clusters[~test], z[test] @ z[~test].T, -1)
    tested, trained = np.flatnonzero(test), np.flatnonzero(~test)
    nearest = cosines.argmax(1)
    order = np.argsort(-cosines.max(1))[:PAIRS]
    accuracy, lower = 100 * float(known.mean()), 100 * float(apart.mean())
    p = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    shared = float(mixed[test].mean())
    pairs = [
        {"test": videos[tested[i]], "training": videos[trained[nearest[i]]],
         "similarity": round(float(cosines[i, nearest[i]]), 3)}
        for i in order if mixed[tested[i]]
    ]  # fmt: skip
    warns = accuracy - lower > FAR and p < CHANCE and shared > 0.5
    found = {"accuracy": accuracy, "apart": lower, "p": p, "shared": shared, "clusters": int(clusters.max())}
    return {**found, "pairs": pairs, "warns": warns}
