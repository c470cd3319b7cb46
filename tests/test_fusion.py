"""Fusion: the known figures of real predictions, the formulas, whose labels, and what bad input gets."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

import fusion
from dataloader.names import UCF101_CLASSES
from fusion import evaluate, fuse, mean_over_splits, scale_warning, sweep_weights, temperature
from report.metrics import bootstrap, calibration, mcnemar, ranks
from report.predictions import align, load_predictions
from utils import InputError

CLASSES = ["Archery", "Hammering", "HammerThrow"]


def write(folder: Path, stream: str, logits: dict, labels: dict | None = None, level: str = "video", **meta) -> Path:
    """A record folder as the stream scripts leave it; without `labels` no predictions.json is written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stream}_{level}_preds.pickle"
    path.write_bytes(pickle.dumps(logits, protocol=meta.pop("protocol", 4)))
    if labels is not None:
        about = {"format": 1, "stream": stream, "dataset": "own", "split": "1", "class_names": CLASSES, **meta}
        (folder / "predictions.json").write_text(json.dumps({**about, "labels": labels}))
    return path


def make_streams(seed: int = 0, videos: int = 40) -> tuple[dict, dict, dict]:
    """(spatial, motion, labels): noisy logits of two streams, motion's three times as large."""
    rng = np.random.default_rng(seed)
    labels = {f"{CLASSES[i % 3]}/clip{i:03d}": i % 3 for i in range(videos)}
    one_hot = {name: np.eye(3)[label] for name, label in labels.items()}
    spatial = {name: (row + rng.normal(0, 0.7, 3)).astype(np.float32) for name, row in one_hot.items()}
    motion = {name: (3 * (row + rng.normal(0, 0.7, 3))).astype(np.float32) for name, row in one_hot.items()}
    return spatial, motion, labels


@pytest.fixture
def records(tmp_path: Path) -> Path:
    spatial, motion, labels = make_streams()
    write(tmp_path / "spatial", "spatial", spatial, labels)
    write(tmp_path / "motion", "motion", motion, labels)
    return tmp_path


def flags(folder: Path, *more: object) -> list[object]:
    return ["--spatial", folder / "spatial", "--motion", folder / "motion", "--output", folder / "out", *more]


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean([int(np.argmax(row)) == label for row, label in zip(scores, labels, strict=True)]))


# --- real predictions ----------------------------------------------------------------------------------


def test_real_predictions_give_the_known_figures(shared: Path, run, tmp_path: Path) -> None:
    source = shared / "data/predictions_split1"
    process = run(
        "fusion.py", "--spatial", source / "spatial_video_preds.pickle", "--motion",
        source / "motion_video_preds.pickle", "--output", tmp_path, "--no-report",
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["videos"] == 3783
    found = {name: round(results[name]["top1"], 2) for name in ("spatial", "motion", "fusion", "average", "std")}
    assert found == {"spatial": 81.89, "motion": 80.65, "fusion": 88.95, "average": 88.95, "std": 90.51}
    assert 90.6 <= results["confidence"]["top1"] <= 90.8
    assert round(results["best_weight"]["top1"], 2) == 90.64
    assert results["best_weight"]["tuned_on"] == "test labels"
    for shown in ("81.89", "80.65", "88.95", "90.51", "90.64"):
        assert shown in process.stdout
    assert "chosen on the test labels" in process.stdout
    assert process.stderr == ""

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


# --- the formulas --------------------------------------------------------------------------------------


def test_fuse_is_the_weighted_mean_of_what_each_flag_says() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (20, 5)), rng.normal(1, 4, (20, 5))
    np.testing.assert_allclose(fuse([a, b]), (a + b) / 2)
    np.testing.assert_allclose(fuse([a, b], [1, 1.5]), (a + 1.5 * b) / 2.5)
    by_std = (a / np.sqrt(((a - a.mean()) ** 2).mean()) + b / np.sqrt(((b - b.mean()) ** 2).mean())) / 2
    np.testing.assert_allclose(fuse([a, b], normalize="std"), by_std)
    np.testing.assert_allclose(fuse([a, b], scores="softmax"), (softmax(a, axis=1) + softmax(b, axis=1)) / 2)


