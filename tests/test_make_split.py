"""data/make_split.py: lists from folders of videos, recordings and copies kept together, lists brought up to date."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import make_split
from dataloader.lists import Split, load_split
from utils import InputError


@pytest.fixture
def split(monkeypatch, capsys):
    """split(VIDEOS, OUT, flags ...) -> what it printed. Raises its InputError."""

    def split(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_split.py", *map(str, arguments)])
        make_split.main()
        return "".join(capsys.readouterr())

    return split


def make_videos(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def numbered(counts: dict[str, int]) -> list[str]:
    return [f"{name}/clip {i} 1.avi" for name, count in counts.items() for i in range(count)]


def sides(lists: Path, number: int = 1) -> dict[str, str]:
    split = load_split(lists, number)
    return {video.listed: side for side in ("train", "test") for video in getattr(split, side)}


def per_class(split: Split) -> list[list[int]]:
    return [[sum(v.label == c for v in part) for c in range(len(split.class_names))]
            for part in (split.train, split.test)]  # fmt: skip


def test_each_class_is_split_in_proportion(tmp_path, split):
    videos = make_videos(tmp_path / "videos", *numbered({"2 run": 40, "1 sit down": 20, "jump": 2}))
    said = split(videos, tmp_path / "lists", "--test-fraction", 0.25)
    assert "2 run: 40 videos" in said and "jump: 2 videos" in said and "the names tell no recordings" in said
    made = load_split(tmp_path / "lists", 1)
    assert made.class_names == ["1 sit down", "2 run", "jump"]
    assert per_class(made) == [[15, 30, 1], [5, 10, 1]]
    assert sides(tmp_path / "lists").keys() == {path.relative_to(videos).as_posix() for path in videos.glob("*/*.avi")}
    assert all(video.listed.split("/")[0] == made.class_names[video.label] for video in made.train + made.test)
    assert all(video.group == video.name for video in made.train + made.test)
    for seed in (0, 1):
        split(videos, tmp_path / str(seed), "--test-fraction", 0.25, "--seed", seed)
    assert sides(tmp_path / "0") == sides(tmp_path / "lists") != sides(tmp_path / "1")


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
def test_recordings_stay_on_one_side(tmp_path, split, groups, recordings):
    names = [f"{c}/{c}_rec{r}_{i}.mp4" for c in ("run", "walk") for r in range(5) for i in range(4)]
    videos = make_videos(tmp_path / "videos", *names)
    rows = [f"{name},{'monday' if 'rec0' in name else 'tuesday'}" for name in names if name != "run/run_rec4_3.mp4"]
    (tmp_path / "days.CSV").write_text("\n".join(["video,group", *rows]))
    flags = () if groups is None else ("--groups", tmp_path / groups if "CSV" in groups else groups)
    said = split(videos, tmp_path / "lists", *flags)
    made = load_split(tmp_path / "lists", 1)
    assert {v.group for v in made.train + made.test} == recordings
    assert not {v.group for v in made.train} & {v.group for v in made.test}
    share = len(made.test) / 40
    assert f"test.txt: {len(made.test)} videos, {share:.0%}" in said
    assert ("run/run_rec0_0.mp4 is of" in said) == (groups != "none")


def test_what_cannot_be_split_is_a_line_and_nothing_is_written(tmp_path, split):
    videos, out = make_videos(tmp_path / "videos", *numbered({"run": 4, "sit": 1})), tmp_path / "o"
    walks = [f"Walk/v_Walk_g01_c{clip:02d}.avi" for clip in range(1, 6)] + ["Run/a.avi", "Run/b.avi"]
    make_videos(tmp_path / "one recording", *walks)
    make_videos(tmp_path / "loose", *numbered({"run": 4, "sit": 4}), "loose.avi")
    make_videos(tmp_path / "side", *(f"train/{name}" for name in numbered({"run": 4, "sit": 4})))
    make_videos(tmp_path / "half", *(f"train/{name}" for name in numbered({"run": 4, "sit": 4})), "test/run/x.avi")
    for folder, third in ("beside", "more"), ("bad", "test"):
        three = ("train", "val", third)
        make_videos(tmp_path / folder, *(f"{side}/{c}/x.avi" for side in three for c in ("run", "sit")))
    (tmp_path / "bad.csv").write_text("video,reason\ntest/run/x.avi,bad\ntest/sit/x.avi,bad\n")
    (tmp_path / "g.csv").write_text("video,group\nother,1\n")
    groups = [((videos, out, "--groups", how), str(how)) for how in
              ("[", "rec", tmp_path / "g.csv", tmp_path / "gone.csv")]  # fmt: skip
    for arguments, told in [
        ((videos, out), "sit has 1 video of 1 recording"),
        ((videos / "run", out), "in no class folder"), ((tmp_path / "loose", out), "loose.avi"),
        ((tmp_path / "nowhere", out), "nowhere"), ((tmp_path / "side", out), "the folders train are neither"),
        ((tmp_path / "one recording", out), r"Walk has 5 videos of 1 recording \(01\)"),
        ((tmp_path / "half", out), "test has no video of sit"),
        ((tmp_path / "bad", out, "--without", tmp_path / "bad.csv"), "test has no video of run, sit"),
        ((tmp_path / "beside", out), "the folders more, train, val are neither"), *groups,
    ]:  # fmt: skip
        with pytest.raises(InputError, match=told.replace("[", r"\[")):
            split(*arguments)
    (videos / "sit/clip 0 1.avi").unlink()
    with pytest.raises(InputError, match="has the class folders run: give"):
        split(videos, out)
    assert not out.exists()
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match="cannot write .*a file"):
        split(videos.parent / "half/train", tmp_path / "a file")
    # the earlier lists keep what is left of a class on one side
    make_videos(tmp_path / "less", *numbered({"run": 4, "sit": 4}))
    split(tmp_path / "less", out)
    for line in (out / "test.txt").read_text().splitlines():
        (tmp_path / "less" / line.rpartition(" ")[0]).unlink()
    with pytest.raises(InputError, match="or delete the lists"):
        split(tmp_path / "less", out)


def test_a_share_that_is_far_off_is_a_warning(tmp_path, split):
    """Nine of a class' ten clips are one recording. Large recordings go first where that brings the share nearer."""
    clips = [f"{name}/{name}_rec{int(i == 9)}_{i}.avi" for name in ("run", "sit") for i in range(10)]
    videos = make_videos(tmp_path / "videos", *clips, *(f"jump/{i}.avi" for i in range(10)))
    said = split(videos, tmp_path / "lists", "--groups", r"_(rec\d)_")
    assert "warning: 10% of run, 10% of sit test, not 30%, as recordings stay together" in said
    sizes = {"large": 9, "a1": 2, "b1": 2}
    clips = [f"{name}/{name}_{rec}_{i}.avi" for name in ("run", "sit") for rec in sizes for i in range(sizes[rec])]
    for seed in range(4):
        said = split(make_videos(tmp_path / "more", *clips), tmp_path / f"lists{seed}", "--seed", seed)
        assert "warning" not in said


