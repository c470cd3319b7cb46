"""From a folder of videos to the table, the report and the line that names the action in a new one, in one go.

  python run.py VIDEOS                    VIDEOS holds a folder for each class
  python run.py VIDEOS --test FOLDER      FOLDER holds other videos of these classes, to test on
  python run.py VIDEOS --way train        trains both networks, whatever the number of videos

Up to 2,000 videos take the fast way: features from ImageNet networks, a linear head for each stream, and weights of
the two learnt on held-out training videos: minutes without a GPU. More are trained on, for which a GPU is needed. What
is done is not done again: kill it, start it again. Videos that were added, changed or removed are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from common.commandline import ArgumentParser
from common.progress import duration
from data.make_split import find_classes
from data.steps import StepFailed, Steps
from data.videos import VideoError, VideoFile, count_frames, find_videos, import_av, import_cv2
from dataloader.names import UCF101_CLASSES, ucf_parts
from engine.owner import owned
from utils import (
    FEW,
    InputError,
    atomic_path,
    check_name,
    check_writable,
    cpu_count,
    plural,
    printable,
    run_main,
    write_json,
)

# sizes and samples that two cores pass through in minutes (docs/small_data.md)
RGB = {"size": 160, "test_samples": 10, "test_views": 2}
MOTION = {"size": 128, "test_samples": 8, "test_views": 1}
SHORTEST = {"heads": 4, "train": 11}  # frames: one clip of grey differences, one stack of flow
# Seconds of one core of an AMD EPYC, to say beforehand how long it will take: a frame's JPEG and its DIS flow, reading
# a video's images for the three inputs, a video's share of the heads' training.
FRAME, READ, HEADS = 0.0055, 0.1, 0.1

WAYS = {
    "heads": "the fast way, linear heads on features of ImageNet networks (--way train trains the networks)",
    "train": "training both networks (--way heads is the fast way)",
}
UCF101 = {name.casefold() for name in UCF101_CLASSES}


def main() -> int:
    args = parse_arguments()
    import_av()
    import_cv2()
    found = find_videos(args.videos, skip=args.record)
    way = args.way or ("heads" if len(found) <= FEW else "train")
    ucf101 = all((parts := ucf_parts(video.name)) and parts[0].casefold() in UCF101 for video in found)
    print(printable(f"{plural(len(found), 'video')} in {args.videos}: {WAYS[way]}"), flush=True)
    choose_folders(args, usual=way == "train" and ucf101)
    check_network(args, way, found)
    with owned(args.record, flag="--record"):
        write_json(args.record / "run.json", {"videos": str(args.videos.resolve())})
        try:
            (heads_way if way == "heads" else train_way)(args, ucf101)
        except StepFailed as failure:
            return failure.code
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("--way", choices=tuple(WAYS), help=f"(default: heads up to {FEW:,} videos, train above)")
    group = parser.add_argument_group("split")
    group.add_argument("--test", type=Path, metavar="FOLDER",
                       help="class folders of test videos; VIDEOS then trains (default: a part of VIDEOS tests)")
    group.add_argument("--groups", metavar="REGEX|CSV",
                       help="which videos are of one recording and stay together; see data/make_split.py -h")
    group.add_argument("--lists", type=Path, metavar="DIR", help="split lists (default: data/make_split.py makes them)")
    group = parser.add_argument_group("networks")
    group.add_argument("--arch", help="as in spatial_cnn.py -h (default: resnet50; train: resnet101)")
    group.add_argument("--weights", metavar="imagenet|none|PATH",
                       help="where both networks start; PATH needs no internet (default: imagenet)")
    group.add_argument("--flags", default="", metavar='"..."',
                       help="more flags for both streams, such as --flags '--test-samples 5'")
    group.add_argument("--flow-flags", default="", metavar='"..."', help="more flags for data/extract_flow.py")
    group = parser.add_argument_group("folders")
    group.add_argument("--record", type=Path, metavar="DIR",
                       help="for what is found out (default: record/<name of VIDEOS>; for UCF101 with --way train: "
                            "record)")
    group.add_argument("--data", type=Path, metavar="DIR",
                       help="for frames, flow, lists, features (default: data in --record; for UCF101 with --way "
                            "train: data)")
    args = parser.parse_args()
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--arch", default=args.arch)
    own.add_argument("--weights", default=args.weights)
    own.add_argument("--size", type=int)
    named, args.flags = own.parse_known_args(shlex.split(args.flags))  # in --flags they mean the same
    args.arch, args.weights, args.size = named.arch, named.weights, named.size
    args.flags += ["--size", str(args.size)] if args.size else []
    return args


# --- before anything is made ---------------------------------------------------------------------------


def choose_folders(args: argparse.Namespace, usual: bool) -> None:
    """Fill in --record and --data. Two folders of videos never share one, whatever they are called.

    `usual`: the README's folders of UCF101. What a record is of stands in its run.json.
    """
    home = args.videos.resolve()
    check_name(home)
    if args.record is None:
        first = Path("record") if usual else Path("record") / (home.name or "videos")
        if first.resolve().is_relative_to(home):  # `run.py .`: what lies in VIDEOS is taken for a class
            first = home.parent / "record" / home.name
        numbered = (first.with_name(f"{first.name}_{number}") for number in itertools.count(2))
        args.record = next(path for path in itertools.chain([first], numbered) if recorded(path) in (None, str(home)))
        if args.record != first:
            print(printable(f"{first} is of {recorded(first)}: what is found out here goes to {args.record}"))
    elif recorded(args.record) not in (None, str(home)):
        raise InputError(f"--record {args.record} is of {recorded(args.record)}: choose another, or leave it out")
    if args.data is None:
        args.data = Path("data") if usual and args.record == Path("record") else args.record / "data"
    for flag, path in (("--record", args.record), ("--data", args.data)):
        if path.resolve().is_relative_to(home):
            raise InputError(f"{flag} {path} lies in {args.videos}, whose folders are classes: choose one outside")
        check_writable(path)


def recorded(record: Path) -> str | None:
    """The folder of videos that a record is of; None where it doesn't say."""
    try:
        return str(json.loads((record / "run.json").read_text(encoding="utf-8"))["videos"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_network(args: argparse.Namespace, way: str, videos: Sequence[VideoFile]) -> None:
    """See that the network's weights are there and fit, and say how long the fast way will take."""
    import torch  # here: it takes seconds, and what is checked before needs none

    from network import build_model
    from utils import set_up_device

    arch, weights = args.arch or ("resnet50" if way == "heads" else "resnet101"), args.weights or "imagenet"
    size = args.size or RGB["size"]
    model = build_model(arch, 3, 2, weights, size=size)
    if way == "train" or (args.data / "rgb.npz").exists():
        return
    from dataloader.preparation import Preparation
    from engine.features import default_pooling, feature_net
    from engine.training import amp_dtype

    device = set_up_device("auto")
    preparation = Preparation(size=size)
    net = feature_net(model, preparation, default_pooling(model, "spatial"), amp_dtype("auto", device)).to(device)
    count = RGB["test_samples"] * RGB["test_views"]
    clips = torch.zeros((count, 3, size, size), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        for _ in range(2):  # the first one starts threads
            start = time.monotonic()
            net(clips)[1].cpu()
    pixels = [each["test_samples"] * each["test_views"] * (args.size or each["size"]) ** 2
              for each in (RGB, MOTION, MOTION)]  # fmt: skip
    video = (time.monotonic() - start) * sum(pixels) / pixels[0] + READ / cpu_count() + HEADS
    counts = []
    for one in videos[:: max(1, len(videos) // 20)]:
        with contextlib.suppress(VideoError):  # extraction will say so
            counts.append(count_frames(one.path))
    frames = len(videos) * sum(counts) / max(1, len(counts))
    took = duration(frames * FRAME / cpu_count() + len(videos) * video)
    print(f"about {took}, by {frames:,.0f} frames and the speed of {arch} on this {device.type}", flush=True)


# --- the two ways --------------------------------------------------------------------------------------


def heads_way(args: argparse.Namespace, ucf101: bool) -> None:
    """Extract, split, features, heads, fusion. Motion is seen as differences of grey frames and as optical flow."""
    record, data, step = args.record, args.data, Steps(7 if args.lists else 8)
    videos = extract(args, step, "heads", ["--sampling-rate", 1, "--short-side", 160], ["--method", "dis"])
    lists = make_lists(args, step, videos)
    rgb, flow = data / "rgb", data / "flow"
    spatial, grey, motion = (data / f"{name}.npz" for name in ("rgb", "greydiff", "flow"))
    common = ["--ucf-list", lists, *network_flags(args, "resnet50")]
    step("features of RGB", "spatial_cnn.py", "--rgb-dir", rgb, "--features", spatial, *as_flags(RGB), *common)
    step("features of grey differences", "motion_cnn.py", "--input", "greydiff", "--rgb-dir", rgb, "--features", grey,
         *as_flags(MOTION), *common)  # fmt: skip
    step("features of flow", "motion_cnn.py", "--flow-dir", flow, "--flow-picture", 12, "--features", motion,
         *as_flags(MOTION), *common)  # fmt: skip
    step("heads", "heads.py", "--spatial", spatial, "--motion", grey, motion, "--over-time", "mean",
         "--output", record / "heads")  # fmt: skip
    fuse(args, step, record / "heads/linear", "checkpoint.pth.tar", "--learn")


def train_way(args: argparse.Namespace, ucf101: bool) -> None:
    """Extract, split, train both streams, fuse. UCF101's videos are split by its own lists, or by its group rule."""
    record, data, own = args.record, args.data, not (args.lists or (ucf101 and not args.test))
    step = Steps(6 if own else 5)
    videos = extract(args, step, "train", [], [])
    official = Path("data/ucfTrainTestlist")
    lists = make_lists(args, step, videos) if own or args.lists else official if official.is_dir() else "none"
    missing = [] if own or not (data / LEFT_OUT).exists() else ["--allow-missing"]
    common = ["--ucf-list", lists, "--resume", "auto", *missing, *network_flags(args)]
    step("spatial stream", "spatial_cnn.py", "--rgb-dir", data / "rgb", "--output", record / "spatial", *common)
    step("motion stream", "motion_cnn.py", "--flow-dir", data / "flow", "--output", record / "motion", *common)
    fuse(args, step, record, "model_best.pth.tar")


def network_flags(args: argparse.Namespace, arch: str | None = None) -> list[str]:
    given = {"--arch": args.arch or arch, "--weights": args.weights}
    return [word for flag, value in given.items() if value for word in (flag, value)] + args.flags


def as_flags(values: dict[str, int]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


# --- their steps ---------------------------------------------------------------------------------------


def extract(args: argparse.Namespace, step: Steps, way: str, rgb_flags: Sequence, flow_flags: Sequence) -> Path:
    """Extract frames and flow, and write which videos have to be left out. Returns the folder of the videos."""
    videos, data = args.videos, args.data
    if args.test:
        videos = data / "videos"
        link(videos / "train", args.videos)
        link(videos / "test", args.test)
    find_classes(videos)  # what is wrong with them is told now
    rgb, flow = data / "rgb", data / "flow"
    partly = (0, 1)  # 1: some videos can't be read
    step("RGB frames", "data/extract_rgb.py", videos, rgb, *rgb_flags, passed=partly)
    flow_flags = [*flow_flags, *shlex.split(args.flow_flags)]
    step("optical flow", "data/extract_flow.py", videos, flow, *flow_flags, passed=partly)
    left_out = read_left_out(rgb / "failed.csv") | read_left_out(flow / "failed.csv")
    for video in find_videos(videos):
        if (frames := extracted_images(rgb, video)) is not None and frames < SHORTEST[way]:
            left_out.setdefault(video.name, f"{plural(frames, 'frame')}, and {SHORTEST[way]} are needed")
    write_left_out(data / LEFT_OUT, left_out)
    return videos


LEFT_OUT = "left_out.csv"


def link(place: Path, folder: Path) -> None:
    """Make `place` a link to a folder of videos."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that holds a folder of videos for each class")
    if place.is_symlink() and Path(os.path.realpath(place)) == folder.resolve():
        return
    try:
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise InputError(
            f"cannot link {place} to {folder} ({error.strerror or error}); put both as train and test into one folder, "
            "and give that as VIDEOS"
        ) from None


def read_left_out(path: Path) -> dict[str, str]:
    """{video: reason} of such a file, or of an extraction's failed.csv."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return dict(list(csv.reader(file))[1:])


def extracted_images(extracted: Path, video: VideoFile) -> int | None:
    """How many images there are of a video; None where it is not finished."""
    try:
        return json.loads((extracted / ".done" / f"{video.folder}.json").read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError):
        return None


def write_left_out(path: Path, left_out: dict[str, str]) -> None:
    """Write which videos are left out, and why, for data/make_split.py; no file where all are taken."""
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "reason"), *sorted(left_out.items())])


def make_lists(args: argparse.Namespace, step: Steps, videos: Path) -> Path:
    """Make the lists, or bring those made before up to date with the videos that there are."""
    if args.lists:
        return args.lists
    lists = args.data / ("lists_test" if args.test else "lists")
    groups = ["--groups", args.groups] if args.groups else []
    left_out = args.data / LEFT_OUT
    without = ["--without", left_out] if left_out.exists() else []
    step("split into training and test", "data/make_split.py", videos, lists, *groups, *without)
    return lists


def fuse(args: argparse.Namespace, step: Steps, streams: Path, checkpoint: str, *flags: str) -> None:
    """Fuse both streams; then say what was left out, and how a new video is recognised."""
    output, spatial, motion = args.record / "fusion", streams / "spatial", streams / "motion"
    step("fusion and report", "fusion.py", "--spatial", spatial, "--motion", motion, "--output", output, *flags)
    left_out = args.data / LEFT_OUT
    if left_out.exists():
        rows = read_left_out(left_out)
        print("\n" + printable(f"left out: {plural(len(rows), 'video')} that could not be used, listed in {left_out}:"))
        for video, reason in list(rows.items())[:20]:
            print(printable(f"  {video}: {reason}"))
    learnt = json.loads((output / "results.json").read_text(encoding="utf-8")).get("learnt", {})
    if learnt.get("joined"):  # one head on both streams' features is two checkpoints of its own
        spatial, motion = Path(learnt["joined"]) / "spatial", Path(learnt["joined"]) / "motion"
    networks = {"--spatial": spatial / checkpoint, "--motion": motion / checkpoint}
    if learnt:
        networks["--fusion"] = output / "results.json"
    words = shlex.join(word for flag, path in networks.items() for word in (flag, path.as_posix()))
    print("\n" + printable(f"Name the action in a new video:  python predict.py VIDEO {words}"))


if __name__ == "__main__":
    run_main(main)
