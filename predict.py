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

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.commandline import ArgumentParser, bounded
from data.flow import PLAIN_METHODS
from data.videos import VideoError, find_videos, frame_rate, import_cv2
from engine.owner import owned
from engine.training import amp_dtype
from recogniser.answers import Answer, as_json, as_line, as_table
from recogniser.loading import load_streams
from recogniser.streams import Recogniser, make_clips, reason, weighted
from recogniser.windows import Camera, frames_in_file, rolling_windows
from report.outcome import Learnt, read_learnt
from saved.foreign import FLOW_ORDERS
from utils import InputError, check_writable, plural, printable, run_main, set_up_device, write_json

DAY = 86400.0  # seconds


def load(
    spatial: str | Path | None = None,
    motion: str | Path | None = None,
    head: str | Path | None = None,
    *,
    fusion: str | Path | None = None,
    weights: Sequence[float] | None = None,
    device: str = "auto",
    amp: str = "auto",
    **wishes: Any,
) -> Recogniser:
    """Load trained streams as a model that names the action in a video or in frames.

    The arguments are the flags of the same names; `wishes` are more flags: flow_order, samples, sliding,
    flow_method, raft_weights and ucf_list. `model("video.mp4")`, or a call with RGB uint8 frames, returns a
    recogniser.answers.Answer. Raises InputError for files that don't fit.
    """
    paths = {name: str(path) for name, path in (("spatial", spatial), ("motion", motion), ("head", head)) if path}
    if not paths:
        raise InputError("no network: name a checkpoint with --spatial PATH, --motion PATH or both, or --head PATH")
    if head and len(paths) > 1:
        raise InputError("--head has both streams in it: leave --spatial and --motion out")
    if fusion and (weights is not None or len(paths) < 2):
        raise InputError("--fusion brings the weights of two streams: give --spatial and --motion, and no --weights")
    weights = (1.0, 1.0) if weights is None else weights
    try:
        good = len(weights) == 2 and all(0 <= weight <= 1e6 for weight in weights) and any(weights)
    except TypeError:  # neither a sequence nor numbers
        good = False
    if not good:
        raise InputError("--weights takes two numbers from 0 to a million that aren't both 0")
    wishes = parse_wishes({"amp": amp, **wishes})
    amp = wishes.pop("amp")
    import_cv2()
    shares, temperature = dict(zip(("spatial", "motion"), weights, strict=True)), 1.0
    if fusion:
        learnt = read_learnt(fusion)
        paths = chosen_networks(learnt, paths, fusion)
        shares, temperature = learnt.weights, learnt.temperature
    where = set_up_device(device)
    streams, names, heads = load_streams(paths, amp_dtype(amp, where), where, **wishes)
    return Recogniser(streams, names, shares, temperature, heads)


def chosen_networks(learnt: Learnt, paths: dict[str, str], source: str | Path) -> dict[str, str]:
    """Return the checkpoints that the fusion needs: the streams', one of them, or the parts of the joined head."""
    if set(learnt.weights) != {"spatial", "motion"}:
        raise InputError(f"{source} holds weights of {' and '.join(learnt.weights)}; --fusion is of spatial and motion")
    if learnt.joined:
        paths = {name: str(Path(learnt.joined, name, "checkpoint.pth.tar")) for name in learnt.weights}
        if absent := [path for path in paths.values() if not Path(path).is_file()]:
            raise InputError(f"{source} chose the joined head, and {absent[0]} is not there: leave --fusion out")
        print(f"note: {source} chose the joined head, {' and '.join(paths.values())}", file=sys.stderr)
    for name, weight in learnt.weights.items():
        if not weight:
            print(f"note: {source} leaves the {name} stream out", file=sys.stderr)
            paths = {other: path for other, path in paths.items() if other != name}
    return paths


# --- the command line ----------------------------------------------------------------------------------


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, or folders of them")

    group = parser.add_argument_group("networks")
    group.add_argument("--spatial", metavar="PATH", help="checkpoint of the RGB stream, ours or another project's")
    group.add_argument("--motion", metavar="PATH", help="checkpoint of the motion stream; one of the two is enough")
    group.add_argument("--head", metavar="PATH",
                       help="instead of both: a head that heads.py trained on both streams together")
    group.add_argument("--weights", nargs=2, type=float, metavar=("W", "W"),
                       help="for spatial and motion in the mean (default: 1 1)")
    group.add_argument("--fusion", metavar="PATH",
                       help="results.json of fusion.py --learn: the streams, weights and temperature that it chose")
    group.add_argument("--ucf-list", metavar="DIR",
                       help="split lists that name the classes, for another project's checkpoint not of UCF101")
    group.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                       help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")

    group = parser.add_argument_group("preparation")
    group.add_argument("--samples", type=bounded(int, 1, 10_000),
                       help="clips per video or window (default: as the checkpoint was tested; at most 2.5 per second "
                            "in a rolling window)")
    group.add_argument("--flow-method", choices=("tvl1", *PLAIN_METHODS, "raft"),
                       help="dis is fast enough for a camera (default: what the motion stream was trained on)")
    group.add_argument("--raft-weights", metavar="large|small|PATH",
                       help="weights of raft (default: those that the motion stream was trained on)")

    group = parser.add_argument_group("rolling")
    group.add_argument("--sliding", type=bounded(float, 1e-3, DAY), metavar="SECONDS",
                       help="answer for windows of this length, one every half length")
    group.add_argument("--camera", metavar="SOURCE",
                       help="number of a camera, or a URL, instead of videos; --sliding is then 2 by default")

    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object per video or window, with all logits")
    group.add_argument("--save", type=Path, metavar="OUT",
                       help="draw the answer over the video, scores below: a .mp4 file, or a folder of films")
    group.add_argument("--report", type=Path, default=Path("record/predict"), metavar="DIR",
                       help="for predictions and a report when folders are named as classes")

    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
                       help="mixed precision; auto: bf16 where the hardware has it")
    return parser