@pytest.mark.parametrize("wanted", [0.5, 0.6, 0.7])
def test_temperature_gives_the_mean_confidence_asked_for(wanted: float) -> None:
    logits = np.random.default_rng(1).normal(0, 50, (300, 11))
    found = softmax(logits / temperature(logits, wanted), axis=1).max(axis=1).mean()
    assert found == pytest.approx(wanted, abs=1e-6)
    matched = fuse([logits, logits * 19], normalize="confidence") * 2  # both streams at the same confidence
    assert softmax(matched / 2, axis=1).max(axis=1).mean() == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("normalize", ["std", "confidence"])
def test_normalised_fusion_ignores_a_streams_scale(normalize: str) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (50, 7)), rng.normal(0, 3, (50, 7))
    np.testing.assert_allclose(fuse([a, b], normalize=normalize), fuse([19 * a, b], normalize=normalize), rtol=1e-6)


def test_best_weight_is_that_of_a_brute_force_search(records: Path) -> None:
    test_set = align([load_predictions(records / stream) for stream in ("spatial", "motion")])
    outcome = evaluate(test_set)
    spatial, motion = test_set.streams.values()
    best = max(top1(spatial + k / 20 * motion, test_set.labels) for k in range(61))
    assert outcome.results["best_weight"]["top1"] == pytest.approx(best)
    first, second = outcome.results["best_weight"]["weights"]
    assert first == 1
    assert top1(spatial + second * motion, test_set.labels) == pytest.approx(best)
    turned = align([load_predictions(records / stream) for stream in ("motion", "spatial")])
    assert evaluate(turned).results["best_weight"]["weights"] == [second, 1]


def test_three_streams_are_swept_one_by_one(tmp_path: Path) -> None:
    """Weights from 0 to 3 in steps of 0.05; of the best, the one that leaves the plain average most alone."""
    spatial, motion, labels = make_streams(seed=57)  # of 400 seeds one where each rule makes a difference
    streams = {"spatial": spatial, "motion": motion}
    paths = [write(tmp_path / name, name, logits, labels) for name, logits in streams.items()]
    _, motion, labels = make_streams(seed=1057)
    paths.append(write(tmp_path / "again", "motion", motion, labels))
    assert sweep_weights(align([load_predictions(path) for path in paths[:2]])).stream == "motion"  # the louder
    test_set = align([load_predictions(path) for path in paths])
    steps = np.arange(61) / 20
    logits = list(test_set.streams.values())
    curves = []
    for place in range(3):
        rows = [sum((weight if i == place else 1) * one for i, one in enumerate(logits)) for weight in steps]
        curves.append([top1(scores, test_set.labels) for scores in rows])
    found = sweep_weights(test_set)
    np.testing.assert_array_equal(found.weights, steps)
    assert found.stream == list(test_set.streams)[found.place]
    assert found.top1.tolist() == pytest.approx(curves[found.place])
    assert max(curves[found.place]) == max(map(max, curves)) > min(map(max, curves))
    assert [weight for i, weight in enumerate(found.best) if i != found.place] == [1, 1]
    best = steps[np.array(curves[found.place]) == max(curves[found.place])]
    assert abs(found.best[found.place] - 1) == pytest.approx(np.abs(best - 1).min())
    weighted = sum(weight * one for weight, one in zip(found.best, logits, strict=True)) / sum(found.best)
    np.testing.assert_allclose(found.scores, weighted)


