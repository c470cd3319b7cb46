"""Name the action in videos: the fused top 5, with each stream's probabilities for them.

  python predict.py VIDEO --spatial PATH --motion PATH    also several files, folders, or only one stream
  python predict.py FOLDER ...                            folders named as classes are scored, with a report
  python predict.py VIDEO ... --save out.mp4              draw the answer over the video, as a film
  python predict.py FOLDER ... --save films               one film for each video, into the folder films
  python predict.py VIDEO ... --sliding 2                 a rolling answer, for long videos
  python predict.py --camera 0 ...                        the same from a webcam; Ctrl-C ends it

A video is decoded, scaled, JPEG-coded and sampled by the same code as the checkpoint's training and test
data. The probabilities are softmax(mean of the streams' mean logits), weighted by --weights or --fusion. If a
video is too short for a flow stack, only the spatial stream answers. In Python: `from predict import load`
(docs/export.md).
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.commandline import ArgumentParser, bounded
from data.flow import PLAIN_METHODS
from data.videos import VideoError, find_videos, import_cv2
from engine.owner import owned
from recogniser.answers import Answer, as_json, as_line, as_table
from recogniser.streams import Recogniser, load_streams, note, note_unused, weighted
from report.outcome import read_learnt, text
from saved.foreign import FLOW_ORDERS
from utils import InputError, amp_dtype, check_writable, plural, printable, run_main, set_up_device, write_json


def load(
    spatial: str | Path | None = None, motion: str | Path | None = None, head: str | Path | None = None, **flags: Any
) -> Recogniser:
    """Load trained streams as a model that names the action in a video or in frames.

    The arguments are the command line's flags of the same names; `flags` are those of its groups networks,
    preparation and run. `model("video.mp4")`, or a call with RGB uint8 frames, returns a
    recogniser.answers.Answer. Raises InputError for files and values that don't fit.
    """
    parser = ArgumentParser()
    add_network_flags(parser)
    words = []
    for name, value in {"spatial": spatial, "motion": motion, "head": head, **flags}.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            words += [flag, *map(str, value)] if isinstance(value, (list, tuple)) else [f"{flag}={value}"]
    return load_networks(parser.parse_args(words))


def add_network_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("networks").add_argument
    add("--spatial", metavar="PATH", help="checkpoint of the RGB stream, ours or another project's")
    add("--motion", metavar="PATH", help="checkpoint of the motion stream; one of the two is enough")
    add("--head", metavar="PATH", help="instead of both: a head that heads.py trained on both streams together")
    add("--weights", nargs=2, type=bounded(float, 0, 1e6), metavar=("W", "W"),
        help="for spatial and motion in the mean (default: 1 1)")
    add("--fusion", metavar="PATH",
        help="results.json of fusion.py --learn: the streams, weights and temperature that it chose")
    add("--ucf-list", metavar="DIR",
        help="split lists that name the classes of another project's checkpoint, if they are not UCF101's")
    add("--flow-order", choices=tuple(FLOW_ORDERS),
        help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h (default: original)")
    add = parser.add_argument_group("preparation").add_argument
    add("--samples", type=bounded(int, 1, 10_000),
        help="clips per video or window (default: as the checkpoint was tested; at most 2.5 per second of a window)")
    add("--sliding", type=bounded(float, 1e-3, 86400), metavar="SECONDS",
        help="answer for windows of this length, one every half length")
    add("--flow-method", choices=("tvl1", *PLAIN_METHODS, "raft"),
        help="dis is the fastest (default: what the motion stream was trained on)")
    add("--raft-weights", metavar="large|small|PATH",
        help="weights of raft (default: those that the motion stream was trained on)")
    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
        help="mixed precision; auto: bf16 where the hardware has it")


def load_networks(args: argparse.Namespace) -> Recogniser:
    """Load the streams that the flags name, or those that --fusion chose, with their weights."""
    paths = {name: path for name in ("spatial", "motion", "head") if (path := getattr(args, name))}
    if not paths:
        raise InputError("no network: name a checkpoint with --spatial PATH, --motion PATH or both, or --head PATH")
    if args.head and len(paths) > 1:
        raise InputError("--head has both streams in it: leave --spatial and --motion out")
    if ((args.fusion or args.weights) and len(paths) < 2) or (args.fusion and args.weights):
        raise InputError("--fusion or --weights, not both, weight two streams: give --spatial and --motion")
    if args.weights and not any(args.weights):
        raise InputError("--weights takes two numbers that aren't both 0")
    import_cv2()
    weights, temperature = dict(zip(("spatial", "motion"), args.weights or (1.0, 1.0), strict=True)), 1.0
    if args.fusion:
        learnt = read_learnt(args.fusion)
        weights, temperature = learnt.weights, learnt.temperature
        if set(weights) != {"spatial", "motion"}:
            raise InputError(f"{args.fusion} holds weights of {' and '.join(weights)}, not of spatial and motion")
        paths = {name: path for name, path in paths.items() if weights[name]}
        if learnt.joined:  # the two parts of a head on both streams' features
            paths = {name: str(Path(learnt.joined, name, "checkpoint.pth.tar")) for name in weights}
        note(f"{args.fusion} chose {learnt.chosen}: {' and '.join(paths.values())}")
    device = set_up_device(args.device)
    streams, names, heads = load_streams(paths, args, amp_dtype(args.amp, device), device)
    return Recogniser(streams, names, weights, temperature, heads)


def main() -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, or folders of them")
    parser.add_argument("--camera", metavar="SOURCE",
                        help="number of a camera, or a URL, instead of videos; --sliding is then 2 by default")
    add_network_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="one JSON object per video or window, with all logits")
    add("--save", type=Path, metavar="OUT",
        help="draw the answer over the video, scores below: a .mp4 file, or a folder of films")
    add("--report", type=Path, metavar="DIR",
        help="for predictions and a report when folders are named as classes (default: record/predict)")
    args = parser.parse_args()
    if bool(args.videos) == (args.camera is not None):
        raise InputError("name either videos or a --camera")
    if args.camera is not None:
        if args.save is not None:
            raise InputError(f"--save {args.save} draws videos: record the camera to a file first")
        args.sliding = args.sliding or 2.0
        for answer in load_networks(args).watch(args.camera, args.sliding):
            show(f"camera {args.camera}", answer, args)
        return 0
    videos: dict[Path, Path] = {}  # each with its path in a folder of films
    for path in map(Path, args.videos):
        found = [(one.path, one.name) for one in find_videos(path)] if path.is_dir() else [(path, path.name)]
        videos |= {video: Path(name).with_suffix(".mp4") for video, name in found}
    targets = choose_targets(args.save, videos) if args.save else {}
    model = load_networks(args)
    is_scored = not args.sliding and any(map(os.path.isdir, args.videos))
    labels = labels_of(videos, model.names) if is_scored else {}
    note_unused(args, report=bool(labels))
    args.report = args.report or Path("record/predict")
    with owned(args.report, flag="--report") if labels else contextlib.nullcontext():
        answers: dict[Path, Answer] = {}
        every: Iterable[Iterable[Answer | str]] = ([answer] for answer in model.answer_all(list(videos)))
        if args.sliding:
            every = (model.sliding(video, args.sliding) for video in videos)
        for video, said in zip(videos, every, strict=True):
            if args.sliding and len(videos) > 1 and not args.json:
                print(printable(str(video)))
            try:
                answers[video] = answer_video(video, said, targets.get(video), args)
            except (VideoError, InputError) as error:
                print(printable(f"error: {video}: {error}"), file=sys.stderr)
        if scored := {video: label for video, label in labels.items() if video in answers}:
            score(answers, scored, model, args)
    failed = len(videos) - len(answers)
    if failed and answers:
        print(f"{failed} of {len(videos)} videos failed", file=sys.stderr)
    return 0 if not failed else 1 if answers else 2


def choose_targets(save: Path, videos: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return each video's film path. Raises InputError if two are equal, or one would overwrite a video."""
    if not save.is_dir() and save.suffix.lower() not in (".mp4", ""):
        raise InputError(f"--save {save}: pass the name of a .mp4 file, or a folder")
    into_folder = save.is_dir() or not save.suffix
    targets = {video: save / place if into_folder else save for video, place in videos.items()}
    films = {target.resolve() for target in targets.values()}
    if len(films) < len(videos) or films & {video.resolve() for video in videos}:
        raise InputError(f"--save {save}: a film would be written over another one or over a video: choose a folder of "
                         "its own, or rename videos")  # fmt: skip
    for film in films:
        check_writable(film.parent)
    return targets


