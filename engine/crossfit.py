"""Fit a head on the training videos only, and choose its hyperparameters on held-out folds of them.

Each choice minimises the cross-entropy of out-of-fold logits: the logits that each training video gets from a
head fitted without that video's fold. Fusion weights may be learned from the same logits.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from common.accuracy import cross_entropy
from engine.temporal_heads import TEMPORAL, predict_temporal, train_temporal
from utils import InputError

# Values of C for logistic regression. They assume z-scores with a mean square length of 1.
STRENGTHS = tuple((10.0 ** np.arange(-1, 5.01, 0.5)).tolist())
CHOSEN_BY = "cross-entropy of {} of the training videos"
ABSENT = 20.0  # a class without training videos gets a logit this far below all others
FAR = 8.0  # the look-alike check warns above this loss of accuracy, in points (docs/results.md has the sets)
CHANCE = 0.01  # and only if McNemar's test of that loss gives a smaller p than this
PAIRS = 12  # number of look-alike pairs in the report


@dataclass(frozen=True)
class Fit:
    """A head fitted on all training videos, with its cross-validation results."""

    logits: np.ndarray  # (V, samples or 1, classes) float32; all videos, including training videos
    held_out: np.ndarray  # (training videos, classes) float32, out of fold
    choice: dict[str, Any]  # the hyperparameters, and how they were chosen
    state: dict[str, torch.Tensor]  # the head's weights; a linear head has fc.weight and fc.bias


def make_folds(labels: np.ndarray, groups: np.ndarray, number: int, seed: int) -> tuple[list[np.ndarray], str]:
    """Make stratified folds that keep groups together; return (held-out indices of each fold, a description).

    There are fewer than `number` folds if most classes have fewer groups. A class with a single group is held
    out once, and the heads that score it never saw that class. Raises InputError if nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    number = min(number, int(np.median([len(np.unique(groups[labels == label])) for label in np.unique(labels)])))
    alone, folds = len(np.unique(groups)) == len(groups), []
    if number > 1:
        kind = StratifiedKFold if alone else StratifiedGroupKFold
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some classes have fewer videos than there are folds
            splits = kind(number, shuffle=True, random_state=seed).split(labels, labels, groups)
            folds = [held for _, held in splits if len(held)]
    if not folds or any(len(np.unique(np.delete(labels, held))) < 2 for held in folds):
        raise InputError("too few training videos, or groups of them: to hold one out, two classes need two each")
    return folds, f"{len(folds)} folds by {'video' if alone else 'group'}"


