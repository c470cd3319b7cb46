"""Name the action in videos: the top 5 of both streams together, and what each stream says of them.

  python predict.py VIDEO --spatial PATH --motion PATH    several files, folders, or one stream alone work, too
  python predict.py FOLDER ...                            folders named as classes are scored, with a report
  python predict.py VIDEO ... --save out.mp4              draw the answer over the video (out.png: one picture)
  python predict.py FOLDER ... --save films               one film for each video, into the folder films
  python predict.py VIDEO ... --sliding 2                 a rolling answer, for long videos
  python predict.py --camera 0 ...                        the same from a webcam; Ctrl-C ends it

A video is decoded, scaled, JPEG-coded and sampled as the checkpoint's training and test data were, by the same
code. Its top 5 are softmax(mean of the streams' mean logits), weighted as --weights or --fusion say. If a video is too
short for a stack of flow, only the spatial stream answers. In Python: `from predict import load` (docs/export.md).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.commandline import ArgumentParser, bounded
from data.flow import PLAIN_METHODS
from data.videos import VideoError, find_videos, frame_rate, import_cv2
from engine.training import amp_dtype
from recogniser.answers import Answer, as_json, as_line, as_table
from recogniser.decoded import DecodedFrames
from recogniser.loading import Wishes, load_streams
from recogniser.overlay import save
from recogniser.streams import Recogniser, make_clips, reason, weighted
from recogniser.windows import Camera, rolling_windows
from report.outcome import Learnt, read_learnt
from saved.foreign import FLOW_ORDERS
from utils import InputError, plural, printable, run_main, set_up_device, write_json

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
    flow_order: str = "original",
    unknown_below: float = 0.0,
    **wishes: Any,
) -> Recogniser:
    """Load trained streams: a model that names the action in what it is called with.

    The arguments are the flags of the same names, and so are `wishes`: samples, views, sliding, flow_method,
    raft_weights and ucf_list. `model("video.mp4")`, or a call with RGB uint8 frames, returns a
    recogniser.answers.Answer. Raises InputError for files that don't fit.
    """
    paths = {name: str(path) for name, path in (("spatial", spatial), ("motion", motion), ("head", head)) if path}
    if not paths:
        raise InputError("no network: name a checkpoint with --spatial PATH, --motion PATH or both, or --head PATH")
    if head and len(paths) > 1:
        raise InputError("--head has both streams in it: leave --spatial and --motion out")
    if fusion and (weights or len(paths) < 2):
        raise InputError("--fusion brings the weights of two streams: give --spatial and --motion, and no --weights")
    if weights and not (len(weights) == 2 and all(0 <= weight <= 1e6 for weight in weights) and any(weights)):
        raise InputError("--weights takes two numbers from 0 to a million that aren't both 0")
    import_cv2()
    shares, temperature = dict(zip(("spatial", "motion"), weights or (1.0, 1.0), strict=True)), 1.0
    if fusion:
        learnt = learnt_fusion(fusion)
        paths = chosen_networks(learnt, paths, fusion)
        shares, temperature = learnt.weights, learnt.temperature
    where = set_up_device(device)
    streams, names, heads = load_streams(paths, flow_order, Wishes(**wishes), amp_dtype(amp, where), where)
    return Recogniser(streams, names, shares, unknown_below, temperature, heads)


def learnt_fusion(path: str | Path) -> Learnt:
    """What fusion.py chose of a spatial and a motion stream."""
    learnt = read_learnt(path)
    if set(learnt.weights) != {"spatial", "motion"}:
        raise InputError(f"{path} holds weights of {' and '.join(learnt.weights)}; --fusion is of spatial and motion")
    return learnt


def chosen_networks(learnt: Learnt, paths: dict[str, str], source: str | Path) -> dict[str, str]:
    """The checkpoints that the chosen fusion needs: the streams', one of them, or the parts of the joined head."""
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


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, or folders of them")

    group = parser.add_argument_group("networks")
    group.add_argument("--spatial", metavar="PATH", help="checkpoint of the RGB stream, ours or another project's")
    group.add_argument("--motion", metavar="PATH", help="checkpoint of the motion stream; one of the two is enough")
    group.add_argument("--head", metavar="PATH", help="in place of both: a head of heads.py on both streams together")
    group.add_argument("--weights", nargs=2, type=float, metavar=("W", "W"),
                       help="of spatial and motion in the mean (default: 1 1)")
    group.add_argument("--fusion", metavar="PATH",
                       help="results.json of fusion.py --learn: the streams, weights and temperature that it chose")
    group.add_argument("--ucf-list", metavar="DIR",
                       help="split lists that name the classes of another project's checkpoint that is not of UCF101")
    group.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                       help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")

    group = parser.add_argument_group("preparation")
    group.add_argument("--samples", type=bounded(int, 1, 10_000),
                       help="clips per video or window (default: as the checkpoint was tested; of a rolling window at "
                            "most 2.5 per second)")
    group.add_argument("--views", type=int, choices=(1, 2, 5, 10),
                       help="crops per clip (default: as the checkpoint was tested)")
    group.add_argument("--flow-method", choices=("tvl1", *PLAIN_METHODS, "raft"),
                       help="dis is fast enough for a camera (default: what the motion stream was trained on)")
    group.add_argument("--raft-weights", metavar="large|small|PATH",
                       help="of raft (default: those that the motion stream was trained on)")

    group = parser.add_argument_group("rolling")
    group.add_argument("--sliding", type=bounded(float, 1e-3, DAY), metavar="SECONDS",
                       help="answer for every window of this length")
    group.add_argument("--step", type=bounded(float, 1e-3, DAY), metavar="SECONDS",
                       help="between windows (default: half of --sliding)")
    group.add_argument("--camera", metavar="SOURCE",
                       help="number of a camera, or a URL, in place of videos; --sliding is then 2 unless given")

    group = parser.add_argument_group("output")
    group.add_argument("--unknown-below", type=bounded(float, 0, 1), default=0.0, metavar="P",
                       help="name no class whose probability is less than P, from 0 to 1")
    group.add_argument("--json", action="store_true", help="one JSON object per video or window, with all logits")
    group.add_argument("--save", type=Path, metavar="OUT",
                       help="draw the answer over the video, scores below: a .mp4 or .png file, or a folder of films")
    group.add_argument("--report", type=Path, default=Path("record/predict"), metavar="DIR",
                       help="for the predictions and the report of folders that are named as classes")

    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="as in testing")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for what can't work; give --sliding and --step their values."""
    if bool(args.videos) == (args.camera is not None):
        raise InputError("name either videos or a --camera")
    if args.camera is not None and args.sliding is None:
        args.sliding = 2.0
    if args.step is None:
        args.step = (args.sliding or 0) / 2
    elif args.sliding is None:
        raise InputError("--step is of a rolling answer: give --sliding SECONDS, too")
    if args.save is not None and args.camera is not None:
        raise InputError(f"--save {args.save} draws videos: record the camera to a file first")
    if args.save is not None and not is_folder(args.save) and args.save.suffix.lower() not in (".mp4", ".png"):
        raise InputError(f"--save {args.save}: give the name of a .mp4 or .png file, or a folder")


