"""Saved predictions: read one stream's pickle with its labels, and line several streams up video by video."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataloader.splits import UCF101_CLASSES
from safeload import load_pickle
from utils import InputError

UCF_NAME = re.compile(r"(?:v_)?(?P<label>\w+)_g(?P<group>\d\d)_c(?P<clip>\d\d)(?:\.avi)?", re.ASCII)
KINDS = {"spatial": "spatial", "rgb": "spatial", "motion": "motion", "flow": "motion", "opf": "motion"}


@dataclass(frozen=True)
class Predictions:
    """One stream's scores for a test set, as one pickle holds them."""

    path: Path
    stream: str  # "spatial", "motion", or else the file's name
    logits: dict[str, np.ndarray]  # video -> float32 (classes,) or (samples, classes)
    labels: dict[str, int]
    class_names: list[str]
    meta: dict = field(default_factory=dict)  # predictions.json, empty where there is none

    @property
    def level(self) -> str:
        """ "frame" where the pickle holds every sample's logits, else "video"."""
        return "frame" if next(iter(self.logits.values())).ndim == 2 else "video"

    def matrix(self, videos: Sequence[str]) -> np.ndarray:
        """Video-level logits in the order of `videos`, (videos, classes) float64.

        A frame-level pickle is averaged over its samples first, in logits: the segmental consensus of TSN
        (section 3.1). So both kinds of pickle of one test give the same answer, whatever happens next.
        """
        rows = [self.logits[video] for video in videos]
        if self.level == "frame":
            rows = [row.mean(axis=0, dtype=np.float64).astype(np.float32) for row in rows]
        return np.stack(rows).astype(np.float64)


@dataclass(frozen=True)
class TestSet:
    """Several streams' scores of the same videos."""

    videos: list[str]  # sorted
    labels: np.ndarray  # (videos,) int
    class_names: list[str]
    streams: dict[str, np.ndarray]  # stream's name -> (videos, classes) float64 logits
    sources: dict[str, Predictions]


def find_pickle(path: Path) -> Path:
    """The prediction pickle that `path` is, or the one in the folder that `path` is (video level first)."""
    if not path.is_dir():
        return path
    for level in ("video", "frame"):
        found = sorted(path.glob(f"*_{level}_preds.pickle"))
        if len(found) > 1:
            raise InputError(f"{path} holds {len(found)} prediction files; name one, e.g. {found[0]}")
        if found:
            return found[0]
    raise InputError(
        f"no predictions in {path}; test a stream first (--resume CHECKPOINT --evaluate) or name a pickle"
    )


def load_predictions(path: str | Path) -> Predictions:
    """Read a prediction pickle, or the one in a record folder, with its videos' labels.

    Labels and class names come from predictions.json beside the pickle. Without it (other people's
    pickles) names must be UCF101's, and the classes are UCF101's in classInd's order. Videos are keyed as in
    the class list's spelling: v_HandStandPushups_g01_c01.avi becomes HandstandPushups_g01_c01.

    Raises InputError for a file that is missing, unsafe, empty or not a dict of score arrays, for scores
    that aren't finite or have another length than the class list, and for videos without a label.
    """
    path = find_pickle(Path(path))
    if not path.is_file():
        raise InputError(
            f"no prediction file {path}; give the path of a pickle or of a folder that holds one"
        )
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} is not a prediction file: expected a dict of videos, found {_describe(content)}"
        )
    meta = _read_json(path.parent / "predictions.json")
    class_names = list(meta.get("class_names") or UCF101_CLASSES)
    spelling = {name.casefold(): name for name in class_names}
    logits: dict[str, np.ndarray] = {}
    for name, scores in content.items():
        video = canonical(name, spelling) if isinstance(name, str) else name
        if video in logits:
            raise InputError(f"{path} holds {video} twice, in two spellings; remove one")
        logits[video] = _checked(scores, path, name)
    _check_shapes(logits, path, len(class_names), bool(meta))
    if meta:
        known = {canonical(name, spelling): label for name, label in meta["labels"].items()}
    else:
        known = {video: label for video in logits if (label := _ucf_label(video)) is not None}
    unknown = sorted(str(video) for video in logits if video not in known)
    if unknown:
        where = path.parent / "predictions.json"
        problem = (
            f"has no label for {few(unknown)}"
            if meta
            else f"is missing, and {few(unknown)} not named as UCF101's"
        )
        raise InputError(f"{where} {problem}; test that stream again with --evaluate to write both files")
    labels = {video: known[video] for video in logits}
    return Predictions(path, _stream_of(path, meta), logits, labels, class_names, meta)


