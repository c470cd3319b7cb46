"""From a folder of videos to the fused table in one command, which can be given again."""

import json
import shutil

import pytest
from video_files import make_video

import run as script
from data import steps
from utils import InputError

FEW = "--arch resnet18 --weights none --size 32 --test-samples 3 --workers 0"


@pytest.fixture
def videos(tmp_path):
    for place, name in enumerate(("clap", "wave")):
        for number in range(5):
            make_video(tmp_path / f"videos/{name}/{number}.avi", 10 * place + number, frames=14, size=(64, 48))
    return tmp_path / "videos"


@pytest.fixture
def run_py(run, tmp_path, monkeypatch, capfd):
    """run_py(argument, ...) -> what run.py prints in tmp_path. Its steps are forks of a process that has torch."""

    def call(command, folder):
        print(run(*command[1:], cwd=folder or tmp_path).stdout)
        return 0

    def run_py(*arguments):
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["run.py", *map(str, arguments)])
        assert script.main() == 0
        return capfd.readouterr().out

    monkeypatch.setattr(steps, "call", call)
    monkeypatch.chdir(tmp_path)
    return run_py


def test_few_videos_take_the_fast_way_to_the_table_and_a_prediction(videos, run, run_py, tmp_path):
    done = run_py(videos, "--flags", FEW)
    for said in ("10 videos", "fast way", "== 1/8", "== 8/8", "fusion", "report.html", "predict.py VIDEO"):
        assert said in done, done
    record = tmp_path / "record/videos"
    results = json.loads((record / "fusion/results.json").read_text())
    assert results["videos"] == 4 and {"spatial", "motion", "fusion"} <= set(results)
    assert (record / "fusion/report.html").is_file()

    # started again it does what is missing, and nothing twice
    before = (record / "data/rgb.npz").stat().st_mtime_ns
    (record / "fusion/results.json").unlink()
    again = run_py(videos, "--flags", FEW)
    assert "is there already" in again and "make_split" not in again
    assert (record / "data/rgb.npz").stat().st_mtime_ns == before
    assert json.loads((record / "fusion/results.json").read_text())["fusion"] == results["fusion"]

    # the last line's command answers for a new video, as the head answered for it when it was tested
    flags = again.splitlines()[-1].partition("VIDEO ")[2].split()
    test = json.loads((record / "heads/linear/spatial/predictions.json").read_text())["labels"]
    name = sorted(test)[0]
    shutil.copy(videos / f"{name}.avi", tmp_path / "new.avi")
    answer = json.loads(run("predict.py", "new.avi", *flags, "--json", cwd=tmp_path).stdout)
    from saved.predictions import load_predictions

    for stream in ("spatial", "motion"):
        found = load_predictions(record / f"heads/linear/{stream}")
        told = [answer[stream]["logits"][name] for name in found.class_names]
        assert told == pytest.approx(found.logits[name].tolist(), rel=0.05, abs=0.05)


def test_the_number_of_videos_and_their_names_decide(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(script, "run_steps", lambda steps: taken.append([command for _, command in steps]) or 1)
    monkeypatch.setattr(script, "FEW", 1)

    def commands(folder, *flags):
        monkeypatch.setattr("sys.argv", ["run.py", str(folder), *flags])
        assert script.main() == 1
        return taken.pop()

    monkeypatch.chdir(tmp_path)
    for name in ("a/1.avi", "b/1.avi"):
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).touch()
    own = commands(tmp_path / "own")
    data = ["data/make_split.py", "data/extract_rgb.py", "data/extract_flow.py"]
    assert [command[0] for command in own] == [*data, "spatial_cnn.py", "motion_cnn.py", "fusion.py"]
    assert "heads.py" in [command[0] for command in commands(tmp_path / "own", "--way", "heads")]

    (tmp_path / "ucf/Biking").mkdir(parents=True)
    for number in (1, 8):
        (tmp_path / f"ucf/Biking/v_Biking_g{number:02d}_c01.avi").touch()
    ucf = commands(tmp_path / "ucf")
    assert ucf[2][ucf[2].index("--ucf-list") + 1] == "none" and "--resume" in ucf[2]
    (tmp_path / "data/ucfTrainTestlist").mkdir(parents=True)
    ucf = commands(tmp_path / "ucf", "--flags", "--recipe tsn")
    assert ucf[2][ucf[2].index("--ucf-list") + 1].endswith("ucfTrainTestlist") and ucf[3][-2:] == ["--recipe", "tsn"]


def test_a_failed_step_ends_it(tmp_path, capfd):
    steps = [("first", ["data/check.py", "--no-such-flag"]), ("second", ["data/check.py", "-h"])]
    assert script.run_steps(steps) == 2
    shown = capfd.readouterr()
    assert "no such flag" in shown.err and "stopped at 'first'" in shown.err and "2/2" not in shown.out


def test_no_videos(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", str(tmp_path)])
    with pytest.raises(InputError, match="holds no video"):
        script.main()
