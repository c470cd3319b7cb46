"""Shared fixtures: the optional test data, and a way to run scripts as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data; tests that need it are skipped where it is absent."""
    folder = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder} (TWO_STREAM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def run():
    """run("spatial_cnn.py", "--epochs", 1, ..., code=0) -> the finished process, its output as text.

    The exit code is checked, and an error must be one plain line.
    """

    def run(script: str, *arguments: object, code: int = 0, cwd: Path = ROOT, timeout: float = 300, **env: str):
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        process = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )  # fmt: skip
        assert process.returncode == code, f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}"
        if code == 2:
            assert "Traceback" not in process.stderr, process.stderr
            assert "error: " in process.stderr, process.stderr
        return process

    return run