def parse_wishes(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flags of these names take. Raises InputError for what they don't."""
    given = {name: value for name, value in wishes.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    try:
        taken = vars(make_parser().parse_args(flags))
    except InputError as error:
        raise InputError(str(error).partition(";")[0]) from None
    return {name: taken.get(name, value) for name, value in wishes.items()}


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for arguments that cannot work. Set --sliding to 2 for a camera, unless given."""
    if bool(args.videos) == (args.camera is not None):
        raise InputError("name either videos or a --camera")
    if args.camera is not None:
        args.sliding = args.sliding or 2.0
    if args.save is not None and args.camera is not None:
        raise InputError(f"--save {args.save} draws videos: record the camera to a file first")
    if args.save is not None and not args.save.is_dir() and args.save.suffix.lower() not in (".mp4", ""):
        raise InputError(f"--save {args.save}: pass the name of a .mp4 file, or a folder")


def choose_targets(save: Path, videos: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return each video's film path. Raises InputError if two are equal, or one would overwrite a video."""
    into_folder = save.is_dir() or not save.suffix
    targets = {video: save / place if into_folder else save for video, place in videos.items()}
    films = Counter(target.resolve() for target in targets.values())
    for film, count in films.items():
        if count > 1:
            raise InputError(f"{count} videos would be drawn to {film}: pass --save a folder, or rename videos")
    if originals := films.keys() & {video.resolve() for video in videos}:
        raise InputError(f"--save {save} would write over {originals.pop()}: choose another name or folder")
    for film in films:
        check_writable(film.parent)
    return targets


# --- answers -------------------------------------------------------------------------------------------


def answers_to(
    videos: Sequence[Path], model: Recogniser, sliding: float | None
) -> Iterator[tuple[Path, Iterable[Answer | str]]]:
    """Yield each video with its answer, or its windows' answers; a str says why there is none."""
    if not sliding:
        yield from ((video, [answer]) for video, answer in zip(videos, model.answer_all(videos), strict=True))
    else:
        yield from ((video, rolling(video, model, sliding)) for video in videos)


def rolling(source: Path | Camera, model: Recogniser, sliding: float) -> Iterator[Answer]:
    """Yield an answer for each window of `sliding` seconds. Raises VideoError.

    If the networks are slower than a camera, windows are left out, so that answers keep up with the present.
    """
    decoded = model.decoded(getattr(source, "name", "camera"))
    sides, fewest = [one.short_side for one in decoded], [one.fewest for one in decoded]
    if isinstance(source, Camera):
        rate, frames = source.rate, source.frames(sides)
    else:
        rate, frames = frame_rate(source), frames_in_file(source, sides)
    if round(sliding * rate) < max(fewest):
        raise InputError(
            f"--sliding {sliding:g} is {plural(round(sliding * rate), 'frame')} at {rate:g} per second, and one clip "
            f"needs {max(fewest)}: pass at least {max(fewest) / rate:.2f}"
        )
    for window in rolling_windows(frames, rate, sliding, min(fewest)):
        if isinstance(source, Camera):
            if source.now() - window.end < max(1.0, sliding / 2):
                answer = model.answer(make_clips(window, decoded))
                yield replace(answer, behind=source.now() - window.end)
        else:
            yield model.answer(make_clips(window, decoded))


def show(video: str, answer: Answer, args: argparse.Namespace) -> None:
    text = as_json(video, answer) if args.json else as_line(answer) if args.sliding else as_table(video, answer)
    print("\n".join(map(printable, text.split("\n"))), flush=True)


# --- scores --------------------------------------------------------------------------------------------


def labels_of(videos: Iterable[Path], names: Sequence[str]) -> dict[Path, int]:
    """Return the labels of the videos whose folders are named after classes."""
    labels = {name.casefold(): label for label, name in enumerate(names)}
    folders = {video: video.absolute().parent.name.casefold() for video in videos}
    return {video: labels[folder] for video, folder in folders.items() if folder in labels}


def score(
    answers: Mapping[Path, Answer], labels: Mapping[Path, int], model: Recogniser, args: argparse.Namespace
) -> None:
    """Print and report the accuracy on the videos that have labels, as fusion.py does.

    Each stream's predictions are also written. If a video is too short for a stream, that stream gets the
    fused scores of the others, so that fusion gives the scores of the answer.
    """
    import numpy as np
    import pandas as pd

    from fusion import evaluate
    from report.outcome import text
    from report.page import write_report
    from saved.predictions import align, load_predictions, write_predictions

    names = model.names
    known = {video: label for video, label in labels.items() if video in answers}
    if not known:
        return
    streams = max((list(answers[video].logits) for video in known), key=len)
    keys = {video: f"{names[label]}/{printable(video.stem)}" for video, label in known.items()}
    if len(set(keys.values())) < len(keys):
        keys = {video: printable(str(video)) for video in known}
    for stream in streams:
        rows = {keys[v]: answers[v].logits.get(stream, answers[v].fused()[None]).astype("float32") for v in known}
        about = {"dataset": "own", "split": 1, "class_names": names,
                 "labels": {keys[video]: label for video, label in known.items()},
                 "files": {keys[video]: printable(str(video.absolute())) for video in known}}  # fmt: skip
        write_predictions(args.report / stream, stream, rows, about)
    test_set = align([load_predictions(args.report / stream) for stream in streams])
    weights = weighted(model.weights, streams)
    learnt = None
    if args.fusion:  # with the weights of the streams that answered
        shares = dict(zip(streams, weights, strict=True))
        learnt = read_learnt(args.fusion).model_copy(update={"weights": shares})
    outcome = evaluate(test_set, weights, learnt=learnt)
    write_json(args.report / "results.json", outcome.results)
    out = sys.stderr if args.json else sys.stdout
    title = printable(", ".join(args.videos))
    print(text(outcome.results, title), file=out)
    guesses = [names.index(answers[video].top(1)[0][0]) for video in known]
    if len(names) <= 12:
        shown = np.array([printable(name)[:31] for name in names])
        table = pd.crosstab(shown[list(known.values())], shown[guesses], rownames=["true class"], colnames=["guessed"])
        print(table.to_string(), file=out)
    if left := len(answers) - len(known):
        print(f"{plural(left, 'video')} not in a folder named as a class: not scored", file=out)
    print(f"report: {write_report(outcome, args.report, title)}", file=out)


def main() -> int:
    args = make_parser().parse_args()
    check_arguments(args)
    import_cv2()
    videos: dict[Path, Path] = {}  # each with its path in a folder of films
    for path in map(Path, args.videos):
        found = [(one.path, one.name) for one in find_videos(path)] if path.is_dir() else [(path, path.name)]
        videos |= {video: Path(name).with_suffix(".mp4") for video, name in found}
    targets = choose_targets(args.save, videos) if args.save else {}
    here = ("videos", "camera", "json", "save", "report")
    model = load(**{name: value for name, value in vars(args).items() if name not in here})
    if args.camera is not None:
        with contextlib.suppress(KeyboardInterrupt):
            for seen in rolling(Camera(args.camera), model, args.sliding):
                show(f"camera {args.camera}", seen, args)
    labels = labels_of(videos, model.names)
    if args.sliding or len(labels) < 2 or not any(Path(named).is_dir() for named in args.videos):
        return answer_videos(args, model, videos, targets, {})
    with owned(args.report, flag="--report"):
        return answer_videos(args, model, videos, targets, labels)


def answer_videos(
    args: argparse.Namespace,
    model: Recogniser,
    videos: Mapping[Path, Path],
    targets: Mapping[Path, Path],
    labels: Mapping[Path, int],
) -> int:
    """Answer all videos, draw their films, and score the videos that have labels. Return the exit code."""
    failed = 0
    scored: dict[Path, Answer] = {}
    for video, answers in answers_to(list(videos), model, args.sliding):
        if args.sliding and len(videos) > 1 and not args.json:
            print(printable(str(video)))
        try:
            said = []
            for answer in answers:
                if isinstance(answer, str):
                    raise VideoError(answer)
                show(str(video), answer, args)
                said.append(answer)
            scored[video] = said[0]
            if video in targets:
                from recogniser.overlay import save  # here: workers import this module, too

                save(targets[video], video, said)
                if not args.json:
                    print(printable(f"written: {targets[video]}"))
        except BrokenPipeError:  # the reader has gone: not the video's fault
            raise
        except Exception as error:
            if len(videos) == 1 and isinstance(error, VideoError):
                raise InputError(f"{video}: {error}") from None
            if len(videos) == 1:
                raise
            print(printable(f"error: {video}: {reason(error)}"), file=sys.stderr)
            failed += 1
    if labels:
        score(scored, labels, model, args)
    if failed:
        print(f"{failed} of {len(videos)} videos failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
