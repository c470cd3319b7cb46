"""Run all steps from a folder of videos to the table, the report and the command that recognises a new video.

  python run.py VIDEOS                    VIDEOS holds a folder for each class
  python run.py VIDEOS --test FOLDER      FOLDER holds other videos of these classes, to test on
  python run.py VIDEOS --way train        trains both networks, whatever the number of videos
  python run.py VIDEOS --way both         does both, and keeps what is better on held-out training videos

Up to 2,000 videos take the fast way: features from ImageNet networks, a linear head for each stream, and a
fusion chosen on held-out training videos. It takes minutes without a GPU. With more videos both networks are
trained, which needs a GPU. Videos that were added, changed or removed are noticed. If it was
killed, start it again: finished work is not repeated.
"""

import argparse
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from common.commandline import ArgumentParser
from common.formats import read_json
from common.progress import duration
from data.extraction import write_reasons
from data.make_split import find_classes, given_groups
from data.steps import Steps
from data.videos import VideoFile, find_videos
from dataloader.extracted import read_marker
from dataloader.list_files import read_column
from dataloader.lists import USUAL_GROUPS, load_split
from dataloader.names import UCF101_CLASSES, first_few, ucf_parts
from engine.owner import owned
from utils import InputError, check_name, check_writable, cpu_count, csv_text, plural, printable, run_main, write_json

FEW = 2000  # videos; up to this number, the fast way beats training the whole network
# With few videos, more samples and mirror images gain much; with hundreds they gain nothing (docs/small_data.md).
FEW_VIDEOS = 200
CLOSELY = ("--samples", 10, 16, "--views", 2)  # flags of recogniser/video_features.py
FEW_SECONDS, MANY_SECONDS = 4.5, 1.7  # of one core per video of some seconds: a ResNet-50 in float32 (AMD EPYC)
SHORTEST = 11  # frames: one stack of flow

WAYS = {
    "heads": "the fast way, linear heads on features of ImageNet networks (--way train trains the networks)",
    "train": "training both networks (--way heads is the fast way)",
    "both": "the fast way and training; the better one of each stream, on held-out training videos, is kept",
}
UCF101 = {name.casefold() for name in UCF101_CLASSES}
LEFT_OUT = "left_out.csv"
RunFile = dict[Literal["videos"], str]  # the content of a record's run.json
PARTLY = (0, 1)  # exit codes of steps; 1: some videos can't be used


def main() -> None:
    args = parse_arguments()
    found = find_videos(args.videos, skip=args.record)
    unlisted = check_classes(args, found)
    way = args.way = args.way or ("heads" if len(found) <= FEW else "train")
    print(printable(f"{plural(len(found), 'video')} in {args.videos}: {WAYS[way]}"), flush=True)
    if way != "heads" and not (args.test or args.lists):
        names = [ucf_parts(video.name) for video in found]
        args.lists = "none" if all(name and name[0].casefold() in UCF101 for name in names) else None
    if args.lists:  # before anything is made; as for --groups, which meets the two folders of --test under these names
        load_split(None if args.lists == "none" else args.lists, 1, [video.folder for video in found], verbose=False)
    elif args.groups:
        given_groups(args.groups, [side + video.name for side in ("", "train/", "test/") for video in found])
    choose_folders(args, way)
    check_network(args, way)
    few = len(found) <= FEW_VIDEOS
    if way == "heads":
        seconds = len(found) * (FEW_SECONDS if few else MANY_SECONDS) / cpu_count()
        print(f"about {duration(seconds)} on these cores, if videos last some seconds")
    with owned(args.record, flag="--record"):
        write_json(args.record / "run.json", {"videos": str(args.videos.resolve())})
        args.all = link_sides(args)
        args.found = find_videos(args.all) if args.test else found  # as they are now, for all steps
        go(args, unlisted, few)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("--way", choices=tuple(WAYS),
                        help="linear heads, training of both networks, or the better of the two for each stream "
                             f"(default: heads for up to {FEW:,} videos)")
    add = parser.add_argument_group("split").add_argument
    add("--test", type=Path, metavar="FOLDER", help="class folders of videos to test on (default: a part of VIDEOS)")
    add("--groups", metavar="REGEX|CSV",
        help="which videos belong to one recording and stay together; see data/make_split.py -h")
    add("--lists", metavar="DIR|none",
        help="split lists, as --ucf-list in spatial_cnn.py -h (default: data/make_split.py makes them; with --way "
             "train UCF101 has its own split)")
    add = parser.add_argument_group("networks").add_argument
    add("--arch", help="as in spatial_cnn.py -h (default: resnet50; with --way train: resnet101)")
    add("--weights", metavar="imagenet|none|PATH",
        help="where both networks start; PATH needs no internet (default: imagenet)")
    add("--flags", default="", metavar='"..."', type=shlex.split,
        help="more flags for both trainings, or with --way heads for recogniser/video_features.py")
    add("--flow-flags", default="", metavar='"..."', type=shlex.split,
        help="more flags for data/extract_flow.py, before training")
    add = parser.add_argument_group("folders").add_argument
    add("--record", type=Path, metavar="DIR", help="for results (default: record/<name of VIDEOS>)")
    add("--data", type=Path, metavar="DIR",
        help="for lists, features, frames, flow (default: data in --record; with training: data_train)")
    return parser.parse_args()


