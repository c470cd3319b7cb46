"""data/check.py as a user runs it, on small data sets with one thing wrong at a time."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import one_by_one

from data import check as command
from data.check import Problem, summary
from dataloader.lists import load_split
from utils import InputError

FRAMES = 12


def image(path: Path, channels: str, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels == "L" else (*size, 3)
    number = int(path.stem[-6:])
    Image.fromarray(np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)).save(path)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """Two classes, 12 frames a video, tsfusion's layout; lists that name just these videos."""
    root = tmp_path_factory.mktemp("prepared")
    for name in ("v_Hammering_g01_c01", "v_Hammering_g08_c01", "v_HammerThrow_g09_c01"):
        for i in range(1, FRAMES + 1):
            image(root / "rgb" / name / f"frame{i:06d}.jpg", "RGB")
            if i < FRAMES:
                for channel in "uv":
                    image(root / "flow" / channel / name / f"frame{i:06d}.jpg", "L")
    lists = root / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Hammering\n2 HammerThrow\n")
    train = "Hammering/v_Hammering_g08_c01.avi 1\nHammerThrow/v_HammerThrow_g09_c01.avi 2\n"
    (lists / "trainlist01.txt").write_text(train)
    (lists / "testlist01.txt").write_text("Hammering/v_Hammering_g01_c01.avi\n")
    return root


@pytest.fixture
def prepared(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "prepared"))


@pytest.fixture
def check(monkeypatch, capsys, prepared):
    """check(flags ...) -> the output of the command, by default on the prepared set, in this process."""

    def check(*flags, code=0, workers=0):
        if not workers:
            monkeypatch.setattr(command, "run_jobs", one_by_one)
        if "--rgb-dir" not in flags:
            folders = ("--rgb-dir", prepared / "rgb", "--flow-dir", prepared / "flow")
            flags = (*folders, "--ucf-list", prepared / "lists", *flags)
        monkeypatch.setattr(sys, "argv", ["check.py", "--workers", str(workers or 1), *map(str, flags)])
        assert command.main() == code
        return capsys.readouterr().out

    return check


def test_a_whole_data_set(check, prepared):
    assert check(workers=2).splitlines() == [
        "split 1: 2 of 2 training and 1 of 1 test videos are there",
        f"{prepared / 'rgb'}: 36 frames", f"{prepared / 'flow'}: 33 flow pairs", "all is well",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "folder, damage, words",
    [
        ("rgb", lambda path: path.write_bytes(path.read_bytes()[:-200]), "is not a whole image"),
        ("flow/v", lambda path: image(path, "L", (24, 30)), "is 30x24 (1 in all), the others 32x24"),
        ("flow/u", lambda path: path.write_bytes(b""), "is not a whole image (it begins with b'')"),
        ("flow/u", lambda path: image(path, "RGB"), "is RGB, and flow is grayscale"),
    ],
)
def test_broken_images(check, prepared, folder, damage, words):
    damage(prepared / folder / "v_Hammering_g08_c01/frame000003.jpg")
    lines = check(code=1).splitlines()
    assert lines[3] == "something is wrong"  # what is there, then what to do, then the problem
    assert lines[4].startswith("1. images, 1 video (Hammering 1): remove the folders of broken images")
    assert lines[5].startswith("images: ") and f"frame000003.jpg {words}" in lines[5] and len(lines) == 6
    if folder == "rgb":  # only decoding finds it
        assert "images: " not in check("--quick")


def test_what_names_tell(check, prepared):
    """Everything that needs no decoding, at once: each is counted in its own column and named."""
    (prepared / "flow/v/v_Hammering_g01_c01/frame000011.jpg").unlink()
    (prepared / "rgb/v_HammerThrow_g09_c01/frame000005.jpg").unlink()
    shutil.rmtree(prepared / "rgb/v_Hammering_g08_c01")
    for i in (10, 11):
        for channel in "uv":
            (prepared / f"flow/{channel}/v_HammerThrow_g09_c01/frame{i:06d}.jpg").unlink()
    image(prepared / "rgb/v_YoYo_g01_c01/frame000001.jpg", "RGB")
    output = check("--quick", code=1)
    assert "0 of 2 training and 0 of 1 test videos" in output.splitlines()[0]
    assert "2. sequence, 2 videos (" in output and "has 11 u (x) but 10 v (y) images" in output
    assert "frame000005.jpg is missing" in output
    for line in output.splitlines():
        assert not line.startswith("sequence: ") or line.count("_c01") == 1  # the video, once
    assert "v_Hammering_g08_c01.avi: no RGB frames under" in output
    assert "9 flow pairs, a clip needs 10" in output
    assert "1 video in no list of this split (YoYo_g01_c01)" in output
    steps = [line for line in output.splitlines() if line[:3] in ("1. ", "2. ", "3. ", "4. ")]
    assert len(steps) == 3 and "goes on from where it stopped" in steps[0]  # what to do, the first thing first