def test_results_hold_the_fixed_comparisons_whatever_was_asked_for(records: Path) -> None:
    test_set = align([load_predictions(records / stream) for stream in ("spatial", "motion")])
    a, b = test_set.streams.values()
    labels = test_set.labels
    outcome = evaluate(test_set, [1.0, 0.25], "std", "softmax", seed=3)
    results = outcome.results
    asked = softmax(a / a.std(), axis=1) + 0.25 * softmax(b / b.std(), axis=1)
    by_temperature = a / temperature(a, 0.6) + b / temperature(b, 0.6)
    for row, scores in {
        "spatial": a, "motion": b, "fusion": asked, "average": a + b, "std": a / a.std() + b / b.std(),
        "confidence": by_temperature, "best_weight": outcome.sweep.scores,
    }.items():  # fmt: skip
        assert results[row]["top1"] == pytest.approx(top1(scores, labels)), row
    for row, scores in {"motion": b, "fusion": asked}.items():
        draws = bootstrap(scores, labels, 3)["top1"]
        assert results["interval_95"][row]["top1"] == pytest.approx(list(np.percentile(draws, [2.5, 97.5])))
    better = a if top1(a, labels) >= top1(b, labels) else b
    ours, theirs = asked.argmax(1) == labels, better.argmax(1) == labels
    assert results["mcnemar"]["against"] == ("spatial" if better is a else "motion")
    assert results["mcnemar"]["only_fusion_right"] == (ours & ~theirs).sum()
    assert results["mcnemar"]["only_stream_right"] == (theirs & ~ours).sum() != (ours & ~theirs).sum()
    assert results["settings"] == {
        "fusion": "std, 1 : 0.25, softmax", "normalize": "std", "weights": [1.0, 0.25], "scores": "softmax",
    }  # fmt: skip
    assert [about["divided_by"] for about in results["streams"].values()] == pytest.approx([a.std(), b.std()])
    assert (results["videos"], results["classes"], results["best_weight"]["tuned_on"]) == (40, 3, "test labels")
    plain = evaluate(test_set).results
    assert plain["settings"]["weights"] == [1, 1] and plain["fusion"] == plain["average"]
    assert plain["interval_95"] == evaluate(test_set, seed=0).results["interval_95"]


def test_a_mean_over_splits_is_the_mean_of_each_figure(tmp_path: Path) -> None:
    outcomes = {}
    for split in ("1", "2"):
        spatial, motion, labels = make_streams(seed=int(split), videos=30 + 9 * int(split))
        write(tmp_path / split / "spatial", "spatial", spatial, labels)
        write(tmp_path / split / "motion", "motion", motion, labels)
        streams = [load_predictions(tmp_path / split / stream) for stream in ("spatial", "motion")]
        outcomes[split] = evaluate(align(streams), seed=[0, int(split)])
    results = mean_over_splits(outcomes)
    one, two = (outcome.results for outcome in outcomes.values())
    for row in ("spatial", "motion", "fusion", "average", "std", "confidence", "best_weight"):
        for metric in ("top1", "top5", "mean_class"):
            assert results[row][metric] == pytest.approx((one[row][metric] + two[row][metric]) / 2)
    draws = [outcome.draws["fusion"]["top1"] for outcome in outcomes.values()]
    expected = np.percentile((draws[0] + draws[1]) / 2, [2.5, 97.5])
    assert results["interval_95"]["fusion"]["top1"] == pytest.approx(list(expected))
    assert (results["videos"], results["classes"]) == (39 + 48, 3)
    assert results["settings"] == one["settings"] and results["splits"] == {"1": one, "2": two}
    files = [str(tmp_path / split / "motion/motion_video_preds.pickle") for split in outcomes]
    assert results["streams"]["motion"] == {"path": files}


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 9 + [False] * 2 + [True] * 30)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30)
    expected = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(first, second) == {"only_first": 9, "only_second": 2, "p": pytest.approx(expected)}
    assert mcnemar(first, first)["p"] == 1


def test_bootstrap_spreads_as_resampled_videos_do() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 8, 150)
    scores = rng.normal(0, 1, (150, 8)) + 1.5 * np.eye(8)[labels]
    found = bootstrap(scores, labels, seed=1, draws=4000)
    again = bootstrap(scores, labels, seed=1, draws=4000)
    np.testing.assert_array_equal(found["top1"], again["top1"])
    guess = scores.argmax(axis=1)
    order = np.argsort(-scores, axis=1)
    place = np.array([list(row).index(label) for row, label in zip(order, labels, strict=True)])
    naive: dict[str, list[float]] = {"top1": [], "top5": [], "mean_class": []}
    for _ in range(4000):
        drawn = rng.integers(0, 150, 150)
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


def test_expected_calibration_error_of_a_hand_made_case() -> None:
    # Four videos at 0.9, three of them right; two at 0.6, none right: |0.9 - 0.75| * 4/6 + |0.6 - 0| * 2/6.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    found = calibration(probabilities, np.array([0, 0, 0, 1, 1, 1]))
    assert found["ece"] == pytest.approx(0.15 * 4 / 6 + 0.6 * 2 / 6)
    assert found["count"].sum() == 6