def check_classes(args: argparse.Namespace, found: Sequence[VideoFile]) -> list[str]:
    """Raise InputError if VIDEOS, or --test, doesn't hold a folder for each class.

    Return the videos whose names no list can hold, with the folder that link_sides gives them.
    """
    if args.test and args.videos.resolve().is_relative_to(args.test.resolve()):
        raise InputError(f"--test {args.test} holds the videos of {args.videos}; give a folder of others")
    unlisted, names = [], []
    for folder, side in ((args.videos, "train/"), (args.test, "test/")) if args.test else ((args.videos, ""),):
        classes, parts = find_classes(folder, args.record)
        if side and parts:
            raise InputError(f"{folder} is split into train and test itself: leave --test out, or give a part")
        sides = {path.split("/")[0] for path in parts}  # other folders beside these are left out on purpose
        videos = [video.name for video in (find_videos(folder) if folder == args.test else found)]
        unlisted += [side + path for path in videos
                     if path not in classes and (not parts or path.split("/")[0] in sides)]  # fmt: skip
        names.append(set(classes.values()))
    if differing := names[0] ^ names[-1]:
        raise InputError(f"only one of {args.videos} and {args.test} has a class {first_few(sorted(differing))}")
    return unlisted


def choose_folders(args: argparse.Namespace, way: str) -> None:
    """Fill in --record and --data. A record's run.json names its folder of videos: no two share a record."""
    home = args.videos.resolve()
    check_name(home)
    if args.record is None:
        args.record = Path("record") / (home.name or "videos")
        if args.record.resolve().is_relative_to(home):  # `run.py .`: folders in VIDEOS are taken for classes
            args.record = home.parent / "record" / home.name
    file = args.record / "run.json"
    if file.exists():
        owner = read_json(file, RunFile, "remove it, or choose another --record").get("videos")
        if owner != str(home):
            raise InputError(f"{args.record} has the results of {owner}: choose another folder with --record")
    if args.data is None:  # the two ways extract other images
        args.data = args.record / ("data" if way == "heads" else "data_train")
    for flag, path in (("--record", args.record), ("--data", args.data)):
        if path.resolve().is_relative_to(home):
            raise InputError(f"{flag} {path} lies in {args.videos}, whose folders are classes: choose one outside")
        check_writable(path)


def check_network(args: argparse.Namespace, way: str) -> None:
    """Check that the networks' weights exist and fit."""
    from network import build_model  # here: importing torch takes seconds, and earlier checks don't need it

    usual = {"heads": ["resnet50"], "train": ["resnet101"], "both": ["resnet50", "resnet101"]}[way]
    for arch in [args.arch] if args.arch else usual:
        build_model(arch, 3, 2, args.weights or "imagenet", size=160)


