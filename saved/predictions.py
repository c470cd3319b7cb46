"""Saved predictions: write and read one stream's with its labels, and align several streams by video."""

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from common.accuracy import mean_logits
from common.formats import Names, Natural, read_json
from dataloader.names import UCF101_CLASSES, first_few, ucf_parts
from saved.safe import load_pickle
from saved.scores import SUFFIXES, read_scores
from utils import InputError, atomic_path, printable, write_json

KINDS = {"spatial": "spatial", "rgb": "spatial", "motion": "motion", "flow": "motion", "opf": "motion"}
TAKEN = {  # other keys of results.json; a stream's name must differ, as it is the key of its accuracies
    "videos", "fusion", "average", "std", "learnt", "interval_95", "resampled", "mcnemar", "classes",
    "settings", "streams", "splits", "look_alikes", "warnings", "notes",
}  # fmt: skip
MOST = 1e30  # of scores: their squares, in a std, stay within float64's range
DATASETS = {"ucf101": "UCF101", "hmdb51": "HMDB51", "own": "own dataset", "demo": "the demo set"}


class FramesAbout(BaseModel):
    """Location of the videos' images: a root, each video's folder below it, and `more` inputs' roots."""

    root: str
    folders: dict[str, str]
    more: list[str] = []


class PredictionsFile(BaseModel):
    """The content of predictions.json, which `write_predictions` writes."""

    model_config = ConfigDict(extra="allow")

    format: Literal[1]
    class_names: Names
    labels: dict[str, Natural]
    stream: str | None = None
    dataset: str | None = None
    split: str | Natural | None = None
    subset: str | None = None
    protocol: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    frames: FramesAbout | None = None


@dataclass(frozen=True)
class Predictions:
    """One stream's scores for a test set, read from one file."""

    path: Path
    stream: str  # its name, from predictions.json or else from the file's name (rgb: spatial, flow: motion)
    logits: dict[str, np.ndarray]  # video -> (classes,) or (samples, classes)
    labels: dict[str, int]
    class_names: list[str]  # in label order; empty if unknown
    meta: dict = field(default_factory=dict)  # predictions.json; empty if there is none

    @property
    def classes(self) -> int:
        return next(iter(self.logits.values())).shape[-1]

    @property
    def level(self) -> str:
        """The level of the scores: "frame" if the file holds every sample's logits, else "video"."""
        return "frame" if next(iter(self.logits.values())).ndim == 2 else "video"

    def about(self) -> dict:
        """The predictions' origin, as stored in results.json."""
        kept = ("dataset", "split", "protocol", "checkpoint", "chosen_by")
        known = {key: self.meta[key] for key in kept if key in self.meta}
        return {"path": str(self.path), "level": self.level, **known}

    def as_stream(self, kind: str) -> "Predictions":
        """Return a copy named `kind`. Raises InputError if predictions.json says it is the other stream."""
        if self.meta and KINDS.get(self.stream.lower(), kind) != kind:
            raise InputError(f"--{kind} {self.path} holds the {self.stream} stream; look at the path")
        return replace(self, stream=kind)

    def only(self, videos: Collection[str]) -> "Predictions":
        """Return a copy with these of the videos."""
        logits = {video: scores for video, scores in self.logits.items() if video in videos}
        return replace(self, logits=logits, labels={video: self.labels[video] for video in logits})

    def matrix(self, videos: Sequence[str]) -> np.ndarray:
        """Video-level logits in the order of `videos`, (videos, classes) float64.

        Frame-level logits are averaged over the samples first: the segmental consensus of TSN (section 3.1).
        Both levels of one evaluation therefore give the same result in all later steps.
        """
        rows = [self.logits[video] for video in videos]
        if self.level == "frame":
            rows = [row.mean(axis=0, dtype=np.float64).astype(np.float32) for row in rows]
        return np.stack(rows).astype(np.float64)


@dataclass(frozen=True)
class TestSet:
    """Several streams' scores for the same videos."""

    __test__ = False  # pytest would collect the class because of its name

    videos: list[str]  # sorted
    labels: np.ndarray  # (videos,) int
    class_names: list[str]
    streams: dict[str, np.ndarray]  # stream name -> (videos, classes) float64 logits
    sources: dict[str, Predictions]

    @property
    def title(self) -> str:
        """Dataset, split and subset from predictions.json; without one, "UCF101" or the number of classes."""
        meta = next((source.meta for source in self.sources.values() if source.meta), None)
        if meta is None:
            ucf101 = self.class_names == list(UCF101_CLASSES)
            return DATASETS["ucf101"] if ucf101 else f"{len(self.class_names)} classes"
        dataset, subset = str(meta.get("dataset", "own")), meta.get("subset") or "test"
        more = "" if subset == "test" else f", {subset} videos"
        return f"{DATASETS.get(dataset, dataset)}, split {meta.get('split', '?')}{more}"


