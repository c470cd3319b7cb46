"""Running scripts as `python script.py ...` does, without waiting for torch's import each time.

A server that has imported the heavy packages forks a process for each run; the script itself, and all of this
project's modules, are imported in it afresh. Where there is no fork, and where a test shapes Python's own start by a
variable PYTHON..., an interpreter is started.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "torchvision", "cv2", "pandas", "sklearn.linear_model", "sklearn.model_selection", "matplotlib",
         "timm"]


@cache
def server() -> ForkServerContext | None:
    """A context whose processes are forks of one that has imported HEAVY; None where that can't be had."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    os.environ["OMP_NUM_THREADS"] = "1"
    context.set_forkserver_preload(HEAVY)
    return context


def run_script(*command: object, cwd: Path = ROOT, timeout: float = 300, **env: str) -> subprocess.CompletedProcess:
    """Run a script of the project (or another, by its whole path) with its arguments to its end."""
    if server() is None or any(name.startswith("PYTHON") for name in env):
        return subprocess.run(
            [sys.executable, str(ROOT / str(command[0])), *map(str, command[1:])], capture_output=True, text=True,
            cwd=cwd, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )  # fmt: skip
    return _run_all(command, [env], cwd, timeout)[0]


def patched(folder: Path, code: str) -> Path:
    """A script that runs `code` and then the script that is its first argument, as one that patches a module must."""
    script = folder / "patched.py"
    script.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\n"
        "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return script


def run_ranks(*command: object, timeout: float = 300) -> list[subprocess.CompletedProcess]:
    """Run a script as two processes of one run, as torchrun starts them, but for its watching over them."""
    with socket.socket() as probe:  # a free port, so that tests may run beside each other
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return _run_all(command, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"], ROOT, timeout)


def _run_all(
    command: Sequence[object], envs: Sequence[dict[str, str]], cwd: Path, timeout: float
) -> list[subprocess.CompletedProcess]:
    context, words = server(), [str(ROOT / str(command[0])), *map(str, command[1:])]
    assert context is not None
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        processes = []
        for place, env in enumerate(envs):
            output = os.path.join(folder, str(place))
            whole = {**os.environ, "OMP_NUM_THREADS": "1", **env}
            processes.append(context.Process(target=_be_script, args=(words, str(cwd), whole, output)))
            processes[-1].start()
            stack.callback(processes[-1].kill)
        for process in processes:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(words, timeout)
        texts = [[Path(folder, f"{place}.{kind}").read_text() for kind in ("out", "err")] for place in range(len(envs))]
        return [
            subprocess.CompletedProcess(words, process.exitcode, *text)
            for process, text in zip(processes, texts, strict=True)
        ]


def _be_script(command: list[str], cwd: str, env: dict[str, str], output: str) -> None:
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{kind}", os.O_WRONLY | os.O_CREAT), descriptor)
    multiprocessing.set_start_method(None, force=True)  # the script's own processes start as anywhere
    os.setpgid(0, 0)  # signals to this process' group reach it and its children alone
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = False  # else each run compiles the project's modules again
    os.fsync = lambda file: None  # no test cuts the power: none need wait for the disk
    sys.argv = list(command)
    others = [path for path in sys.path if path not in (str(ROOT), str(ROOT / "tests"))]
    sys.path[:] = [str(Path(command[0]).parent), *others]
    runpy.run_path(command[0], run_name="__main__")