# --- whose predictions, whose labels -------------------------------------------------------------------


def test_frame_level_and_video_level_pickles_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {f"Archery/{i}": 0 for i in range(6)}
    frames = {name: rng.normal(0, 1, (5 + i, 3)).astype(np.float32) for i, name in enumerate(labels)}
    videos = {name: rows.mean(0, dtype=np.float64).astype(np.float32) for name, rows in frames.items()}
    one = load_predictions(write(tmp_path, "spatial", frames, labels, level="frame"))
    two = load_predictions(write(tmp_path, "spatial", videos, labels))
    assert (one.level, two.level) == ("frame", "video")
    np.testing.assert_array_equal(one.matrix(sorted(labels)), two.matrix(sorted(labels)))
    assert load_predictions(tmp_path).level == "video"  # of a folder's two files, the video-level one


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_without_predictions_json_labels_are_ucf101s_in_classinds_order(tmp_path: Path, protocol: int) -> None:
    # classInd.txt: 35 Hammering, 36 HammerThrow, 37 HandstandPushups, 101 YoYo (1-based)
    names = ["Hammering_g01_c01", "v_HammerThrow_g02_c03", "HandStandPushups_g01_c01", "v_YoYo_g25_c07.avi"]
    logits = {name: np.arange(101, dtype=np.float32) for name in names}
    found = load_predictions(write(tmp_path, "spatial", logits, protocol=protocol))
    assert found.labels == {
        "Hammering_g01_c01": 34, "HammerThrow_g02_c03": 35, "HandstandPushups_g01_c01": 36, "YoYo_g25_c07": 100,
    }  # fmt: skip
    assert found.class_names[46:48] == ["JumpingJack", "JumpRope"]


def test_streams_line_up_by_video_whatever_their_order_and_spelling(tmp_path: Path) -> None:
    row = np.arange(101, dtype=np.float32)
    names = ["HandstandPushups_g01_c01", "Archery_g01_c01"]
    write(tmp_path / "a", "spatial", {names[0]: row, names[1]: row + 1})
    write(tmp_path / "b", "motion", {names[1]: row + 5, "v_HandStandPushups_g01_c01": row + 7})
    test_set = align([load_predictions(tmp_path / "a"), load_predictions(tmp_path / "b")])
    assert test_set.videos == ["Archery_g01_c01", "HandstandPushups_g01_c01"]
    assert test_set.streams["spatial"][:, 0].tolist() == [1, 0]
    assert test_set.streams["motion"][:, 0].tolist() == [5, 7]
    assert test_set.labels.tolist() == [2, 36]


def test_a_mean_beside_a_sum_is_noticed_and_two_usual_streams_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"Archery_g01_c{i:02d}" for i in range(1, 9)]
    for spatial, motion, noticed in ((1, 3, False), (19, 57, False), (19, 3, True), (1, 57, True)):
        for stream, size in (("spatial", spatial), ("motion", motion)):
            write(tmp_path / stream, stream, {name: rng.normal(0, size, 101).astype("f4") for name in names})
        line = scale_warning(align([load_predictions(tmp_path / stream) for stream in ("spatial", "motion")]))
        assert (line is not None) == noticed, (spatial, motion)
        if line:
            assert "sum" in line
            assert "\n" not in line


def test_two_streams_that_say_how_they_were_made_need_no_warning(records: Path) -> None:
    spatial, _, labels = make_streams()
    write(records / "spatial", "spatial", {name: 99 * row for name, row in spatial.items()}, labels)
    assert scale_warning(align([load_predictions(records / stream) for stream in ("spatial", "motion")])) is None
    known, unknown = ({"YoYo_g01_c01": scale * np.arange(101, dtype=np.float32)} for scale in (1, 19))
    about = {"dataset": "ucf101", "class_names": list(UCF101_CLASSES)}
    write(records / "known", "spatial", known, {"YoYo_g01_c01": 100}, **about)
    write(records / "unknown", "motion", unknown)
    assert scale_warning(align([load_predictions(records / name) for name in ("known", "unknown")]))


