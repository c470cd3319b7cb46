"""Pooled features of a split's videos: one .npz per stream, read by heads.py.

  videos    (V,) str, the videos' keys; training videos first, each subset in the order of its list
  labels    (V,) int64, indices into class_names
  subset    (V,) str, "train" or "test"
  groups    (V,) str, the recording or person that a video shows (Video.group); its own name if unknown
  features  (V, samples, F) float16, averaged over views; samples in time order
  about     () str, JSON: format, stream, dataset, split, class_names, preparation, samples, views, frames; pooling,
            such as layer4.mean, the input of the last layer (pre-logits for timm's networks); network: arch,
            where its weights are, and their SHA-256 without fc
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from common.formats import Count, Names, Natural, check, parse_json
from dataloader.names import first_few
from dataloader.preparation import SavedPreparation
from saved.predictions import FramesAbout
from saved.safe import load_arrays
from utils import InputError, atomic_path, check_writable

FORMAT = 1
ARRAYS = ("videos", "labels", "subset", "groups", "features")


@dataclass(frozen=True)
class Features:
    """The content of a features file."""

    path: Path
    videos: list[str]
    labels: np.ndarray
    subset: np.ndarray
    groups: np.ndarray
    values: np.ndarray  # (V, samples, F) float16
    about: dict[str, Any]

    def rows(self, subset: str) -> np.ndarray:
        """Row indices of a subset's videos, (n,)."""
        return np.flatnonzero(self.subset == subset)


def check_target(path: Path) -> None:
    """Raise InputError if features can't be written to `path`, before an hour is spent on computing them."""
    if path.is_dir():
        raise InputError(f"--features {path} is a folder; name a file in it, such as out.npz")
    check_writable(path.parent)


def write_features(
    path: str | Path, videos: Sequence[str], labels: Sequence[int], subset: Sequence[str], values: np.ndarray,
    about: dict[str, Any], groups: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the file atomically. Without `groups`, each video is a group of its own."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, videos=np.array(videos), labels=np.array(labels, dtype=np.int64), subset=np.array(subset),
            groups=np.array(groups or videos), features=values,
            about=np.array(json.dumps({"format": FORMAT, **about}, ensure_ascii=False)),
        )  # fmt: skip


class Network(BaseModel):
    """The network that computed the features; its weights are the file `checkpoint` or named by `weights`."""

    arch: str
    sha256: str
    checkpoint: str | None = None
    weights: str | None = None
    flow_order: str = "original"
    seed: Natural = 0


class FeaturesAbout(BaseModel):
    """The `about` entry of a features file."""

    format: Literal[1]
    stream: Literal["spatial", "motion"]
    dataset: str
    split: str | Natural
    class_names: Names
    preparation: SavedPreparation
    samples: Count
    views: Count
    pooling: Names
    network: Network
    frames: FramesAbout


def read_about(path: str | Path) -> dict[str, Any] | None:
    """Read the `about` entry of a features file without its features; None if it can't be read."""
    try:
        content = load_arrays(path, only="about")
        return _about(path, content["about"]) if isinstance(content, dict) and "about" in content else None
    except InputError:
        return None


def _about(path: str | Path, text: Any) -> dict[str, Any]:
    about = parse_json(str(text), dict[str, Any], path, "extract it again")
    check(about, FeaturesAbout, path, "extract it again")
    return about


def read_features(path: str | Path) -> Features:
    """Read a features file. Raises InputError if it is missing, damaged or another kind of file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no features at {path}; extract them: spatial_cnn.py or motion_cnn.py --features {path}")
    content = load_arrays(path)
    again = InputError(f"{path} is not a features file of this project; extract it again")
    if not isinstance(content, dict) or not content.keys() >= {*ARRAYS, "about"}:
        raise again
    about = _about(path, content["about"])
    videos, labels, subset, groups, values = (np.asarray(content[name]) for name in ARRAYS)
    sound = all(one.ndim == 1 and len(one) == len(values) > 0 for one in (videos, labels, subset, groups))
    sound = sound and videos.dtype.kind == groups.dtype.kind == "U" and labels.dtype.kind == "i"
    sound = sound and set(subset.tolist()) <= {"train", "test"} and values.ndim == 3 and values.dtype.kind == "f"
    if not sound or labels.min() < 0 or labels.max() >= len(about["class_names"]):
        raise again
    bad = [video for video, row in zip(videos.tolist(), values, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise InputError(f"{path}: the features of {first_few(bad)} are not finite; was the network trained too fast?")
    return Features(path, videos.tolist(), labels, subset, groups, values, about)
