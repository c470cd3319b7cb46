"""data/make_split.py: lists from folders of videos, recordings and copies kept together."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import make_split
from dataloader.lists import load_split
from utils import InputError


def make_videos(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"clip {i} 1.avi").write_bytes(b"")
    return root


def test_make_split(tmp_path, run):
    videos = make_videos(tmp_path / "videos", {"2 run": 40, "1 sit down": 20, "jump": 2})
    out = tmp_path / "lists"
    run("data/make_split.py", videos, out, "--test-fraction", 0.25)
    split = load_split(out, 1)
    assert split.class_names == ["1 sit down", "2 run", "jump"]
    per_class = [[sum(v.label == c for v in part) for c in range(3)] for part in (split.train, split.test)]
    assert per_class == [[15, 30, 1], [5, 10, 1]]
    on_disk = {path.relative_to(videos).as_posix() for path in videos.glob("*/*.avi")}
    assert {video.listed for video in split.train + split.test} == on_disk
    assert all(video.listed.split("/")[0] == split.class_names[video.label] for video in split.train + split.test)

    text = (out / "train.txt").read_text()
    assert "delete them" in run("data/make_split.py", videos, out, "--seed", 1, code=2).stderr
    assert (out / "train.txt").read_text() == text
    labels, names = make_split.find_classes(videos)
    groups = make_split.group_videos(labels, names)
    train, test = make_split.holdout(groups, names, 0.25, seed=0)
    assert {video.listed for video in split.train} == set(train)
    assert set(test) != set(make_split.holdout(groups, names, 0.25, seed=1)[1])


def test_make_folds_keeps_recordings_together(tmp_path, run):
    root = tmp_path / "videos"
    for name in ("Walk", "Run"):
        (root / name).mkdir(parents=True)
        for group in range(1, 7):
            for clip in range(1, 4):
                (root / name / f"v_{name}_g{group:02d}_c{clip:02d}.avi").write_bytes(b"")
    run("data/make_split.py", root, tmp_path / "lists", "--folds", 3)
    tested = []
    for number in (1, 2, 3):
        split = load_split(tmp_path / "lists", number)
        assert split.class_names == ["Run", "Walk"]
        assert not {v.name[:-4] for v in split.train} & {v.name[:-4] for v in split.test}
        assert [sum(v.label == c for v in split.test) for c in range(2)] == [6, 6]
        tested += [video.name for video in split.test]
    assert sorted(tested) == sorted(path.stem.removeprefix("v_") for path in root.glob("*/*.avi"))


def test_make_split_bad_input(tmp_path, run):
    videos = make_videos(tmp_path / "videos", {"run": 4, "sit": 1})
    assert "fewer than 2 videos in sit" in run("data/make_split.py", videos, tmp_path / "o", code=2).stderr
    assert "one class folder" in run("data/make_split.py", videos / "..", tmp_path / "o", code=2).stderr
    (videos / "loose.avi").write_bytes(b"")
    assert "no class folder" in run("data/make_split.py", videos, tmp_path / "o", code=2).stderr
    assert "nowhere" in run("data/make_split.py", tmp_path / "nowhere", tmp_path / "o", code=2).stderr
    assert not (tmp_path / "o").exists()


def test_make_split_says_what_it_found(tmp_path, run):
    videos = make_videos(tmp_path / "videos", {"run": 4, "sit": 3})
    said = run("data/make_split.py", videos, tmp_path / "lists").stdout
    assert "run: 4 videos" in said and "sit: 3 videos" in said
    (videos / "walk").mkdir()
    (videos / "walk" / "notes.txt").write_text("")
    assert "class folder walk holds no video" in run("data/make_split.py", videos, tmp_path / "o", code=2).stderr


def test_a_recording_that_is_all_of_a_class(tmp_path):
    names = [f"Walk/v_Walk_g01_c{clip:02d}.avi" for clip in range(1, 6)] + ["Run/a.avi", "Run/b.avi"]
    labels = {name: int(name.startswith("Walk")) for name in names}
    groups = make_split.group_videos(labels, ["Run", "Walk"])
    with pytest.raises(InputError, match=r"Walk has 5 videos, but they are of 1 recording \(01\), .* 2 are needed"):
        make_split.holdout(groups, ["Run", "Walk"], 0.3, seed=0)


def test_folders_train_and_test_are_no_classes(tmp_path, run):
    videos = tmp_path / "videos"
    make_videos(videos / "Train", {"run": 3, "sit": 2})
    for name in ("run", "sit"):
        (videos / "test" / name).mkdir(parents=True)
        (videos / "test" / name / "other.wmv").write_bytes(b"")
    assert "their split is taken" in run("data/make_split.py", videos, tmp_path / "lists").stdout
    split = load_split(tmp_path / "lists", 1)
    assert split.class_names == ["run", "sit"]
    assert sorted(video.listed for video in split.test) == ["test/run/other.wmv", "test/sit/other.wmv"]
    assert len(split.train) == 5 and all(video.listed.startswith("Train/") for video in split.train)
    folds = run("data/make_split.py", videos, tmp_path / "o", "--folds", 2, code=2)
    assert "already; leave --folds out" in folds.stderr
    make_videos(videos / "val", {"run": 1})
    with pytest.raises(InputError, match="Train and test and val, which are no classes"):
        make_split.find_classes(videos)


def test_copies_stay_together_and_are_named(tmp_path, run):
    videos = make_videos(tmp_path / "videos", {"run": 0, "sit": 0})
    contents = {"run/a": b"1", "run/b": b"1", "run/c": b"2", "sit/d": b"2", "sit/e": b"3", "run/f": b"4"}
    for name, content in contents.items():
        (videos / f"{name}.avi").write_bytes(content)
    for seed in range(3):
        done = run("data/make_split.py", videos, tmp_path / f"lists{seed}", "--seed", seed)
        assert done.stderr == "warning: one file in several classes: run/c.avi, sit/d.avi\n"
        train = (tmp_path / f"lists{seed}/train.txt").read_text()
        assert ("run/a.avi" in train) == ("run/b.avi" in train)