def load_predictions(path: str | Path) -> Predictions:
    """Read predictions and labels from a pickle, a record folder that holds one, or a .npz, .npy or .csv.

    Labels and class names come from predictions.json beside the file. Without it (other projects' files) they
    come from the file itself (scores.read_scores), or the videos must have UCF101's names and the classes are
    in classInd's order. Videos are keyed in the class list's spelling: v_HandStandPushups_g01_c01.avi becomes
    HandstandPushups_g01_c01. Raises InputError for a file, scores or labels that do not fit.
    """
    path = source = _find(Path(path))
    theirs = path.suffix.lower() in SUFFIXES
    content, labels, class_names = read_scores(path) if theirs else (load_pickle(path), None, None)
    classes = _check_scores(content, path)
    meta, about = {}, path.parent / "predictions.json"
    if labels is None and about.is_file():
        remedy = "test that stream again or remove it"
        meta = read_json(about, PredictionsFile, remedy).model_dump(exclude_unset=True)
        source, labels, class_names = about, meta["labels"], meta["class_names"]
    ours = list(map(printable, class_names or UCF101_CLASSES))
    if classes != len(ours) and (class_names or labels is None):
        said = "its list of classes names" if class_names else "UCF101 has"
        remedy = "test that stream again, with the predictions.json of the test beside it"
        raise InputError(f"{path} has scores of {classes} classes, but {said} {len(ours)}; {remedy}")

    spelling = {name.casefold(): name for name in ours}
    logits = {canonical(name, spelling): scores for name, scores in content.items()}
    if len(logits) < len(content):
        raise InputError(f"{path} holds a video twice, in two spellings; remove one")
    order = {name: label for label, name in enumerate(UCF101_CLASSES)}
    ucf101 = {video: order[parts[0]] for video in logits if (parts := ucf_parts(video)) and parts[0] in order}
    labels = {canonical(name, spelling): label for name, label in (labels or ucf101).items()}
    if unknown := sorted(set(logits) - set(labels)):
        needed = "the predictions.json that was written with it beside it, or UCF101's names of videos"
        raise InputError(f"{path} has no label for {first_few(unknown)}: it needs {needed}")
    if wrong := next((video for video, label in labels.items() if not 0 <= label < classes), None):
        raise InputError(f"{source} labels {wrong} {labels[wrong]} of {classes} classes; labels count from 0")
    labels = {video: labels[video] for video in logits}
    if not class_names:  # the file's order of classes may be another than UCF101's
        differing = sorted(video for video, label in ucf101.items() if labels[video] != label)
        if differing and classes == len(ours):
            other = f"another order of classes than UCF101's classInd, or labels differently: {first_few(differing)}"
            raise InputError(f"{path} has {other}; add class_names to it, in its order")
        ours = ours if labels == ucf101 else []
    stem = path.stem.removesuffix("_preds").removesuffix("_video").removesuffix("_frame")
    stream = printable(meta.get("stream") or KINDS.get(stem.lower(), stem))[:40]
    stream = f"{stream} stream" if stream in TAKEN else stream
    return Predictions(path, stream, logits, labels, ours, meta)