def go(args: argparse.Namespace, unlisted: Sequence[str], few: bool) -> None:
    """Take all steps of the way: features and heads, extraction and training, or both; fuse what they give."""
    fits, trains = args.way != "train", args.way != "heads"
    step = Steps(2 * fits + 4 * trains + (0 if args.lists else 1) + 1)
    failed = features(args, step, few) if fits else {}
    failed |= extract(args, step) if trains else {}
    lists = make_lists(args, step, unlisted, failed)
    compared: tuple[object, ...] = ()
    if fits and trains:
        # Tested once, at the end: an epoch chosen by the held-out videos would look better on them than it is.
        compared = ("--recipe", "tsn", "--val-groups", groups_to_hold_out(args, lists), "--eval-every", 10**6)
    heads = fit_heads(args, step, lists) if fits else {}
    networks = train(args, step, lists, *compared) if trains else {}
    chosen = {stream: choose(stream, heads[stream], networks[stream]) for stream in heads} if compared else {}
    fuse(args, step, chosen or heads or networks, *(["--learn"] if fits else []))


def groups_to_hold_out(args: argparse.Namespace, lists: Sequence[object]) -> int:
    """Return the --val-groups by which --way both compares: about a quarter of each class's training groups."""
    folder = None if args.lists == "none" else str(lists[1])
    train = load_split(folder, 1, [video.folder for video in args.found], verbose=False).train
    if all(video.group == video.name for video in train):
        return USUAL_GROUPS // 4  # of videos without groups, it is a share
    fewest = min(len({video.group for video in train if video.label == label}) for label in {v.label for v in train})
    if fewest < 2:
        raise InputError("--way both holds recordings out of training, and a class trains on one: use --way heads")
    return max(1, fewest // 4)


def choose(stream: str, head: Path, network: Path) -> Path:
    """Return the checkpoint with more held-out training videos right; the head, if both have as many. Say why."""
    from saved.predictions import load_predictions  # here: earlier checks don't need it

    found = [load_predictions(path.parent / "val") for path in (head, network)]
    videos = sorted(found[0].logits.keys() & found[1].logits.keys())
    right = [sum(int(one.matrix([video]).argmax()) == one.labels[video] for video in videos) for one in found]
    kept = network if right[1] > right[0] else head
    print(f"\n{stream}: of {plural(len(videos), 'held-out training video')} the head has {right[0]} right, the trained "
          f"network {right[1]}: the {'network' if kept == network else 'head'} is kept")  # fmt: skip
    return kept


def network_flags(args: argparse.Namespace, arch: str | None = None) -> list[str]:
    return as_words({"--arch": args.arch or arch, "--weights": args.weights})


def as_words(flags: Mapping[str, object]) -> list[str]:
    return [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)]


def link_sides(args: argparse.Namespace) -> Path:
    """Return the folder of all videos: VIDEOS, or one with links to VIDEOS and --test."""
    if not args.test:
        return args.videos
    for side, folder in (("train", args.videos), ("test", args.test)):
        place = args.data / "videos" / side
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(folder.resolve(strict=True), target_is_directory=True)
        except OSError as error:
            raise InputError(f"cannot link to {folder} ({error.strerror}); put both folders as train and test into "
                             "one, and give that as VIDEOS") from None  # fmt: skip
    return args.data / "videos"


def features(args: argparse.Namespace, step: Steps, few: bool) -> dict[str, str]:
    """Compute the features of all videos. Return those that can't be used, with the reason."""
    out, flags = args.data / "features", args.flags if args.way == "heads" else []
    step("features", "recogniser/video_features.py", args.all, out, *network_flags(args, "resnet50"),
         *(CLOSELY if few else ()), *flags, passed=PARTLY)  # fmt: skip
    return read_left_out(out / "failed.csv")


def fit_heads(args: argparse.Namespace, step: Steps, lists: Sequence[object]) -> dict[str, Path]:
    """Fit a linear head for each stream; return their checkpoints."""
    spatial, *motion = (args.data / "features" / f"{name}.npz" for name in ("rgb", "greydiff", "flow"))
    output = args.record / "heads"
    step("heads", "heads.py", "--spatial", spatial, "--motion", *motion, *lists, "--output", output)
    return {stream: output / "linear" / stream / "checkpoint.pth.tar" for stream in ("spatial", "motion")}