def show(source: str, answer: Answer, args: argparse.Namespace) -> None:
    """Print an answer as --json, --sliding or neither asks."""
    said = as_line(answer) if args.sliding else as_table(source, answer)
    lines = [as_json(source, answer)] if args.json else said.split("\n")
    print("\n".join(map(printable, lines)), flush=True)


def answer_video(video: Path, answers: Iterable[Answer | str], film: Path | None, args: argparse.Namespace) -> Answer:
    """Print the answers to one video, draw its film, and return the first answer. Raises VideoError."""
    said = []
    for answer in answers:
        if isinstance(answer, str):  # it says why there is none
            raise VideoError(answer)
        show(str(video), answer, args)
        said.append(answer)
    if film:
        from recogniser.overlay import save  # here: it imports matplotlib, and workers import this module

        save(film, video, said)
        if not args.json:
            print(printable(f"written: {film}"))
    return said[0]


def labels_of(videos: Iterable[Path], names: Sequence[str]) -> dict[Path, int]:
    """Return the labels of the videos in folders named as classes, if there are two or more."""
    labels = {name.casefold(): label for label, name in enumerate(names)}
    folders = {video: video.absolute().parent.name.casefold() for video in videos}
    found = {video: labels[folder] for video, folder in folders.items() if folder in labels}
    return found if len(found) > 1 else {}


