"""Run all steps from a folder of videos to the table, the report and the command that recognises a new video.

  python run.py VIDEOS                    VIDEOS holds a folder for each class
  python run.py VIDEOS --test FOLDER      FOLDER holds other videos of these classes, to test on
  python run.py VIDEOS --way train        trains both networks, whatever the number of videos

Up to 2,000 videos take the fast way: features from ImageNet networks, a linear head for each stream, and a
fusion chosen on held-out training videos. It takes minutes without a GPU. With more videos both networks are
trained, which needs a GPU. Videos that were added, changed or removed are noticed. If it was
killed, start it again: finished work is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from common.commandline import ArgumentParser
from common.formats import read_json
from common.progress import duration
from data.make_split import find_classes, given_sides
from data.steps import StepFailed, Steps
from data.videos import VideoFile, find_videos
from dataloader.extracted import read_marker
from dataloader.lists import read_column
from dataloader.names import UCF101_CLASSES, ucf_parts
from engine.owner import owned
from report.outcome import read_learnt
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

# With few videos, more samples and mirror images gain much; with hundreds they gain nothing (docs/small_data.md).
FEW_VIDEOS = 200
FEW_RGB = ("--size", 160, "--test-samples", 10, "--test-views", 2)
FEW_MOTION = ("--size", 128, "--test-samples", 16, "--test-views", 2)
MANY_RGB = ("--size", 160, "--test-samples", 5, "--test-views", 1)
MANY_MOTION = ("--size", 128, "--test-samples", 8, "--test-views", 1)
FEW_SECONDS, MANY_SECONDS = 4.5, 1.7  # of one core per video of some seconds: a ResNet-50 in float32 (AMD EPYC)
SHORTEST = {"heads": 4, "train": 11}  # frames: one clip of grey differences, one stack of flow

WAYS = {
    "heads": "the fast way, linear heads on features of ImageNet networks (--way train trains the networks)",
    "train": "training both networks (--way heads is the fast way)",
}
UCF101 = {name.casefold() for name in UCF101_CLASSES}


def main() -> int:
    args = parse_arguments()
    found = find_videos(args.videos, skip=args.record)
    if args.test:
        check_test(args, found)
    way = args.way or ("heads" if len(found) <= FEW else "train")
    ucf101 = all((parts := ucf_parts(video.name)) and parts[0].casefold() in UCF101 for video in found)
    print(printable(f"{plural(len(found), 'video')} in {args.videos}: {WAYS[way]}"), flush=True)
    choose_folders(args, usual=way == "train" and ucf101)
    check_network(args, way)
    few = len(found) <= FEW_VIDEOS
    if way == "heads":
        seconds = len(found) * (FEW_SECONDS if few else MANY_SECONDS) / cpu_count()
        closely = f"; up to {FEW_VIDEOS} videos are looked at more closely (docs/small_data.md)" if few else ""
        print(f"about {duration(seconds)} on these cores, if videos last some seconds{closely}")
    with owned(args.record, flag="--record"):
        write_json(args.record / "run.json", {"videos": str(args.videos.resolve())})
        try:
            if way == "heads":
                heads_way(args, few)
            else:
                train_way(args, ucf101)
        except StepFailed as failure:
            return failure.code
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("--way", choices=tuple(WAYS),
                        help=f"linear heads, or training of both networks (default: heads for up to {FEW:,} videos)")
    group = parser.add_argument_group("split")
    group.add_argument("--test", type=Path, metavar="FOLDER",
                       help="class folders of videos to test on (default: a part of VIDEOS)")
    group.add_argument("--groups", metavar="REGEX|CSV",
                       help="which videos belong to one recording and stay together; see data/make_split.py -h")
    group.add_argument("--lists", type=Path, metavar="DIR", help="split lists (default: data/make_split.py makes them)")
    group = parser.add_argument_group("networks")
    group.add_argument("--arch", help="as in spatial_cnn.py -h (default: resnet50; with --way train: resnet101)")
    group.add_argument("--weights", metavar="imagenet|none|PATH",
                       help="where both networks start; PATH needs no internet (default: imagenet)")
    group.add_argument("--flags", default="", metavar='"..."', type=shlex.split,
                       help="more flags for both streams, such as --flags '--test-samples 5'")
    group.add_argument("--flow-flags", default="", metavar='"..."', type=shlex.split,
                       help="more flags for data/extract_flow.py")
    group = parser.add_argument_group("folders")
    group.add_argument("--record", type=Path, metavar="DIR",
                       help="for results (default: record/<name of VIDEOS>; for UCF101 with --way train: "
                            "record)")
    group.add_argument("--data", type=Path, metavar="DIR",
                       help="for frames, flow, lists, features (default: data in --record; for UCF101 with --way "
                            "train: data)")
    return parser.parse_args()


# --- before anything is made ---------------------------------------------------------------------------


def choose_folders(args: argparse.Namespace, usual: bool) -> None:
    """Fill in --record and --data. Two folders of videos never share a record, even if they have one name.

    `usual`: use the README's folders for UCF101. A record's run.json names its folder of videos.
    """
    home = args.videos.resolve()
    check_name(home)
    if args.record is None:
        first = Path("record") if usual else Path("record") / (home.name or "videos")
        if first.resolve().is_relative_to(home):  # `run.py .`: folders in VIDEOS are taken for classes
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


def check_test(args: argparse.Namespace, found: Sequence[VideoFile]) -> None:
    """See that --test holds other videos than VIDEOS, and that neither is split itself."""
    for folder, videos in ((args.videos, found), (args.test, find_videos(args.test))):
        if given_sides(video.name for video in videos):
            raise InputError(f"{folder} is split into train and test itself: leave --test out, or give a part")
    if args.videos.resolve().is_relative_to(args.test.resolve()):
        raise InputError(f"--test {args.test} holds the videos of {args.videos}; give a folder of others")


class RunFile(BaseModel):
    """The content of a record's run.json."""

    videos: str


