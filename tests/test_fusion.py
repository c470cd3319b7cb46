"""Fusion: the known figures of real predictions, and the formulas."""

import itertools
import json
import math
import pickle
from pathlib import Path

import numpy as np
import prediction_files
import pytest
from prediction_files import top1
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from common.accuracy import accuracy, cross_entropy, ranks
from fusion import evaluate
from report.metrics import bootstrap, group_numbers, mcnemar
from saved.predictions import align, load_predictions
from utils import InputError

# --- real predictions ----------------------------------------------------------------------------------


def test_real_predictions_give_the_known_figures(shared: Path, tmp_path: Path, capsys) -> None:
    source = shared / "data/predictions_split1"
    spatial, motion = (source / f"{stream}_video_preds.pickle" for stream in ("spatial", "motion"))
    said = prediction_files.fuse("--spatial", spatial, "--motion", motion, "--output", tmp_path, "--no-report")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["videos"] == 3783
    found = {name: round(results[name]["top1"], 2) for name in ("spatial", "motion", "fusion", "average", "std")}
    assert found == {"spatial": 81.89, "motion": 80.65, "fusion": 88.95, "average": 88.95, "std": 90.51}
    for shown in ("81.89", "80.65", "88.95", "90.51"):
        assert shown in said
    assert capsys.readouterr().err == ""

    # An independent reading of the same files: labels by hand from classInd, metrics by scikit-learn.
    order = [line.split()[1] for line in (shared / "data/ucfTrainTestlist/classInd.txt").read_text().splitlines()]
    number = {name.lower(): i for i, name in enumerate(order)}
    streams = [
        pickle.loads((source / f"{stream}_video_preds.pickle").read_bytes(), encoding="latin1")
        for stream in ("spatial", "motion")
    ]
    names = list(streams[0])
    labels = np.array([number[name[:-8].lower()] for name in names])
    average = np.array([streams[0][name].astype(float) + streams[1][name] for name in names]) / 2
    assert results["fusion"]["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, average, k=5))
    expected = 100 * balanced_accuracy_score(labels, average.argmax(axis=1))
    assert results["fusion"]["mean_class"] == pytest.approx(expected)
    right = [np.array([stream[name] for name in names]).argmax(1) == labels for stream in streams]
    both = average.argmax(1) == labels
    assert results["mcnemar"]["against"] == "spatial"
    assert results["mcnemar"]["only_fusion_right"] == int((both & ~right[0]).sum())
    assert results["mcnemar"]["only_stream_right"] == int((right[0] & ~both).sum())
    # split 1's test videos are of seven groups in each of 101 classes, and clips of a group are alike
    assert results["resampled"] == {"unit": "group", "count": 707} and results["mcnemar"]["over"] == "groups"
    assert results["interval_95"]["fusion"]["top1"] == pytest.approx([86.99, 90.81], abs=0.1)


# --- the formulas --------------------------------------------------------------------------------------


def test_results_hold_the_fixed_comparisons_whatever_was_asked_for(records: Path) -> None:
    test_set = align([load_predictions(records / stream) for stream in ("spatial", "motion")])
    a, b = test_set.streams.values()
    labels = test_set.labels
    outcome = evaluate(test_set, [1.0, 0.25], seed=3)
    results = outcome.results
    asked = a + 0.25 * b
    for row, scores in {"spatial": a, "motion": b, "fusion": asked, "average": a + b,
                        "std": a / a.std() + b / b.std()}.items():  # fmt: skip
        assert results[row]["top1"] == pytest.approx(top1(scores, labels)), row
    for row, scores in {"motion": b, "fusion": asked}.items():
        draws = bootstrap(scores, labels, np.arange(len(labels)), 3)["top1"]  # names that tell no groups
        assert results["interval_95"][row]["top1"] == pytest.approx(list(np.percentile(draws, [2.5, 97.5])))
    better = a if top1(a, labels) >= top1(b, labels) else b
    ours, theirs = asked.argmax(1) == labels, better.argmax(1) == labels
    assert results["mcnemar"]["against"] == ("spatial" if better is a else "motion")
    assert results["mcnemar"]["only_fusion_right"] == (ours & ~theirs).sum()
    assert results["mcnemar"]["only_stream_right"] == (theirs & ~ours).sum() != (ours & ~theirs).sum()
    assert results["settings"] == {"fusion": "1 : 0.25", "weights": [1.0, 0.25]}
    assert (results["videos"], results["classes"]) == (40, 3)
    plain = evaluate(test_set).results
    assert plain["settings"]["weights"] == [1, 1] and plain["fusion"] == plain["average"]
    assert plain["interval_95"] == evaluate(test_set, seed=0).results["interval_95"]


def test_mcnemar_is_the_permutation_test_of_all_signs_of_groups() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.random(60) < 0.8, rng.random(60) < 0.6
    groups = rng.integers(0, 10, 60)
    difference = [int(first[groups == g].sum()) - int(second[groups == g].sum()) for g in range(10)]
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=10)]
    expected = np.mean([total >= abs(sum(difference)) for total in sums])
    assert 0.001 < expected < 0.5
    assert mcnemar(first, second, groups)["p"] == pytest.approx(expected)
    assert mcnemar(first, first, groups)["p"] == 1
    first, second = np.repeat([True, False], [9, 2]), np.repeat([False, True], [9, 2])  # videos: the binomial test
    expected = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(first, second, np.arange(11))["p"] == pytest.approx(expected)


