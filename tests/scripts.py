"""Running a script as `python script.py ...` does, without waiting for torch's import each time.

A server that has imported the heavy packages forks a process for each run; the script itself, and all of this
project's modules, are imported in it afresh. Where there is no fork, and where a test shapes Python's own start by a
variable PYTHON..., an interpreter is started.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import BaseContext
from pathlib import Path

HEAVY = ["torch", "torchvision", "cv2", "pandas", "sklearn.linear_model", "sklearn.model_selection", "matplotlib"]


def start_server() -> BaseContext | None:
    """A context whose processes are forked from one that has imported HEAVY; None where that can't be had."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    os.environ["OMP_NUM_THREADS"] = "1"
    context.set_forkserver_preload(HEAVY)
    return context


def run_script(
    context: BaseContext | None, command: list[str], cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """Run `command`, a script and its arguments, to its end: its exit code and its output as text."""
    if context is None or any(name.startswith("PYTHON") and os.environ.get(name) != env[name] for name in env):
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=env, timeout=timeout
        )
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_be_script, args=(command, str(cwd), env, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [Path(path).read_text() if os.path.exists(path) else "" for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _be_script(command: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(command)
    tests = Path(__file__).parent
    packages = [path for path in sys.path if path not in (str(tests), str(tests.parent))]
    sys.path[:] = [str(Path(command[0]).parent), *packages]
    runpy.run_path(command[0], run_name="__main__")
