"""What people get wrong: each gives one line that names the file and the way out, exit code 2, nothing lost."""

import os
import runpy
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from scripts import patched

from utils import plain_cause


@pytest.fixture
def fails(monkeypatch, capsys):
    """fails("spatial_cnn.py", ...) -> the error line. Runs in this process, for speed; the entry is the user's."""

    def fails(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert exit_.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and len(lines[0]) < 600
        return lines[0]

    return fails


@pytest.fixture
def works(monkeypatch):
    """works("spatial_cnn.py", ...): the script ends well. Runs in this process, too."""

    def works(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert exit_.value.code == 0

    return works


@pytest.fixture
def rgb(tiny, tmp_path):
    shutil.copytree(tiny / "rgb", tmp_path / "rgb")
    return tmp_path / "rgb"


def small(tmp_path, *more):
    return (*SMALL, "--workers", 0, "--epochs", 1, "--output", tmp_path / "out", *more)


def test_folders(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("missing", "empty", "file"):
        assert name in fails("spatial_cnn.py", "--rgb-dir", tmp_path / name, *small(tmp_path))
        assert name in fails("motion_cnn.py", "--flow-dir", tmp_path / name, *small(tmp_path))


def test_streams_given_each_others_folder(fails, tiny, tmp_path):
    assert "frames" in fails("spatial_cnn.py", "--rgb-dir", tiny / "flow", *small(tmp_path))
    assert "flow" in fails("motion_cnn.py", "--flow-dir", tiny / "rgb", *small(tmp_path))


def test_a_video_of_ten_frames_is_too_short_for_a_stack(fails, tiny, tmp_path):
    shutil.copytree(tiny / "flow", tmp_path / "flow")
    for component in "uv":
        for image in sorted((tmp_path / "flow" / component / "v_Archery_g08_c01").iterdir())[9:]:
            image.unlink()
    line = fails("motion_cnn.py", "--flow-dir", tmp_path / "flow", *small(tmp_path))
    assert "v_Archery_g08_c01" in line and "9 flow pairs" in line


@pytest.mark.parametrize("video", ["v_Archery_g08_c01", "v_Archery_g01_c01"])
def test_half_a_jpeg(fails, rgb, tmp_path, video):
    for path in (rgb / video).iterdir():
        path.write_bytes(path.read_bytes()[:500])
    tests = "g01" in video  # a test leaves no video out
    error = fails("spatial_cnn.py", "--rgb-dir", rgb, *small(tmp_path), *(("--on-error", "skip") if tests else ()))
    assert video in error and ("--on-error skip" in error) != tests


def test_skipping_trains_on_and_lists_what_was_left_out(run, rgb, tmp_path):
    for path in (rgb / "v_Archery_g08_c01").iterdir():
        path.write_bytes(b"")
    flags = (*SMALL, "--epochs", 1, "--on-error", "skip", "--output", tmp_path / "out")
    process = run("spatial_cnn.py", "--rgb-dir", rgb, *flags)
    assert "replaced 1 video that could not be read" in process.stdout
    assert "Archery_g08_c01: " in process.stdout


def test_listed_videos_that_are_not_there(fails, works, rgb, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 HammerThrow\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\nArchery/v_Archery_g08_c02.avi 1\n")
    (lists / "testlist01.txt").write_text("HammerThrow/v_HammerThrow_g01_c01.avi\n")
    arguments = ("spatial_cnn.py", "--rgb-dir", rgb, *small(tmp_path), "--ucf-list", lists)
    line = fails(*arguments)
    assert "1 of 2 listed videos" in line and "v_Archery_g08_c02" in line and "--allow-missing" in line
    works(*arguments, "--allow-missing")


def test_checkpoints_and_weights(fails, tiny, tmp_path):
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert "gone.pth.tar: no such file" in fails(*arguments, "--resume", tmp_path / "gone.pth.tar")
    assert "checkpoint.pth.tar: no such file" in fails(*arguments, "--resume")
    assert "--resume PATH" in fails(*arguments, "--evaluate")
    (tmp_path / "text.pth.tar").write_text("not a checkpoint")
    assert "text.pth.tar" in fails(*arguments, "--resume", tmp_path / "text.pth.tar")
    assert "no such file" in fails(*arguments, "--weights", tmp_path / "gone.pth")
    assert "resnet9 is not a ResNet" in fails(*arguments, "--arch", "resnet9")


def test_a_checkpoint_of_other_classes(fails, works, tiny, tmp_path):
    works("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 HammerThrow\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("HammerThrow/v_HammerThrow_g01_c01.avi\n")
    line = fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), "--ucf-list", lists, "--resume")
    assert "101 classes, not 2" in line
    line = fails("motion_cnn.py", "--flow-dir", tiny / "flow", *small(tmp_path), "--resume")
    assert "checkpoint.pth.tar" in line and "rgb" in line


def test_a_loss_that_is_no_number_names_its_videos(fails, tiny, tmp_path):
    flags = small(tmp_path, "--lr", 1e30, "--batch-size", 1, "--amp", "off")
    line = fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *flags)
    assert "no longer a number" in line and "_c01" in line
    assert not (tmp_path / "out/checkpoint.pth.tar").exists()


def test_a_dead_loader_process_is_told_plainly(tiny):
    from dataloader import clips
    from dataloader.clips import make_loader
    from dataloader.frames import index_frames
    from dataloader.images import find_sources
    from dataloader.lists import load_split
    from dataloader.preparation import default_preparation

    index = index_frames(tiny / "rgb", "rgb")
    sources = find_sources(index, load_split(None, 1, index.videos).train)
    preparation = default_preparation("rgb", 48, "squash")
    dataset = clips.ClipDataset(sources, killed_by_the_system, preparation, clips.TrainSampling())
    with pytest.raises(RuntimeError) as error:
        list(make_loader(dataset, 2, 1, torch.device("cpu")).epoch(0))
    assert "--workers" in plain_cause(error.value)


def killed_by_the_system(frames, step):
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_output_that_cannot_be_written_is_noticed_before_training(fails, tiny, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    line = fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert str(tmp_path / "out") in line


def test_a_record_that_is_no_record(fails, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rgb_train.csv").write_text("my,notes\n1,2\n")
    assert "rgb_train.csv" in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert (tmp_path / "out/rgb_train.csv").read_text() == "my,notes\n1,2\n"


def test_typos_in_flags(fails):
    assert "--batchsize: no such flag, did you mean --batch-size?" in fails("spatial_cnn.py", "--batchsize", 3)
    assert "--normalise: no such flag, did you mean --normalize?" in fails("fusion.py", "--normalise", "std")
    assert "--epochs: invalid int value: 'many'" in fails("motion_cnn.py", "--epochs", "many")
    assert "'best'" in fails("motion_cnn.py", "--recipe", "best")
    assert "data/rgb: no such flag" in fails("spatial_cnn.py", "data/rgb")
    assert "VIDEOS, OUT" in fails("data/make_split.py")


def test_flags(fails, tiny, tmp_path):
    for flag in ("--epochs", "--batch-size", "--segments", "--test-samples", "--accumulate", "--size"):
        assert flag in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), flag, 0)
    line = fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), "--test-views", 10)
    assert "center" in line
    for device in ("tpu9", "meta", *(() if torch.backends.mps.is_available() else ("mps",))):
        assert "no device" in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path), "--device", device)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--lr", -1), ("--lr", "nan"), ("--dropout", 2), ("--workers", -1), ("--seed", -1), ("--milestones", 3),
     ("--flow-std", 0), ("--stack-length", 0)],
)  # fmt: skip
def test_numbers_out_of_range(fails, tiny, tmp_path, flag, value):
    line = fails("motion_cnn.py", "--flow-dir", tiny / "flow", *small(tmp_path), flag, value)
    assert line.startswith(f"error: {flag}: must be ") and line.partition(";")[0].endswith(f", not {value}")