def test_groups_are_read_from_names() -> None:
    ucf101 = ["Archery_g01_c01", "Archery_g01_c02", "Archery_g02_c01", "YoYo_g01_c01"]
    assert group_numbers(ucf101, np.array([2, 2, 2, 100])).tolist() == [0, 0, 1, 2]  # a group is of its class
    hmdb51 = ["cartwheel/A_film_cartwheel_f_cm_np1_le_med_0", "cartwheel/A_film_cartwheel_f_cm_np1_ri_med_1"]
    assert group_numbers([*hmdb51, "dive/A_film_dive_f_0"], np.array([0, 0, 1])).tolist() == [0, 0, 1]
    assert group_numbers(["a/1", "a/2", "b/1"], np.array([0, 0, 1])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_spreads_as_resampled_videos_or_groups_do(grouped: bool) -> None:
    rng = np.random.default_rng(5)
    labels = np.sort(rng.integers(0, 8, 150))
    scores = rng.normal(0, 1, (150, 8)) + 1.5 * np.eye(8)[labels]
    groups = np.arange(150)
    if grouped:  # about six videos of a class each, which come out much alike
        groups = np.unique(np.stack([labels, np.arange(150) % 3]), axis=1, return_inverse=True)[1].ravel()
        scores += rng.normal(0, 1.5, (24, 8))[groups]
    found = bootstrap(scores, labels, groups, seed=1, draws=4000)
    again = bootstrap(scores, labels, groups, seed=1, draws=4000)
    np.testing.assert_array_equal(found["top1"], again["top1"])
    guess = scores.argmax(axis=1)
    order = np.argsort(-scores, axis=1)
    place = np.array([list(row).index(label) for row, label in zip(order, labels, strict=True)])
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    naive: dict[str, list[float]] = {"top1": [], "top5": [], "mean_class": []}
    for _ in range(4000):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        naive["top1"].append(100 * np.mean(guess[drawn] == labels[drawn]))
        naive["top5"].append(100 * np.mean(place[drawn] < 5))
        classes = [np.mean(guess[drawn][labels[drawn] == c] == c) for c in set(labels[drawn].tolist())]
        naive["mean_class"].append(100 * np.mean(classes))
    for metric, values in naive.items():
        assert np.mean(found[metric]) == pytest.approx(np.mean(values), abs=0.4)
        assert np.std(found[metric]) == pytest.approx(np.std(values), rel=0.1)


def test_ranks_count_ties_against_the_later_class() -> None:
    scores = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    assert ranks(scores, np.array([0, 2, 2])).tolist() == [0, 2, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error_with_the_videos_name(bad: float) -> None:
    """Ranked by > and ==, a network of NaNs would be right on everything."""
    scores = np.random.default_rng(0).normal(0, 1, (4, 3))
    scores[2:, 1] = bad
    labels, videos = np.array([0, 1, 1, 2]), ["a", "b", "c", "d"]
    for metric in (accuracy, cross_entropy, ranks):
        with pytest.raises(InputError, match="scores of c are not finite, nor those of 1 more.*--lr"):
            metric(scores, labels, videos)
        with pytest.raises(InputError, match="video number 3"):
            metric(scores, labels)
    with pytest.raises(InputError, match="video number 3"):
        bootstrap(scores, labels, np.arange(4), 0)