def test_videos_that_show_nothing_are_named(check, prepared):
    """All black, all the same, and flow that is nowhere anything; noise of coding counts as nothing."""
    rng = np.random.default_rng(1)
    black = prepared / "rgb/v_Hammering_g01_c01"
    same = prepared / "rgb/v_Hammering_g08_c01"
    picture = np.asarray(Image.open(same / "frame000001.jpg")).astype(int)
    for i in range(1, FRAMES + 1):
        noise = rng.integers(0, 3, (24, 32, 3))
        Image.fromarray((16 + noise).astype(np.uint8)).save(black / f"frame{i:06d}.jpg", quality=95)
        again = np.clip(picture + noise - 1, 0, 255).astype(np.uint8)
        Image.fromarray(again).save(same / f"frame{i:06d}.jpg", quality=100, subsampling=0)
        if i < FRAMES:
            for channel in "uv":
                still = prepared / f"flow/{channel}/v_HammerThrow_g09_c01/frame{i:06d}.jpg"
                Image.fromarray(np.full((24, 32), 128, np.uint8)).save(still)
    moves = prepared / "flow/u/v_Hammering_g08_c01"  # one pair that moves is enough
    for i in range(1, FRAMES - 1):
        Image.fromarray(np.full((24, 32), 128, np.uint8)).save(moves / f"frame{i:06d}.jpg")
    output = check(code=1)
    found = [line for line in output.splitlines() if line.startswith("content: ")]
    assert found == [
        "content: v_Hammering_g08_c01: all images are the same",
        "content: u/v_HammerThrow_g09_c01: no flow at all, every image is 128",
        "content: v_Hammering_g01_c01: all images are black",
    ]
    assert "1. content, 3 videos (Hammering 2, HammerThrow 1): look at" in output


@pytest.mark.parametrize("rate, kept, wrong", [(5, 3, False), (5, 4, True)])
def test_frames_against_flow_at_the_sampling_rate(check, prepared, rate, kept, wrong):
    """12 frames sampled at 5 are frames 1, 6 and 11."""
    settings = {"kind": "rgb", "version": 1, "settings": {"sampling_rate": rate}}
    (prepared / "rgb" / "extraction.json").write_text(json.dumps(settings))
    for folder in (prepared / "rgb").glob("v_*"):
        count = kept if folder.name == "v_Hammering_g01_c01" else -(-FRAMES // rate)
        for i in range(count + 1, FRAMES + 1):
            (folder / f"frame{i:06d}.jpg").unlink()
    output = check("--quick", code=int(wrong))
    assert ("length, 1 video " in output) == wrong


def test_incomplete_against_the_official_split(check, prepared):
    output = check("--rgb-dir", prepared / "rgb", "--ucf-list", "none", "--quick", code=1)
    assert "2 of 2 training and 1 of 1 test videos are there (officially 9537 and 3783): not complete" in output


def test_complete_against_the_official_split(shared):
    split = load_split(shared / "data" / "ucfTrainTestlist", 3)
    whole = "UCF101 split 3: 9624 of 9624 training and {} of 3696 test videos are there (officially 9624 and 3696): {}"
    assert summary(split, {}, []) == ([whole.format(3696, "complete")], True)
    problems = [Problem(split.test[5], kind, "") for kind in ("missing", "sequence")]
    assert summary(split, {}, problems) == ([whole.format(3695, "not complete")], True)


def test_bad_input(check, monkeypatch, tmp_path, template):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    with pytest.raises(InputError, match="nothing to check"):
        command.main()
    with pytest.raises(InputError, match="there is no folder"):
        check("--rgb-dir", tmp_path / "no")
    with pytest.raises(InputError, match="no folder"):
        check("--rgb-dir", template / "rgb", "--ucf-list", tmp_path / "no")
