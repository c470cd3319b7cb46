"""Pooled features of videos: one .npz per input of a network, read by heads.py.

  videos    (V,) str, the videos' keys; training videos first, each subset in the order of its list
  labels    (V,) int64, indices into class_names
  subset    (V,) str, "train" or "test"
  groups    (V,) str, the recording or person that a video shows (Video.group); its own name if unknown
  features  (V, samples, F) float16, averaged over views; samples in time order
  about     () str, JSON: format, stream, dataset, split, class_names, preparation, samples, views, frames; pooling,
            such as layer4.mean, the input of the last layer (pre-logits for timm's networks); network: arch,
            where its weights are, and their SHA-256 without fc

Features of video files (recogniser/video_features.py) belong to no split: labels, subset and groups are empty,
and about has the videos' files in place of dataset, split, class_names and frames. `with_split` adds a split.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from common.formats import Count, Names, Natural, check, parse_json
from dataloader.frames import locate_video
from dataloader.layouts import assemble
from dataloader.lists import Split
from dataloader.names import first_few
from dataloader.packed import Frames
from dataloader.preparation import SavedPreparation
from saved.predictions import FramesAbout
from saved.safe import load_arrays
from utils import InputError, atomic_path, plural

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


def write_features(
    path: str | Path, videos: Sequence[str], labels: Sequence[int], subset: Sequence[str], values: np.ndarray,
    about: dict[str, Any], groups: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the file atomically. Without `groups`, each video is a group of its own; without labels, in no split."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, videos=np.array(videos), labels=np.array(labels, dtype=np.int64), subset=np.array(subset, dtype=str),
            groups=np.array(groups or videos if len(labels) else (), dtype=str), features=values,
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
    classes: Count | None = None  # outputs of the last layer, if not those of the dataset


class FeaturesAbout(BaseModel):
    """The `about` entry of a features file."""

    format: Literal[1]
    stream: Literal["spatial", "motion"]
    dataset: str | None = None
    split: str | Natural | None = None
    class_names: Names | None = None
    preparation: SavedPreparation
    samples: Count
    views: Count
    pooling: list[Annotated[str, Field(pattern=r"^(layer[1-4]\.(mean|max)|pre-logits)$")]] = Field(min_length=1)
    network: Network
    frames: FramesAbout | None = None
    files: dict[str, str] = {}


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
    classes = len(about.get("class_names", ()))  # 0: of no split
    sound = all(one.ndim == 1 and len(one) == len(videos) * bool(classes) for one in (labels, subset, groups))
    sound = sound and len(videos) == len(values) > 0 and videos.dtype.kind == groups.dtype.kind == "U"
    sound = sound and labels.dtype.kind == "i" and values.ndim == 3 and values.dtype.kind == "f"
    sound = sound and set(subset.tolist()) <= {"train", "test"}
    if not sound or not {*labels.tolist()} <= {*range(classes)}:
        raise again
    bad = [video for video, row in zip(videos.tolist(), values, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise InputError(f"{path}: the features of {first_few(bad)} are not finite; was the network trained too fast?")
    return Features(path, videos.tolist(), labels, subset, groups, values, about)


def with_split(features: Features, split: Split) -> Features:
    """Return features of video files as those of a split: its videos, with labels, subsets and groups.

    A listed video is found as its frames would be. Listed videos without features are left out, with a warning.
    Raises InputError if the features have a split already, or none of the listed videos.
    """
    if len(features.labels):
        raise InputError(f"{features.path} is of the split that it was made with: leave --ucf-list out")
    index = assemble(features.path, "rgb", {name: [Frames(name, "", 0, 0, 1, "")] for name in features.videos})
    places = {name: place for place, name in enumerate(features.videos)}
    listed = [(video, part) for part in ("train", "test") for video in getattr(split, part)]
    found = [(video, part, places[index.videos[name]["rgb"].folder])
             for video, part in listed if (name := locate_video(index, video)) in index.videos]  # fmt: skip
    if len(found) < len(listed):
        known = {video.name for video, *_ in found}
        lacking = [video.listed for video, _ in listed if video.name not in known]
        print(f"warning: {features.path} lacks {plural(len(lacking), 'listed video')}: {first_few(lacking)}",
              file=sys.stderr)  # fmt: skip
    if not found:
        raise InputError(f"{features.path} has no features of the listed videos; name the lists that belong to it")
    videos, parts, rows = zip(*found, strict=True)
    paths = features.about.get("files", {})
    files = {video.name: paths.get(features.videos[row], "") for video, row in zip(videos, rows, strict=True)}
    about = {"dataset": split.dataset, "split": split.number, "class_names": split.class_names, "files": files}
    return replace(
        features, videos=[video.name for video in videos], values=features.values[list(rows)],
        labels=np.array([video.label for video in videos]), subset=np.array(parts),
        groups=np.array([video.group for video in videos]), about={**features.about, **about},
    )  # fmt: skip