def is_folder(save: Path) -> bool:
    return save.is_dir() or not save.suffix


def list_videos(named: Sequence[str]) -> dict[Path, Path]:
    """The files named, and all videos in the folders named, each with its place in a folder of films."""
    videos: dict[Path, Path] = {}
    for path in map(Path, named):
        if not path.exists():
            raise InputError(f"{path} does not exist; give a video file or a folder of videos")
        if not (path.is_file() or path.is_dir()):  # opening a pipe waits for somebody to write to it
            raise InputError(f"{path} is a pipe or a device; give a video file, or name a camera with --camera")
        found = {video.path: video.name for video in find_videos(path)} if path.is_dir() else {path: path.name}
        videos |= {video: Path(name).with_suffix(".mp4") for video, name in found.items()}
    return videos


def choose_targets(save: Path, videos: dict[Path, Path]) -> dict[Path, Path]:
    """Where each video's picture or film goes. Raises InputError where two would be one, or one a video itself."""
    if not is_folder(save):
        if len(videos) > 1:
            raise InputError(f"--save {save} draws one video, and there are {len(videos)}; name one, or a folder")
        targets = dict.fromkeys(videos, save)
    else:
        targets = {video: save / place for video, place in videos.items()}
    taken: dict[Path, Path] = {}
    for video, target in targets.items():
        other = taken.setdefault(target.resolve(), video)
        if other is not video:
            raise InputError(f"{other} and {video} would both be drawn to {target}; rename one")
    for video in videos:
        if video.resolve() in taken:
            raise InputError(f"--save {save} would write over {video}; choose another name or folder")
    return targets


# --- answers -------------------------------------------------------------------------------------------


def answers_to(
    videos: Sequence[Path], model: Recogniser, args: argparse.Namespace
) -> Iterator[tuple[Path, Iterator[Answer]]]:
    """The answer to each video, or those to its windows; what is wrong with a video is raised where it is asked."""
    if args.sliding:
        yield from ((video, rolling(video, model, args.sliding, args.step)) for video in videos)
        return
    for video, answer in zip(videos, model.answer_all(videos), strict=True):
        yield video, once(answer)


def once(answer: Answer | str) -> Iterator[Answer]:
    if isinstance(answer, str):
        raise VideoError(answer)
    yield answer


def rolling(path: Path, model: Recogniser, sliding: float, step: float) -> Iterator[Answer]:
    """An answer for each window of `sliding` seconds. Raises VideoError."""
    decoded = [maker.decoded(path.name) for maker in model.makers]
    check_window(sliding, frame_rate(path), decoded)
    fewest = min(one.fewest for one in decoded)
    for window in rolling_windows(path, [one.short_side for one in decoded], sliding, step, fewest):
        yield model.answer([make_clips(window, model.makers, decoded)])[0]


