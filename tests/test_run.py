"""From a folder of videos to the fused table in one command: given again, given other videos, damaged, killed."""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from video_files import make_video

import fusion
import run as script
from data.steps import Steps, call
from data.videos import find_videos
from saved.feature_file import read_features
from saved.predictions import load_predictions, write_predictions
from utils import InputError

FLAGS = "--sizes 32 32 --samples 16 16 --views 1"
UP_TO_SPLIT = ("recogniser/video_features.py", "data/make_split.py")
ODD = (b"latin-\xe4.avi", b"back\\slash.avi") if sys.platform == "linux" else ()  # names that no list can hold
NETWORK = ("--arch", "resnet18", "--weights", "none", "--flags", FLAGS)


def make_videos(folder, classes=("clap", "wave"), each=5, name="{}.avi"):
    for place, label in enumerate(classes):
        for number in range(each):
            make_video(folder / label / name.format(number), 10 * place + number, frames=14, size=(64, 48))
    return folder


@pytest.fixture(scope="module")
def once(run, tmp_path_factory):
    """A folder in which run.py went through `videos` once, of which four can't be used, and what it printed."""
    folder = tmp_path_factory.mktemp("once")
    make_videos(folder / "videos")
    (folder / "videos/clap/bad.avi").write_bytes(b"no video")
    made = (folder / "videos/wave/1.avi").read_bytes()
    make_video(folder / "videos/wave/short.avi", 3, frames=3, size=(64, 48))
    for name in ODD:
        with open(os.fsencode(folder) + b"/videos/wave/" + name, "wb") as file:
            file.write(made)
    return folder, run("run.py", "videos", *NETWORK, cwd=folder).stdout


@pytest.fixture
def again(once, tmp_path):
    """A copy of that folder. The files' times are others: their content tells that they are the same."""
    for name in ("videos", "record"):
        shutil.copytree(once[0] / name, tmp_path / name)
    (tmp_path / "record/videos/run.json").write_text(json.dumps({"videos": str(tmp_path / "videos")}))
    return tmp_path


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Run run.py in tmp_path with steps that only note their commands, but for those in `real`; return them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "check_network", lambda *_: None)

    def commands(*words, real=()):
        taken = []

        def step(_, title, *command, passed=(0,)):
            taken.append([*map(str, command)])
            if command[0] in real:
                assert call(taken[-1]) in passed

        monkeypatch.setattr(Steps, "__call__", step)
        monkeypatch.setattr("sys.argv", ["run.py", *map(str, words)])
        script.main()
        return taken

    return commands


def rows(record, name="rgb"):
    found = read_features(record / f"data/features/{name}.npz")
    return dict(zip(found.videos, found.values, strict=True))


def test_few_videos_take_the_fast_way_to_the_table_and_a_prediction(once, run, tmp_path):
    folder, said = once
    for words in ("fast way", "about ", "== 1/4", "== 4/4", "report.html", "predict.py VIDEO"):
        assert words in said, said
    record = folder / "record/videos"
    results = json.loads((record / "fusion/results.json").read_text())
    assert results["videos"] == 4 and {"spatial", "motion", "fusion"} <= set(results)
    assert (record / "fusion/report.html").is_file()
    # what can't be used is named, and the rest went on
    for words in ("clap/bad.avi: cannot be opened", "wave/short.avi: has 3 frames, and one clip"):
        assert words in said
    with open(record / "data/left_out.csv", newline="") as file:
        left_out = {row[0] for row in csv.reader(file)}
    odd = {"wave/latin-\\udce4.avi", "wave/back\\slash.avi"} if ODD else set()
    assert left_out == {"video", "clap/bad.avi", "wave/short.avi"} | odd
    assert f"left out: {len(left_out) - 1} videos" in said
    expected = {f"{name}/{number}" for name in ("clap", "wave") for number in range(5)}
    assert {name for name in rows(record) if name[-1].isdigit()} == expected
    assert not [path for path in record.rglob("*") if path.suffix in (".jpg", ".partial")]

    # the last line's command answers for a new video, as the head and the fusion answered when they were tested
    flags = said.splitlines()[-1].partition("VIDEO ")[2].split()
    assert "--fusion" in flags
    video = sorted(json.loads((record / "heads/linear/spatial/predictions.json").read_text())["labels"])[0]
    shutil.copy(folder / f"videos/{video}.avi", tmp_path / "new.avi")
    answer = json.loads(run("predict.py", tmp_path / "new.avi", *flags, "--json", cwd=folder).stdout)
    # where the fusion chose one stream, the other one is not computed
    logits = {stream: answer[stream]["logits"] for stream in ("spatial", "motion") if stream in answer}
    heads = record / "heads/linear"
    if joined := results["learnt"]["joined"]:  # one head on both streams' features says the sum of what they say
        heads = folder / joined
        logits = {".": {name: sum(one[name] for one in logits.values()) for name in ("clap", "wave")}}
    assert logits
    for stream, told in logits.items():
        found = load_predictions(heads / stream)
        expected = dict(zip(found.class_names, found.logits[video].tolist(), strict=True))
        assert told == pytest.approx(expected, rel=0.05, abs=0.05)


