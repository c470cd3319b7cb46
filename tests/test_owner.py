"""One run per output folder, whoever asks: a second training or test is refused in one line that names the first."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from scripts import run_ranks

from engine.owner import owned
from utils import InputError, check_output


def test_a_second_run_is_refused_and_touches_nothing(tiny, run, tmp_path):
    flags = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *TINY, "--epochs", 1, "--output", tmp_path)
    being_written = tmp_path / f".checkpoint.pth.tar.{os.getpid()}-0123abcd.tmp"
    with owned(tmp_path):
        being_written.write_bytes(b"half")
        before = sorted(path.name for path in tmp_path.iterdir())
        line = run(*flags, "--resume", "auto", code=2).stderr
        assert f"process {os.getpid()} on " in line and shlex.join(sys.argv) in line and str(tmp_path) in line
        assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", line)
        # processes of torchrun are one run, and are refused as one
        ranks = run_ranks(*flags)
        assert all(rank.returncode == 2 for rank in ranks)
        assert sum(rank.stderr.count(f"process {os.getpid()} on ") for rank in ranks) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before


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
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:  # fmt: skip
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
    time.sleep(2)
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
