"""fusion.py as a user runs it: whose predictions and labels it takes, flags, splits, and what bad input gets."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from prediction_files import CLASSES, fuse, make_streams, write

import fusion
from saved.predictions import align, load_predictions
from utils import InputError

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
    assert found.labels == {"Hammering_g01_c01": 34, "HammerThrow_g02_c03": 35,
                            "HandstandPushups_g01_c01": 36, "YoYo_g25_c07": 100}  # fmt: skip
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


def test_a_stream_goes_by_the_name_that_its_predictions_say(tmp_path: Path) -> None:
    scores = {"YoYo_g01_c01": np.arange(3, dtype="f4")}
    for said in ("iframe", "flow"):
        assert load_predictions(write(tmp_path / said, said, scores, {"YoYo_g01_c01": 0})).stream == said
    for said in ("fusion", "\x1b[31m", ""):  # taken by results.json; for a terminal; none
        about = write(tmp_path / "x", "x", scores, {"YoYo_g01_c01": 0}).with_name("predictions.json")
        about.write_text(about.read_text().replace('"stream": "x"', f'"stream": {json.dumps(said)}'))
        stream = load_predictions(tmp_path / "x").stream
        assert stream not in ("fusion", "") and stream.isprintable()
    unsaid = {"gen_flow_video_preds.pickle": "gen_flow", "rgb.pickle": "spatial", "flow.pickle": "motion"}
    for file, stream in unsaid.items():
        path = write(tmp_path / "unsaid", "x", {"YoYo_g01_c01": np.arange(101, dtype="f4")})
        assert load_predictions(path.rename(path.with_name(file))).stream == stream


# --- the script ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a b --spatial c", "not both"),
        ("a b c --weights 1 1", "3 numbers"),
        ("--weights 1 -0.1", "must be from 0 to"),
        ("--weights 1 nan", "must be from 0 to"),
        ("--weights 0 0", "not all 0"),
        ("--splits 1 2 1", "different numbers"),
        ("--splits 1 2 a{} b{}", "numbers, not 'a{}'; name streams before it"),
        ("a --learn b", "several streams"),
        ("--learn a b --weights 1 2", "finds the weights itself"),
        ("a b c --learn d e", "give 3 paths, or none"),
        ("", None),
        ("a", None),
        ("a b --learn", None),
        ("a b c --learn d e f --splits 1 2", None),
        ("--spatial a --motion b --weights 1 0 --splits 1 2", None),
    ],
)
def test_flags_that_contradict_each_other(monkeypatch, arguments: str, words: str | None) -> None:
    monkeypatch.setattr(sys, "argv", ["fusion.py", *arguments.split()])
    with pytest.raises(InputError, match=words) if words else contextlib.nullcontext():
        fusion.parse_args()


def test_paths_of_streams_and_splits(records: Path, monkeypatch) -> None:
    def load(split: str | None, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["fusion.py", *map(str, arguments)])
        args = fusion.parse_args()
        args.splits = [split] if split else None
        return [str(one.path.parent) for one in fusion.load(args, split).sources.values()]

    spatial, motion, labels = make_streams()
    for ending in ("", "_split7"):
        write(records / f"record/spatial{ending}", "spatial", spatial, labels, split="7")
        write(records / f"record/motion{ending}", "motion", motion, labels, split="7")
    write(records / "motion7", "motion", motion, labels, split="1")
    monkeypatch.chdir(records)
    assert load(None) == ["record/spatial", "record/motion"]
    assert load(None, "--spatial", "spatial", "--motion", "motion") == ["spatial", "motion"]
    assert load(None, "motion", "spatial") == ["motion", "spatial"]  # as many as one likes, in the order given
    assert load("7") == ["record/spatial_split7", "record/motion_split7"]
    assert load("7", "record/motion_split{}", "record/spatial_split{}")[1] == "record/spatial_split7"
    for words, arguments in (
        ("holds the motion stream", (None, "--spatial", "motion", "--motion", "spatial")),
        ("record/spatial needs a {}", ("7", "--spatial", "record/spatial")),
        ("is of split 1, not 7", ("7", "--motion", "motion{}")),
    ):
        assert words in one_line(load, *arguments)


def test_splits_are_averaged(tmp_path: Path) -> None:
    expected = []
    for split in (1, 2):
        spatial, motion, labels = make_streams(seed=split, videos=30 + 9 * split)
        write(tmp_path / f"spatial_split{split}", "spatial", spatial, labels, split=str(split))
        write(tmp_path / f"motion_split{split}", "motion", motion, labels, split=str(split))
        hits = [(spatial[name].astype(float) + motion[name]).argmax() == label for name, label in labels.items()]
        expected.append(100 * np.mean(hits))
    paths = ["--spatial", tmp_path / "spatial_split{}", "--motion", tmp_path / "motion_split{}"]
    output = tmp_path / "out"
    said = fuse(*paths, "--splits", 1, 2, "--output", output, "--no-report").splitlines()
    assert [line.split(" videos")[0] for line in said if " videos, " in line] == [
        "split 1: 39", "split 2: 48", "mean over splits 1, 2: 87"
    ]  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert results["videos"] == 39 + 48
    assert results["fusion"]["top1"] == pytest.approx(np.mean(expected))
    assert [results["splits"][split]["fusion"]["top1"] for split in ("1", "2")] == pytest.approx(expected)
    assert json.loads((output / "split2/results.json").read_text())["videos"] == 48
    low, high = results["interval_95"]["fusion"]["top1"]
    widths = [np.diff(results["splits"][split]["interval_95"]["fusion"]["top1"])[0] for split in ("1", "2")]
    assert high - low < min(widths)  # a mean of two independent splits is surer than either


# --- bad input -----------------------------------------------------------------------------------------


def one_line(call, *arguments: object) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_videos_of_one_stream_only_are_named(records: Path) -> None:
    _, motion, labels = make_streams()
    first, *_ = lacking = sorted(motion)[:5]
    write(records / "motion", "motion", {name: row for name, row in motion.items() if name not in lacking}, labels)
    said = one_line(fuse, records / "spatial", records / "motion", "--output", records / "out")
    assert f"5 of its 40 videos: {first}" in said and "and 2 more" in said
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
        ({"a": np.zeros((0, 3), np.float32)}, ["of a", "none"]),
        ({"a": np.array([0.0, 1, 2]), "b": np.array([0, 1.7e308, -1.7e308])}, ["of b", "beyond 1e+30"]),
        ({"a": np.array([1e-300, 0, 0]), "b": np.array([0, 1e-300, 0])}, ["every score"]),
        ({"a": "text"}, ["a", "str"]),
        ({3: np.float32([1, 2, 3])}, ["name"]),
        ({"a": np.float32([1, 2, 3]), "b": np.float32([[1, 2, 3]])}, ["mixes"]),
        ({"a": np.float32([1, 1, 1]), "b": np.float32([1, 1, 1])}, ["every score"]),
        ({"a": np.float32([1, 2, 3]), "elsewhere": np.float32([1, 2, 3])}, ["elsewhere", "predictions.json"]),
    ],
)
def test_a_bad_pickle_gets_one_line_that_names_it(tmp_path: Path, content: object, words: list[str]) -> None:
    path = write(tmp_path, "spatial", content, {"a": 0, "b": 1})
    said = one_line(load_predictions, path)
    assert str(path) in said and all(word in said for word in words)


def test_streams_of_different_classes_labels_or_splits_are_refused(tmp_path: Path) -> None:
    spatial, motion, labels = make_streams()
    first = load_predictions(write(tmp_path / "spatial", "spatial", spatial, labels))
    wider = {name: np.append(row, row[:1]) for name, row in motion.items()}
    for words, logits, meta in (
        ("number 2: Hammering, HammerThrow", motion, {"class_names": ["Archery", "HammerThrow", "Hammering"]}),
        ("3 and 4", wider, {"class_names": [*CLASSES, "YoYo"]}),
        ("split 1", motion, {"split": "2"}),
        ("label differently", motion, {"labels": {**labels, "Archery/clip000": 1}}),
    ):
        other = load_predictions(write(tmp_path / "motion", "motion", logits, **{"labels": labels, **meta}))
        assert words in one_line(align, [first, other])


def test_fusion_imports_no_torch() -> None:
    code = "import sys, fusion; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
