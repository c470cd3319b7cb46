"""Signals to all processes of a run, and processes killed one by one: saved, or one line; never a traceback.

The kill test of a whole evening is `-m slow`: chains of SIGKILLs at random moments end with the bits of a run that
nobody touched.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL
from scripts import patched
from test_resume import assert_same_runs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")

# Runs a script that does something to its processes in its N-th training step, in the middle of Python code.
STRIKER = """
import multiprocessing, os, signal, time
from engine import epoch
what, count, step = sys.argv[1], int(sys.argv[2]), epoch.train_step
del sys.argv[1:3]

def train_step(*args, **kwargs):
    global count
    count -= 1
    if count == 0:
        if what == "group":
            os.killpg(os.getpgrp(), signal.SIGTERM)
        else:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        for _ in range(100):
            time.sleep(0.01)
    return step(*args, **kwargs)

epoch.train_step = train_step
"""


@pytest.fixture(scope="module")
def flags(tiny):
    return ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *SMALL, "--batch-size", 2, "--epochs", 2, "--ema", 0.9,
            "--workers", 2, "--seed", 5)  # fmt: skip


@pytest.fixture(scope="module")
def untouched(flags, run, tmp_path_factory):
    output = tmp_path_factory.mktemp("untouched")
    run(*flags, "--output", output)
    return output


@pytest.fixture
def striker(tmp_path_factory):
    return patched(tmp_path_factory.mktemp("striker"), STRIKER)


def start(*command):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_sigterm_to_the_whole_group_saves(flags, untouched, run, striker, tmp_path):
    """As `timeout`, schedulers and service managers send it: the workers leave it to the main process."""
    process = run(striker, "group", 2, ROOT / flags[0], *flags[1:], "--output", tmp_path, code=128 + signal.SIGTERM)
    out, err = process.stdout, process.stderr
    assert "Traceback" not in err and "killed by signal" not in err and "stopped by SIGTERM; nothing is lost" in out
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["batch"] == 2
    run(*flags, "--output", tmp_path, "--resume")
    assert_same_runs(untouched, tmp_path)


def test_a_killed_loader_process_is_one_line(flags, untouched, run, striker, tmp_path):
    """As the out-of-memory killer does it, while the main process computes: the last checkpoint is as it was."""
    command = (ROOT / flags[0], *flags[1:], "--save-every-minutes", 1e-6, "--output", tmp_path)
    err = run(striker, "worker", 3, *command, code=2).stderr
    assert err.count("error: ") == 1 and "a loader process died" in err and "--resume" in err
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["batch"] == 2
    run(*flags, "--output", tmp_path, "--resume")
    assert_same_runs(untouched, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chain", range(int(os.environ.get("CHAINS", 3))))
def test_sigkill_at_random_moments_again_and_again(flags, untouched, run, tmp_path, chain):
    """One training, its whole group killed by SIGKILL again and again until it comes to its end between two kills."""
    command = (ROOT / flags[0], *flags[1:], "--save-every-minutes", 1e-6, "--output", tmp_path, "--resume", "auto")
    draw, kills = random.Random(chain), 0
    for attempt in range(20):
        process = start(*command)
        if attempt % 3 == 2:  # at any moment of a start: 6 s are one on a machine of its own
            time.sleep(6 * draw.random())
        else:  # at any moment after one to three saves
            for _ in range(draw.randint(1, 3)):
                wait_for_a_save(process, tmp_path / "checkpoint.pth.tar")
            time.sleep(draw.random())
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, err = process.communicate()
        assert "Traceback" not in err, err
        if ended:
            break
    run(*flags, "--output", tmp_path, "--resume", "auto")
    print(f"chain {chain}: {kills} kills")
    assert kills > 1
    assert_same_runs(untouched, tmp_path)


def wait_for_a_save(process, path):
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.01)