def test_seeds_that_are_none(fails, tmp_path):
    assert "--seed: must be from 0 to 4294967295, not -1" in fails("fusion.py", "--seed", -1)
    assert "4294967295, not -1" in fails("data/make_split.py", tmp_path, tmp_path / "lists", "--seed", -1)
    assert f"4294967295, not {2**32}" in fails("data/make_demo.py", tmp_path, "--seed", 2**32)  # more than numpy's take


def test_more_than_memory_holds(fails, works, tiny, tmp_path, monkeypatch):
    """A size that no memory holds is out of range; what an allocation says is told as that, not as a bug."""
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    assert "--size: must be from 1 to 4096, not 100000000" in fails(*arguments, "--size", 100_000_000)
    for said in (lambda: torch.empty(2**60), lambda: np.empty(2**55)):
        monkeypatch.setattr("engine.training.train_step", lambda *_, said=said: said())
        line = fails(*arguments)
        assert "not enough memory" in line and "--batch-size" in line


def test_one_value_is_no_batch(fails, tiny, tmp_path):
    flags = small(tmp_path, "--batch-size", 1, "--segments", 1, "--size", 32)
    assert "batch norm has one value to average: a larger" in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *flags)


def test_one_class_is_nothing_to_learn(fails, tiny, tmp_path):
    (tmp_path / "classInd.txt").write_text("1 Archery\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    flags = (*small(tmp_path), "--ucf-list", tmp_path)
    assert "one class, Archery" in fails("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *flags)


def test_what_a_checkpoint_says_is_not_overruled_in_silence(fails, works, tiny, tmp_path):
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *small(tmp_path))
    works(*arguments)
    line = fails(*arguments, "--resume", "--arch", "resnet50")
    assert "--arch resnet50" in line and "is a resnet18" in line
    for features, told in ((tmp_path, "name a file"), (tmp_path / "out/rgb_test.csv/x.npz", "rgb_test.csv")):
        assert told in fails(*arguments, "--resume", "--features", features)
    checkpoint = tmp_path / "out/checkpoint.pth.tar"
    assert "it is a zip archive" in fails("fusion.py", checkpoint, checkpoint)
    table = tmp_path / "out/rgb_test.csv"
    assert "name the columns video,label," in fails("fusion.py", table, table)
    assert str(table) in fails("fusion.py", tmp_path / "out", tmp_path / "out", "--output", table)
    assert str(table) in fails("data/check.py", "--rgb-dir", tiny / "rgb", "--csv", table / "problems.csv")


def test_spaces_and_umlauts_in_every_path(works, tiny, tmp_path):
    root = tmp_path / "mein Ordner (größer)"
    shutil.copytree(tiny, root)
    script = {"spatial": ("spatial_cnn.py", "--rgb-dir", "rgb"), "motion": ("motion_cnn.py", "--flow-dir", "flow")}
    for stream, (name, flag, folder) in script.items():
        works(name, flag, root / folder, *small(tmp_path), "--output", root / f"für {stream}")
    works("fusion.py", root / "für spatial", root / "für motion", "--output", root / "zusammen é", "--no-report")
    assert (root / "zusammen é/results.json").is_file()


def test_a_bug_gets_a_traceback_and_an_end(tiny, run, tmp_path):
    """Python's end waits for loader processes that ignore its SIGTERM, as long as the exception keeps them."""
    script = patched(tmp_path, """
from engine import runner as run

def test(*_):
    raise RuntimeError("a bug")

run.test = test
""")
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *SMALL, "--epochs", 1, "--workers", 2)
    process = run(script, ROOT / arguments[0], *arguments[1:], "--output", tmp_path / "out", code=1, timeout=60)
    assert "Traceback" in process.stderr and "a bug" in process.stderr


def test_a_tsn_checkpoint_of_differences_says_itself_what_it_takes(works, tiny, tmp_path):
    """Of tsn-pytorch's names and 15 channels: --input need not be given with --resume and --evaluate."""
    from network import build_model

    state = build_model("resnet18", 15, 101, "none").state_dict()
    theirs = {f"module.{'new_fc' + name[2:] if name.startswith('fc.') else 'base_model.' + name}": value
              for name, value in state.items()}  # fmt: skip
    torch.save({"epoch": 80, "arch": "resnet18", "state_dict": theirs, "best_prec1": 84.2}, tmp_path / "x.pth.tar")
    flags = ("--rgb-dir", tiny / "rgb", "--resume", tmp_path / "x.pth.tar", "--evaluate")
    works("motion_cnn.py", *small(tmp_path, *flags))
    assert (tmp_path / "out/predictions.json").is_file()
