"""Two processes on the CPU: the same test results and the same epoch as one, and one voice."""

import pickle
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL
from scripts import patched, run_ranks


def both(*arguments, code=0):
    """The same without torchrun's own process, which takes seconds: what both said, joined."""
    ranks = run_ranks(*arguments)
    assert [rank.returncode for rank in ranks] == [code, code], ranks
    return SimpleNamespace(**{kind: "".join(getattr(rank, kind) for rank in ranks) for kind in ("stdout", "stderr")})


@pytest.fixture(scope="module")
def flags(tiny):
    return ("motion_cnn.py", "--flow-dir", tiny / "flow", *SMALL, "--amp", "off", "--test-samples", 2)


@pytest.fixture(scope="module")
def one(flags, run, tmp_path_factory):
    """One epoch on one process: batches of 4 and 2 videos, batch norm frozen but for the first."""
    output = tmp_path_factory.mktemp("one")
    run(*flags, "--batch-size", 4, "--epochs", 1, "--lr", 0.01, "--output", output)
    return output


def test_a_test_by_two_is_that_by_one(flags, one, tmp_path):
    evaluate = ("--resume", one / "checkpoint.pth.tar", "--evaluate")
    process = both(*flags, *evaluate, "--output", tmp_path)
    for kind in ("frame", "video"):
        a, b = (pickle.loads((folder / f"motion_{kind}_preds.pickle").read_bytes()) for folder in (one, tmp_path))
        assert list(a) == list(b) and len(b) == 6  # each video once, in list order
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6)
    assert process.stdout.count("test of checkpoint.pth.tar") == 1


@pytest.fixture(scope="module")
def two(flags, tmp_path_factory):
    """The same epoch on two processes."""
    output = tmp_path_factory.mktemp("two")
    saves = ("--save-every-minutes", 1e-6)  # after each batch, which must change no sum
    process = both(*flags, "--batch-size", 4, "--epochs", 1, "--lr", 0.01, "--output", output, *saves)
    assert "x 2 processes" in process.stdout and process.stdout.count("epoch 0:") == 1
    return output


def test_an_epoch_by_two_sees_each_video_once(two):
    saved = torch.load(two / "checkpoint.pth.tar", weights_only=True)
    assert not any(name.startswith("module.") for name in saved["state_dict"])
    right = pd.read_csv(two / "opf_train.csv")["Prec@1"][0] * 6 / 100
    assert abs(right - round(right)) < 1e-6  # a whole number only if six videos were counted


def test_the_step_of_two_is_the_step_of_one(tiny, run, tmp_path):
    """With batch norm in evaluation mode nothing depends on how a batch is shared out: the weights agree."""
    script = patched(tmp_path, """
import torch
torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
""")
    arguments = (ROOT / "motion_cnn.py", "--flow-dir", tiny / "flow", *SMALL, "--amp", "off", "--batch-size", 4,
                 "--epochs", 1, "--lr", 1e-3, "--weight-decay", 1e-3, "--accumulate", 2)  # fmt: skip
    run(script, *arguments, "--output", tmp_path / "one")
    both(script, *arguments, "--output", tmp_path / "two")
    a, b = (torch.load(tmp_path / n / "checkpoint.pth.tar", weights_only=True)["state_dict"] for n in ("one", "two"))
    start = torch.load(tmp_path / "one/checkpoint.pth.tar", weights_only=True)["optimizer"]["state"]
    assert start  # steps were made
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)
    rows = [pd.read_csv(tmp_path / n / "opf_train.csv")["Loss"][0] for n in ("one", "two")]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_two_stopped_within_an_epoch_go_on_to_the_same_record(flags, two, tmp_path):
    """SIGTERM reaches one of two processes after the first of two batches: both stop, and no video is lost."""
    script = patched(tmp_path, """
import os, signal
from engine import runner as runs
after_batch = runs.Run.after_batch

def stop(self, training):
    if training.batch == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    after_batch(self, training)

runs.Run.after_batch = stop
""")
    epoch = (*flags[1:], "--batch-size", 4, "--epochs", 1, "--lr", 0.01)
    stopped = both(script, ROOT / flags[0], *epoch, "--output", tmp_path / "stopped", code=128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in stopped.stdout
    saved = torch.load(tmp_path / "stopped/checkpoint.pth.tar", weights_only=True)
    assert (saved["epoch"], saved["batch"], saved["sums"][3].item()) == (-1, 1, 3)  # half of six videos, two and one
    both(flags[0], *epoch, "--output", tmp_path / "stopped", "--resume", "auto")
    columns = ["Epoch", "Loss", "Prec@1", "Prec@5", "lr"]
    rows = [pd.read_csv(folder / "opf_train.csv")[columns] for folder in (two, tmp_path / "stopped")]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    a, b = (torch.load(folder / "checkpoint.pth.tar", weights_only=True)["state_dict"] for folder in
            (two, tmp_path / "stopped"))  # fmt: skip
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_error_of_all_is_shown_once(flags, tmp_path):
    process = both(*flags, "--flow-dir", tmp_path / "nowhere", "--output", tmp_path / "out", code=2)
    assert process.stderr.count("nowhere") == 1 and process.stderr.count("error: ") == 1


def test_a_killed_process_ends_the_other_with_one_line(flags, tmp_path):
    script = patched(tmp_path, """
import os, signal
from engine import training as epoch
step = epoch.train_step

def train_step(training, *rest):
    if training.epoch == 1 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(training, *rest)

epoch.train_step = train_step
""")
    ranks = run_ranks(script, ROOT / flags[0], *flags[1:], "--epochs", 2, "--output", tmp_path / "out")
    assert ranks[0].returncode == -signal.SIGKILL and ranks[1].returncode == 2
    assert "Traceback" not in ranks[1].stderr
    errors = [line for line in ranks[1].stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) <= 1 and all("another process of this run has ended" in line for line in errors)
    saved = torch.load(tmp_path / "out/checkpoint.pth.tar", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (0, 0)