def recorded(record: Path) -> str | None:
    """Return the folder of videos that a record belongs to, None for a new record."""
    file = record / "run.json"
    return read_json(file, RunFile, "remove it, or choose another --record").videos if file.exists() else None


def check_network(args: argparse.Namespace, way: str) -> None:
    """Check that the network's weights exist and fit."""
    from network import build_model  # here: importing torch takes seconds, and earlier checks don't need it

    arch = args.arch or ("resnet50" if way == "heads" else "resnet101")
    build_model(arch, 3, 2, args.weights or "imagenet", size=160)


# --- the two ways --------------------------------------------------------------------------------------


def heads_way(args: argparse.Namespace, few: bool) -> None:
    """Extract, split, compute features, fit heads, fuse. Motion is grey differences and optical flow."""
    record, data, step = args.record, args.data, Steps(7 if args.lists else 8)
    videos = extract(args, step, "heads", ["--sampling-rate", 1, "--short-side", 160], ["--method", "dis"])
    lists = make_lists(args, step, videos)
    rgb, flow = data / "rgb", data / "flow"
    spatial, grey, motion = (data / f"{name}.npz" for name in ("rgb", "greydiff", "flow"))
    common = ["--ucf-list", lists, *network_flags(args, "resnet50")]
    rgb_look, motion_look = (FEW_RGB, FEW_MOTION) if few else (MANY_RGB, MANY_MOTION)
    step("features of RGB", "spatial_cnn.py", "--rgb-dir", rgb, "--features", spatial, *rgb_look, *common)
    step("features of grey differences", "motion_cnn.py", "--input", "greydiff", "--rgb-dir", rgb, "--features", grey,
         *motion_look, *common)  # fmt: skip
    step("features of flow", "motion_cnn.py", "--flow-dir", flow, "--flow-picture", 12, "--features", motion,
         *motion_look, *common)  # fmt: skip
    step("heads", "heads.py", "--spatial", spatial, "--motion", grey, motion, "--output", record / "heads")
    fuse(args, step, record / "heads/linear", "checkpoint.pth.tar", "--learn")


def train_way(args: argparse.Namespace, ucf101: bool) -> None:
    """Extract, split, train both streams, fuse. UCF101 is split by its own lists, or by its group rule."""
    record, data, own = args.record, args.data, not (args.lists or (ucf101 and not args.test))
    step = Steps(6 if own else 5)
    videos = extract(args, step, "train", [], [])
    official = Path("data/ucfTrainTestlist")
    lists = make_lists(args, step, videos) if own or args.lists else official if official.is_dir() else "none"
    missing = ["--allow-missing"] if not own and read_left_out(data / LEFT_OUT) else []
    common = ["--ucf-list", lists, "--resume", "auto", *missing, *network_flags(args)]
    step("spatial stream", "spatial_cnn.py", "--rgb-dir", data / "rgb", "--output", record / "spatial", *common)
    step("motion stream", "motion_cnn.py", "--flow-dir", data / "flow", "--output", record / "motion", *common)
    fuse(args, step, record, "model_best.pth.tar")