def check_window(seconds: float, rate: float, decoded: Sequence[DecodedFrames]) -> None:
    frames, needed = round(seconds * rate), max(one.fewest for one in decoded)
    if frames < needed:
        raise InputError(
            f"--sliding {seconds:g} is {plural(frames, 'frame')} at {rate:g} per second, and one clip needs {needed}: "
            f"give at least {needed / rate:.2f}"
        )


def watch_camera(args: argparse.Namespace, model: Recogniser) -> None:
    """Answer for the camera's last seconds until it ends, or until Ctrl-C."""
    decoded = [maker.decoded("camera") for maker in model.makers]
    camera = Camera(args.camera, [one.short_side for one in decoded])
    check_window(args.sliding, camera.rate, decoded)
    windows = camera.windows(args.sliding, args.step)
    with contextlib.closing(windows), contextlib.suppress(KeyboardInterrupt):
        for window in windows:
            answer = model.answer([make_clips(window, model.makers, decoded)])[0]
            show(f"camera {args.camera}", replace(answer, behind=camera.now() - window.end), args)


def show(video: str, answer: Answer, args: argparse.Namespace) -> None:
    text = as_json(video, answer) if args.json else as_line(answer) if args.sliding else as_table(video, answer)
    print("\n".join(map(printable, text.split("\n"))), flush=True)


# --- scores --------------------------------------------------------------------------------------------


def score(answers: Mapping[Path, Answer], model: Recogniser, args: argparse.Namespace) -> None:
    """Accuracy, confusions and report of the videos whose folders are named as classes, as fusion.py has them.

    Each stream's predictions are written, too. A stream that a video is too short for gets the others' scores of it,
    so that the fused ones are those of the answer.
    """
    from fusion import evaluate
    from report.outcome import text
    from report.sections import write_report
    from saved.predictions import align, load_predictions, write_predictions

    names = model.names
    labels = {video: label_of(video, names) for video in answers}
    known = {video: label for video, label in labels.items() if label is not None}
    if len(known) < 2:
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
    if args.fusion:  # with those of its streams that it takes
        learnt = learnt_fusion(args.fusion).model_copy(update={"weights": dict(zip(streams, weights, strict=True))})
    outcome = evaluate(test_set, weights, learnt=learnt)
    write_json(args.report / "results.json", outcome.results)
    out = sys.stderr if args.json else sys.stdout
    title = printable(", ".join(args.videos))
    print(text(outcome.results, title), file=out)
    guesses = [answers[video].names.index(answers[video].top(1)[0][0]) for video in known]
    if len(names) <= 12:
        print(confusions(list(known.values()), guesses, names), file=out)
    if left := len(answers) - len(known):
        print(f"{plural(left, 'video')} not in a folder named as a class: not scored", file=out)
    print(f"report: {write_report(outcome, args.report, title)}", file=out)


def confusions(labels: Sequence[int], guesses: Sequence[int], names: Sequence[str]) -> str:
    """A row for each true class, a column for each guessed one."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, guesses), 1)
    lines = ["true class, and how often guessed as" + "".join(f"{number:6}" for number in range(1, len(names) + 1))]
    for number, (name, row) in enumerate(zip(names, counts, strict=True), 1):
        lines.append(f"{number:3} {printable(name)[:31]:32}{''.join(f'{count:6}' for count in row)}")
    return "\n".join(lines)


def label_of(video: Path, names: Sequence[str]) -> int | None:
    """The class after which a video's folder is named; None where there is none."""
    folder = video.absolute().parent.name.casefold()
    return next((label for label, name in enumerate(names) if name.casefold() == folder), None)


def main() -> int:
    args = parse_arguments()
    import_cv2()
    videos = list_videos(args.videos)
    targets = choose_targets(args.save, videos) if args.save else {}
    taken = ("spatial", "motion", "head", "fusion", "weights", "device", "amp", "flow_order", "unknown_below")
    wishes = ("samples", "views", "sliding", "flow_method", "raft_weights", "ucf_list")
    model = load(**{name: getattr(args, name) for name in (*taken, *wishes)})
    if args.camera is not None:
        watch_camera(args, model)
    failed = 0
    scored: dict[Path, Answer] = {}
    for video, answers in answers_to(list(videos), model, args):
        if args.sliding and len(videos) > 1 and not args.json:
            print(printable(str(video)))
        try:
            found = []
            for answer in answers:
                show(str(video), answer, args)
                found.append(answer)
            if not args.sliding:
                scored[video] = found[0]
            if video in targets:
                save(targets[video], video, found)
                if not args.json:
                    print(printable(f"written: {targets[video]}"))
        except BrokenPipeError:  # nobody reads on: no fault of the video's
            raise
        except Exception as error:
            if len(videos) == 1 and isinstance(error, VideoError):
                raise InputError(f"{video}: {error}") from None
            if len(videos) == 1:
                raise
            print(printable(f"error: {video}: {reason(error)}"), file=sys.stderr)
            failed += 1
    if scored and any(Path(named).is_dir() for named in args.videos):
        score(scored, model, args)
    if failed:
        print(f"{failed} of {len(videos)} videos failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
