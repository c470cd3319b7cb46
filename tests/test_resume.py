"""Exact resume: runs killed at the worst moments end with the bits of a run that nobody touched."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY

import spatial_cnn
from utils import InputError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")


def assert_same_runs(a, b):
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        assert first["epoch"] == second["epoch"] and first["best_prec1"] == second["best_prec1"]
        for key, tensor in first["state_dict"].items():
            assert torch.equal(tensor, second["state_dict"][key]), (name, key)
        for key, state in first["optimizer"]["state"].items():
            assert torch.equal(state["momentum_buffer"], second["optimizer"]["state"][key]["momentum_buffer"])
        assert first["scheduler"] == second["scheduler"]
    for path in sorted(a.glob("*.csv")):
        tables = [pd.read_csv(folder / path.name).drop(columns=["Batch Time", "Data Time"]) for folder in (a, b)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    for path in sorted(a.glob("*.pickle")):
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name
    first, second = (json.loads((folder / "predictions.json").read_text()) for folder in (a, b))
    for about in (first, second):  # command, date and duration differ
        about["made"] = {key: about["made"]["settings"][key] for key in ("seed", "lr", "epochs", "crop")}
    assert first == second


@pytest.fixture(scope="module")
def flags(tiny):
    """A run with everything that has a state or is random: dropout, flips, crops, momentum."""
    return ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *TINY, "--batch-size", 2, "--epochs", 2, "--dropout", 0.5,
            "--crop", "multiscale", "--lr", 0.01, "--seed", 3)  # fmt: skip


@pytest.fixture(scope="module")
def untouched(flags, run, tmp_path_factory):
    output = tmp_path_factory.mktemp("untouched")
    run(*flags, "--output", output)
    return output


def test_killed_again_and_again(flags, untouched, run, strike, tmp_path):
    """One run, killed by SIGKILL in turn at five moments, each time resumed; 3 batches make an epoch."""
    arguments = (ROOT / flags[0], *flags[1:], "--output", tmp_path, "--resume", "auto", "--workers", 0,
                 "--save-every-minutes", 1e-6)  # fmt: skip
    moments = [("in a batch", 2), ("in the checkpoint's write", 1), ("after checkpoint.pth.tar", 3),
               ("after frame_preds.pickle", 1), ("before the checkpoint counts", 3)]  # fmt: skip
    for moment, count in moments:
        process = strike(moment, count, signal.SIGKILL, *arguments)
        assert process.returncode == -signal.SIGKILL, f"{moment}: {process.stdout}{process.stderr}"
        for name in ("checkpoint.pth.tar", "model_best.pth.tar"):  # the old file or the new one, never half of one
            if (tmp_path / name).exists():
                saved = torch.load(tmp_path / name, weights_only=True)
        if moment == "in a batch":
            assert (saved["epoch"], saved["batch"]) == (-1, 1)
    run(*flags, "--output", tmp_path, "--resume", "auto")
    assert_same_runs(untouched, tmp_path)


def test_asked_to_stop(flags, untouched, run, strike, tmp_path):
    """As `timeout` and schedulers do it, to the whole group: workers leave it to the main process."""
    arguments = (ROOT / flags[0], *flags[1:], "--output", tmp_path, "--workers", 2)
    process = strike("in a batch", 4, signal.SIGTERM, *arguments, whom="group")
    assert process.returncode == 128 + signal.SIGTERM, process.stderr
    assert "Traceback" not in process.stderr and "killed by signal" not in process.stderr
    assert f"{tmp_path / 'checkpoint.pth.tar'}. Go on with the same command and --resume" in process.stdout
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["batch"] == 1
    run(*flags, "--output", tmp_path, "--resume")
    assert_same_runs(untouched, tmp_path)


def test_a_killed_loader_process_is_one_line(flags, strike, tmp_path):
    """As the out-of-memory killer does it, while the main process computes: the last checkpoint is as it was."""
    command = (ROOT / flags[0], *flags[1:], "--save-every-minutes", 1e-6, "--output", tmp_path)
    process = strike("in a batch", 3, signal.SIGKILL, *command, whom="loader")
    assert process.returncode == 2 and process.stderr.count("error: ") == 1
    assert "a loader process died" in process.stderr and "--resume" in process.stderr
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["batch"] == 2


def test_a_full_disk_keeps_the_last_checkpoint(flags, tmp_path, untouched, monkeypatch):
    """The write of a checkpoint fails as on a full disk: one line, and the old file is as it was."""
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        (tmp_path / name).write_bytes((untouched / name).read_bytes())
    write = Path.write_bytes

    def full(path, data):
        if "checkpoint.pth.tar" in path.name:
            write(path, bytes(data)[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(sys, "argv", [*map(str, flags), "--epochs", "3", "--output", str(tmp_path), "--resume"])
    with pytest.raises(InputError, match=r"checkpoint.pth.tar: No space left"):
        spatial_cnn.main()
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == (untouched / "checkpoint.pth.tar").read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))


def test_plateau_and_best_survive(untouched):
    saved = torch.load(untouched / "checkpoint.pth.tar", weights_only=True)
    record = pd.read_csv(untouched / "rgb_test.csv")
    assert saved["best_prec1"] == pytest.approx(record["Prec@1"].max())
    assert saved["scheduler"]["best"] == pytest.approx(record["Loss"].min())
    best = torch.load(untouched / "model_best.pth.tar", weights_only=True)["epoch"]
    assert best == int(np.argmax(record["Prec@1"]))
    of = json.loads((untouched / "predictions.json").read_text())["checkpoint"]
    assert of["name"] == "model_best.pth.tar" and of["epoch"] == best


def test_videos_of_training_are_not_tested_in_silence(flags, untouched, tmp_path, monkeypatch, capsys):
    """Split 2 tests group 8, on which split 1 trains: auto starts anew, and keeps what was there."""
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        (tmp_path / name).write_bytes((untouched / name).read_bytes())
    told = r"was trained on 3 of 3 test videos \(Archery_g08_c01, HammerThrow_g08_c01, Hammering_g08_c01\)"

    def again(*more):
        words = [*flags, "--output", tmp_path, "--epochs", 3, "--split", 2, *more]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        assert spatial_cnn.main() == 0
        return capsys.readouterr()

    with pytest.raises(InputError, match=told):
        again("--resume")
    with pytest.raises(InputError, match="was trained on 3 of 9 test"):  # videos held out of training choose the model
        again("--resume", "--split", 1, "--val-groups", 1)
    assert re.search(told, again("--resume", "--evaluate").err)
    said = again("--resume", "auto")
    assert re.search(told + ": training starts anew", said.err) and "old1_*" in said.out
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert saved["epoch"] == 2 and "Archery_g22_c01" in saved["trained_on"]
    assert "Archery_g08_c01" not in saved["trained_on"]
    # of earlier versions
    torch.save({**saved, "args": {**saved["args"], "recipe": "small"}}, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(InputError, match="trained with --recipe small, which is gone"):
        again("--resume")
    del saved["trained_on"]
    torch.save(saved, tmp_path / "checkpoint.pth.tar")
    again("--resume", "--split", 1, "--epochs", 4)


@pytest.mark.slow
@pytest.mark.parametrize("chain", range(int(os.environ.get("CHAINS", 3))))
def test_sigkill_at_random_moments_again_and_again(flags, untouched, run, tmp_path, chain):
    """One training, its whole group killed by SIGKILL again and again until it comes to its end between two kills."""
    command = (ROOT / flags[0], *flags[1:], "--save-every-minutes", 1e-6, "--output", tmp_path, "--resume", "auto")
    draw, kills = random.Random(chain), 0
    for attempt in range(20):
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if attempt % 3 == 2:  # at any moment of a start: 6 s are one on a machine of its own
            time.sleep(6 * draw.random())
        else:  # at any moment after one to three saves
            for _ in range(draw.randint(1, 3)):
                wait_for_a_save(process, tmp_path / "checkpoint.pth.tar")
            time.sleep(draw.random() / 5)
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, err = process.communicate()
        assert "Traceback" not in err, err
        if ended:
            break
    run(*flags, "--output", tmp_path, "--resume", "auto")
    assert kills > 1
    assert_same_runs(untouched, tmp_path)


def wait_for_a_save(process, path):
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.01)