def extract(args: argparse.Namespace, step: Steps) -> dict[str, str]:
    """Extract frames and flow. Return the videos that can't be used, with the reason."""
    videos, rgb, flow = args.all, args.data / "rgb", args.data / "flow"
    step("RGB frames", "data/extract_rgb.py", videos, rgb, passed=PARTLY)
    step("optical flow", "data/extract_flow.py", videos, flow, *args.flow_flags, passed=PARTLY)
    short = {}
    for video in args.found:
        made = read_marker(flow, video.folder)
        if made and made.images + 1 < SHORTEST:  # one image is the flow between two frames
            short[csv_text(video.name)] = f"{plural(made.images + 1, 'frame')}, and {SHORTEST} are needed"
    return short | read_left_out(rgb / "failed.csv") | read_left_out(flow / "failed.csv")


def train(args: argparse.Namespace, step: Steps, lists: Sequence[object], *flags: object) -> dict[str, Path]:
    """Train both streams; return their checkpoints."""
    own = [*flags, *network_flags(args)]
    missing = ["--allow-missing"] if args.lists and read_left_out(args.data / LEFT_OUT) else []
    common = [*lists, "--resume", "auto", *missing, *own, *args.flags]
    for stream, kind in (("spatial", "rgb"), ("motion", "flow")):
        set_aside(args, args.record / stream, kind, lists, own)
        step(f"{stream} stream", f"{stream}_cnn.py", f"--{kind}-dir", args.data / kind,
             "--output", args.record / stream, *common)  # fmt: skip
    return {stream: args.record / stream / "model_best.pth.tar" for stream in ("spatial", "motion")}


def set_aside(args: argparse.Namespace, output: Path, kind: str, lists: Sequence[object], own: list[object]) -> None:
    """Rename a checkpoint of other videos, sides or flags: --resume auto, which knows names, would go on with it."""
    videos = [(one.folder, read_marker(args.data / kind, one.folder)) for one in args.found]
    files = [path.read_text(errors="replace") for path in sorted(Path(str(lists[1])).rglob("*.txt"))]
    found = [(folder, made.sha256) for folder, made in videos if made], files, own
    made_of = hashlib.sha256(repr(found).encode()).hexdigest()
    file, last = output / "made_of.json", output / "checkpoint.pth.tar"
    if file.exists() and last.exists() and made_of not in file.read_text(errors="replace"):
        last.replace(output / "other.pth.tar")
        print(f"{last} is of other videos, sides or flags: it is now other.pth.tar, and training starts anew")
    write_json(file, made_of)


def read_left_out(path: Path) -> dict[str, str]:
    """Read {video: reason} from left_out.csv or an extraction's failed.csv; empty if there is no file."""
    return read_column(path, "reason") if path.is_file() else {}


def make_lists(
    args: argparse.Namespace, step: Steps, unlisted: Sequence[str], failed: Mapping[str, str]
) -> list[object]:
    """Write left_out.csv, and split lists of the other videos; update earlier lists. Return the flags for them."""
    unnamed = {csv_text(video): "no list can hold its name: rename it" for video in unlisted}
    write_reasons(args.data / LEFT_OUT, (unnamed | dict(failed)).items())
    if args.lists:
        return ["--ucf-list", args.lists]
    lists = args.data / ("lists_test" if args.test else "lists")
    flags = as_words({"--groups": args.groups, "--without": args.data / LEFT_OUT})
    step("split into training and test", "data/make_split.py", args.all, lists, *flags)
    return ["--ucf-list", lists]


def fuse(args: argparse.Namespace, step: Steps, networks: Mapping[str, Path], *flags: str) -> None:
    """Fuse both streams; then print which videos were left out, and the command for a new video."""
    output = args.record / "fusion"
    streams = {f"--{stream}": checkpoint.parent for stream, checkpoint in networks.items()}
    step("fusion and report", "fusion.py", *as_words(streams), "--output", output, *flags)
    if rows := read_left_out(args.data / LEFT_OUT):
        told = [f"{video}: {reason}" for video, reason in list(rows.items())[:20]]
        print(f"\nleft out: {plural(len(rows), 'video')} that could not be used, listed in {args.data / LEFT_OUT}:",
              *map(printable, told), sep="\n  ")  # fmt: skip
    files = {f"--{stream}": checkpoint.as_posix() for stream, checkpoint in networks.items()}
    files |= {"--fusion": (output / "results.json").as_posix()} if "--learn" in flags else {}
    print("\n" + printable(f"Name the action in a new video:  python predict.py VIDEO {shlex.join(as_words(files))}"))


if __name__ == "__main__":
    run_main(main)