# --- the script ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a.pickle", "two streams or more, and a.pickle is one"),
        ("a b --spatial c", "not both"),
        ("a b --motion c", "not both"),
        ("a b c --weights 1 1", "2 numbers for 3 streams"),
        ("--weights 1", "1 number for 2 streams"),
        ("--weights 1 -0.1", "from 0 up"),
        ("--weights 1 inf", "from 0 up"),
        ("--weights 1 nan", "from 0 up"),
        ("--weights 0 0", "not all of them 0"),
        ("--seed -1", "must be from 0 to"),
        ("--splits 1 2 1", "names a split twice"),
        ("", None),
        ("a b", None),
        ("a b c --weights 0 0 0.5 --seed 0", None),
        ("--spatial a --motion b --weights 1 0 --splits 1 2", None),
    ],
)
def test_flags_that_contradict_each_other(monkeypatch, arguments: str, words: str | None) -> None:
    monkeypatch.setattr(sys, "argv", ["fusion.py", *arguments.split()])
    if words is None:
        fusion.check(fusion.parse_args())
        return
    with pytest.raises(InputError, match=words):
        fusion.check(fusion.parse_args())


@pytest.mark.parametrize("normalize", ["none", "std"])
def test_a_sum_beside_a_mean_is_warned_of_until_it_is_levelled(tmp_path: Path, monkeypatch, capsys, normalize) -> None:
    for stream, size in (("spatial", 19), ("motion", 1)):
        logits = {name: size * np.arange(101, dtype=np.float32) for name in ("YoYo_g01_c01", "Archery_g01_c01")}
        write(tmp_path / stream, stream, logits)
    arguments = [*flags(tmp_path), "--no-report", "--normalize", normalize]
    monkeypatch.setattr(sys, "argv", ["fusion.py", *map(str, arguments)])
    fusion.main()
    printed = capsys.readouterr()
    assert ("warning: the logits of spatial are 19 times" in printed.err) == (normalize == "none")
    assert "UCF101" in printed.out and [file.name for file in (tmp_path / "out").iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "out/results.json").read_text())["fusion"]["top1"] == 50


def test_paths_of_streams_and_splits(records: Path, monkeypatch) -> None:
    def load(split: str | None, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["fusion.py", *map(str, arguments)])
        return [str(one.path.parent) for one in fusion.load(fusion.parse_args(), split).sources.values()]

    spatial, motion, labels = make_streams()
    for folder in ("record/spatial", "record/spatial_split7"):
        write(records / folder, "spatial", spatial, labels, split="7")
    for folder in ("record/motion", "record/motion_split7"):
        write(records / folder, "motion", motion, labels, split="7")
    write(records / "motion7", "motion", motion, labels, split="1")
    monkeypatch.chdir(records)
    assert load(None) == ["record/spatial", "record/motion"]
    assert load(None, "--spatial", "spatial", "--motion", "motion") == ["spatial", "motion"]
    assert load(None, "motion", "spatial") == ["motion", "spatial"]  # as many as one likes, in the order given
    assert load("7") == ["record/spatial_split7", "record/motion_split7"]
    assert load("7", "record/motion_split{}", "record/spatial_split{}")[1] == "record/spatial_split7"
    with pytest.raises(InputError, match="holds the motion stream"):
        load(None, "--spatial", "motion", "--motion", "spatial")
    with pytest.raises(InputError, match=r"record/spatial needs a \{\}"):
        load("7", "--spatial", "record/spatial")
    with pytest.raises(InputError, match="was made on split 1, not 7"):
        load("7", "--motion", "motion{}")


def test_flags_and_three_streams_as_a_user_gives_them(records: Path, run) -> None:
    _, motion, labels = make_streams(seed=7)
    write(records / "again", "motion", motion, labels)
    paths = [records / name for name in ("spatial", "motion", "again")]
    output = records / "out"
    process = run(
        "fusion.py", *paths, "--weights", 1, 1.5, 0.5, "--scores", "softmax", "--output", output, "--no-report"
    )  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert list(results["streams"]) == ["spatial", "motion 1", "motion 2"]
    test_set = align([load_predictions(path) for path in paths])
    a, b, c = (softmax(logits, axis=1) for logits in test_set.streams.values())
    assert results["fusion"]["top1"] == pytest.approx(top1((a + 1.5 * b + 0.5 * c) / 3, test_set.labels))
    plain = sum(test_set.streams.values())
    assert results["average"]["top1"] == pytest.approx(top1(plain, test_set.labels))
    assert len(results["best_weight"]["weights"]) == 3
    assert "fusion: 1 : 1.5 : 0.5, softmax" in process.stdout