def network_flags(args: argparse.Namespace, arch: str | None = None) -> list[str]:
    return [*as_words({"--arch": args.arch or arch, "--weights": args.weights}), *args.flags]


def as_words(flags: Mapping[str, object]) -> list[str]:
    return [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)]


# --- their steps ---------------------------------------------------------------------------------------


def extract(args: argparse.Namespace, step: Steps, way: str, rgb_flags: Sequence, flow_flags: Sequence) -> Path:
    """Extract frames and flow, and write left_out.csv. Return the folder of the videos."""
    videos, data = args.videos, args.data
    if args.test:
        videos = data / "videos"
        link(videos / "train", args.videos)
        link(videos / "test", args.test)
    find_classes(videos)  # raises for wrong class folders before anything is extracted
    rgb, flow = data / "rgb", data / "flow"
    partly = (0, 1)  # 1: some videos can't be read
    step("RGB frames", "data/extract_rgb.py", videos, rgb, *rgb_flags, passed=partly)
    step("optical flow", "data/extract_flow.py", videos, flow, *flow_flags, *args.flow_flags, passed=partly)
    left_out = read_left_out(rgb / "failed.csv") | read_left_out(flow / "failed.csv")
    for video in find_videos(videos):
        made = read_marker(rgb, video.folder)
        if made and made.images < SHORTEST[way]:
            left_out.setdefault(video.name, f"{plural(made.images, 'frame')}, and {SHORTEST[way]} are needed")
    with atomic_path(data / LEFT_OUT) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "reason"), *sorted(left_out.items())])
    return videos


LEFT_OUT = "left_out.csv"


def link(place: Path, folder: Path) -> None:
    """Make `place` a link to a folder of videos."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(folder.resolve(strict=True), target_is_directory=True)
    except OSError as error:
        raise InputError(f"cannot link to {folder} ({error.strerror}); put both folders as train and test into one, "
                         "and give that as VIDEOS") from None  # fmt: skip


def read_left_out(path: Path) -> dict[str, str]:
    """Read {video: reason} from left_out.csv or an extraction's failed.csv; empty if there is no file."""
    return read_column(path, "reason") if path.is_file() else {}


def make_lists(args: argparse.Namespace, step: Steps, videos: Path) -> Path:
    """Make the split lists, or update earlier ones to the present videos. Return their folder."""
    if args.lists:
        return args.lists
    lists = args.data / ("lists_test" if args.test else "lists")
    flags = as_words({"--groups": args.groups, "--without": args.data / LEFT_OUT})
    step("split into training and test", "data/make_split.py", videos, lists, *flags)
    return lists


def fuse(args: argparse.Namespace, step: Steps, streams: Path, checkpoint: str, *flags: str) -> None:
    """Fuse both streams; then print which videos were left out, and the command for a new video."""
    output, networks = args.record / "fusion", {f"--{name}": streams / name for name in ("spatial", "motion")}
    step("fusion and report", "fusion.py", *as_words(networks), "--output", output, *flags)
    if rows := read_left_out(args.data / LEFT_OUT):
        told = [f"{video}: {reason}" for video, reason in list(rows.items())[:20]]
        print(f"\nleft out: {plural(len(rows), 'video')} that could not be used, listed in {args.data / LEFT_OUT}:",
              *map(printable, told), sep="\n  ")  # fmt: skip
    if "--learn" in flags:
        learnt = read_learnt(output / "results.json")
        if learnt.joined:  # one head on both streams' features is two checkpoints of its own
            networks = {flag: Path(learnt.joined) / path.name for flag, path in networks.items()}
    files = {flag: (path / checkpoint).as_posix() for flag, path in networks.items()}
    files |= {"--fusion": (output / "results.json").as_posix()} if "--learn" in flags else {}
    print("\n" + printable(f"Name the action in a new video:  python predict.py VIDEO {shlex.join(as_words(files))}"))


if __name__ == "__main__":
    run_main(main)