def out_of_fold(folds: Sequence[np.ndarray], fit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Run `fit(training rows, held-out rows)` for each fold; return all predictions in row order, float32.

    `fit` returns an array (..., held out, classes).
    """
    order = np.concatenate(folds)
    found = [fit(np.setdiff1d(order, held), held).astype(np.float32) for held in folds]
    return np.concatenate(found, -2)[..., np.argsort(order), :]


def fit_linear(
    values: np.ndarray, train: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, folds: int, seed: int
) -> Fit:
    """Fit logistic regression on each video's mean feature, with the strength C chosen by cross-validation.

    values (V, samples, F); labels and groups (V,); train (n,) indices. The logits are per sample; their
    mean is the video's. The weights apply to unscaled features, so they can serve as a network's last layer.
    """
    means, y = values.mean(1, dtype=np.float64)[train], labels[train]  # (n, F), (n,)
    chosen, how = make_folds(y, groups[train], folds, seed)
    curve = linear_out_of_fold(means, y, classes, STRENGTHS, chosen)  # (strengths, n, classes)
    losses = [cross_entropy(logits, y) for logits in curve]
    best = int(np.argmin(losses))
    weights, biases = logistic_path(means, y, classes, STRENGTHS[: best + 1])
    weight, bias = weights[-1].astype(np.float32), biases[-1].astype(np.float32)
    choice = {"C": STRENGTHS[best], "chosen_by": CHOSEN_BY.format(how), "tried": losses}
    logits = np.stack([row.astype(np.float32) @ weight.T + bias for row in values])
    return Fit(logits, curve[best], choice, {"fc.weight": torch.from_numpy(weight), "fc.bias": torch.from_numpy(bias)})


def linear_out_of_fold(
    x: np.ndarray, y: np.ndarray, classes: int, strengths: Sequence[float], folds: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the out-of-fold logits (strengths, n, classes) of logistic regression on x (n, F)."""

    def fit(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        weights, biases = logistic_path(x[rows], y[rows], classes, strengths)
        return np.moveaxis(np.tensordot(weights, x[held], (2, 1)), 1, 2) + biases[:, None]

    return out_of_fold(folds, fit)


def fit_first_or_all(first: int, values: np.ndarray, *rest: Any) -> Fit:
    """Run `fit_linear` on the first `first` features and on all; return the fit with the lower held-out loss.

    With few videos, a middle stage alone often works best: docs/small_data.md.
    """
    part, whole = fit_linear(values[..., :first], *rest), fit_linear(values, *rest)
    if min(whole.choice["tried"]) <= min(part.choice["tried"]):
        return whole
    weight = torch.zeros_like(whole.state["fc.weight"])
    weight[:, :first] = part.state["fc.weight"]
    return replace(part, choice={**part.choice, "features": first}, state={**part.state, "fc.weight": weight})


def logistic_path(
    x: np.ndarray, y: np.ndarray, classes: int, strengths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit logistic regression at each C, from strong to weak regularisation.

    Returns weights (C, classes, F) and biases (C, classes) that apply to unscaled x (n, F), whose features are
    z-scored, with a mean square length of 1. With fewer videos than features, x is rotated to its n principal
    axes: the L2 penalty does not change with rotation, and each step costs n instead of F. All classes get
    equal weight: where their numbers of videos differ, mean-class accuracy gains 1.5 points (docs/results.md).
    """
    from sklearn.linear_model import LogisticRegression

    centre, spread = x.mean(0), x.std(0)
    moving = spread > 1e-6 * spread.max()  # constant features carry no information
    if not moving.any():
        raise InputError("the features of all training videos are equal: do the videos show anything that moves?")
    scale = np.where(moving, 1 / np.where(moving, spread, 1), 0) / np.sqrt(max(1, moving.sum()))
    moved = (x - centre) * scale
    turn, turned = None, moved
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh(moved @ moved.T)  # a tenth of the time of svd(moved)
        kept = values > 1e-12 * values[-1]
        roots = np.sqrt(values[kept])
        turn, turned = (vectors[:, kept] / roots).T @ moved, vectors[:, kept] * roots  # (axes, F), (n, axes)
    present, y = np.unique(y, return_inverse=True)
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True, class_weight="balanced")
    weights, biases = np.zeros((len(strengths), classes, x.shape[1])), np.zeros((len(strengths), classes))
    for place, strength in enumerate(strengths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # strengths that the folds do not choose may not converge
            model.set_params(C=strength).fit(turned, y)
        coefficients, intercepts = model.coef_ if turn is None else model.coef_ @ turn, model.intercept_
        if len(present) == 2:  # scikit-learn returns one row: the log odds
            coefficients = np.concatenate((-coefficients, coefficients)) / 2
            intercepts = np.concatenate((-intercepts, intercepts)) / 2
        weights[place, present] = coefficients * scale
        biases[place] = intercepts.min() - ABSENT
        biases[place, present] = intercepts - weights[place, present] @ centre
    return weights, biases


def fit_temporal(
    kind: str, streams: Sequence[np.ndarray], train: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int,
    folds: int, seed: int, device: torch.device, tick: Callable[[], Any] = lambda: None,
) -> Fit:  # fmt: skip
    """Fit TS-LSTM or Temporal-Inception on the joined features of one or two streams.

    The folds choose the number of epochs. `tick` is called after each epoch of any training.
    """
    recipe = TEMPORAL[kind]
    chosen, how = make_folds(labels[train], groups[train], folds, seed)

    def curve(rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        own = (labels, classes, train[rows], recipe.epochs, seed, device, train[held], tick)
        return train_temporal(recipe, streams, *own)[1]

    curves = out_of_fold(chosen, curve)  # (epochs, n, classes)
    losses = [cross_entropy(logits, labels[train]) for logits in curves]
    best = int(np.argmin(losses))
    head, _ = train_temporal(recipe, streams, labels, classes, train, best + 1, seed, device, tick=tick)
    choice = {"epochs": best + 1, "of": recipe.epochs, "chosen_by": CHOSEN_BY.format(how), "tried": losses}
    everyone = predict_temporal(head, streams, np.arange(len(labels)), device)
    state = {name: value.cpu() for name, value in head.state_dict().items()}
    return Fit(everyone[:, None], curves[best], choice, state)


def look_alikes(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, videos: Sequence[str], test: np.ndarray,
    classes: int, folds: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Cluster videos by appearance, and cross-validate both with clusters kept together and in the usual way.

    values (V, samples, F), preferably from RGB; test (V,) bool. Clips of one recording look alike, and their
    background makes them easy to recognise. Clustering is Ward's, on z-scored mean features by cosine, with a
    fifth as many clusters as videos but at least three per class, so that no class is a single cluster.

    Returns accuracy: top-1 in per cent, cross-validated by video or by `groups`, whichever is lower; apart:
    with look-alikes kept together; p: of the difference (McNemar's exact test over videos); clusters: their
    number; shared: fraction of test videos with a training video in their cluster; pairs: the most similar of
    these, by cosine; warns: whether one recording is probably on both sides of the split.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.stats import binomtest

    means = values.mean(1, dtype=np.float64)
    z = (means - means.mean(0)) / np.maximum(means.std(0), 1e-6)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    number = min(max(len(z) // 5, 3 * len(np.unique(labels))), len(z))
    clusters = fcluster(linkage(z, "ward"), number, "maxclust")

    def right(together: np.ndarray) -> np.ndarray:
        chosen, _ = make_folds(labels, together, folds, seed)
        return linear_out_of_fold(means, labels, classes, [100.0], chosen)[0].argmax(1) == labels

    # Use the lower accuracy: folds by person can be easier than random ones if backgrounds differ by person.
    known = min((right(together) for together in (np.arange(len(z)), groups)), key=np.sum)
    apart = right(clusters)
    accuracy, lower = 100 * float(known.mean()), 100 * float(apart.mean())
    lost, won = int((known & ~apart).sum()), int((apart & ~known).sum())
    p = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    tested, trained = np.flatnonzero(test), np.flatnonzero(~test)
    same = clusters[tested][:, None] == clusters[trained]
    cosines = np.where(same, z[tested] @ z[trained].T, -np.inf)
    nearest, similarity = cosines.argmax(1), cosines.max(1)
    shared = float(same.any(1).mean())
    return {
        "accuracy": accuracy, "apart": lower, "p": p, "shared": shared, "clusters": int(clusters.max()),
        "pairs": [{"test": videos[tested[i]], "training": videos[trained[nearest[i]]],
                   "similarity": round(float(similarity[i]), 3)}
                  for i in np.argsort(-similarity)[:PAIRS] if same[i].any()],
        "warns": accuracy - lower > FAR and p < CHANCE and shared > 0.5,
    }  # fmt: skip
