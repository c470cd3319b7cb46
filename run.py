"""From a folder of videos to the table, the report and the line that names the action in a new one, in one go.

  python run.py VIDEOS                    VIDEOS holds a folder for each class
  python run.py VIDEOS --way train        trains both networks, whatever the number of videos

Up to 2,000 videos take the fast way: features from ImageNet networks, a linear head for each stream, and weights of
the two learnt on held-out training videos: minutes without a GPU. More are trained on, for which a GPU is needed. What
is done is not done again: kill it, start it again.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.commandline import ArgumentParser
from data.steps import Step, run_steps
from data.videos import find_videos, import_cv2
from dataloader.names import UCF101_CLASSES, ucf_parts
from utils import FEW, plural, run_main

# sizes and samples that two cores pass through in minutes (docs/small_data.md)
RGB = ["--size", "160", "--test-samples", "10"]
MOTION = ["--size", "128", "--test-samples", "16"]


def main() -> int:
    args = parse_arguments()
    import_cv2()
    videos = [video.name for video in find_videos(args.videos, skip=args.record)]
    way = args.way or ("heads" if len(videos) <= FEW else "train")
    print(f"{plural(len(videos), 'video')} in {args.videos}: {WAYS[way]}", flush=True)
    if args.data is None:
        args.data = Path("record") / args.videos.resolve().name / "data" if way == "heads" else Path("data")
    if args.record is None:
        args.record = Path("record") / args.videos.resolve().name if way == "heads" else Path("record")
    code = run_steps(heads_way(args) if way == "heads" else train_way(args, videos))
    if code == 0:
        streams = args.record / "heads/linear" if way == "heads" else args.record
        name = "checkpoint.pth.tar" if way == "heads" else "model_best.pth.tar"
        flags = [f"--{stream}={(streams / stream / name).as_posix()}" for stream in ("spatial", "motion")]
        print(f"\nName the action in a new video:  python predict.py VIDEO {shlex.join(flags)}")
    return code


WAYS = {
    "heads": "the fast way, linear heads on features of ImageNet networks (--way train trains the networks)",
    "train": "training both networks (--way heads is the fast way)",
}


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("--way", choices=tuple(WAYS), help=f"(default: heads up to {FEW:,} videos, train above)")
    parser.add_argument("--lists", type=Path, metavar="DIR",
                        help="split lists (default: those that are there, else made by data/make_split.py)")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="for frames, flow, lists, features (default: record/<name of VIDEOS>/data; train: data)")
    parser.add_argument("--record", type=Path, metavar="DIR",
                        help="for what is found out (default: record/<name of VIDEOS>; train: record)")
    parser.add_argument("--flags", default="", metavar='"..."', help="more flags for both streams, such as --flags "
                        "'--weights resnet50.pth'")  # fmt: skip
    parser.add_argument("--flow-flags", default="", metavar='"..."', help="more flags for data/extract_flow.py")
    return parser.parse_args()


# --- the two ways --------------------------------------------------------------------------------------


def heads_way(args: argparse.Namespace) -> list[Step]:
    """Split, extract, features, heads, fusion. Motion is seen as differences of grey frames and as optical flow."""
    record, data = args.record, args.data
    lists: Path = args.lists or data / "lists"
    rgb, flow = str(data / "rgb"), str(data / "flow")
    spatial, grey, motion = (str(data / f"{name}.npz") for name in ("rgb", "greydiff", "flow"))
    common = ["--ucf-list", str(lists), "--arch", "resnet50", "--test-views", "2"]
    last = shlex.split(args.flags)
    return [
        *split_step(args.videos, lists),
        ("RGB frames", ["data/extract_rgb.py", str(args.videos), rgb, "--sampling-rate", "1",
                        "--short-side", "160"]),
        ("optical flow", ["data/extract_flow.py", str(args.videos), flow, "--method", "dis",
                          *shlex.split(args.flow_flags)]),
        ("features of RGB", ["spatial_cnn.py", "--rgb-dir", rgb, "--features", spatial, *common, *RGB, *last]),
        ("features of grey differences", ["motion_cnn.py", "--input", "greydiff", "--rgb-dir", rgb, "--pooling",
                                          "layer3.mean", "layer4.max", "--features", grey, *common, *MOTION,
                                          *last]),
        ("features of flow", ["motion_cnn.py", "--flow-dir", flow, "--flow-picture", "12", "--features", motion,
                              *common, *MOTION, *last]),
        ("heads", ["heads.py", "--spatial", spatial, "--motion", grey, motion, "--output", str(record / "heads")]),
        fusion_step(record / "heads/linear", record / "fusion", "--learn"),
    ]  # fmt: skip


def train_way(args: argparse.Namespace, videos: Sequence[str]) -> list[Step]:
    """Extract, train both streams, fuse. UCF101's videos are split by its own lists, or by its group rule."""
    data, record = args.data, args.record
    official = Path("data/ucfTrainTestlist")
    if args.lists:
        lists: Path | str = args.lists
        steps: list[Step] = []
    elif all((parts := ucf_parts(name)) and parts[0].casefold() in UCF101 for name in videos):
        lists, steps = official if official.is_dir() else "none", []
    else:
        lists = data / "lists"
        steps = split_step(args.videos, data / "lists")
    common = ["--ucf-list", str(lists), "--resume", "auto", *shlex.split(args.flags)]
    steps += [
        ("RGB frames", ["data/extract_rgb.py", str(args.videos), str(data / "rgb")]),
        ("optical flow", ["data/extract_flow.py", str(args.videos), str(data / "flow"),
                          *shlex.split(args.flow_flags)]),
        ("spatial stream", ["spatial_cnn.py", "--rgb-dir", str(data / "rgb"), "--output", str(record / "spatial"),
                            *common]),
        ("motion stream", ["motion_cnn.py", "--flow-dir", str(data / "flow"), "--output", str(record / "motion"),
                           *common]),
        fusion_step(record, record / "fusion"),
    ]  # fmt: skip
    return steps


UCF101 = {name.casefold() for name in UCF101_CLASSES}


def split_step(videos: Path, lists: Path) -> list[Step]:
    """Make lists where there are none; a split stays what it is once it is made."""
    if lists.is_dir() and any(lists.glob("*.txt")):
        return []
    return [("split into training and test", ["data/make_split.py", str(videos), str(lists)])]


def fusion_step(streams: Path, output: Path, *flags: str) -> Step:
    spatial, motion = str(streams / "spatial"), str(streams / "motion")
    return "fusion and report", ["fusion.py", "--spatial", spatial, "--motion", motion, "--output", str(output),
                                   *flags]  # fmt: skip


if __name__ == "__main__":
    run_main(main)
