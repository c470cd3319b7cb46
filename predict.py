"""Name the action in a video: the top 5 of both streams together, and what each stream says of them.

  python predict.py VIDEO --spatial PATH --motion PATH    several files, folders, or one stream alone work, too
  python predict.py VIDEO ... --save out.mp4              draw the answer over the video (out.png: one picture)
  python predict.py VIDEO ... --sliding 2                 a rolling answer, for long videos
  python predict.py --camera 0 ...                        the same from a webcam; Ctrl-C ends it

A video is decoded, scaled, JPEG-coded and sampled as the checkpoint's training and test data were, by the same
code. Its top 5 are softmax(mean of the streams' mean logits).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.flow import PLAIN_METHODS, download_raft_weights, raft_flow, read_raft_weights, tvl1_flow
from data.videos import VideoError, find_videos, import_cv2
from dataloader.clips import Batch, TestSampling, clips_of
from dataloader.names import UCF101_CLASSES
from dataloader.splits import load_split
from dataloader.transforms import Preparation
from engine.state import amp_dtype
from network import InferenceNet, trained_model
from recogniser.answers import Answer, as_json, as_line, as_table
from recogniser.decoded import PAIRS_AT_ONCE, DecodedFrames, Flow
from recogniser.windows import Camera, Window, frame_rate, rolling_windows, whole_video
from saved.checkpoints import FLOW_ORDERS, Checkpoint, read_checkpoint
from utils import ArgumentParser, InputError, cpu_count, plural, printable, run_main, set_up_device


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, or folders of them")

    group = parser.add_argument_group("networks")
    group.add_argument("--spatial", metavar="PATH", help="checkpoint of the RGB stream, ours or another project's")
    group.add_argument("--motion", metavar="PATH", help="checkpoint of the motion stream; one of the two is enough")
    group.add_argument("--weights", nargs=2, type=float, metavar=("W", "W"),
                       help="of spatial and motion in the mean (default: 1 1)")
    group.add_argument("--ucf-list", metavar="DIR",
                       help="split lists that name the classes of another project's checkpoint that is not of UCF101")
    group.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                       help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")

    group = parser.add_argument_group("preparation")
    group.add_argument("--samples", type=int, help="clips per video or window (default: as the checkpoint was tested)")
    group.add_argument("--views", type=int, choices=(1, 5, 10),
                       help="crops per clip (default: as the checkpoint was tested)")
    group.add_argument("--flow-method", choices=("tvl1", *PLAIN_METHODS, "raft"),
                       help="dis is fast enough for a camera (default: what the motion stream was trained on)")
    group.add_argument("--raft-weights", metavar="large|small|PATH",
                       help="of raft (default: those that the motion stream was trained on)")

    group = parser.add_argument_group("rolling")
    group.add_argument("--sliding", type=float, metavar="SECONDS", help="answer for every window of this length")
    group.add_argument("--step", type=float, metavar="SECONDS", help="between windows (default: half of --sliding)")
    group.add_argument("--camera", metavar="SOURCE",
                       help="number of a camera, or a URL, in place of videos; --sliding is then 2 unless given")

    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object per video or window, with all logits")
    group.add_argument("--save", type=Path, metavar="OUT.mp4|png", help="draw the answer over the video, scores below")

    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="as in testing")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for what can't work; give --sliding and --step their values."""
    if not (args.spatial or args.motion):
        raise InputError("no network: name a checkpoint with --spatial PATH, --motion PATH or both")
    if bool(args.videos) == (args.camera is not None):
        raise InputError("name either videos or a --camera")
    if args.camera is not None and args.sliding is None:
        args.sliding = 2.0
    if args.step is None:
        args.step = (args.sliding or 0) / 2
    elif args.sliding is None:
        raise InputError("--step is of a rolling answer: give --sliding SECONDS, too")
    if args.sliding is not None and not (args.sliding > 0 and args.step > 0):
        raise InputError("--sliding and --step are seconds, more than 0")
    if args.samples is not None and args.samples < 1:
        raise InputError(f"--samples {args.samples}: must be at least 1")
    if args.weights is None:
        args.weights = [1.0, 1.0]
    if not all(0 <= weight < float("inf") for weight in args.weights) or not sum(args.weights):
        raise InputError("--weights takes two numbers from 0 up that aren't both 0")
    if args.save is not None:
        suffixes = (".mp4",) if args.camera is not None else (".mp4", ".png")
        if args.save.suffix.lower() not in suffixes:
            raise InputError(f"--save {args.save}: give the name of a {' or '.join(suffixes)} file")


