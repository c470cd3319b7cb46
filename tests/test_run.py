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

import run as script
from data.steps import Steps
from saved.feature_file import read_features
from saved.predictions import load_predictions
from utils import InputError

# a batch is one video, whichever videos are computed together
FLAGS = "--size 32 --test-samples 16 --test-views 1 --workers 0"
NETWORK = ("--arch", "resnet18", "--weights", "none", "--flags", FLAGS)


def make_videos(folder, classes=("clap", "wave"), each=5, name="{}.avi"):
    for place, label in enumerate(classes):
        for number in range(each):
            make_video(folder / label / name.format(number), 10 * place + number, frames=14, size=(64, 48))
    return folder


@pytest.fixture(scope="module")
def once(run, tmp_path_factory):
    """A folder in which run.py went through `videos` once, of which three can't be used, and what it printed."""
    folder = tmp_path_factory.mktemp("once")
    make_videos(folder / "videos")
    (folder / "videos/clap/bad.avi").write_bytes(b"no video")
    made = make_video(folder / "videos/wave/short.avi", 3, frames=3, size=(64, 48)).read_bytes()
    if sys.platform == "linux":
        with open(os.fsencode(folder) + b"/videos/wave/latin-\xe4.avi", "wb") as file:
            file.write(made)
    return folder, run("run.py", "videos", *NETWORK, cwd=folder).stdout


@pytest.fixture
def again(once, tmp_path):
    """A copy of that folder, its videos' times kept."""
    for name in ("videos", "record"):
        shutil.copytree(once[0] / name, tmp_path / name)
    (tmp_path / "record/videos/run.json").write_text(json.dumps({"videos": str(tmp_path / "videos")}))
    return tmp_path


def rows(record, name="rgb"):
    found = read_features(record / f"data/{name}.npz")
    return dict(zip(found.videos, found.values, strict=True))


def test_few_videos_take_the_fast_way_to_the_table_and_a_prediction(once, run, tmp_path):
    folder, said = once
    for words in ("fast way", "about ", "== 1/8", "== 8/8", "report.html", "predict.py VIDEO"):
        assert words in said, said
    record = folder / "record/videos"
    results = json.loads((record / "fusion/results.json").read_text())
    assert results["videos"] == 4 and {"spatial", "motion", "fusion"} <= set(results)
    assert (record / "fusion/report.html").is_file()
    # what can't be used is named, and the rest went on
    for words in ("clap/bad.avi: cannot be opened", "wave/short.avi: 3 frames"):
        assert words in said
    with open(record / "data/left_out.csv", newline="") as file:
        left_out = {row[0] for row in csv.reader(file)}
    latin = {"wave/latin-\\udce4.avi"} if sys.platform == "linux" else set()
    assert left_out == {"video", "clap/bad.avi", "wave/short.avi"} | latin
    assert rows(record).keys() == {f"{name}/{number}" for name in ("clap", "wave") for number in range(5)}

    # the last line's command answers for a new video, as the head and the fusion answered when they were tested
    flags = said.splitlines()[-1].partition("VIDEO ")[2].split()
    assert "--fusion" in flags
    video = sorted(json.loads((record / "heads/linear/spatial/predictions.json").read_text())["labels"])[0]
    shutil.copy(folder / f"videos/{video}.avi", tmp_path / "new.avi")
    answer = json.loads(run("predict.py", tmp_path / "new.avi", *flags, "--json", cwd=folder).stdout)
    heads = folder / Path(flags[flags.index("--spatial") + 1]).parents[1]
    # where the fusion chose one stream, the other one is not computed
    logits = {stream: answer[stream]["logits"] for stream in ("spatial", "motion") if stream in answer}
    assert logits
    if heads.name == "joined":  # one head on both streams' features says the sum of what they say
        logits = {".": {name: sum(one[name] for one in logits.values()) for name in ("clap", "wave")}}
    for stream, told in logits.items():
        found = load_predictions(heads / stream)
        expected = dict(zip(found.class_names, found.logits[video].tolist(), strict=True))
        assert told == pytest.approx(expected, rel=0.05, abs=0.05)


def test_given_again_only_what_a_changed_video_needs_is_done(again, run):
    """A video that another of equal length took the place of is computed again; one was added, and one has gone."""
    record = again / "record/videos"
    (record / "fusion/results.json").unlink()
    old = {name: rows(record, name) for name in ("rgb", "greydiff", "flow")}
    make_video(again / "videos/clap/3.avi", 99, frames=14, size=(64, 48))
    make_video(again / "videos/clap/new.avi", 98, frames=14, size=(64, 48))
    (again / "videos/wave/4.avi").unlink()
    said = run("run.py", "videos", *NETWORK, cwd=again).stdout
    assert "1 new video since the lists were made: clap/new.avi" in said
    assert "1 video of the lists gone: wave/4.avi" in said
    assert said.count("features of 10 videos, 8 of them there already") == 3
    assert (record / "fusion/results.json").is_file()
    for name, before in old.items():
        after = rows(record, name)
        assert after.keys() == before.keys() - {"wave/4"} | {"clap/new"}
        changed = [video for video in before.keys() & after.keys() if not np.array_equal(before[video], after[video])]
        assert changed == ["clap/3"], name


