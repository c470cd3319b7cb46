"""--tensorboard: its files, read by TensorBoard's own reader, say what the CSVs say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL
from scripts import patched

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def series(found: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_a_training_and_its_resume(tiny, run, tmp_path):
    flags = ("--output", tmp_path, *SMALL, "--tensorboard", "--lr", 1e-4)
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *flags)
    said = run(*arguments, "--epochs", 2).stdout
    assert f"2 epochs of 2 steps, a test after each; writes to {tmp_path}" in said
    said = run(*arguments, "--epochs", 3, "--resume").stdout
    assert "3 epochs, from epoch 2 on, of 2 steps, a test after each" in said
    epochs = read(tmp_path / "tensorboard")
    for part in ("train", "test"):
        record = pd.read_csv(tmp_path / f"rgb_{part}.csv")
        for column in ("Loss", "Prec@1", "Prec@5", "lr", "Batch Time", "Data Time"):
            found = series(epochs, f"{part}/{column}")
            assert [step for step, _ in found] == [0, 1, 2]
            np.testing.assert_allclose([value for _, value in found], record[column], rtol=1e-5)


def test_without_the_package_is_one_line(tiny, run, tmp_path):
    script = patched(tmp_path, "sys.modules['tensorboard'] = None")
    said = run(script, ROOT / "spatial_cnn.py", "--rgb-dir", tiny / "rgb", "--output", tmp_path / "out", *SMALL,
               "--tensorboard", code=2).stderr  # fmt: skip
    assert "--tensorboard needs the package tensorboard: pip install tensorboard" in said
    assert not list((tmp_path / "out").glob("*"))
