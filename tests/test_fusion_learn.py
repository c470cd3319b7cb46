"""Weights learnt on held-out videos: what is learnt, that it wins where it was not tuned, and how a user gets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from prediction_files import CLASSES, fuse, write
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fusion import choose, learn_weights
from report.outcome import read_learnt
from saved.predictions import align, load_predictions
from utils import InputError


def make(videos: int, seed: int = 0, sizes: tuple[float, ...] = (1, 3), noise: tuple[float, ...] = (0.5, 1.0)):
    """([logits (videos, 5)] per stream, labels): stream k is size k times (one-hot + noise k)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, videos)
    return [s * (np.eye(5)[labels] + rng.normal(0, n, (videos, 5))) for s, n in zip(sizes, noise, strict=True)], labels


# --- what is learnt ------------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_largest_likelihood() -> None:
    """The docstring's formula, minimised by a method without gradients."""
    videos = 400
    streams, labels = make(videos, 3, (1, 3, 0.2), (0.5, 1.0, 0.8))
    right = np.full((videos, 5), 1 / (videos + 2) / 5)
    right[np.arange(videos), labels] += 1 - 1 / (videos + 2)

    def cost(shares):
        return -(right * log_softmax(sum(s * x for s, x in zip(shares, streams, strict=True)), axis=1)).sum()

    options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000}
    expected = minimize(cost, [1.0, 1, 1], method="Nelder-Mead", options=options).x
    weights, temperature = learn_weights(streams, labels)
    np.testing.assert_allclose(weights / temperature, expected, rtol=1e-2)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("noise", "joined", "expected"),
    [
        ((0.5, 30.0), None, "0"),  # one stream tells nothing
        ((0.6, 1.8), None, "learnt"),
        ((1.0, 1.0), 0.3, "joined"),  # far better than the others together
        ((0.5, 30.0), 0.55, "0"),  # no better
    ],
)
def test_the_fusion_is_chosen_that_the_videos_favour(noise, joined, expected) -> None:
    rng = np.random.default_rng(6)
    streams, labels = make(900, 6, (1, 1), noise)
    head = None if joined is None else np.eye(5)[labels] + rng.normal(0, joined, (900, 5))
    chosen, losses = choose(dict(zip("01", streams, strict=True)), head, labels, np.arange(900) // 3)
    assert chosen == expected
    assert set(losses) == {"0", "1", "average", "learnt"} | ({"joined"} if joined else set())
    assert min(losses, key=lambda name: losses[name].mean()) in (expected, "learnt")


@pytest.mark.parametrize("videos", [1, 30])
def test_videos_that_are_all_right_leave_the_temperature_finite(videos: int) -> None:
    labels = np.arange(videos) % 5
    weights, temperature = learn_weights([9 * np.eye(5)[labels], np.eye(5)[labels]], labels)
    assert 0 < temperature < np.inf and np.isfinite(weights).all()
    assert softmax((9 * weights[0] + weights[1]) * np.eye(5)[0] / temperature)[0] < 0.999


def test_on_other_videos_the_weights_win_and_the_temperature_calibrates() -> None:
    (streams, labels), (tests, truth) = make(1500, 1), make(4000, 2)
    weights, temperature = learn_weights(streams, labels)
    found = softmax(sum(w * logits for w, logits in zip(weights, tests, strict=True)) / temperature, axis=1)
    right = (found.argmax(1) == truth).mean()
    assert found.max(1).mean() == pytest.approx(right, abs=0.02)
    assert right > (sum(tests).argmax(1) == truth).mean() + 0.01  # than their average


# --- as a user gets it ---------------------------------------------------------------------------------


def make_record(root: Path, split: str = "1", seed: int = 5) -> None:
    """spatial/ and motion/ of 60 test videos, each with val/ of 90 others; motion is three times as loud, and worse."""
    for subset, count, prefix in (("test", 60, "t"), ("val", 90, "v")):
        rng = np.random.default_rng(seed + count)
        keys = [f"{CLASSES[i % 3]}/{prefix}{i:03d}" for i in range(count)]
        labels = {key: i % 3 for i, key in enumerate(keys)}
        for stream, size, noise in (("spatial", 1, 0.5), ("motion", 3, 0.9)):
            rows = {k: (size * (np.eye(3)[v] + rng.normal(0, noise, 3))).astype("f4") for k, v in labels.items()}
            folder = root / stream if subset == "test" else root / stream / "val"
            write(folder, stream, rows, labels, subset=subset, split=split)


def flags(root: Path, *more: object) -> list[object]:
    paths = ("--spatial", root / "spatial", "--motion", root / "motion", "--output", root / "out", "--no-report")
    return [*paths, *more]


def results_of(root: Path) -> dict:
    return json.loads((root / "out/results.json").read_text())


def test_the_fusion_is_chosen_on_the_predictions_in_the_folders_val(tmp_path: Path) -> None:
    make_record(tmp_path)
    said = fuse(*flags(tmp_path, "--learn"))
    results = results_of(tmp_path)
    streams = [load_predictions(tmp_path / name / "val") for name in ("spatial", "motion")]
    videos = sorted(streams[0].logits)
    truth = np.array([streams[0].labels[video] for video in videos])
    held_out = dict(zip(("spatial", "motion"), (one.matrix(videos) for one in streams), strict=True))
    chosen, losses = choose(held_out, None, truth, np.arange(90))
    learnt = results["learnt"]
    assert learnt["chosen"] == chosen == "learnt"
    assert learnt["log_loss"] == pytest.approx({name: loss.mean() for name, loss in losses.items()})
    weights, temperature = learn_weights(list(held_out.values()), truth)
    assert learnt["temperature"] == pytest.approx(temperature)
    assert list(learnt["weights"].values()) == pytest.approx(weights.tolist())
    assert f"fusion: learnt {weights[0]:.3f} : {weights[1]:.3f}" in said and "90 other videos" in said
    paths = [str(tmp_path / name / f"val/{name}_video_preds.pickle") for name in ("spatial", "motion")]
    assert learnt["learnt_on"] == {"videos": 90, "groups": 90, "paths": paths}
    tested = align([load_predictions(tmp_path / name) for name in ("spatial", "motion")])
    spatial, motion = tested.streams.values()
    right = (weights[0] * spatial + weights[1] * motion).argmax(1) == tested.labels
    assert results["fusion"]["top1"] == pytest.approx(100 * np.mean(right))
    found = read_learnt(tmp_path / "out/results.json")
    assert found.weights == learnt["weights"] and found.chosen == "learnt"


def test_the_joined_head_beside_the_linear_ones_may_be_chosen(tmp_path: Path) -> None:
    linear = tmp_path / "linear"
    make_record(linear)
    for subset in (".", "val"):
        spatial, _motion = (load_predictions(linear / name / subset) for name in ("spatial", "motion"))
        sure = {v: (9 * np.eye(3)[label] + spatial.logits[v]).astype("f4") for v, label in spatial.labels.items()}
        write(tmp_path / "joined" / subset, "joined", sure, spatial.labels, split="1")
    fuse(*flags(linear, "--learn"))
    results = results_of(linear)
    assert results["learnt"]["chosen"] == "joined" and results["fusion"]["top1"] == 100
    assert results["learnt"]["joined"] == (tmp_path / "joined").as_posix()
    assert results["learnt"]["weights"] == {"spatial": 0.5, "motion": 0.5}  # of its two parts, in predict.py
    (tmp_path / "joined/val/joined_video_preds.pickle").unlink()
    write(tmp_path / "joined/val", "joined", dict(list(sure.items())[:3]), spatial.labels, split="1")
    fuse(*flags(linear, "--learn"))  # of another run's videos: left out
    assert results_of(linear)["learnt"]["chosen"] != "joined"


def test_a_gap_between_held_out_and_test_stands_above_the_figures(tmp_path: Path) -> None:
    make_record(tmp_path)
    about = json.loads((tmp_path / "spatial/predictions.json").read_text())
    rng = np.random.default_rng(1)  # test scores that say nothing
    scores = {v: rng.normal(0, 1, 3).astype("f4") for v in about["labels"]}
    write(tmp_path / "spatial", "spatial", scores, about["labels"], split="1")
    assert fuse(*flags(tmp_path, "--learn")).splitlines()[1].startswith("!! held out ")
    assert results_of(tmp_path)["warnings"][0].startswith("held out ")


def test_what_can_not_be_learnt_from_is_one_line(tmp_path: Path) -> None:
    make_record(tmp_path)
    spatial, motion = tmp_path / "spatial", tmp_path / "motion"
    for paths, words in (
        ((spatial, motion), "60 of the 60 videos to learn from are tested, too"),
        ((motion / "val", spatial / "val"), "holds the motion stream"),
        ((spatial / "val", tmp_path / "nothing"), "no predictions at"),
    ):
        with pytest.raises(InputError, match=words):
            fuse(*flags(tmp_path, "--learn", *paths))
    with pytest.raises(InputError, match="order them alike"):
        fuse(spatial, motion, "--learn", motion / "val", spatial / "val")


def test_scores_without_class_names_learn_from_predictions_that_have_them(tmp_path: Path) -> None:
    make_record(tmp_path)
    for name in ("spatial", "motion"):
        one = load_predictions(tmp_path / name)
        rows = {"scores": [*one.logits.values()], "names": [*one.logits], "labels": [*one.labels.values()]}
        np.savez(tmp_path / f"{name}.npz", **rows)
    files = [tmp_path / f"{name}.npz" for name in ("spatial", "motion")]
    val = [tmp_path / name / "val" for name in ("spatial", "motion")]
    assert "90 other videos" in fuse(*files, "--learn", *val, "--no-report", "--output", tmp_path / "out")
