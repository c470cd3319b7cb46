"""One run per output folder, whoever asks: a second training or test is refused in one line that names the first."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL
from scripts import patched, run_ranks

from engine.owner import owned
from utils import InputError, check_output

# A script that goes on to its first training step and there waits to be killed.
WAITING = """
import time
from engine import training as epoch

def wait(*_, **__):
    print("in a step", flush=True)
    time.sleep(3600)

epoch.train_step = wait
"""


@pytest.fixture(scope="module")
def flags(tiny):
    return ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *SMALL, "--epochs", 1)


@pytest.fixture
def training(flags, tmp_path):
    """A training that is in its first step, with a loader worker, in tmp_path/out."""
    output = tmp_path / "out"
    output.mkdir()
    (output / ".checkpoint.pth.tar.999999999-0123abcd.tmp").write_bytes(b"what a killed run left")
    command = [sys.executable, patched(tmp_path, WAITING), ROOT / flags[0], *flags[1:], "--output", output]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert any("in a step" in line for line in process.stdout)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_touches_nothing(flags, run, training, tmp_path):
    output = tmp_path / "out"
    assert not list(output.glob(".*.tmp"))  # the first swept up
    being_written = output / f".checkpoint.pth.tar.{training.pid}-0123abcd.tmp"
    being_written.write_bytes(b"half")
    before = sorted(path.name for path in output.iterdir())
    for more in ((), ("--resume", "auto")):
        line = run(*flags, *more, "--output", output, code=2).stderr
        assert f"process {training.pid} on " in line and "spatial_cnn.py --rgb-dir" in line and str(output) in line
        assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert sorted(path.name for path in output.iterdir()) == before
    # processes of torchrun are one run, and are refused as one
    ranks = run_ranks(*flags, "--output", output)
    assert all(rank.returncode == 2 for rank in ranks)
    assert sum(rank.stderr.count(f"process {training.pid} on ") for rank in ranks) == 1
    # the owner's death, however sudden, frees the folder for the next
    training.kill()
    training.wait()
    run(*flags, "--output", output)
    assert not being_written.exists() and not (output / ".owner.txt").exists()


def test_what_is_swept_belongs_to_nobody_alive(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        alive = tmp_path / f".results.json.{other.pid}-0123abcd.tmp"
        dead = tmp_path / ".results.json.999999999-0123abcd.tmp"
        foreign = tmp_path / ".notes.tmp"
        for path in (alive, dead, foreign):
            path.write_text("x")
        check_output(tmp_path, 0)
        assert alive.exists() and foreign.exists() and not dead.exists()
    check_output(tmp_path, 0)
    assert not alive.exists() and foreign.exists()


def test_an_owner_keeps_others_out_until_it_ends(tmp_path):
    code = "import sys; from engine.owner import owned\nwith owned(sys.argv[1]): print('in', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=f"process {other.pid} on"), owned(tmp_path):
            pass
        (tmp_path / ".owner.txt").write_text("")  # not written yet
        with pytest.raises(InputError, match="just started"), owned(tmp_path):
            pass
        other.communicate("\n")
    with owned(tmp_path):
        assert (tmp_path / ".owner.txt").read_text().startswith(f"process {os.getpid()} on ")
    with pytest.raises(ZeroDivisionError), owned(tmp_path):
        _ = 1 / 0
    with owned(tmp_path):
        pass


def test_a_fork_of_a_killed_owner_does_not_keep_the_folder(tmp_path):
    """Loader workers are forks, and may outlive their parent by seconds."""
    code = """
import os, sys, time
from engine.owner import owned
with owned(sys.argv[1]):
    if os.fork():
        print("in", flush=True)
    time.sleep(8)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with owned(tmp_path):
        pass
    process.stdout.close()


def test_the_disk_check_counts_what_will_be_replaced(monkeypatch, tmp_path):
    """Two checkpoints of S and a third while it is written: 3 S at first, S where two are there to be replaced."""
    size, free = 1000, [3000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, free[0]))
    own = [tmp_path / name for name in ("checkpoint.pth.tar", "model_best.pth.tar")]
    check_output(tmp_path, 3 * size, replaced=own)
    for path in own:
        path.write_bytes(bytes(size))
    free[0] = size
    check_output(tmp_path, 3 * size, replaced=own)
    for free[0], replaced in (size, ()), (size - 1, own):  # a training from the start keeps the old ones
        with pytest.raises(InputError, match="free some"):
            check_output(tmp_path, 3 * size, replaced=replaced)
