"""Predictions as the stream scripts leave them, of logits that are made up."""

import contextlib
import io
import json
import pickle
import sys
from pathlib import Path
from unittest import mock

import numpy as np

CLASSES = ["Archery", "Hammering", "HammerThrow"]


def write(folder: Path, stream: str, logits: dict, labels: dict | None = None, level: str = "video", **meta) -> Path:
    """A record folder as the stream scripts leave it; without `labels` no predictions.json is written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stream}_{level}_preds.pickle"
    path.write_bytes(pickle.dumps(logits, protocol=meta.pop("protocol", 4)))
    if labels is not None:
        about = {"format": 1, "stream": stream, "dataset": "own", "split": "1", "class_names": CLASSES, **meta}
        (folder / "predictions.json").write_text(json.dumps({**about, "labels": labels}))
    return path


def make_streams(seed: int = 0, videos: int = 40) -> tuple[dict, dict, dict]:
    """(spatial, motion, labels): noisy logits of two streams, motion's three times as large."""
    rng = np.random.default_rng(seed)
    labels = {f"{CLASSES[i % 3]}/clip{i:03d}": i % 3 for i in range(videos)}
    one_hot = {name: np.eye(3)[label] for name, label in labels.items()}
    spatial = {name: (row + rng.normal(0, 0.7, 3)).astype(np.float32) for name, row in one_hot.items()}
    motion = {name: (3 * (row + rng.normal(0, 0.7, 3))).astype(np.float32) for name, row in one_hot.items()}
    return spatial, motion, labels


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean([int(np.argmax(row)) == label for row, label in zip(scores, labels, strict=True)]))


def fuse(*arguments: object) -> str:
    """Run fusion.py in this very process; returns what it prints."""
    import fusion

    out = io.StringIO()
    with mock.patch.object(sys, "argv", ["fusion.py", *map(str, arguments)]), contextlib.redirect_stdout(out):
        fusion.main()
    return out.getvalue()