def test_the_three_keys_of_results_json_are_in_per_cent(records: Path, run) -> None:
    run("fusion.py", *flags(records), "--no-report")
    results = json.loads((records / "out/results.json").read_text())
    spatial, _, labels = make_streams()
    expected = 100 * np.mean([row.argmax() == labels[name] for name, row in spatial.items()])
    assert results["videos"] == 40
    assert results["spatial"]["top1"] == pytest.approx(expected)
    for row in ("spatial", "motion", "fusion"):
        assert set(results[row]) == {"top1", "top5", "mean_class"}
        assert results[row]["top5"] == 100  # three classes
        low, high = results["interval_95"][row]["top1"]
        assert low < results[row]["top1"] < high
    assert not (records / "out/report.html").exists()


def test_splits_are_averaged(tmp_path: Path, run) -> None:
    expected = []
    for split in (1, 2):
        spatial, motion, labels = make_streams(seed=split, videos=30 + 9 * split)
        write(tmp_path / f"spatial_split{split}", "spatial", spatial, labels, split=str(split))
        write(tmp_path / f"motion_split{split}", "motion", motion, labels, split=str(split))
        hits = [(spatial[name].astype(float) + motion[name]).argmax() == label for name, label in labels.items()]
        expected.append(100 * np.mean(hits))
    paths = ["--spatial", tmp_path / "spatial_split{}", "--motion", tmp_path / "motion_split{}"]
    output = tmp_path / "out"
    run("fusion.py", *paths, "--splits", 1, 2, "--output", output, "--no-report")
    results = json.loads((output / "results.json").read_text())
    assert results["videos"] == 39 + 48
    assert results["fusion"]["top1"] == pytest.approx(np.mean(expected))
    assert [results["splits"][split]["fusion"]["top1"] for split in ("1", "2")] == pytest.approx(expected)
    assert json.loads((output / "split2/results.json").read_text())["videos"] == 48
    low, high = results["interval_95"]["fusion"]["top1"]
    widths = [np.diff(results["splits"][split]["interval_95"]["fusion"]["top1"])[0] for split in ("1", "2")]
    assert high - low < min(widths)  # a mean of two independent splits is surer than either

    swapped = run("fusion.py", *paths[:2], "--motion", tmp_path / "motion_split1", "--splits", 1, 2, code=2)
    assert "{}" in swapped.stderr
    wrong = run("fusion.py", "--spatial", tmp_path / "spatial_split1", "--motion", tmp_path / "motion_split2", code=2)
    assert "split" in wrong.stderr


def test_the_default_paths_of_splits_are_beside_record(tmp_path: Path, run) -> None:
    error = run("fusion.py", "--splits", 3, cwd=tmp_path, code=2).stderr
    assert str(Path("record/spatial_split3")) in error
    error = run("fusion.py", cwd=tmp_path, code=2).stderr
    assert str(Path("record/spatial")) in error
    assert "split" not in error


def test_works_without_torch_opencv_or_matplotlib(records: Path, run) -> None:
    blocked = records / "blocked"
    for module in ("torch", "cv2", "matplotlib"):
        (blocked / module).mkdir(parents=True)
        (blocked / module / "__init__.py").write_text("raise ImportError('blocked for the test')")
    process = run("fusion.py", *flags(records), PYTHONPATH=str(blocked))
    assert (records / "out/results.json").is_file()
    told = [line for line in process.stdout.splitlines() if "matplotlib" in line]
    assert len(told) == 1
    assert "pip install matplotlib" in told[0]


def test_splits_with_different_streams_are_refused(records: Path) -> None:
    test_set = align([load_predictions(records / stream) for stream in ("spatial", "motion")])
    other = align([load_predictions(records / "spatial"), load_predictions(records / "spatial")])
    with pytest.raises(InputError, match="different streams"):
        mean_over_splits({"1": evaluate(test_set), "2": evaluate(other)})


# --- bad input -----------------------------------------------------------------------------------------


