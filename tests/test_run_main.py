"""However a run ends, wherever it prints to and whoever runs it: a line or a traceback, a code, no process left."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SMALL
from scripts import patched

from utils import is_alive

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, /dev and users are of Unix")


# In a loader process; and in the main one, where the exception keeps the loaders, for which the end waits.
@pytest.mark.parametrize("where", ["frames.ReadFrame.__call__", "results.test"])
def test_an_exception_ends_the_loader_processes_too(tiny, run, tmp_path, where):
    script = patched(tmp_path, f"""
import os
from dataloader import frames
from engine import results

def fail(*_):
    open({str(tmp_path / 'pids')!r}, "a").write(f"{{os.getpid()}} ")
    raise KeyError("a bug")

{where} = fail
""")
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *SMALL, "--epochs", 1, "--output", tmp_path / "out")
    process = run(script, ROOT / arguments[0], *arguments[1:], "--workers", 2, code=1, timeout=60)
    assert "KeyError" in process.stderr and "Traceback" in process.stderr
    time.sleep(0.2)  # a killed process is there until its parent's end is noticed
    assert not any(is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom utils import *\n{code}"],
        stderr=subprocess.PIPE, text=True, timeout=60, **options,
    )  # fmt: skip


def test_a_result_that_cannot_be_printed_is_a_line():
    with open("/dev/full", "w") as full:
        process = python("run_main(lambda: print('so'))", stdout=full)
    assert process.returncode == 2 and process.stderr.startswith("error: the disk is full")
    assert process.stderr.count("\n") == 1
    process = python("run_main(lambda: print('so'))", preexec_fn=lambda: os.close(1))
    assert (process.returncode, process.stderr) == (0, "")


def test_what_a_terminal_cannot_encode_is_escaped():
    code = "run_main(lambda: print('größer \\udcff'))"
    for encoding in ("ascii", "utf-8"):
        process = python(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"})
        assert (process.returncode, process.stderr) == (0, "") and process.stdout.endswith("\\udcff\n")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
def test_a_user_without_a_home_has_one_for_caches():
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    code = "import getpass; os.setuid(54321)\nrun_main(lambda: print(getpass.getuser(), Path.home().stat().st_uid))"
    process = python(code, stdout=subprocess.PIPE, env={**env, "TMPDIR": "/tmp"})
    assert (process.returncode, process.stdout) == (0, "nobody 54321\n"), process.stderr
    assert process.stderr.startswith("note: this user has no home folder")