# --- networks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """A trained network, and how its input is made."""

    name: str  # spatial or motion
    net: InferenceNet
    preparation: Preparation
    sampling: TestSampling
    flow: Flow | None
    device: torch.device

    @torch.inference_mode()
    def logits(self, batch: Batch) -> np.ndarray:
        """(samples, classes) float32 of one video's clips, averaged over views. Equal clips are computed once."""
        different, place = torch.cat([batch.clips, batch.flip[:, None]], 1).unique(dim=0, return_inverse=True)
        parts = different.split(256 if self.device.type == "cuda" else 8)
        outputs = []
        for part in tqdm(parts, desc=f"{self.name} network", leave=False, delay=1, disable=None):
            clips = batch._replace(clips=part[:, :-1], flip=part[:, -1].bool())
            outputs.append(self.net(clips_of(clips, self.preparation.modality, self.device))[0].cpu())
        logits = torch.cat(outputs)[place]
        return logits.unflatten(0, (self.sampling.views, self.sampling.samples)).mean(0).numpy()


def load_streams(args: argparse.Namespace, device: torch.device) -> Recogniser:
    """The networks that the flags name, the names of their classes and their weights."""
    checkpoints = {}
    for name, path in (("spatial", args.spatial), ("motion", args.motion)):
        if not path:
            continue
        checkpoints[name] = read_checkpoint(path, flow_order=args.flow_order)
        belongs = "spatial" if checkpoints[name].preparation["modality"] == "rgb" else "motion"
        if name != belongs:
            raise InputError(f"--{name} {path} is a network of the {belongs} stream: give it to --{belongs}")
    names = choose_class_names(list(checkpoints.values()), args.ucf_list)
    streams = []
    for name, checkpoint in checkpoints.items():
        preparation = Preparation.from_dict(checkpoint.preparation)
        samples = args.samples or checkpoint.args.get("test_samples", 19)
        sampling = TestSampling(samples, args.views or checkpoint.args.get("test_views", 1))
        if sampling.views > 1 and preparation.test_resize == "squash":
            raise InputError(f"--views {sampling.views} cuts corners, but {checkpoint.path} was tested on whole images")
        flow = choose_flow(args, preparation, device) if preparation.modality == "flow" else None
        net = InferenceNet(trained_model(checkpoint), preparation, amp_dtype(args.amp, device)).to(device)
        streams.append(Stream(name, net, preparation, sampling, flow, device))
    weights = args.weights if len(streams) == 2 else [1.0]
    return Recogniser(streams, names, weights)


def choose_class_names(checkpoints: Sequence[Checkpoint], lists: str | None) -> list[str]:
    """The classes in label order: a checkpoint's own, --ucf-list's, UCF101's for 101 classes, or just numbers."""
    first, last = checkpoints[0], checkpoints[-1]
    if first.num_classes != last.num_classes:
        raise InputError(
            f"{first.path} knows {first.num_classes} classes, {last.path} {last.num_classes}; "
            "give two streams of the same dataset"
        )
    given = {str(c.path): c.class_names for c in checkpoints if c.class_names is not None}
    if not given and lists:
        given[lists] = load_split(lists, 1).class_names
    for source, names in given.items():
        if len(names) != first.num_classes:
            raise InputError(f"{source} names {len(names)} classes, {first.path} knows {first.num_classes}")
        other_source, other = next(iter(given.items()))
        for label, (one, two) in enumerate(zip(other, names, strict=True)):
            if one.casefold() != two.casefold():
                raise InputError(
                    f"class {label} is {one} in {other_source} and {two} in {source}; "
                    "give two streams of the same dataset"
                )
    if given:
        return next(iter(given.values()))
    if first.num_classes == len(UCF101_CLASSES):
        return list(UCF101_CLASSES)
    note(f"{first.path} doesn't name its {first.num_classes} classes, so they are numbered; --ucf-list DIR names them")
    return [f"class {label}" for label in range(first.num_classes)]


def choose_flow(args: argparse.Namespace, preparation: Preparation, device: torch.device) -> Flow:
    """The flow method that the network was trained on, or --flow-method."""
    trained = preparation.flow_method
    method = args.flow_method or trained or "tvl1"
    if trained is None and not args.flow_method:
        note("the motion checkpoint doesn't say what flow it was trained on: taking tvl1; see --flow-method")
    elif args.flow_method and trained and not trained.startswith(args.flow_method):
        note(f"the motion stream was trained on {trained} flow, this is {args.flow_method}")
    if method == "flo":
        raise InputError(f"{args.motion} was trained on .flo files of an unknown method; choose one with --flow-method")
    if method.startswith("raft"):
        weights = args.raft_weights or ("small" if trained == "raft_small" else "large")
        path = download_raft_weights(weights) if weights in ("large", "small") else Path(weights)
        try:  # a wrong file is said now
            read_raft_weights(path)
        except InputError:
            raise InputError(f"--raft-weights {path}: no file of torchvision's RAFT weights") from None
        raft = functools.partial(raft_flow, weights=path, device=str(device), batch_frames=PAIRS_AT_ONCE)
        return Flow(raft)
    gpu = method == "tvl1" and device.type == "cuda"
    tvl1 = functools.partial(tvl1_flow, device=str(device) if gpu else "cpu")
    methods: dict[str, Any] = {"tvl1": tvl1, **PLAIN_METHODS}
    if method not in methods:
        raise InputError(f"{args.motion} was trained on {method} flow, which is not among --flow-method's; choose one")
    return Flow(methods[method], 1 if gpu else cpu_count())