def align(predictions: Sequence[Predictions]) -> TestSet:
    """Line several streams up: the same videos, labels and classes, in one order.

    Streams of one kind are numbered ("spatial 1", "spatial 2"). Raises InputError where two streams differ in
    classes, in a label, or in their videos (named: the first few and the count).
    """
    first = predictions[0]
    for other in predictions[1:]:
        _check_same_set(first, other)
    videos = sorted(first.logits)
    names = [one.stream for one in predictions]
    numbered = [
        name if names.count(name) == 1 else f"{name} {names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]
    return TestSet(
        videos=videos,
        labels=np.array([first.labels[video] for video in videos]),
        class_names=first.class_names,
        streams={name: one.matrix(videos) for name, one in zip(numbered, predictions, strict=True)},
        sources=dict(zip(numbered, predictions, strict=True)),
    )


def canonical(name: str, spelling: dict[str, str]) -> str:
    """A UCF101 video's key `<Class>_gXX_cYY` in the class list's spelling; any other name as it is.

    `spelling` maps each class name without case to the class list's own.
    """
    match = UCF_NAME.fullmatch(name)
    if match is None or match["label"].casefold() not in spelling:
        return name
    return f"{spelling[match['label'].casefold()]}_g{match['group']}_c{match['clip']}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names and the count, for a one-line message."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _ucf_label(video: str) -> int | None:
    match = UCF_NAME.fullmatch(video) if isinstance(video, str) else None
    return UCF101_CLASSES.index(match["label"]) if match and match["label"] in UCF101_CLASSES else None


def _checked(scores: object, path: Path, video: object) -> np.ndarray:
    """One video's scores as a finite float array of one or two dimensions."""
    if not isinstance(video, str):
        raise InputError(f"{path} is not a prediction file: a key is {_describe(video)}, not a video's name")
    if (
        not isinstance(scores, np.ndarray)
        or scores.dtype.kind not in "fiu"
        or scores.ndim not in (1, 2)
        or not scores.size
    ):
        raise InputError(
            f"{path}: {video} should hold (classes,) or (samples, classes) scores, found {_describe(scores)}"
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{path}: the scores of {video} are not all finite (NaN or infinity); test that stream again"
        )
    return scores


def _check_shapes(logits: dict[str, np.ndarray], path: Path, classes: int, labelled: bool) -> None:
    first, expected = next(iter(logits.items()))
    for video, scores in logits.items():
        if scores.shape[-1] != classes:
            source = (
                f"predictions.json beside it names {classes}"
                if labelled
                else (f"without a predictions.json beside it only UCF101's {classes} are known")
            )
            raise InputError(f"{path}: {video} has scores of {scores.shape[-1]} classes, but {source}")
        if scores.ndim != expected.ndim:
            raise InputError(
                f"{path} mixes video-level and frame-level scores ({first} and {video}); keep one kind"
            )
    low = min(float(scores.min()) for scores in logits.values())
    high = max(float(scores.max()) for scores in logits.values())
    if low == high:
        raise InputError(f"{path}: every score is {low:g}, so it predicts nothing; test that stream again")


def _check_same_set(first: Predictions, other: Predictions) -> None:
    if len(first.class_names) != len(other.class_names):
        raise InputError(
            f"{first.path} has {len(first.class_names)} classes and {other.path} {len(other.class_names)}; "
            "fuse streams of one dataset"
        )
    for here, there in zip(first.class_names, other.class_names, strict=True):
        if here != there:
            raise InputError(
                f"the class lists beside {first.path} and {other.path} differ ({here}, {there}); "
                "fuse streams of one dataset"
            )
    splits = [str(one.meta["split"]) for one in (first, other) if "split" in one.meta]
    if len(set(splits)) > 1:
        raise InputError(
            f"{first.path} is of split {splits[0]} and {other.path} of split {splits[1]}; fuse one split"
        )
    for present, absent in ((first, other), (other, first)):
        missing = sorted(set(present.logits) - set(absent.logits))
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise InputError(
                f"{len(missing):,} of {len(present.logits):,} videos {verb} in {present.path} but not in {absent.path}: "
                f"{few(missing)}; test both streams on the same videos"
            )
    differing = sorted(video for video, label in first.labels.items() if other.labels[video] != label)
    if differing:
        raise InputError(
            f"{first.path} and {other.path} give different labels to {few(differing)}; test both again"
        )


def _read_json(path: Path) -> dict:
    """predictions.json, checked for what fusion needs; {} where it isn't there."""
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        names, labels = meta["class_names"], meta["labels"]
        sound = (
            meta["format"] == 1
            and len(names) > 0
            and all(isinstance(name, str) for name in names)
            and all(type(label) is int and 0 <= label < len(names) for label in labels.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(
            f"{path} is not a predictions.json of this project; test that stream again or remove it"
        )
    return meta


def _stream_of(path: Path, meta: dict) -> str:
    if meta.get("stream") in KINDS.values():
        return meta["stream"]
    words = re.split(r"[\W_]+", path.stem.lower())
    kinds = {KINDS[word] for word in words if word in KINDS}
    if len(kinds) == 1:
        return kinds.pop()
    return path.name


def _describe(thing: object) -> str:
    if isinstance(thing, np.ndarray):
        return f"an array of {thing.dtype}, shape {thing.shape}"
    size = f" of {len(thing)}" if isinstance(thing, (dict, list, tuple, str)) else ""
    return f"a {type(thing).__name__}{size}"