def write_predictions(
    folder: Path, stream: str, frame_logits: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write <stream>_frame_preds.pickle, <stream>_video_preds.pickle and predictions.json.

    `frame_logits` maps a video to (samples, classes) float32 in time order; the video's prediction is their
    mean. `about` holds what fusion.py needs when it has no dataset: class_names, labels, protocol, ...
    """
    video_logits = {name: mean_logits(logits) for name, logits in frame_logits.items()}
    for kind, predictions in (("frame", frame_logits), ("video", video_logits)):
        with atomic_path(folder / f"{stream}_{kind}_preds.pickle") as temporary:
            temporary.write_bytes(pickle.dumps(dict(predictions), protocol=4))
    write_json(folder / "predictions.json", {"format": 1, "stream": stream, **about})


def align(predictions: Sequence[Predictions]) -> TestSet:
    """Align several streams: the same videos, labels and classes, in one order.

    Streams with the same name are numbered ("spatial 1", "spatial 2"). Raises InputError if two streams
    differ in classes, split, labels or videos; for videos it gives the first few and the count.
    """
    first = next((one for one in predictions if one.class_names), predictions[0])
    for other in predictions:
        check_same_classes(first, other)
        for present, absent in ((first, other), (other, first)):
            if missing := sorted(present.logits.keys() - absent.logits.keys()):
                count = f"{len(missing):,} of its {len(present.logits):,} videos: {first_few(missing)}"
                raise InputError(f"{present.path} has videos that {absent.path} lacks, {count}; "
                                 "test both streams on the same videos")  # fmt: skip
        if differing := sorted(video for video, label in first.labels.items() if other.labels[video] != label):
            both = f"{first.path} and {other.path}"
            raise InputError(f"{both} label differently: {first_few(differing)}; test both again")
    videos, names = sorted(first.logits), [one.stream for one in predictions]
    sources = {}
    for place, one in enumerate(predictions):
        number = f" {names[: place + 1].count(one.stream)}" if names.count(one.stream) > 1 else ""
        sources[one.stream + number] = one
    labels = np.array([first.labels[video] for video in videos])
    class_names = first.class_names or [f"class {number}" for number in range(first.classes)]
    return TestSet(videos, labels, class_names, {name: one.matrix(videos) for name, one in sources.items()}, sources)


def canonical(name: str, spelling: dict[str, str]) -> str:
    """Return a UCF101 video's key `<Class>_gXX_cYY` with the spelling of its casefolded class; others unchanged."""
    parts = ucf_parts(name)
    known = parts and spelling.get(parts[0].casefold())
    return f"{known}_g{parts[1]}_c{parts[2]}" if parts and known else name


def _find(path: Path) -> Path:
    """Return `path` if it is a file, or the pickle in the folder `path` (video level preferred)."""
    if path.is_dir():
        for level in ("video", "frame"):
            found = sorted(path.glob(f"*_{level}_preds.pickle"))
            if len(found) > 1:
                raise InputError(f"{path} holds {len(found)} prediction files; name one, e.g. {found[0]}")
            if found:
                return found[0]
    elif path.is_file():
        return path
    raise InputError(f"no predictions at {path}; test that stream first (--resume PATH --evaluate)")


def _check_scores(content: Any, path: Path) -> int:
    """Return the number of classes. Raises InputError unless names have finite scores of one kind."""
    none = f"{path} is not a prediction file"
    if not isinstance(content, dict) or not content:
        raise InputError(f"{none}: it holds a {type(content).__name__}, not a dict of videos")
    for video, scores in content.items():
        if not isinstance(video, str):
            raise InputError(f"{none}: a {type(video).__name__} is no video's name")
        if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu" or scores.ndim not in (1, 2):
            found = getattr(scores, "shape", type(scores).__name__)
            raise InputError(f"{path}: {video} holds {found}, not numbers (classes,) or (samples, classes)")
        if not scores.size or not float(np.abs(scores).max()) <= MOST:  # a NaN compares false
            found = f"none, not finite (NaN or infinity) or beyond {MOST:g}"
            raise InputError(f"{path}: the scores of {video} are {found}; test that stream again")
    (_, classes), *others = {(scores.ndim, scores.shape[-1]) for scores in content.values()}
    if others:
        raise InputError(f"{path} mixes scores of several lengths, or of videos and samples; keep one kind")
    if classes == 1:
        raise InputError(f"{path} is of one class: there is nothing to tell apart; fuse streams of several")
    low = min(float(scores.min()) for scores in content.values())
    high = max(float(scores.max()) for scores in content.values())
    if high - low < 1 / MOST:
        raise InputError(f"{path}: every score is {low:g}, which predicts nothing; test that stream again")
    return classes


def check_same_classes(first: Predictions, other: Predictions) -> None:
    """Raise InputError if two streams' predictions differ in their classes or splits."""
    here, there = first.class_names, other.class_names
    differing = f"{first.classes} and {other.classes}" if first.classes != other.classes else ""
    if here and there and here != there and not differing:
        place = next(i for i in range(len(here)) if here[i] != there[i])
        differing = f"number {place + 1}: {here[place]}, {there[place]}"
    if differing:
        both = f"{first.path} and {other.path} differ in their classes"
        raise InputError(f"{both} ({differing}); fuse streams of one dataset")
    splits = [str(one.meta["split"]) for one in (first, other) if "split" in one.meta]
    if len(set(splits)) > 1:
        raise InputError(f"{first.path} is of split {splits[0]}, {other.path} of {splits[1]}; fuse one")