# --- answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recogniser:
    """All streams together."""

    streams: list[Stream]
    names: list[str]  # of the classes, in label order
    weights: list[float]  # of the streams

    def follow(self, video: str) -> list[DecodedFrames]:
        """The makers of each stream's clips of one video."""
        return [DecodedFrames(video, s.preparation, s.sampling, s.flow) for s in self.streams]

    def answer(self, window: Window, followers: Sequence[DecodedFrames]) -> Answer:
        """What the streams say of one window. Raises VideoError for one of too few frames."""
        logits, times = {}, {}
        for stream, follower in zip(self.streams, followers, strict=True):
            batch = follower.clips(window.frames[follower.short_side], window.count, window.first)
            logits[stream.name] = stream.logits(batch)
            middles = follower.starts(window.count) + follower.fewest / 2
            times[stream.name] = window.start + middles / window.rate
        return Answer(self.names, window.start, window.end, window.count, logits, times, self.weights)


def answers_to_video(path: Path, recogniser: Recogniser, sliding: float | None, step: float) -> Iterator[Answer]:
    """The answer to a whole video, or one for each window of `sliding` seconds. Raises VideoError."""
    followers = recogniser.follow(path.name)
    if not sliding:
        yield recogniser.answer(whole_video(path, followers), followers)
        return
    check_window(sliding, frame_rate(path), followers)
    for window in rolling_windows(path, [follower.short_side for follower in followers], sliding, step):
        yield recogniser.answer(window, followers)


def check_window(seconds: float, rate: float, followers: Sequence[DecodedFrames]) -> None:
    frames, needed = round(seconds * rate), max(follower.fewest for follower in followers)
    if frames < needed:
        raise InputError(
            f"--sliding {seconds:g} is {plural(frames, 'frame')} at {rate:g} per second, and one clip needs {needed}: "
            f"give at least {needed / rate:.2f}"
        )


def watch_camera(args: argparse.Namespace, recogniser: Recogniser) -> None:
    """Answer for the camera's last seconds until it ends, or until Ctrl-C."""
    followers = recogniser.follow("camera")
    camera = Camera(args.camera, [follower.short_side for follower in followers])
    check_window(args.sliding, camera.rate, followers)
    with contextlib.ExitStack() as whole:
        film = None
        if args.save:
            from recogniser.overlay import LiveFilm, open_film

            film = LiveFilm(whole.enter_context(open_film(args.save, camera.rate)), camera.rate)
        windows = camera.windows(args.sliding, args.step, film.see if film else None)
        whole.enter_context(contextlib.closing(windows))
        with contextlib.suppress(KeyboardInterrupt):
            for window in windows:
                answer = recogniser.answer(window, followers)
                show(f"camera {args.camera}", answer, args)
                if film:
                    film.hear(answer)


# --- the script ----------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def show(video: str, answer: Answer, args: argparse.Namespace) -> None:
    text = as_json(video, answer) if args.json else as_line(answer) if args.sliding else as_table(video, answer)
    print("\n".join(map(printable, text.split("\n"))), flush=True)


def list_videos(named: Sequence[str]) -> list[Path]:
    """The files named, and all videos in the folders named."""
    videos = []
    for path in map(Path, named):
        if not path.exists():
            raise InputError(f"{path} does not exist; give a video file or a folder of videos")
        if not (path.is_file() or path.is_dir()):  # opening a pipe waits for somebody to write to it
            raise InputError(f"{path} is a pipe or a device; give a video file, or name a camera with --camera")
        videos += [video.path for video in find_videos(path)] if path.is_dir() else [path]
    return videos


def main() -> int:
    args = parse_arguments()
    import_cv2()
    videos = list_videos(args.videos)
    if args.save and len(videos) > 1:
        raise InputError(f"--save {args.save} draws one video, and there are {len(videos)}; name one")
    recogniser = load_streams(args, set_up_device(args.device))
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
                if args.save:
                    answers.append(answer)
            if args.save:
                from recogniser.overlay import save

                save(args.save, video, answers)
                if not args.json:
                    print(f"written: {args.save}")
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