def test_given_again_only_what_a_changed_video_needs_is_done(again, commands, capsys):
    """A video that another of equal length took the place of is computed again; one was added, and one has gone."""
    record = again / "record/videos"
    old = {name: rows(record, name) for name in ("rgb", "greydiff", "flow")}
    make_video(again / "videos/clap/3.avi", 99, frames=14, size=(64, 48))
    make_video(again / "videos/clap/new.avi", 98, frames=14, size=(64, 48))
    (again / "videos/wave/4.avi").unlink()
    taken = commands("videos", *NETWORK, real=UP_TO_SPLIT)
    said = capsys.readouterr().out
    assert [command[0] for command in taken] == [*UP_TO_SPLIT, "heads.py", "fusion.py"]
    assert "new since the lists were made, 1 video: clap/new.avi" in said
    assert "gone since the lists were made, 1 video: wave/4.avi" in said
    assert f"features of {len(list(again.glob('videos/*/*')))} videos, {8 + len(ODD)} of them there already" in said
    for name, before in old.items():
        after = rows(record, name)
        assert after.keys() == before.keys() - {"wave/4"} | {"clap/new"}
        changed = [video for video in before.keys() & after.keys() if not np.array_equal(before[video], after[video])]
        assert changed == ["clap/3"], name


def test_groups_and_test_videos_of_its_own(commands, tmp_path):
    make_videos(tmp_path / "videos", ("sit", "stand"), each=4)
    make_videos(tmp_path / "tests", ("sit", "stand"), each=2, name="new{}.avi")
    flags = ("--test", "tests", "--groups", r"(\d)\.avi", "--way", "train")
    taken = commands("videos", *flags, real=["data/make_split.py"])
    lists = Path("record/videos/data_train/lists_test")
    assert str(lists) in taken[3]
    groups = {row[1] for row in csv.reader((lists / "groups.csv").read_text().splitlines()[1:])}
    assert groups == set("0123")
    tested = {line.split()[0] for line in (lists / "test.txt").read_text().splitlines()}
    assert tested == {f"test/{name}/new{number}.avi" for name in ("sit", "stand") for number in range(2)}
    assert len((lists / "train.txt").read_text().splitlines()) == 8


def test_too_few_videos_end_it_before_heads(run, tmp_path):
    """Started in the folder of the videos, into which nothing is written."""
    videos = make_videos(tmp_path / "videos", each=2)
    (videos / "clap/0.avi").write_bytes(b"no video")
    ended = run("run.py", ".", *NETWORK, cwd=videos, code=2)
    assert "clap has 1 video" in ended.stderr and "stopped at 'split into training and test'" in ended.stderr
    assert "goes on from there" not in ended.stderr and "heads.py" not in ended.stdout
    assert (tmp_path / "record/videos/data/features/rgb.npz").is_file()
    assert len(list(videos.iterdir())) == 2