@pytest.mark.parametrize("test", ["test", "Testing", "val", "validate", "validation"])
def test_folders_train_and_test_are_no_classes(tmp_path, split, test):
    videos = make_videos(tmp_path / "videos", *(f"Train/{name}" for name in numbered({"run": 3, "sit": 2})),
                         f"{test}/run/other.wmv", f"{test}/sit/clip 0 1.avi")  # fmt: skip
    assert "their split is taken" in split(videos, tmp_path / "lists")
    made = load_split(tmp_path / "lists", 1)
    assert made.class_names == ["run", "sit"]
    assert sorted(video.listed for video in made.test) == [f"{test}/run/other.wmv", f"{test}/sit/clip 0 1.avi"]
    assert len(made.train) == 5 and all(video.listed.startswith("Train/") for video in made.train)
    assert len({video.name for video in made.train + made.test}) == 7  # two are called sit/clip 0 1
    if test == "val":  # of three sides, validation is left out
        make_videos(videos, *(f"test/{name}" for name in numbered({"run": 1, "sit": 1})))
        assert "val is left out" in split(videos, tmp_path / "three")
        assert {path.split("/")[0] for path in sides(tmp_path / "three")} == {"Train", "test"}


def test_copies_stay_together_and_are_named(tmp_path, split, monkeypatch):
    contents = {"run/a": b"1", "run/b": b"1", "run/c": b"2", "sit/d": b"2", "sit/e": b"3", "run/f": b"4"}
    videos = make_videos(tmp_path / "videos", *(f"{name}.avi" for name in contents))
    for name, content in contents.items():
        (videos / f"{name}.avi").write_bytes(content)
    for seed in range(3):
        said = split(videos, tmp_path / f"lists{seed}", "--seed", seed)
        assert "warning: 1 file in several classes: run/c.avi, sit/d.avi\n" in said
        made = sides(tmp_path / f"lists{seed}")
        assert made["run/a.avi"] == made["run/b.avi"]
    for side in ("train", "test"):
        shutil.copytree(videos, tmp_path / "both" / side)
    assert "or earlier lists are: test/run/a.avi" in split(tmp_path / "both", tmp_path / "lists")
    monkeypatch.setattr(make_split, "file_digest", lambda _: (videos / "none").open())  # may not be read
    assert "6 videos" in split(videos, tmp_path / "unread")


@pytest.mark.parametrize("seed", range(8))
def test_any_groups_keep_together_and_every_part_has_every_class(seed):
    """Groups of any sizes in one class or several; shares within the largest group of what was asked for."""
    rng = np.random.default_rng(seed)
    names = "abcd"[: rng.integers(2, 5)]
    groups = {f"{name}/{i}": (name if seed % 2 else "") + str(rng.integers(9)) for name in names for i in range(60)}
    classes = {path: path[0] for path in groups}
    largest = max(Counter((classes[path], group) for path, group in groups.items()).values())
    parts = make_split.assign(classes, groups, 0.3, seed, {})
    assert all(len({parts[path] for path in groups if groups[path] == group}) == 1 for group in groups.values())
    count = Counter((classes[path], part) for path, part in parts.items())
    for name in names:
        assert count[name, 0] > 0 and count[name, 1] > 0 and abs(count[name, 0] - 60 * 0.3) <= 2 * largest


