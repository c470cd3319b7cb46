"""Name the action in a video: the top 5 of both streams together, and what each stream says of them.

  python predict.py VIDEO --spatial PATH --motion PATH    several files, folders, or one stream alone work, too
  python predict.py VIDEO ... --save out.mp4              draw the answer over the video (out.png: one picture)
  python predict.py FOLDER ... --save films               one film for each video, into the folder films
  python predict.py VIDEO ... --sliding 2                 a rolling answer, for long videos
  python predict.py --camera 0 ...                        the same from a webcam; Ctrl-C ends it

A video is decoded, scaled, JPEG-coded and sampled as the checkpoint's training and test data were, by the same
code. Its top 5 are softmax(mean of the streams' mean logits), weighted as --weights or --fusion say. Of a video that
is too short for a stack of flow the spatial stream alone answers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common.commandline import ArgumentParser, bounded
from data.flow import PLAIN_METHODS
from data.videos import VideoError, find_videos, import_cv2
from engine.state import amp_dtype
from recogniser.answers import Answer, as_json, as_line, as_table
from recogniser.decoded import DecodedFrames
from recogniser.film import open_film
from recogniser.loading import Wishes, load_streams
from recogniser.overlay import LiveFilm, save
from recogniser.streams import Recogniser
from recogniser.windows import Camera, frame_rate, rolling_windows, whole_video
from report.outcome import Learnt
from saved.checkpoints import FLOW_ORDERS
from utils import InputError, plural, printable, run_main, set_up_device


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
                       help="results.json of fusion.py --learn: its weights, and the temperature that calibrates them")
    group.add_argument("--ucf-list", metavar="DIR",
                       help="split lists that name the classes of another project's checkpoint that is not of UCF101")
    group.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                       help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")

    group = parser.add_argument_group("preparation")
    group.add_argument("--samples", type=bounded(int, 1),
                       help="clips per video or window (default: as the checkpoint was tested; of a rolling window at "
                            "most 2.5 per second)")
    group.add_argument("--views", type=int, choices=(1, 2, 5, 10),
                       help="crops per clip (default: as the checkpoint was tested)")
    group.add_argument("--stop-early", action="store_true",
                       help="compute no more clips once the first class leads by 4 standard errors; probabilities are "
                            "then those of the clips so far")
    group.add_argument("--flow-method", choices=("tvl1", *PLAIN_METHODS, "raft"),
                       help="dis is fast enough for a camera (default: what the motion stream was trained on)")
    group.add_argument("--raft-weights", metavar="large|small|PATH",
                       help="of raft (default: those that the motion stream was trained on)")

    group = parser.add_argument_group("rolling")
    group.add_argument("--sliding", type=bounded(float, 1e-3), metavar="SECONDS",
                       help="answer for every window of this length")
    group.add_argument("--step", type=bounded(float, 1e-3), metavar="SECONDS",
                       help="between windows (default: half of --sliding)")
    group.add_argument("--camera", metavar="SOURCE",
                       help="number of a camera, or a URL, in place of videos; --sliding is then 2 unless given")

    group = parser.add_argument_group("output")
    group.add_argument("--unknown-below", type=float, default=0.0, metavar="P",
                       help="name no class whose probability is less than P, from 0 to 1")
    group.add_argument("--json", action="store_true", help="one JSON object per video or window, with all logits")
    group.add_argument("--save", type=Path, metavar="OUT",
                       help="draw the answer over the video, scores below: a .mp4 or .png file, or a folder of films")

    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="as in testing")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for what can't work; give --sliding and --step their values."""
    if not (args.spatial or args.motion or args.head):
        raise InputError("no network: name a checkpoint with --spatial PATH, --motion PATH or both, or --head PATH")
    if args.head and (args.spatial or args.motion):
        raise InputError("--head has both streams in it: leave --spatial and --motion out")
    if bool(args.videos) == (args.camera is not None):
        raise InputError("name either videos or a --camera")
    if args.camera is not None and args.sliding is None:
        args.sliding = 2.0
    if args.step is None:
        args.step = (args.sliding or 0) / 2
    elif args.sliding is None:
        raise InputError("--step is of a rolling answer: give --sliding SECONDS, too")
    if args.fusion and (args.weights or not (args.spatial and args.motion)):
        raise InputError("--fusion brings the weights of two streams: give --spatial and --motion, and no --weights")
    if args.weights is None:
        args.weights = [1.0, 1.0]
    if not all(0 <= weight < float("inf") for weight in args.weights) or not sum(args.weights):
        raise InputError("--weights takes two numbers from 0 up that aren't both 0")
    if not 0 <= args.unknown_below <= 1:
        raise InputError(f"--unknown-below {args.unknown_below}: give a probability from 0 to 1")
    if args.save is not None and not is_folder(args.save):
        suffixes = (".mp4",) if args.camera is not None else (".mp4", ".png")
        if args.save.suffix.lower() not in suffixes:
            raise InputError(f"--save {args.save}: give the name of a {' or '.join(suffixes)} file, or a folder")
    elif args.save is not None and args.camera is not None:
        raise InputError(f"--save {args.save}: a camera's film needs the name of a .mp4 file")


