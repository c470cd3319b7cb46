"""From a folder of videos to the fused table in one command: given again, given other videos, damaged, killed."""

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
NETWORK = ("--arch", "resnet18", "--weights", "none", "--flags", "--size 32 --test-samples 16 --workers 0")


def make_videos(folder, classes=("clap", "wave"), each=5):
    for place, name in enumerate(classes):
        for number in range(each):
            make_video(folder / f"{name}/{number}.avi", 10 * place + number, frames=14, size=(64, 48))
    return folder


@pytest.fixture
def run_py(run, tmp_path):
    def run_py(*arguments, code=0):
        return run("run.py", *arguments, *NETWORK, cwd=tmp_path, code=code)

    return run_py


@pytest.fixture(scope="module")
def once(run, tmp_path_factory):
    """A folder in which run.py went through `videos` once, and what it printed."""
    folder = tmp_path_factory.mktemp("once")
    make_videos(folder / "videos")
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
    for words in ("10 videos", "fast way", "about ", "== 1/8", "== 8/8", "report.html", "predict.py VIDEO"):
        assert words in said, said
    record = folder / "record/videos"
    results = json.loads((record / "fusion/results.json").read_text())
    assert results["videos"] == 4 and {"spatial", "motion", "fusion"} <= set(results)
    assert (record / "fusion/report.html").is_file()

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


def test_given_again_only_what_a_changed_video_needs_is_done(again, run_py):
    """A video that another of equal length took the place of is computed again, and no other."""
    record = again / "record/videos"
    (record / "fusion/results.json").unlink()
    old = {name: rows(record, name) for name in ("rgb", "greydiff", "flow")}
    make_video(again / "videos/clap/3.avi", 99, frames=14, size=(64, 48))
    said = run_py("videos").stdout
    assert said.count("9 done before, 1 to do") == 2
    assert said.count("features of 10 videos, 9 of them there already") == 3
    assert (record / "fusion/results.json").is_file()
    for name, before in old.items():
        after = rows(record, name)
        assert [video for video in before if not np.array_equal(before[video], after[video])] == ["clap/3"], name


def test_another_folder_of_the_same_name_has_its_own_record_and_a_folder_of_test_videos(again, run_py):
    make_videos(again / "other/videos", ("sit", "stand"), each=3)
    for path in make_videos(again / "tests", ("sit", "stand"), each=2).rglob("*.avi"):
        path.rename(path.with_name(f"new{path.name}"))
    before = (again / "record/videos/fusion/results.json").read_text()
    said = run_py("other/videos", "--test", "tests").stdout
    assert "record/videos is of" in said and "goes to record/videos_2" in said
    assert (again / "record/videos/fusion/results.json").read_text() == before
    found = read_features(again / "record/videos_2/data/rgb.npz")
    assert found.about["class_names"] == ["sit", "stand"] and len(found.rows("train")) == 6
    tested = {found.videos[row] for row in found.rows("test")}
    assert tested == {f"{name}/new{number}" for name in ("sit", "stand") for number in range(2)}
    assert "is of" in run_py("other/videos", "--record", "record/videos", code=2).stderr


