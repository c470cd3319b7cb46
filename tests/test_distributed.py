"""Two processes on the CPU: the same test results and the same epoch as one, and one voice."""

import pickle
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY
from scripts import patched, run_ranks


def both(*arguments, code=0):
    """The same without torchrun's own process, which takes seconds: what both said, joined."""
    ranks = run_ranks(*arguments)
    assert [rank.returncode for rank in ranks] == [code, code], ranks
    return SimpleNamespace(**{kind: "".join(getattr(rank, kind) for rank in ranks) for kind in ("stdout", "stderr")})


@pytest.fixture(scope="module")
def flags(tiny):
    """A network without batch norm: nothing depends on how a batch is shared out."""
    return ("motion_cnn.py", "--flow-dir", tiny / "flow", *TINY, "--arch", "timm:test_vit", "--amp", "off",
            "--test-samples", 2, "--batch-size", 4, "--epochs", 1, "--lr", 1e-3, "--weight-decay", 1e-3,
            "--accumulate", 2)  # fmt: skip


@pytest.fixture(scope="module")
def one(flags, run, tmp_path_factory):
    """One epoch on one process: batches of 4 and 2 videos."""
    output = tmp_path_factory.mktemp("one")
    run(*flags, "--output", output)
    return output


@pytest.fixture(scope="module")
def two(flags, tmp_path_factory):
    """The same epoch on two processes."""
    output = tmp_path_factory.mktemp("two")
    saves = ("--save-every-minutes", 1e-6)  # after each batch, which must change no sum
    process = both(*flags, "--output", output, *saves)
    assert "x 2 processes" in process.stdout and process.stdout.count("epoch 0:") == 1
    return output


def test_an_epoch_and_a_test_by_two_are_those_by_one(one, two):
    a, b = (torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (one, two))
    assert a["optimizer"]["state"]  # steps were made
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=1e-4, atol=1e-6, msg=name)
    rows = [pd.read_csv(folder / "opf_train.csv").iloc[0] for folder in (one, two)]
    assert rows[0]["Loss"] == pytest.approx(rows[1]["Loss"], rel=1e-5) and rows[0]["Prec@1"] == rows[1]["Prec@1"]
    a, b = (pickle.loads((folder / "motion_frame_preds.pickle").read_bytes()) for folder in (one, two))
    assert list(a) == list(b) and len(b) == 6  # each video once, in list order
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


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
    stopped = both(script, ROOT / flags[0], *flags[1:], "--output", tmp_path / "stopped", code=128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in stopped.stdout
    saved = torch.load(tmp_path / "stopped/checkpoint.pth.tar", weights_only=True)
    assert (saved["epoch"], saved["batch"], saved["sums"][3].item()) == (-1, 1, 3)  # half of six videos, two and one
    both(*flags, "--output", tmp_path / "stopped", "--resume", "auto")
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
