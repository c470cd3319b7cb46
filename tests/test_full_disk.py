"""Films on a full disk, by way of a limit on a file's size: one line, no half film."""

import subprocess
import sys

import pytest
from conftest import ROOT

CODE = """
import resource, sys
from pathlib import Path
import numpy as np
from recogniser.overlay import open_film
from utils import run_main

def main():
    limit = int(sys.argv[2])
    rng = np.random.default_rng(0)
    with open_film(Path(sys.argv[1]), 25) as write:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for _ in range(30):
            write(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))

run_main(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size")
def test_a_film_that_the_disk_cannot_take_is_told_as_that(tmp_path):
    film = tmp_path / "a.mp4"
    process = subprocess.run(
        [sys.executable, "-c", CODE, film, "5000"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert str(film) in process.stderr and "MPEG-4" not in process.stderr
    assert "File too large" in process.stderr
    assert not list(tmp_path.iterdir())