def score(
    answers: Mapping[Path, Answer], labels: Mapping[Path, int], model: Recogniser, args: argparse.Namespace
) -> None:
    """Print and report the accuracy on the videos that have labels, as fusion.py does.

    Each stream's predictions are also written. If a video is too short for a stream, that stream gets the
    fused scores of the others, so that fusion gives the scores of the answer.
    """
    from fusion import evaluate  # here, as the report's matplotlib: workers import this module, too
    from report.page import write_report
    from saved.predictions import align, load_predictions, write_predictions

    streams = max((list(answers[video].logits) for video in labels), key=len)
    keys = {video: f"{model.names[label]}/{printable(video.stem)}" for video, label in labels.items()}
    if len(set(keys.values())) < len(keys):
        keys = {video: printable(str(video)) for video in labels}
    about = {"dataset": "own", "split": 1, "class_names": model.names,
             "labels": {keys[video]: label for video, label in labels.items()},
             "files": {keys[video]: printable(str(video.absolute())) for video in labels}}  # fmt: skip
    for stream in streams:
        rows = {keys[v]: answers[v].logits.get(stream, answers[v].fused()[None]).astype("float32") for v in labels}
        write_predictions(args.report / stream, stream, rows, about)
    test_set = align([load_predictions(args.report / stream) for stream in streams])
    weights = weighted(model.weights, streams)
    learnt = None
    if args.fusion:  # with the weights of the streams that answered
        learnt = read_learnt(args.fusion).model_copy(update={"weights": dict(zip(streams, weights, strict=True))})
    outcome = evaluate(test_set, weights, learnt=learnt)
    write_json(args.report / "results.json", outcome.results)
    out, title = sys.stderr if args.json else sys.stdout, printable(", ".join(args.videos))
    print(text(outcome.results, title), file=out)
    if left := len(answers) - len(labels):
        print(f"{plural(left, 'video')} not in a folder named as a class: not scored", file=out)
    print(f"report: {write_report(outcome, args.report, title)}", file=out)


if __name__ == "__main__":
    run_main(main)