def test_what_is_wrong_is_told_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for arch, weights, told in [("resnet1", None, "resnet1 is not"), ("resnet18", "junk.pth", "junk.pth"),
                                ("resnet18", "absent.pth", "absent.pth: no such file")]:  # fmt: skip
        with pytest.raises(InputError, match=told):
            monkeypatch.chdir(tmp_path)
            script.check_network(argparse.Namespace(arch=arch, weights=weights), "heads")
    split = [f"split/{side}/{name}/1" for side in ("train", "test") for name in ("clap", "wave")]
    for name in ("videos/clap/1", "videos/wave/1", *split, "flat/1", "one/clap/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.avi").touch()
    (tmp_path / "empty").mkdir()
    for name, text in (("damaged", "{"), ("taken", '{"videos": "/other"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    for where, words, told in [
        (".", "empty", "holds no video"), (".", "flat", "flat: in no class folder"),
        (".", "videos --test gone", "gone is no folder"), (".", "videos --test videos", "holds the videos of videos"),
        (".", "videos --test split", "split is split into"),
        (".", "videos --test flat", "flat: in no class folder"), (".", "videos --test one", "has the class folders"),
        (".", "videos --lists gone", "no folder gone"), (".", "videos --lists none", "not named like UCF101"),
        (".", "videos --groups (", "no regular expression"), (".", "videos --groups 7", "tells no video's"),
        (".", "videos --record damaged", "run.json cannot be read"),
        (".", "videos --record taken", "taken has the results of /other"),
        ("videos", ". --record out", "lies in"), ("videos/clap", ".", "in no class folder"),
    ]:  # fmt: skip
        monkeypatch.chdir(tmp_path / where)
        monkeypatch.setattr("sys.argv", ["run.py", *words.split()])
        with pytest.raises(InputError, match=told):
            script.main()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_number_of_videos_and_their_names_decide(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FEW", 1)
    for name in ("a/1.avi", "b/1.avi"):
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).touch()
    own = commands("own")
    data = ["data/extract_rgb.py", "data/extract_flow.py", "data/make_split.py"]
    assert [command[0] for command in own] == [*data, "spatial_cnn.py", "motion_cnn.py", "fusion.py"]
    heads = commands("own", "--way", "heads")
    assert [command[0] for command in heads] == [*UP_TO_SPLIT, "heads.py", "fusion.py"]
    for number in ("1", "8"):
        for name in ("Biking", "Diving"):
            path = tmp_path / f"ucf/{name}/v_{name}_g0{number}_c01.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    ucf = commands("ucf", "--flags", "--recipe tsn")
    assert ucf[2][ucf[2].index("--ucf-list") + 1] == "none" and "--resume" in ucf[2]
    assert ucf[3][-2:] == ["--recipe", "tsn"]


def test_both_ways_keep_of_each_stream_what_is_right_more_often_on_held_out_videos(commands, tmp_path, capsys):
    make_videos(tmp_path / "own", name="{}.avi")
    held_out = {"a/1": 0, "a/2": 0, "b/3": 1, "b/4": 1}

    def write(folder, stream, wrong, more=()):
        labels = {**held_out, **dict.fromkeys(more, 0)}
        logits = {video: np.eye(2, dtype=np.float32)[None, label ^ (video in wrong)] for video, label in labels.items()}
        about = {"class_names": ["a", "b"], "labels": labels, "dataset": "own", "split": "1"}
        write_predictions(tmp_path / "record/own" / folder / "val", stream, logits, about)

    for stream, of_head, of_network in (("spatial", ["a/1", "a/7"], []), ("motion", ["b/3"], ["b/4"])):
        write(f"heads/linear/{stream}", stream, of_head, more=("a/7", "a/8"))
        write(stream, stream, of_network)
    taken = commands("own", "--way", "both", "--flags", "--epochs 3", real=["data/make_split.py"])
    said = capsys.readouterr().out
    assert "spatial: of 4 held-out training videos the head has 3 right, the trained network 4: the network is" in said
    assert "motion: of 4 held-out training videos the head has 3 right, the trained network 3: the head is" in said
    assert [command[0] for command in taken] == [
        "recogniser/video_features.py", "data/extract_rgb.py", "data/extract_flow.py", "data/make_split.py", "heads.py",
        "spatial_cnn.py", "motion_cnn.py", "fusion.py",
    ]  # fmt: skip
    record = Path("record/own")
    chosen = {"--spatial": record / "spatial", "--motion": record / "heads/linear/motion"}
    assert {flag: Path(taken[-1][taken[-1].index(flag) + 1]) for flag in chosen} == chosen
    assert "--spatial record/own/spatial/model_best.pth.tar --motion record/own/heads/linear/motion/checkp" in said
    assert taken[5][taken[5].index("--val-groups") + 1] == "4" and taken[5][-2:] == ["--epochs", "3"]
    # fusion learns on the four videos that both have
    args = argparse.Namespace(pickles=["a", "b"], splits=None)
    both = fusion.load(args, None, [str(record / "spatial/val"), str(record / "heads/linear/motion/val")])
    assert both.videos == sorted(held_out) and "the 4 that all streams have, of 6" in capsys.readouterr().out


def test_a_training_of_other_videos_sides_or_flags_is_set_aside(commands, tmp_path):
    """`--resume auto` would go on with it, since it knows the videos by their names alone."""
    make_videos(tmp_path / "own", each=1)
    last, marker = tmp_path / "record/own/motion/checkpoint.pth.tar", "record/own/data_train/flow/.done/clap/0.json"
    lists = tmp_path / "record/own/data_train/lists"
    made = {"settings": "", "bytes": 1, "images": 13}
    for place, text, flags, stays in [
        (marker, json.dumps({**made, "sha256": "a"}), [], True), (marker, None, [], True),
        (marker, json.dumps({**made, "sha256": "b"}), [], False), (lists / "test.txt", "clap/0.avi 0\n", [], False),
        (marker, None, ["--flags", "--epochs 9"], True), (marker, None, ["--weights", "none"], False),
    ]:  # fmt: skip
        last.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (tmp_path / place).write_text(text)
        last.write_text(text := f"{place} {flags}")
        commands("own", "--way", "train", *flags)
        assert last.exists() == stays, (place, flags)
        assert (last if stays else last.with_name("other.pth.tar")).read_text() == text


def test_a_video_is_too_short_for_training_by_its_own_frames(tmp_path):
    """RGB has every 10th frame by default: a video of 14 frames has two of them, and a stack of flow."""
    make_videos(tmp_path / "videos", each=1)
    make_video(tmp_path / "videos/wave/short.avi", 3, frames=8, size=(64, 48))
    flags = ["--workers", "1", "--method", "dis"]
    videos = tmp_path / "videos"
    args = argparse.Namespace(all=videos, found=find_videos(videos), data=tmp_path / "data", flow_flags=flags)
    assert script.extract(args, Steps(2)) == {"wave/short.avi": "8 frames, and 11 are needed"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_killed_again_and_again_it_ends_with_the_bits_of_a_run_that_nobody_touched(once, tmp_path):
    """SIGKILL, to run.py alone, after growing times, so that each of its steps is hit; each time it goes on."""
    shutil.copytree(once[0] / "videos", tmp_path / "videos")
    command = [sys.executable, str(ROOT / "run.py"), "videos", *NETWORK]
    rng, kills, steps = np.random.default_rng(0), 0, set()
    while kills < int(os.environ.get("KILLS", 20)):
        log = tmp_path / "log"
        with open(log, "w") as out:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        step = kills % 4 + 1  # go on to this step, and some way into it
        while process.poll() is None and f"== {step}/4" not in log.read_text():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is not None:  # it came to its end
            assert process.returncode == 0, log.read_text()
            shutil.rmtree(tmp_path / "record")
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        steps.add(step)
        assert "Traceback" not in log.read_text(), log.read_text()
        if step == 4:
            shutil.rmtree(tmp_path / "record")
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert steps == set(range(1, min(kills, 4) + 1))
    whole, record = once[0] / "record/videos", tmp_path / "record/videos"
    for name in ("rgb", "greydiff", "flow"):
        expected, found = rows(whole, name), rows(record, name)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[video], found[video]) for video in found)
    for stream in ("spatial", "motion"):
        file = f"heads/linear/{stream}/{stream}_video_preds.pickle"
        assert (record / file).read_bytes() == (whole / file).read_bytes()
    results = [json.loads((one / "fusion/results.json").read_text()) for one in (whole, record)]
    assert results[0]["fusion"] == results[1]["fusion"]