def line_of(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_videos_of_one_stream_only_are_named(records: Path, run) -> None:
    spatial, motion, labels = make_streams()
    for name in sorted(motion)[:5]:
        del motion[name]
    write(records / "motion", "motion", motion, labels)
    error = run("fusion.py", *flags(records), code=2).stderr
    assert error.count("\n") == 1
    for name in sorted(spatial)[:3]:
        assert name in error
    assert "5 of its 40" in error
    assert "and 2 more" in error
    assert not (records / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["dict"]),
        ([1, 2], ["list"]),
        ({"a": np.float32([1, np.nan, 0])}, ["a", "NaN"]),
        ({"a": np.float32([1, np.inf, 0])}, ["a", "infinity"]),
        ({"a": np.float32([1, 2])}, ["a", "2 classes", "3"]),
        ({"a": np.zeros((2, 2, 3), np.float32)}, ["a", "(2, 2, 3)"]),
        ({"a": np.zeros((0, 3), np.float32)}, ["a", "no scores"]),
        ({"a": "text"}, ["a", "str"]),
        ({3: np.float32([1, 2, 3])}, ["name"]),
        ({"a": np.float32([1, 2, 3]), "b": np.float32([[1, 2, 3]])}, ["mixes"]),
        ({"a": np.float32([1, 1, 1]), "b": np.float32([1, 1, 1])}, ["every score"]),
        ({"a": np.float32([1, 2, 3]), "elsewhere": np.float32([1, 2, 3])}, ["elsewhere", "predictions.json"]),
    ],
)
def test_a_bad_pickle_gets_one_line_that_names_it(tmp_path: Path, content: object, words: list[str]) -> None:
    path = write(tmp_path, "spatial", content, {"a": 0, "b": 1})
    with pytest.raises(InputError) as error:
        load_predictions(path)
    line_of(error, str(path), *words)


def test_labels_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "spatial", {"fight/one": np.arange(101, dtype=np.float32)})
    with pytest.raises(InputError) as error:
        load_predictions(path)
    line_of(error, "fight/one", "predictions.json")
    path = write(tmp_path, "spatial", {"Archery_g01_c01": np.arange(11, dtype=np.float32)})
    with pytest.raises(InputError) as error:
        load_predictions(path)
    line_of(error, "11 classes", "101")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 2}', '{"format": 1, "class_names": ["a"], "labels": {"v": 1}}', "[" * 100_000,
     '{"format": 1, "class_names": ["a"], "labels": {"v": "a"}}', '{"format": 1, "class_names": 3, "labels": {}}'],
)  # fmt: skip
def test_a_bad_predictions_json_gets_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "spatial", {"v": np.float32([1, 2, 3])})
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(InputError) as error:
        load_predictions(path)
    line_of(error, "predictions.json")


def test_streams_of_different_classes_labels_or_splits_are_refused(tmp_path: Path) -> None:
    spatial, motion, labels = make_streams()
    first = load_predictions(write(tmp_path / "spatial", "spatial", spatial, labels))
    cases = {
        "number 2: Hammering, HammerThrow": {"class_names": ["Archery", "HammerThrow", "Hammering"]},
        "3 and 4": {"class_names": [*CLASSES, "YoYo"], "wider": True},
        "split 1": {"split": "2"},
        "label differently": {"labels": {**labels, "Archery/clip000": 1}},
    }
    for words, meta in cases.items():
        wider = meta.pop("wider", False)
        logits = {name: np.append(row, row[:1]) for name, row in motion.items()} if wider else motion
        other = load_predictions(write(tmp_path / "motion", "motion", logits, **{"labels": labels, **meta}))
        with pytest.raises(InputError) as error:
            align([first, other])
        line_of(error, words)


def test_wrong_flags_get_one_line(records: Path, run) -> None:
    spatial, motion = records / "spatial", records / "motion"
    for arguments, words in (
        ([spatial], "two streams"),
        ([spatial, motion, "--spatial", spatial], "not both"),
        (["--weights", 1, "--spatial", spatial, "--motion", motion], "2 streams"),
        (["--weights", 0, 0, "--spatial", spatial, "--motion", motion], "not all"),
        (["--spatial", motion, "--motion", spatial], "holds the motion stream"),
    ):
        assert words in run("fusion.py", *arguments, code=2).stderr


def test_fusion_imports_no_torch() -> None:
    code = "import sys, fusion; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
