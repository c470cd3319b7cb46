"""What people get wrong: each gives one line that names the file and the way out, exit code 2, nothing lost."""

import re
import runpy
import shutil
import sys

import pytest
import torch
from conftest import ROOT, SMALL

from utils import plain_cause


def main_of(script, *arguments):
    """Run a script in this process, for speed; the entry is the user's. Returns its exit code."""
    before, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = before
    return exit_.value.code


@pytest.fixture
def fails(capsys):
    """fails("spatial_cnn.py", ...) -> the error line."""

    def fails(*command):
        capsys.readouterr()
        assert main_of(*command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and len(lines[0]) < 600
        return lines[0]

    return fails


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A folder with spaces and umlauts, in which the spatial stream trained an epoch."""
    root = tmp_path_factory.mktemp("t") / "mein Ordner (größer)"
    shutil.copytree(tiny, root)
    assert main_of("spatial_cnn.py", "--rgb-dir", root / "rgb", *small(root, "--output", root / "für rgb")) == 0
    return root


def small(tmp_path, *more):
    return (*SMALL, "--workers", 0, "--epochs", 1, "--output", tmp_path / "out", *more)


def write_lists(folder, train, classes=("Archery", "HammerThrow")):
    folder.mkdir()
    (folder / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)))
    (folder / "trainlist01.txt").write_text("".join(f"Archery/v_Archery_{name}.avi 1\n" for name in train))
    (folder / "testlist01.txt").write_text(f"{classes[-1]}/v_{classes[-1]}_g01_c01.avi\n")
    return folder


# --- folders, videos and lists -------------------------------------------------------------------------


def test_folders(fails, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("missing", "empty", "file"):
        assert name in fails("motion_cnn.py", "--flow-dir", tmp_path / name, *small(tmp_path))
    assert "frames" in fails("spatial_cnn.py", "--rgb-dir", tiny / "flow", *small(tmp_path))
    assert "flow" in fails("motion_cnn.py", "--flow-dir", tiny / "rgb", *small(tmp_path))
    line = fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), "--output", tmp_path / "file")
    assert str(tmp_path / "file") in line
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rgb_train.csv").write_text("my,notes\n1,2\n")
    assert "rgb_train.csv" in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert (tmp_path / "out/rgb_train.csv").read_text() == "my,notes\n1,2\n"


def test_a_video_of_ten_frames_is_too_short_for_a_stack(fails, tiny, tmp_path):
    shutil.copytree(tiny / "flow", tmp_path / "flow")
    for component in "uv":
        for image in sorted((tmp_path / "flow" / component / "v_Archery_g08_c01").iterdir())[9:]:
            image.unlink()
    line = fails("motion_cnn.py", "--flow-dir", tmp_path / "flow", *small(tmp_path))
    assert "v_Archery_g08_c01" in line and "9 flow pairs" in line


def test_lists_of_videos_that_are_not_there_and_of_one_class(fails, tiny, tmp_path):
    lists = write_lists(tmp_path / "lists", ["g08_c01", "g08_c02"])
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), "--ucf-list", lists)
    line = fails(*arguments)
    assert "1 of 2 listed videos" in line and "v_Archery_g08_c02" in line and "--allow-missing" in line
    lists = write_lists(tmp_path / "one", ["g08_c01"], ("Archery",))
    assert "one class, Archery" in fails(*arguments, "--ucf-list", lists)


# --- checkpoints ---------------------------------------------------------------------------------------


def test_checkpoints_and_weights(fails, tiny, tmp_path):
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert "gone.pth.tar: no such file" in fails(*arguments, "--resume", tmp_path / "gone.pth.tar")
    assert "checkpoint.pth.tar: no such file" in fails(*arguments, "--resume")
    assert "--resume PATH" in fails(*arguments, "--evaluate")
    (tmp_path / "text.pth.tar").write_text("not a checkpoint")
    assert "text.pth.tar" in fails(*arguments, "--resume", tmp_path / "text.pth.tar")
    assert "no such file" in fails(*arguments, "--weights", tmp_path / "gone.pth")
    assert "resnet9 is not a ResNet" in fails(*arguments, "--arch", "resnet9")


def test_what_a_checkpoint_says_is_not_overruled_in_silence(fails, trained, tmp_path):
    checkpoint, table = trained / "für rgb/checkpoint.pth.tar", trained / "für rgb/rgb_test.csv"
    arguments = ("spatial_cnn.py", "--rgb-dir", trained / "rgb", *small(tmp_path), "--resume", checkpoint)
    lists = write_lists(tmp_path / "lists", ["g08_c01"])
    assert "101 classes, not 2" in fails(*arguments, "--ucf-list", lists)
    line = fails("motion_cnn.py", "--flow-dir", trained / "flow", *small(tmp_path), "--resume", checkpoint)
    assert "checkpoint.pth.tar" in line and "rgb" in line
    line = fails(*arguments, "--arch", "resnet50")
    assert "--arch resnet50" in line and "is a resnet18" in line
    for features, told in ((tmp_path, "name a file"), (table / "x.npz", "rgb_test.csv")):
        assert told in fails(*arguments, "--features", features)
    assert "is not a pickle of plain data" in fails("fusion.py", checkpoint, checkpoint)
    assert "rgb_test.csv" in fails("fusion.py", table, table)


# --- flags ---------------------------------------------------------------------------------------------


def test_typos_in_flags(fails):
    assert "unrecognized arguments: --batchsize 3; `python " in fails("spatial_cnn.py", "--batchsize", 3)
    assert "--epochs: invalid int value: 'many'" in fails("motion_cnn.py", "--epochs", "many")
    assert "'best'" in fails("motion_cnn.py", "--recipe", "best")
    assert "--weights: must be from 0 to" in fails("fusion.py", "--weights=-1", 1)
    assert "VIDEOS, OUT" in fails("data/make_split.py")


def test_numbers_out_of_range_and_devices_that_are_none(fails, tiny, tmp_path):
    arguments = ("motion_cnn.py", "--flow-dir", tiny / "flow", *small(tmp_path))
    zero = ("--epochs", "--batch-size", "--segments", "--test-samples", "--size", "--flow-std", "--stack-length")
    wrong = [*((flag, 0) for flag in zero), ("--lr", -1), ("--lr", "nan"), ("--dropout", 2), ("--workers", -1),
             ("--seed", -1), ("--milestones", 3), ("--size", 100_000_000)]  # fmt: skip
    for flag, value in wrong:
        line = fails(*arguments, flag, value)
        assert re.match(f"error: {flag}(/-b)?: must be .*, not {value};", line)
    assert "center" in fails(*arguments, "--test-views", 10)
    for device in ("tpu9", "meta", *(() if torch.backends.mps.is_available() else ("mps",))):
        assert "no device" in fails(*arguments, "--device", device)
    line = fails("data/make_split.py", tmp_path, tmp_path / "lists", "--seed", -1)
    assert "--seed: must be from 0 to 4294967295, not -1" in line
    assert f"4294967295, not {2**32}" in fails("data/make_demo.py", tmp_path, "--seed", 2**32)  # more than numpy's take


# --- while it runs -------------------------------------------------------------------------------------


def test_what_ends_a_training_is_a_line(fails, tiny, tmp_path, monkeypatch):
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path, "--batch-size", 1))
    line = fails(*arguments, "--lr", 1e30, "--amp", "off")
    assert "no longer a number" in line and "_c01" in line
    assert not (tmp_path / "out/checkpoint.pth.tar").exists()
    line = fails(*arguments, "--segments", 1, "--size", 32)
    assert "batch norm has one value to average: a larger" in line
    monkeypatch.setattr("engine.training.train_step", lambda *_: torch.empty(2**60))
    line = fails(*arguments)
    assert "not enough memory" in line and "--batch-size" in line


def test_a_loader_without_shared_memory_is_told_plainly():
    full = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")
    assert "--shm-size 2g" in plain_cause(full) and plain_cause(RuntimeError("a bug")) is None