def test_a_second_run_brings_the_lists_up_to_date(tmp_path, split):
    names = [f"{c}/{c}_rec{r}_{i}.mp4" for c in ("run", "walk") for r in range(5) for i in range(4)]
    videos, lists = make_videos(tmp_path / "videos", *names), tmp_path / "lists"
    split(videos, lists, "--seed", 2)
    was, files = sides(lists), {path: path.read_bytes() for path in lists.iterdir()}
    assert "the lists are as they were" in split(videos, lists)
    assert {path: path.read_bytes() for path in lists.iterdir()} == files

    new = [f"{c}/{c}_rec{r}_9.mp4" for c in ("run", "walk") for r in range(5)]  # of recordings that are there
    new += [f"jump/jump_rec{r}_{i}.mp4" for r in range(3, 9) for i in range(3)]  # and a new class
    make_videos(videos, *new)
    for gone in names[:3]:
        (videos / gone).unlink()
    said = split(videos, lists)
    assert "new since the lists were made, 28 videos: " in said
    assert "gone since the lists were made, 3 videos: run/run_rec0_0.mp4" in said
    made, now = load_split(lists, 1), sides(lists)
    assert now.keys() == {*names[3:], *new} and all(now[name] == was[name] for name in names[3:])
    assert made.class_names == ["jump", "run", "walk"] and {v.label for v in made.test} == {0, 1, 2}
    assert not {v.group for v in made.train} & {v.group for v in made.test}

    (lists / "classes.txt").write_text("0 run\n1 walk\n")  # as a kill between two files leaves it
    split(videos, lists)
    assert sides(lists) == now
    (lists / "test.txt").unlink()  # as a kill leaves them
    split(videos, lists)
    assert sides(lists).keys() == now.keys()
    (lists / "make_split.json").write_text('{"seed": -1}')
    with pytest.raises(InputError, match="make_split.json cannot be read"):
        split(videos, lists)
    (lists / "make_split.json").unlink()  # somebody else's lists
    with pytest.raises(InputError, match="did not make"):
        split(videos, lists)


def test_other_flags_split_anew_and_edited_groups_are_not_passed_over(tmp_path, split):
    videos, table = make_videos(tmp_path / "videos", *numbered({"run": 4, "sit": 4})), tmp_path / "g.csv"
    table.write_text("video,group\nclip 0 1,0\nclip 1 1,1\n")
    for flags in ("--groups", table), ("--groups", "none"), ("--groups", table), ("--seed", 7):  # as after an alarm
        assert ("is split anew" in split(videos, tmp_path / "lists", *flags)) == (tmp_path / "once").exists()
        assert "as they were" in split(videos, tmp_path / "lists")
        (tmp_path / "once").touch()
    split(videos, tmp_path / "fresh", "--groups", table, "--seed", 7)
    assert sides(tmp_path / "lists") == sides(tmp_path / "fresh")
    one, two = (next(path for path, side in sides(tmp_path / "lists").items() if side == wanted)
                for wanted in ("train", "test"))  # fmt: skip
    table.write_text(f"video,group\n{one},0\n{two},0\n")
    assert "1 recording in training and test" in split(videos, tmp_path / "lists")


@pytest.mark.skipif(sys.platform != "linux", reason="names that other systems do not allow")
def test_names_that_no_list_can_hold_are_left_out_and_the_rest_goes_on(tmp_path, split):
    good = [*numbered({"run": 4, "sit": 4, "nb\u00a0sp, 3": 3}), "run/v_jog_g01_c01.avi", 'run/"q" 1.avi',
            "sit/é 7.avi"]  # fmt: skip
    bad = ["run /a.avi", " run/a.avi", "run\u00a0/b.avi", "sit/new\nline.avi", "sit/back\\slash.avi", "run/c\r.avi",
           "sit/run/d.avi", ", x/e.avi", "\ufefff/f.avi"]  # fmt: skip
    videos = make_videos(tmp_path / "videos", *good, *bad)
    with open(os.fsencode(videos) + b"/run/latin-\xe4.avi", "wb"):
        pass
    make_videos(videos, "jog/gone.avi")
    (tmp_path / "failed.csv").write_text("video,reason\njog/gone.avi,damaged\n")
    said = split(videos, tmp_path / "lists", "--without", tmp_path / "failed.csv")
    assert "no video of  run, , x, jog and 3 more can be used" in said
    assert "warning: 10 videos left out" in said and "\n  nb\u00a0sp, 3: 3 videos" in "\n" + said
    assert sides(tmp_path / "lists").keys() == set(good)
    make_videos(videos, "Run/x.avi")
    with pytest.raises(InputError, match="differ in more than upper case"):
        make_split.find_classes(videos)