def test_another_folder_of_the_same_name_with_groups_and_test_videos_of_its_own(again, run):
    make_videos(again / "other/videos", ("sit", "stand"), each=4)
    make_videos(again / "tests", ("sit", "stand"), each=2, name="new{}.avi")
    before = (again / "record/videos/fusion/results.json").read_text()
    said = run("run.py", "other/videos", "--test", "tests", "--groups", r"(\d)\.avi", *NETWORK, cwd=again).stdout
    assert "record/videos is of" in said and "goes to record/videos_2" in said
    assert (again / "record/videos/fusion/results.json").read_text() == before
    found = read_features(again / "record/videos_2/data/rgb.npz")
    assert found.about["class_names"] == ["sit", "stand"] and set(found.groups.tolist()) == set("0123")
    tested = {found.videos[row] for row in found.rows("test")}
    assert tested == {f"{name}/new{number}" for name in ("sit", "stand") for number in range(2)}
    assert len(found.rows("train")) == 8
    assert "is of" in run("run.py", "other/videos", "--record", "record/videos", cwd=again, code=2).stderr


def test_too_few_videos_end_it_before_features(run, tmp_path):
    """Started in the folder of the videos, into which nothing is written."""
    videos = make_videos(tmp_path / "videos", each=2)
    (videos / "clap/0.avi").write_bytes(b"no video")
    ended = run("run.py", ".", *NETWORK, cwd=videos, code=2)
    assert "clap has 1 video" in ended.stderr and "stopped at 'split into training and test'" in ended.stderr
    assert "goes on from there" not in ended.stderr and "features of RGB" not in ended.stdout
    assert (tmp_path / "record/videos/data/rgb").is_dir()
    assert len(list(videos.iterdir())) == 2
    assert "lies in" in run("run.py", ".", "--record", "out", *NETWORK, cwd=videos, code=2).stderr


def test_what_is_wrong_is_told_before_anything_is_made(run, tmp_path, monkeypatch):
    make_videos(tmp_path / "videos", each=2)
    assert "absent.pth: no such file" in run("run.py", "videos", "--weights", "absent.pth", cwd=tmp_path, code=2).stderr
    assert not list(tmp_path.rglob("*.jpg"))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for given, told in (("resnet1", None), "resnet1 is not"), (("resnet18", str(tmp_path / "junk.pth")), "junk.pth"):
        with pytest.raises(InputError, match=told):
            script.check_network(argparse.Namespace(arch=given[0], weights=given[1]), "heads")
    (tmp_path / "record/videos/run.json").write_text("{")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    make_videos(tmp_path / "split/train"), make_videos(tmp_path / "split/test")
    for words, told in [
        ("videos", "run.json cannot be read"), ("empty", "holds no video"),
        ("videos --test gone", "gone does not exist"), ("videos --test videos", "holds the videos of videos"),
        ("videos --test split", "split is split into"), ("split --test videos", "split is split into"),
    ]:  # fmt: skip
        monkeypatch.setattr("sys.argv", ["run.py", *words.split()])
        with pytest.raises(InputError, match=told):
            script.main()


def test_the_number_of_videos_and_their_names_decide(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(Steps, "__call__", lambda _, title, *command, passed=(0,): taken.append([*map(str, command)]))
    monkeypatch.setattr(script, "FEW", 1)
    monkeypatch.setattr(script, "check_network", lambda *_: None)

    def commands(folder, *flags):
        taken.clear()
        monkeypatch.setattr("sys.argv", ["run.py", str(folder), *flags])
        script.main()
        return [*taken]

    monkeypatch.chdir(tmp_path)
    for name in ("a/1.avi", "b/1.avi"):
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).touch()
    own = commands("own")
    data = ["data/extract_rgb.py", "data/extract_flow.py", "data/make_split.py"]
    assert [command[0] for command in own] == [*data, "spatial_cnn.py", "motion_cnn.py", "fusion.py"]
    assert str(own[0][2]).startswith("record")
    with pytest.raises(InputError, match=r"results\.json"):  # no step has made it
        commands("own", "--way", "heads")
    assert "heads.py" in [command[0] for command in taken]

    for name in ("Biking", "Diving"):
        (tmp_path / f"ucf/{name}").mkdir(parents=True)
        for number in (1, 8):
            (tmp_path / f"ucf/{name}/v_{name}_g{number:02d}_c01.avi").touch()
    ucf = commands("ucf")
    assert ucf[2][ucf[2].index("--ucf-list") + 1] == "none" and "--resume" in ucf[2] and ucf[0][2] == "data/rgb"
    (tmp_path / "data/ucfTrainTestlist").mkdir(parents=True)
    ucf = commands("ucf", "--flags", "--recipe tsn")
    assert ucf[2][ucf[2].index("--ucf-list") + 1].endswith("ucfTrainTestlist") and ucf[3][-2:] == ["--recipe", "tsn"]


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
        step = kills % 8 + 1  # go on to this step, and some way into it
        while process.poll() is None and f"== {step}/8" not in log.read_text():
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
        if step == 8:
            shutil.rmtree(tmp_path / "record")
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert steps == set(range(1, min(kills, 8) + 1))
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
