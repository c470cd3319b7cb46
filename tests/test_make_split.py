"""data/make_split.py: lists from folders of videos, recordings and copies kept together, lists brought up to date."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from data import make_split
from dataloader.lists import Split, load_split
from utils import InputError

SCRIPT = "data/make_split.py"


def make_videos(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def numbered(counts: dict[str, int]) -> list[str]:
    return [f"{name}/clip {i} 1.avi" for name, count in counts.items() for i in range(count)]


def sides(split: Split) -> dict[str, str]:
    return {video.listed: side for side in ("train", "test") for video in getattr(split, side)}


def test_make_split(tmp_path, run):
    videos = make_videos(tmp_path / "videos", *numbered({"2 run": 40, "1 sit down": 20, "jump": 2}))
    said = run(SCRIPT, videos, tmp_path / "lists", "--test-fraction", 0.25).stdout
    assert "2 run: 40 videos" in said and "jump: 2 videos" in said and "the names tell no recordings" in said
    split = load_split(tmp_path / "lists", 1)
    assert split.class_names == ["1 sit down", "2 run", "jump"]
    per_class = [[sum(v.label == c for v in part) for c in range(3)] for part in (split.train, split.test)]
    assert per_class == [[15, 30, 1], [5, 10, 1]]
    on_disk = {path.relative_to(videos).as_posix() for path in videos.glob("*/*.avi")}
    assert sides(split).keys() == on_disk
    assert all(video.listed.split("/")[0] == split.class_names[video.label] for video in split.train + split.test)
    assert all(video.group == video.name for video in split.train + split.test)
    run(SCRIPT, videos, tmp_path / "same", "--test-fraction", 0.25, "--seed", 0)
    run(SCRIPT, videos, tmp_path / "other", "--test-fraction", 0.25, "--seed", 1)
    assert sides(load_split(tmp_path / "same", 1)) == sides(split) != sides(load_split(tmp_path / "other", 1))


def test_make_folds_keeps_recordings_together(tmp_path, run):
    names = [f"{c}/v_{c}_g{g:02d}_c{clip:02d}.avi" for c in ("Walk", "Run") for g in range(1, 7) for clip in (1, 2, 3)]
    root = make_videos(tmp_path / "videos", *names)
    run(SCRIPT, root, tmp_path / "lists", "--folds", 3)
    tested = []
    for number in (1, 2, 3):
        split = load_split(tmp_path / "lists", number)
        assert split.class_names == ["Run", "Walk"]
        assert not {v.group for v in split.train} & {v.group for v in split.test}
        assert [sum(v.label == c for v in split.test) for c in range(2)] == [6, 6]
        tested += [video.listed for video in split.test]
    assert sorted(tested) == sorted(names)


@pytest.mark.parametrize(
    ("groups", "recordings"),
    [
        (None, {f"rec{i}" for i in range(5)}),
        (r"rec\d", {f"rec{i}" for i in range(5)}),
        (r"(?:walk|run)_rec(\d)", set("01234")),
        ("none", {f"{c}/{c}_rec{r}_{i}" for c in ("run", "walk") for r in range(5) for i in range(4)}),
        ("days.CSV", {"monday", "tuesday", "run/run_rec4_3"}),
    ],
)
def test_recordings_stay_on_one_side(tmp_path, run, groups, recordings):
    names = [f"{c}/{c}_rec{r}_{i}.mp4" for c in ("run", "walk") for r in range(5) for i in range(4)]
    videos = make_videos(tmp_path / "videos", *names)
    rows = [f"{name},{'monday' if 'rec0' in name else 'tuesday'}" for name in names if name != "run/run_rec4_3.mp4"]
    (tmp_path / "days.CSV").write_text("\n".join(["video,group", *rows]))
    flags = () if groups is None else ("--groups", tmp_path / groups if "CSV" in groups else groups)
    done = run(SCRIPT, videos, tmp_path / "lists", *flags)
    split = load_split(tmp_path / "lists", 1)
    assert {v.group for v in split.train + split.test} == recordings
    assert not {v.group for v in split.train} & {v.group for v in split.test}
    share = len(split.test) / 40
    assert f"test.txt: {len(split.test)} videos, {share:.0%}" in done.stdout
    assert ("warning" in done.stderr) == (abs(share - 0.3) > 0.15)
    assert ("run/run_rec0_0.mp4 is of" in done.stdout) == (groups != "none")


def test_groups_that_tell_nothing(tmp_path, run):
    videos = make_videos(tmp_path / "videos", *numbered({"run": 4, "sit": 4}))
    (tmp_path / "g.csv").write_text("video,group\nother,1\n")
    for groups in ("[", "rec", tmp_path / "g.csv", tmp_path / "gone.csv"):
        assert str(groups) in run(SCRIPT, videos, tmp_path / "o", "--groups", groups, code=2).stderr
    assert not (tmp_path / "o").exists()


def test_make_split_bad_input(tmp_path, run):
    videos = make_videos(tmp_path / "videos", *numbered({"run": 4, "sit": 1}))
    assert "sit has 1 video of 1 recording" in run(SCRIPT, videos, tmp_path / "o", code=2).stderr
    assert "one class folder" in run(SCRIPT, videos / "..", tmp_path / "o", code=2).stderr
    make_videos(videos, "loose.avi")
    assert "no class folder" in run(SCRIPT, videos, tmp_path / "o", code=2).stderr
    assert "nowhere" in run(SCRIPT, tmp_path / "nowhere", tmp_path / "o", code=2).stderr
    (videos / "loose.avi").unlink()
    (videos / "walk").mkdir()
    assert "class folder walk holds no video" in run(SCRIPT, videos, tmp_path / "o", code=2).stderr
    assert not (tmp_path / "o").exists()


def test_a_recording_that_is_all_of_a_class(tmp_path, run):
    names = [f"Walk/v_Walk_g01_c{clip:02d}.avi" for clip in range(1, 6)] + ["Run/a.avi", "Run/b.avi"]
    told = run(SCRIPT, make_videos(tmp_path / "videos", *names), tmp_path / "lists", code=2).stderr
    assert "Walk has 5 videos of 1 recording (01)" in told and "--groups" in told


@pytest.mark.parametrize("test", ["test", "Testing", "val", "validate", "validation"])
def test_folders_train_and_test_are_no_classes(tmp_path, run, test):
    videos = make_videos(tmp_path / "videos", *(f"Train/{name}" for name in numbered({"run": 3, "sit": 2})),
                         f"{test}/run/other.wmv", f"{test}/sit/clip 0 1.avi")  # fmt: skip
    assert "their split is taken" in run(SCRIPT, videos, tmp_path / "lists").stdout
    split = load_split(tmp_path / "lists", 1)
    assert split.class_names == ["run", "sit"]
    assert sorted(video.listed for video in split.test) == [f"{test}/run/other.wmv", f"{test}/sit/clip 0 1.avi"]
    assert len(split.train) == 5 and all(video.listed.startswith("Train/") for video in split.train)
    assert len({video.name for video in split.train + split.test}) == 7  # two are called sit/clip 0 1
    assert "already; leave --folds out" in run(SCRIPT, videos, tmp_path / "o", "--folds", 2, code=2).stderr


def test_three_sides_and_one(tmp_path, run):
    videos = make_videos(tmp_path / "videos", *(f"{side}/{c}/{side}.avi" for side in ("train", "val", "test")
                                                for c in ("run", "sit")))  # fmt: skip
    assert "val is left out" in run(SCRIPT, videos, tmp_path / "lists").stdout
    assert {"train/run/train.avi", "test/sit/test.avi"} < sides(load_split(tmp_path / "lists", 1)).keys()
    for side in ("val", "test"):
        shutil.rmtree(videos / side)
    assert "train, which is no class" in run(SCRIPT, videos, tmp_path / "o", code=2).stderr


def test_a_test_folder_of_ones_own(tmp_path, run):
    videos = make_videos(tmp_path / "videos", *numbered({"run": 4, "sit": 3}))
    test = make_videos(tmp_path / "kept back", *numbered({"run": 2, "sit": 2}))
    run(SCRIPT, videos, tmp_path / "lists", "--test", test)
    split = load_split(tmp_path / "lists", 1)
    assert (len(split.train), len(split.test)) == (7, 4) and len({v.name for v in split.train + split.test}) == 11
    assert {video.listed for video in split.test} == {f"test/{name}" for name in numbered({"run": 2, "sit": 2})}
    shutil.rmtree(test / "sit")
    assert "test has no video of sit" in run(SCRIPT, videos, tmp_path / "lists", code=2).stderr


def test_copies_stay_together_and_are_named(tmp_path, run):
    contents = {"run/a": b"1", "run/b": b"1", "run/c": b"2", "sit/d": b"2", "sit/e": b"3", "run/f": b"4"}
    videos = make_videos(tmp_path / "videos", *(f"{name}.avi" for name in contents))
    for name, content in contents.items():
        (videos / f"{name}.avi").write_bytes(content)
    for seed in range(3):
        done = run(SCRIPT, videos, tmp_path / f"lists{seed}", "--seed", seed)
        assert "warning: 1 file in several classes: run/c.avi, sit/d.avi\n" in done.stderr
        train = (tmp_path / f"lists{seed}/train.txt").read_text()
        assert ("run/a.avi" in train) == ("run/b.avi" in train)


@pytest.mark.parametrize("seed", range(8))
def test_any_groups_keep_together_and_every_part_has_every_class(seed):
    """Groups of any sizes in one class or several; shares within the largest group of what was asked for."""
    import numpy as np

    rng = np.random.default_rng(seed)
    names = "abcd"[: rng.integers(2, 5)]
    groups = {f"{name}/{i}": (name if seed % 2 else "") + str(rng.integers(9)) for name in names for i in range(60)}
    classes = {path: path[0] for path in groups}
    largest = max(Counter((classes[path], group) for path, group in groups.items()).values())
    for shares in ([0.3, 0.7], [0.25] * 4):
        parts = make_split.assign(classes, groups, shares, seed, {})
        assert all(len({parts[path] for path in groups if groups[path] == group}) == 1 for group in groups.values())
        count = Counter((classes[path], part) for path, part in parts.items())
        for name, part in itertools.product(names, range(len(shares))):
            assert count[name, part] > 0 and abs(count[name, part] - 60 * shares[part]) <= 2 * largest


def test_a_second_run_brings_the_lists_up_to_date(tmp_path, run):
    names = [f"{c}/{c}_rec{r}_{i}.mp4" for c in ("run", "walk") for r in range(5) for i in range(4)]
    videos, lists = make_videos(tmp_path / "videos", *names), tmp_path / "lists"
    run(SCRIPT, videos, lists, "--seed", 2)
    was, files = sides(load_split(lists, 1)), {path: path.read_bytes() for path in lists.iterdir()}
    assert "the lists are as they were" in run(SCRIPT, videos, lists).stdout
    assert {path: path.read_bytes() for path in lists.iterdir()} == files

    new = [f"{c}/{c}_rec{r}_9.mp4" for c in ("run", "walk") for r in range(5)]  # of recordings that are there
    new += [f"jump/jump_rec{r}_{i}.mp4" for r in range(3, 9) for i in range(3)]  # and a new class
    make_videos(videos, *new)
    for gone in names[:3]:
        (videos / gone).unlink()
    said = run(SCRIPT, videos, lists).stdout
    assert "28 new videos" in said and "3 videos of the lists gone: run/run_rec0_0.mp4" in said
    split = load_split(lists, 1)
    now = sides(split)
    assert now.keys() == {*names[3:], *new} and all(now[name] == was[name] for name in names[3:])
    assert split.class_names == ["jump", "run", "walk"] and {v.label for v in split.test} == {0, 1, 2}
    assert not {v.group for v in split.train} & {v.group for v in split.test}

    other = run(SCRIPT, videos, lists, "--seed", 3, code=2).stderr
    assert "were made with --seed 2" in other and sides(load_split(lists, 1)) == now
    (lists / "test.txt").unlink()  # as a kill leaves them
    run(SCRIPT, videos, lists)
    assert sides(load_split(lists, 1)).keys() == now.keys()
    (lists / "make_split.json").unlink()  # somebody else's lists
    assert "did not make" in run(SCRIPT, videos, lists, code=2).stderr


def test_folds_are_brought_up_to_date(tmp_path, run):
    videos, lists = make_videos(tmp_path / "videos", *numbered({"run": 6, "sit": 6})), tmp_path / "lists"
    run(SCRIPT, videos, lists, "--folds", 3)
    was = [{v.listed for v in load_split(lists, i).test} for i in (1, 2, 3)]
    make_videos(videos, *numbered({"run": 9, "sit": 6}))
    run(SCRIPT, videos, lists)
    now = [{v.listed for v in load_split(lists, i).test} for i in (1, 2, 3)]
    assert all(old <= new for old, new in zip(was, now, strict=True)) and sum(map(len, now)) == 15


@pytest.mark.skipif(sys.platform != "linux", reason="names that other systems do not allow")
def test_names_that_no_list_can_hold_are_left_out_and_the_rest_goes_on(tmp_path, run):
    good = [*numbered({"run": 4, "sit": 4, "nb\u00a0sp, 3": 3}), "run/v_jog_g01_c01.avi", 'run/"q" 1.avi',
            "sit/é 7.avi"]  # fmt: skip
    bad = ["run /a.avi", " run/a.avi", "run\u00a0/b.avi", "sit/new\nline.avi", "sit/back\\slash.avi", "run/c\r.avi",
           "sit/a.avi b.avi", "sit/run/d.avi", ", x/e.avi", "\ufefff/f.avi"]  # fmt: skip
    videos = make_videos(tmp_path / "videos", *good, *bad)
    with open(os.fsencode(videos) + b"/run/latin-\xe4.avi", "wb"):
        pass
    done = run(SCRIPT, videos, tmp_path / "lists")
    assert "warning: 11 videos left out" in done.stderr and "\n  nb\u00a0sp, 3: 3 videos" in "\n" + done.stdout
    assert sides(load_split(tmp_path / "lists", 1)).keys() == set(good)


def test_one_class_in_two_spellings(tmp_path):
    videos = make_videos(tmp_path / "videos", "run/a.avi", "Run/b.avi", "sit/c.avi", "sit/d.avi")
    if not (videos / "run/b.avi").exists():
        with pytest.raises(InputError, match="one class but for upper case"):
            make_split.find_classes(videos)