def learnt_fusion(path: str) -> tuple[dict[str, float], float]:
    """(weights of spatial and motion, temperature of their mean) that fusion.py learnt."""
    learnt = Learnt.from_results(path)
    if set(learnt.streams) != {"spatial", "motion"}:
        raise InputError(f"{path} holds weights of {' and '.join(learnt.streams)}; --fusion is of spatial and motion")
    return dict(zip(learnt.streams, learnt.weights, strict=True)), learnt.temperature


def is_folder(save: Path) -> bool:
    return save.is_dir() or not save.suffix


# --- answers -------------------------------------------------------------------------------------------


def answers_to_video(path: Path, recogniser: Recogniser, sliding: float | None, step: float) -> Iterator[Answer]:
    """The answer to a whole video, or one for each window of `sliding` seconds. Raises VideoError."""
    decoded = recogniser.frames_of(path.name)
    if not sliding:
        yield recogniser.answer(whole_video(path, decoded), decoded)
        return
    check_window(sliding, frame_rate(path), decoded)
    for window in rolling_windows(path, [one.short_side for one in decoded], sliding, step):
        yield recogniser.answer(window, decoded)


def check_window(seconds: float, rate: float, decoded: Sequence[DecodedFrames]) -> None:
    frames, needed = round(seconds * rate), max(one.fewest for one in decoded)
    if frames < needed:
        raise InputError(
            f"--sliding {seconds:g} is {plural(frames, 'frame')} at {rate:g} per second, and one clip needs {needed}: "
            f"give at least {needed / rate:.2f}"
        )


def watch_camera(args: argparse.Namespace, recogniser: Recogniser) -> None:
    """Answer for the camera's last seconds until it ends, or until Ctrl-C."""
    decoded = recogniser.frames_of("camera")
    camera = Camera(args.camera, [one.short_side for one in decoded])
    check_window(args.sliding, camera.rate, decoded)
    with contextlib.ExitStack() as whole:
        film = None
        if args.save:
            film = LiveFilm(whole.enter_context(open_film(args.save, camera.rate)), camera.rate)
        windows = camera.windows(args.sliding, args.step, film.see if film else None)
        whole.enter_context(contextlib.closing(windows))
        with contextlib.suppress(KeyboardInterrupt):
            for window in windows:
                answer = recogniser.answer(window, decoded)
                answer = replace(answer, behind=camera.now() - window.end)
                show(f"camera {args.camera}", answer, args)
                if film:
                    film.add(answer)


# --- the script ----------------------------------------------------------------------------------------


def show(video: str, answer: Answer, args: argparse.Namespace) -> None:
    text = as_json(video, answer) if args.json else as_line(answer) if args.sliding else as_table(video, answer)
    print("\n".join(map(printable, text.split("\n"))), flush=True)


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


def main() -> int:
    args = parse_arguments()
    import_cv2()
    videos = list_videos(args.videos)
    targets = choose_targets(args.save, videos) if args.save and videos else {}
    device = set_up_device(args.device)
    wishes = Wishes(args.samples, args.views, args.sliding, args.flow_method, args.raft_weights, args.ucf_list)
    paths = {"spatial": args.spatial, "motion": args.motion, "head": args.head}
    streams, names, heads = load_streams(paths, args.flow_order, wishes, amp_dtype(args.amp, device), device)
    weights, temperature = dict(zip(("spatial", "motion"), args.weights, strict=True)), 1.0
    if args.fusion:
        weights, temperature = learnt_fusion(args.fusion)
    recogniser = Recogniser(streams, names, weights, args.unknown_below, args.stop_early, temperature, heads)
    if args.camera is not None:
        watch_camera(args, recogniser)
    failed = 0
    for video in videos:
        if args.sliding and len(videos) > 1 and not args.json:
            print(printable(str(video)))
        try:
            answers = []
            for answer in answers_to_video(video, recogniser, args.sliding, args.step):
                show(str(video), answer, args)
                if video in targets:
                    answers.append(answer)
            if video in targets:
                save(targets[video], video, answers)
                if not args.json:
                    print(f"written: {targets[video]}")
        except VideoError as error:
            if len(videos) == 1:
                raise InputError(f"{video}: {error}") from None
            print(printable(f"error: {video}: {error}"), file=sys.stderr)
            failed += 1
    if failed:
        print(f"{failed} of {len(videos)} videos failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