def test_videos_that_cannot_be_used_are_left_out_and_named(run, tmp_path):
    """Started in the folder of the videos, into which nothing is written."""
    videos = make_videos(tmp_path / "videos")
    (videos / "clap/1.avi").write_bytes(b"no video")
    make_video(videos / "wave/short.avi", 3, frames=3, size=(64, 48))
    said = run("run.py", ".", *NETWORK, cwd=videos).stdout
    for words in ("left out: 2 videos", "clap/1.avi: cannot be opened", "wave/short.avi: 3 frames"):
        assert words in said
    record = tmp_path / "record/videos"
    with open(record / "data/left_out.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["video", "clap/1.avi", "wave/short.avi"]
    assert len(read_features(record / "data/rgb.npz").videos) == 9 and len(list(videos.iterdir())) == 2
    # where too few are left, that is told
    for number in (0, 2, 3):
        (videos / f"clap/{number}.avi").write_bytes(b"no video")
    ended = run("run.py", ".", *NETWORK, cwd=videos, code=2)
    assert "clap has 1 video" in ended.stderr and "features of RGB" not in ended.stdout
    assert "lies in" in run("run.py", ".", "--record", "out", *NETWORK, cwd=videos, code=2).stderr


@pytest.mark.parametrize("flags, said", [
    (("--weights", "absent.pth"), "absent.pth: no such file"),
    (("--weights", "junk.pth"), "junk.pth"),
    (("--arch", "resnet1"), "resnet1 is not"),
])  # fmt: skip
def test_a_network_that_is_none_is_told_before_anything_is_made(run, tmp_path, flags, said):
    make_videos(tmp_path / "videos", each=2)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert said in run("run.py", "videos", *flags, cwd=tmp_path, code=2).stderr
    assert not list(tmp_path.rglob("*.jpg"))


def test_the_number_of_videos_and_their_names_decide(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(Steps, "__call__", lambda _, title, *command, passed=(0,): taken.append([*map(str, command)]))
    monkeypatch.setattr(script, "FEW", 1)
    monkeypatch.setattr(script, "check_network", lambda *_: None)

    def commands(folder, *flags):
        taken.clear()
        monkeypatch.setattr("sys.argv", ["run.py", str(folder), *flags])
        with pytest.raises(FileNotFoundError):  # no step has made results.json
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
    assert "heads.py" in [command[0] for command in commands("own", "--way", "heads")]

    for name in ("Biking", "Diving"):
        (tmp_path / f"ucf/{name}").mkdir(parents=True)
        for number in (1, 8):
            (tmp_path / f"ucf/{name}/v_{name}_g{number:02d}_c01.avi").touch()
    ucf = commands("ucf")
    assert ucf[2][ucf[2].index("--ucf-list") + 1] == "none" and "--resume" in ucf[2] and ucf[0][2] == "data/rgb"
    (tmp_path / "data/ucfTrainTestlist").mkdir(parents=True)
    ucf = commands("ucf", "--flags", "--recipe tsn")
    assert ucf[2][ucf[2].index("--ucf-list") + 1].endswith("ucfTrainTestlist") and ucf[3][-2:] == ["--recipe", "tsn"]


def test_a_failed_step_ends_it(run, tmp_path):
    make_videos(tmp_path / "videos", each=2)
    ended = run("run.py", "videos", *NETWORK, "--flow-flags=--no-such-flag", cwd=tmp_path, code=2)
    assert "no such flag" in ended.stderr and "stopped at 'optical flow'" in ended.stderr
    assert "== 2/8" in ended.stdout and "== 3/8" not in ended.stdout


def test_no_videos(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", str(tmp_path)])
    with pytest.raises(InputError, match="holds no video"):
        script.main()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_killed_again_and_again_it_ends_with_the_bits_of_a_run_that_nobody_touched(once, tmp_path):
    """SIGKILL, to run.py alone, after growing times, so that each of its steps is hit; each time it goes on."""
    make_videos(tmp_path / "videos")
    command = [sys.executable, str(ROOT / "run.py"), "videos", *NETWORK]
    rng, kills = np.random.default_rng(0), 0
    steps = set()
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
    assert steps == set(range(1, 9))
    whole, record = once[0] / "record/videos", tmp_path / "record/videos"
    for name in ("rgb", "greydiff", "flow"):
        expected, found = read_features(whole / f"data/{name}.npz"), read_features(record / f"data/{name}.npz")
        assert found.videos == expected.videos
        np.testing.assert_array_equal(found.values, expected.values)
    for stream in ("spatial", "motion"):
        file = f"heads/linear/{stream}/{stream}_video_preds.pickle"
        assert (record / file).read_bytes() == (whole / file).read_bytes()
    results = [json.loads((one / "fusion/results.json").read_text()) for one in (whole, record)]
    assert results[0]["fusion"] == results[1]["fusion"]
