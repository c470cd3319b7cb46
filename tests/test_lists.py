"""Split lists and the group rule, against the official lists and against lists built here line by line."""

import itertools
import os
import re
from pathlib import Path

import pytest

from dataloader.lists import Video, hold_out_groups, load_split
from dataloader.names import UCF101_CLASSES, find_groups, video_key
from utils import InputError


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def error(folder: Path, number: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        load_split(folder, number)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# UCF101


@pytest.mark.parametrize("number, sizes", [(1, (9537, 3783)), (3, (9624, 3696))])
def test_official_lists_and_group_rule(shared, number, sizes):
    folder = shared / "data" / "ucfTrainTestlist"
    train = [line.split() for line in (folder / f"trainlist{number:02d}.txt").read_text().splitlines()]
    test = (folder / f"testlist{number:02d}.txt").read_text().split()
    listed = load_split(folder, number)
    assert (listed.dataset, listed.number) == ("ucf101", str(number))
    lines = (folder / "classInd.txt").read_text().splitlines()
    assert [f"{i} {name}" for i, name in enumerate(UCF101_CLASSES, 1)] == lines  # no sort: Hammering before HammerThrow
    assert (len(listed.train), len(listed.test)) == sizes == listed.official_counts
    assert [[video.listed, str(video.label + 1)] for video in listed.train] == train
    assert [video.listed for video in listed.test] == test
    for video in listed.train + listed.test:
        assert video.listed.split("/")[0] == listed.class_names[video.label]
        assert "v_" + video.name.casefold() + ".avi" == video.listed.split("/")[1].casefold()

    folders = [f"{line.split('/')[1].removesuffix('.avi')}" for line in test + [path for path, _ in train]]
    ruled = load_split(None, number, folders)
    for by_rule, by_list in ((ruled.train, listed.train), (ruled.test, listed.test)):
        assert {(v.name, v.label) for v in by_rule} == {(v.name, v.label) for v in by_list}
    assert ruled.class_names == listed.class_names


def test_rule_with_the_classes_that_are_on_disk():
    demo = load_split(None, 1, ["v_stripes_left_g01_c01", "v_Dots_up_g09_c01", "v_stripes_left_g08_c01"])
    assert (demo.dataset, demo.class_names) == ("own", ["Dots_up", "stripes_left"])
    assert [video.name for video in demo.test] == ["stripes_left_g01_c01"]
    assert load_split(None, 1, ["v_Biking_g01_c01", "v_Knitting2_g01_c01"]).class_names == ["Biking", "Knitting2"]
    for spelling in ("v_HandStandPushups_g01_c02", "v_HandstandPushups_g01_c02"):  # one key
        assert load_split(None, 1, [spelling]).test == [Video("HandstandPushups_g01_c02", 36, spelling)]


def test_rule_gives_the_same_split_in_whatever_order_the_disk_lists():
    """By label, then by name: in UCF101's order Hammering comes before HammerThrow."""
    names = [f"v_{class_}_g{group:02d}_c01" for class_ in ("YoYo", "HammerThrow", "Hammering") for group in (12, 9, 11)]
    names += ["b/v_YoYo_g09_c01", "a/v_YoYo_g09_c01"]  # layouts reports that it is there three times
    split = load_split(None, 1, names)
    wanted = [f"{class_}_g{group:02d}_c01" for class_ in ("Hammering", "HammerThrow", "YoYo") for group in (9, 11, 12)]
    assert [video.name for video in split.train] == wanted
    assert load_split(None, 1, names[::-1]) == split
    own = load_split(None, 1, [f"v_{letter}_g08_c01" for letter in "gbfaedc"])
    assert own.class_names == list("abcdefg")


def test_rule_needs_names_of_its_form():
    with pytest.raises(InputError, match=r"fight/fi001.*data/make_split\.py"):
        load_split(None, 1, ["fight/fi001"])
    with pytest.raises(InputError, match="--split 4"):
        load_split(None, 4, ["v_Biking_g01_c01"])
    with pytest.raises(InputError, match="no videos"):
        load_split(None, 1, [])


def test_ucf101_lists_with_crlf_mark_and_blank_lines(tmp_path):
    classes = "\n".join(f"{i} {name}" for i, name in enumerate(UCF101_CLASSES, 1))
    lists = write(tmp_path / "lists", {
        "classInd.txt": b"\xef\xbb\xbf" + classes.replace("\n", "\r\n").encode(),
        "trainlist01.txt": b"\xef\xbb\xbfHammering/v_Hammering_g08_c01.avi 35\r\n\r\n  \r\n"
                           b"YoYo/v_YoYo_g09_c01.avi 101\r\n",
        "testlist01.txt": b"\r\nHammerThrow/v_HammerThrow_g01_c01.avi\r\n",
    })  # fmt: skip
    split = load_split(lists, "01")
    assert split.train == [
        Video("Hammering_g08_c01", 34, "Hammering/v_Hammering_g08_c01.avi"),
        Video("YoYo_g09_c01", 100, "YoYo/v_YoYo_g09_c01.avi"),
    ]
    assert split.test == [Video("HammerThrow_g01_c01", 35, "HammerThrow/v_HammerThrow_g01_c01.avi")]
    assert load_split(tmp_path, 1) == split  # the folder above does as well


TRAIN = "Biking/v_Biking_g08_c01.avi 11\nDiving/v_Diving_g08_c01.avi 26\n"
TEST = "Biking/v_Biking_g01_c01.avi\n"


@pytest.mark.parametrize(
    "train, test, words",
    [
        (TRAIN + "Biking/V_biking_g01_c01.AVI 11\n", TEST, ["leak", "2 lines", "Biking/V_biking_g01_c01.AVI"]),
        (TRAIN + "Biking/v_Biking_g08_c01.avi 11\n", TEST, ["2 lines", "delete all but one"]),
        (TRAIN + "Flying/v_Flying_g08_c01.avi 11\n", TEST, ["trainlist01.txt line 3", "Flying", "none of the 101"]),
        (TRAIN + "Biking/v_Biking_g09_c01.avi 26\n", TEST, ["line 3", "earlier lines give 26 another class"]),
        (TRAIN + "Biking/v_Biking_g09_c01.avi 102\n", TEST, ["line 3", "or Biking another label"]),
        (TRAIN + "Biking/v_Biking_g09_c01.avi eleven\n", TEST, ["line 3", "expected `path label`"]),
        (TRAIN + "Biking/a.avi " + "9" * 5000 + "\n", TEST, ["line 3", "expected `path label`"]),
        (TRAIN + "Biking/.avi 11\n", TEST, ["line 3", "expected `path label`"]),
        (TRAIN + "/ 11\n", TEST, ["line 3"]),
        ("", TEST, ["trainlist01.txt is empty"]),
        (TRAIN, b"\xff\xfeB\0i\0", ["testlist01.txt", "UTF-8"]),
    ],
)  # fmt: skip
def test_bad_lists_are_told_by_file_and_line(tmp_path, train, test, words):
    classes = "\n".join(f"{i} {name}" for i, name in enumerate(UCF101_CLASSES, 1))
    write(tmp_path, {"classInd.txt": classes, "trainlist01.txt": train, "testlist01.txt": test})
    message = error(tmp_path)
    assert all(word in message for word in words), message
    assert len(message.replace(str(tmp_path), "")) < 200, message


def test_absent_lists(tmp_path):
    assert "no folder" in error(tmp_path / "nowhere")
    assert "holds no split lists" in error(tmp_path)
    write(tmp_path, {"trainlist01.txt": TRAIN, "testlist01.txt": TEST})
    assert "no lists of split 2, only of split 1" in error(tmp_path, 2)
    (tmp_path / "testlist01.txt").unlink()
    assert "no test list of split 1" in error(tmp_path)
    for classes in ("1 Biking\n" + "2" * 5000 + " Diving\n", "1 Biking\n3 Diving\n", "1 Biking\nDiving\n"):
        write(tmp_path, {"testlist01.txt": TEST, "classInd.txt": classes})
        assert "classInd.txt: number all classes" in error(tmp_path)
    write(tmp_path, {f"trainlist{n:02}.txt": TRAIN for n in range(2, 9)})
    write(tmp_path, {"train.txt": TRAIN})  # without a number: split 1
    assert "no lists of split 9, only of split 1, 2, 3, 4, 5, 6, 7, 8" in error(tmp_path, 9)


# HMDB51


def hmdb51_lists() -> tuple[dict[str, str], list[str]]:
    """51 classes with 70 training and 30 test videos each, and 1666 unused ones in all, as the official lists."""
    classes = [f"class_{i:02d}" for i in range(49)] + ["climb", "climb_stairs"]
    files = {}
    for number in (1, 2, 3):
        for i, name in enumerate(classes):
            uses = "1" * 70 + "2" * 30 + "0" * (1666 // 51 + (i < 1666 % 51))
            lines = [
                f"[@!(A_B)] #1; film.2 -_x_{name}_f_cm_np1_ba_med_{j}.avi {use} \r\n"
                for j, use in enumerate(uses[number:] + uses[:number])
            ]
            files[f"{name}_test_split{number}.txt"] = "".join(lines)
    return files, classes


def test_hmdb51(tmp_path):
    files, classes = hmdb51_lists()
    folder = write(tmp_path / "testTrainMulti_7030_splits", files)
    split = load_split(folder, 3)
    assert split.dataset == "hmdb51"
    assert split.class_names == sorted(classes)
    assert (len(split.train), len(split.test)) == (3570, 1530) == split.official_counts
    first = split.train[0]
    assert first == Video(
        "class_00/[@!(A_B)] #1; film.2 -_x_class_00_f_cm_np1_ba_med_0", 0,
        "class_00/[@!(A_B)] #1; film.2 -_x_class_00_f_cm_np1_ba_med_0.avi",
    )  # fmt: skip
    assert sum(len(text.split("\r\n")) - 1 for name, text in files.items() if "split3" in name) == 3570 + 1530 + 1666
    stairs = {video.name.split("/")[0] for video in split.train if video.label == classes.index("climb_stairs")}
    assert stairs == {"climb_stairs"}
    assert load_split(tmp_path, 1).number == "1"  # the folder above

    assert "only of split 1, 2, 3" in error(folder, 4)
    name = "climb_test_split1.txt"
    write(folder, {name: "a b.avi 1 \nc.avi 3 \n"})
    assert f"{name} line 2: expected `name.avi 0|1|2`" in error(folder)
    write(folder, {name: "a b.avi 1 \n2\n"})
    assert f"{name} line 2" in error(folder)
    write(folder, {name: "a b.avi 1 \na b.avi 2\n"})
    assert "a b.avi" in error(folder)


# one's own


@pytest.mark.parametrize(
    ("train", "test", "classes", "videos"),
    [  # without labels: the folders, or UCF101's names, in UCF101's order or sorted
        ("Biking/1.avi\ndance/2.avi", "Biking/3.avi", "Biking dance", "Biking/1 dance/2 Biking/3"),
        ("v_YoYo_g08_c01.avi", "v_Biking_g01_c01.avi", "Biking YoYo", "YoYo_g08_c01 Biking_g01_c01"),
        ("Hammering/x.avi\nHammerThrow/y.avi", "Hammering/z", "Hammering HammerThrow",
         "Hammering/x HammerThrow/y Hammering/z"),
        ("diving/x.avi\nbiking/y.avi", "diving/z.avi", "Biking Diving", "Diving/x Biking/y Diving/z"),
        ("b/two%words%1.avi\na/x.y.mp4", "/data/videos/b/3.avi", "a b", "b/two%words%1 a/x.y b/3"),
        # labels of one's own count from 0 or 1, or as they like; TSN's `path frames label`, UCF101's from 0 or 1
        ("z/1.avi 0\na/1.avi 1", "z/2.avi 0", "z a", "z/1 a/1 z/2"),
        ("z/1.avi 1\na/1.avi 2", "z/2.avi 1", "z a", "z/1 a/1 z/2"),
        ("Biking/x.avi 1\nDiving/y.avi 0", "Diving/z.avi 0", "Diving Biking", "Biking/x Diving/y Diving/z"),
        ("Biking/x.avi 11\nDiving/y.avi 26", "Diving/z 26", "Biking Diving", "Biking/x Diving/y Diving/z"),
        ("Biking/x.avi 9 10\nDiving/y.avi 9 25", "Diving/z 9 25", "Biking Diving", "Biking/x Diving/y Diving/z"),
        ("b/1.avi 5\na/2.avi 7", "a/9.avi 7", "b a", "b/1 a/2 a/9"),  # a class without a video
        # as people write paths
        ('"C:\\My%Videos\\run\\a%1.avi" 0\r\nC:\\My%Videos\\sit%down\\b%2.avi 1\r\n/x%y/run/c/ 0', "v/run/d.avi 0",
         "run sit%down", "run/a%1 sit%down/b%2 run/c run/d"),
    ],
)  # fmt: skip
def test_own_lists(tmp_path, train, test, classes, videos):
    """% stands for a space."""
    write(tmp_path, {"train.txt": train.replace("%", " "), "test.txt": test.replace("%", " ")})
    split = load_split(tmp_path, 1)
    assert (split.dataset, split.official_counts) == ("own", None)
    assert split.class_names == [name.replace("%", " ") for name in classes.split()]
    assert [video.name for video in split.train + split.test] == [name.replace("%", " ") for name in videos.split()]
    assert all(video.name.startswith(split.class_names[video.label]) for video in split.train + split.test)
    assert len(split.test) == 1 and split.test[0].listed == test.replace("%", " ").split(" ")[0]
    if "Diving" in classes and " 0" not in train:
        write(tmp_path, {"classes.txt": "\n".join(UCF101_CLASSES)})  # which says that there are all
        assert len(load_split(tmp_path, 1).class_names) == 101


def test_tsn_lists_of_rgb_and_flow(tmp_path):
    """TSN's data/ucf101_rgb_train_split_1.txt: `path num_frames label`, Hammering 34, HammerThrow 35."""
    rgb = "/data/ucf101/v_Hammering_g08_c01 98 34\n/data/ucf101/v_HammerThrow_g08_c01 99 35\n"
    write(tmp_path, {
        "ucf101_rgb_train_split_2.txt": rgb, "ucf101_flow_train_split_2.txt": rgb.replace(" 98 ", " 97 "),
        "ucf101_rgb_val_split_2.txt": "/data/ucf101/v_HandStandPushups_g01_c01 80 36\n",
    })  # fmt: skip
    split = load_split(tmp_path, 2)
    assert [(video.name, video.label) for video in split.train + split.test] == [
        ("Hammering_g08_c01", 0), ("HammerThrow_g08_c01", 1), ("HandstandPushups_g01_c01", 2)]  # fmt: skip


def test_own_lists_that_do_not_tell_their_classes(tmp_path):
    for train, told in (
        ("1.avi\n", "train.txt line 1: no folder tells the class of 1.avi"),
        ("a/1.avi 0\na/2.avi 1\n", "line 2: earlier lines"), ("clips/1 40 0\nclips/2 41 1\n", "classes.txt"),
    ):  # fmt: skip
        write(tmp_path, {"train.txt": train, "test.txt": "clips/3 42 1\n" if "clips" in train else "a/9.avi 0\n"})
        assert told in error(tmp_path)
    write(tmp_path, {"classes.txt": "run\nsit down\n"})
    split = load_split(tmp_path, 1)
    assert [video.name for video in split.train + split.test] == ["run/1", "sit down/2", "sit down/3"]
    write(tmp_path, {"test.txt": "clips/3 42 2\n"})
    assert "clips/3 is of none of the 2 classes" in error(tmp_path)
    several = "run/mon/1.avi\nrun/tue/1.avi\nsit down/1.avi\n"  # of one name, which keep their folders
    write(tmp_path, {"train.txt": several, "test.txt": "test/sit down/1.avi\nx/run/2.avi\n"})
    split = load_split(tmp_path, 1)
    assert [v.name for v in split.train] == ["run/mon/1", "run/tue/1", "sit down/1"]
    assert [v.name for v in split.test] == ["test/sit down/1", "run/2"]
    write(tmp_path, {"train.txt": "run/1.avi\nsit down/1.avi\n", "test.txt": b"run/latin-\xe4.avi\n"})
    assert load_split(tmp_path, 1).test[0].listed == os.fsdecode(b"run/latin-\xe4.avi") or os.name == "nt"  # as on disk


def test_keys():
    assert video_key("Class/v_HandStandPushups_g01_c01.avi", "HandstandPushups") == "HandstandPushups_g01_c01"
    assert video_key("fight\\fi001.avi", "fight") == "fight/fi001"
    assert video_key("fight/v_1.5.mp4", "fight") == "fight/v_1.5"
    assert video_key("fight/v_other_g01_c01.avi", "fight") == "fight/v_other_g01_c01"


# validation groups


def test_hold_out_the_last_groups(shared):
    split = load_split(shared / "data" / "ucfTrainTestlist", 3)
    train, val = hold_out_groups(split.train, 3)
    assert len(train) + len(val) == 9624
    assert {re.search(r"_g(\d\d)_", video.name)[1] for video in val} == {"23", "24", "25"}
    assert {re.search(r"_g(\d\d)_", video.name)[1] for video in train} == {f"{g:02d}" for g in (*range(1, 15), 22)}
    assert {video.label for video in train} == {video.label for video in val} == set(range(101))
    with pytest.raises(InputError, match="--val-groups 18"):
        hold_out_groups(split.train, 18)
    with pytest.raises(InputError, match="--val-groups 0"):
        hold_out_groups(split.train, 0)


def test_hold_out_of_other_names():
    """HMDB51: clips of one source stay together, and so do the single videos beside them."""
    names = [f"kick/{source}_kick_f_cm_np1_ba_med_{i}" for source in ("film_a", "film_b", "film_c") for i in range(2)]
    own = [f"fight/fi{i:03d}" for i in range(10)]
    groups = find_groups(names + own, ["kick"] * 6 + ["fight"] * 10)
    assert groups == [name[5:11] for name in names] + [""] * 10
    videos = [Video(name, int(name in own), name, group or name)
              for name, group in zip(names + own, groups, strict=True)]  # fmt: skip
    train, val = hold_out_groups(videos, 1)
    assert [video.name for video in val] == [*names[4:], own[-1]]
    assert [video.name for video in train] == [*names[:4], *own[:-1]]


def clips(text: str, **parts: list) -> list[tuple[str, str]]:
    """[(path, class)] of all combinations of `parts`, among them c, the class."""
    made = [dict(zip(parts, values, strict=True)) for values in itertools.product(*parts.values())]
    return [(text.format(**one), one["c"]) for one in made]


@pytest.mark.parametrize(
    "videos, group",
    [  # groups that names tell, of the first video
        (clips("{c}/v_{c}_g{g:02}_c01.avi", c=["Biking", "Diving"], g=range(1, 4)), "01"),
        (clips("{c}/{p}_{c}.avi", c=["run", "walk"], p=["daria", "eli", "ira"]), "daria"),  # Weizmann
        (clips("{c}/{p}_{c}{i}.avi", c=["run", "walk"], p=["daria", "eli", "ira"], i=[1, 2]), "daria"),
        (clips("{c}/{c}_{p}.avi", c=["run", "walk"], p=["daria", "eli", "ira"]), "daria"),
        (clips("{c}/person{p:02}_{c}_d{i}_uncomp.avi", c=["jogging", "boxing"], p=range(5), i=[1, 2]), "person00"),
        (clips("{c}/{c}_rec{r}_{i}.mp4", c=["sit down", "walk"], r=range(3), i=range(4)), "rec0"),
        (clips("{c}/{c}-{r}-{i}.mp4", c=["sit down", "walk"], r=range(3), i=range(4)), "0"),
        (clips("{c}/game{r} clip{i}.mp4", c=["a", "b"], r=range(3), i=range(4)), "game0"),
        (clips("{c}/rec{r}/{r}{i}.mp4", c=["a", "b"], r=range(3), i=range(4)), "rec0"),
        (clips("biking/v_biking_{r:02}/v_biking_{r:02}_{i:02}.mpg", c=["biking"], r=range(9), i=range(4))
         + clips("basketball/v_shooting_{r:02}/v_shooting_{r:02}_{i:02}.mpg", c=["basketball"], r=range(9), i=[1, 2]),
         "v_biking_00"),  # UCF11
        # and none: one recording, numbers, cameras' names, ids
        (clips("{c}/video_{c}_{i}.avi", c=["run", "walk"], i=range(1, 7)), ""),
        ([("run/other.avi", "run"), *clips("{c}/video_{c}_{i}.avi", c=["run", "walk"], i=range(1, 7))], ""),
        (clips("{c}/{c}_{i}.avi", c=["run", "walk"], i=range(6)), ""),
        (clips("{c}/fi{i:03}.avi", c=["run", "walk"], i=range(6)), ""),
        (clips("{c}/{p}_{i:03}.avi", c=["run", "walk"], p=["IMG", "MVI"], i=range(6)), ""),
        (clips("{c}/{i}aQ-x_000{i}10_000020.mp4", c=["run", "walk"], i=range(6)), ""),
        (clips("{c}/clip {i} 1.avi", c=["run"], i=range(40)), ""),
        (clips("{c}/rec{r}_{i}.avi", c=["a"], r=[1, 2], i=[1, 2]) + clips("{c}/{i}.avi", c="bcd", i=range(9)), ""),
    ],
)  # fmt: skip
def test_groups_are_told_by_all_names_together(videos, group):
    assert find_groups(*map(list, zip(*videos, strict=True)))[0] == group


def test_weizmann_and_hockey(shared):
    paths = sorted(path.relative_to(shared / "data").as_posix() for path in (shared / "data").glob("*/*/*.avi"))
    for name, groups in (("weizmann", 9), ("hockey_fights", 1)):
        found = [path for path in paths if path.startswith(name)]
        assert len(set(find_groups(found, [path.split("/")[1] for path in found]))) == groups


def test_groups_csv_beside_the_lists_is_the_authority(tmp_path):
    lists = {"train.txt": "run/a_run_1.avi\nsit/b_sit_1.avi\nsit/b_sit_2.avi\n", "test.txt": "run/c_run_1.avi\n"}
    write(tmp_path, {**lists, "groups.csv": "video,group\nRUN/a_run_1.mp4,monday\nrun/c_run_1.avi,\ngone/x.avi,y\n"})
    split = load_split(tmp_path, 1)
    assert [video.group for video in split.train] == ["monday", "sit/b_sit_1", "sit/b_sit_2"]
    assert split.test[0].group == split.test[0].name == "run/c_run_1"
    write(tmp_path, {"groups.csv": "path,who\nrun/a_run_1.avi,x\n"})
    assert "groups.csv: expected a CSV file with the columns video and group" in error(tmp_path)


def test_without_groups_a_fraction_of_each_class_is_held_out():
    """3 of UCF101's 18 training groups are a sixth; of 60 and 12 videos 10 and 2, and of a single video none."""
    videos = [Video(f"{name}/{i:03d}", label, "", f"{name}/{i:03d}") for label, (name, count) in
              enumerate({"fight": 60, "calm": 12, "two": 2, "one": 1}.items()) for i in range(count)]  # fmt: skip
    train, val = hold_out_groups(videos, 3)
    assert [sum(video.label == label for video in val) for label in range(4)] == [10, 2, 1, 0]
    assert sorted(train + val, key=videos.index) == videos and val[0].name == "fight/050"
