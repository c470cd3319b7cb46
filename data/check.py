"""Check a prepared dataset: is each listed video present, complete, long enough, and does it show anything?

  python data/check.py --rgb-dir data/rgb --flow-dir data/flow

The output lists what is present and what is missing, then what to do, then the problems. Every image is
decoded as in training. With --quick only names are checked: that finds missing files, but no broken images.
The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.commandline import ArgumentParser, bounded
from common.progress import progress_bar
from data.jobs import run_jobs
from dataloader.extracted import extraction_settings
from dataloader.frames import Frames, Index, decode_gray, decode_rgb, find, locate_video
from dataloader.layouts import index_frames
from dataloader.lists import Split, Video, load_split
from dataloader.names import first_few
from utils import InputError, cpu_count, plural, printable, run_main

PAIRS = 10  # flow pairs per clip
# The kinds of problems and what to do about each, in the order in which to do it.
ADVICE = {
    "missing": "extract what is missing: the same data/extract_*.py command goes on from where it stopped",
    "sequence": "remove these folders, and extract them again",
    "length": "extract these videos again, RGB and flow from the same files",
    "images": "remove the folders of broken images, and extract them again",
    "content": "look at these videos: what they show is nothing to learn from",
    "short": "leave these videos out of the lists, or train with fewer frames per clip (--stack-length)",
}
SHOWN = 10
# Grey levels that coding may add to equal images, to black images, and to zero flow (128).
SAME, BLACK, STILL = 8, 24, 1

Job = tuple[Video, Path, list[Frames]]  # the video, the root, and the sequences to decode: one, or x and y


class Problem(NamedTuple):
    """A problem with one video. `kind` is a key of ADVICE; `text` includes the video's name."""

    video: Video
    kind: str
    text: str


def main() -> int:
    args = parse_arguments()
    indexes = open_indexes(args)
    split = open_split(args, indexes)
    problems, jobs = check_names(indexes, split.train + split.test)
    if not args.quick:
        problems += check_images(jobs, args.workers)
    for line in summary(split, indexes, problems):
        print(printable(line))
    wrong = bool(problems) or not is_complete(split)
    print("something is wrong" if wrong else "all is well")
    by_kind = {kind: found for kind in ADVICE if (found := [one for one in problems if one.kind == kind])}
    for number, (kind, found) in enumerate(by_kind.items(), 1):
        videos = Counter(split.class_names[video.label] for video in {problem.video for problem in found})
        classes = first_few([f"{name} {count}" for name, count in videos.most_common()])
        print(printable(f"{number}. {kind}, {plural(videos.total(), 'video')} ({classes}): {ADVICE[kind]}"))
    for kind, found in by_kind.items():
        shown = found if args.all else found[:SHOWN]
        for problem in shown:
            print(printable(f"{kind}: {problem.text}"))
        if more := len(found) - len(shown):
            print(f"{kind}: ... and {more} more (--all shows them)")
    return int(wrong)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rgb-dir", type=Path, metavar="DIR", help="RGB frames")
    parser.add_argument("--flow-dir", type=Path, metavar="DIR",
                        help="optical flow (given neither: data/rgb and data/flow, as far as they are there)")
    parser.add_argument("--ucf-list", metavar="DIR", help="folder of split lists, or 'none': by UCF101's group rule "
                        "(default: data/ucfTrainTestlist if it is there, else none)")
    parser.add_argument("--split", default="1", metavar="N", help="number of the split")
    parser.add_argument("--quick", action="store_true", help="don't decode the images")
    parser.add_argument("--workers", type=bounded(int, 1), default=cpu_count(), help="processes that decode")
    parser.add_argument("--all", action="store_true", help=f"show all problems, not just {SHOWN} of each kind")
    return parser.parse_args()


def open_indexes(args: argparse.Namespace) -> dict[str, Index]:
    """Open the requested indexes, "rgb" and "flow"; by default those of the default folders that exist."""
    given = {"rgb": args.rgb_dir, "flow": args.flow_dir}
    if not any(given.values()):
        given = {kind: folder for kind in given if (folder := Path("data", kind)).is_dir()}
    if not given:
        raise InputError("nothing to check: no data/rgb or data/flow is here; give --rgb-dir or --flow-dir or both")
    return {kind: index_frames(folder, kind) for kind, folder in given.items() if folder}  # type: ignore[arg-type]


def open_split(args: argparse.Namespace, indexes: dict[str, Index]) -> Split:
    official = "data/ucfTrainTestlist"
    lists = args.ucf_list or (official if Path(official).is_dir() else "none")
    names = {name for index in indexes.values() for name in index.names}
    return load_split(None if lists == "none" else lists, args.split, names)


def check_names(indexes: dict[str, Index], videos: list[Video]) -> tuple[list[Problem], list[Job]]:
    """Check the names of folders and images. Returns the problems and the jobs left to decode."""
    problems: list[Problem] = []
    jobs: list[Job] = []
    counts: dict[tuple[str, Video], int] = {}
    for video, (kind, index) in itertools.product(videos, indexes.items()):
        name = locate_video(index, video) or video.name
        try:
            frames = find(index, name)
        except InputError as error:
            if name in index.problems:
                problems.append(Problem(video, "sequence", str(error)))
            else:
                noun = "RGB frames" if kind == "rgb" else "flow pairs"
                problems.append(Problem(video, "missing", f"{video.listed}: no {noun} under {index.root}"))
            continue
        sequences = list(frames) if isinstance(frames, tuple) else [frames]
        counts[kind, video] = count = sequences[0].count
        jobs.append((video, index.root, sequences))
        if kind == "flow" and count < PAIRS:
            text = f"{video.listed}: {plural(count, 'flow pair')}, a clip needs {PAIRS}"
            problems.append(Problem(video, "short", text))
    rate = extraction_settings(indexes["rgb"].root).get("sampling_rate", 0) if "rgb" in indexes else 0
    for video in videos if rate else ():
        images, pairs = counts.get(("rgb", video)), counts.get(("flow", video))
        # For every `rate`-th of N frames there are N - 1 flow pairs.
        if images and pairs and images != (expected := -(-(pairs + 1) // rate)):
            text = f"{plural(images, 'RGB frame')} for {plural(pairs, 'flow pair')}, not {expected}"
            problems.append(Problem(video, "length", f"{video.listed}: {text}; extract it again"))
    return problems, jobs


def check_images(jobs: list[Job], workers: int) -> list[Problem]:
    """Decode every image of every job in `workers` processes. Returns the problems."""
    problems: list[list[Problem]] = [[] for _ in jobs]
    counts = [sum(sequence.count for sequence in sequences) for _, _, sequences in jobs]
    with progress_bar(sum(counts), "decoding", " images") as bar:
        for i, found in run_jobs([decode_video] * workers, [(root, frames) for _, root, frames in jobs]):
            video, _, sequences = jobs[i]
            if isinstance(found, str):  # the process has died
                found = [("images", f"decoding {sequences[0].folder}: {found}")]
            problems[i] = [Problem(video, kind, text) for kind, text in found]
            bar.update(counts[i])
    return list(itertools.chain.from_iterable(problems))


def decode_video(task: tuple[Path, list[Frames]]) -> list[tuple[str, str]]:
    """Decode one video's images. Returns (kind of problem, text): broken images, mixed sizes, no content."""
    root, sequences = task
    is_rgb, folder = len(sequences) == 1, sequences[0].folder
    broken: list[str] = []
    sizes: dict[tuple[int, ...], list[str]] = {}  # (height, width) -> paths of the images
    black = equal = is_rgb
    still = not is_rgb
    for sequence in sequences:
        first = None
        for i in range(sequence.count):
            try:
                path, data = next(sequence.read(root, [i]))
                image = (decode_rgb if is_rgb else decode_gray)(data, path)
            except InputError as error:
                broken.append(str(error))
                continue
            sizes.setdefault(image.shape[:2], []).append(path)
            first = image if first is None else first
            black = black and int(image.max()) <= BLACK
            still = still and _differ(image, np.full_like(image, 128)) <= STILL
            equal = equal and image.shape == first.shape and _differ(image, first) <= SAME
    problems = [(f"{len(broken)} broken images, the first: " if broken[1:] else "") + broken[0]] if broken else []
    (usual, same), *others = sorted(sizes.items(), key=lambda size: -len(size[1])) or [((), [])]
    if others:
        odd, paths = others[0]
        number = sum(len(some) for _, some in others)
        problems.append(f"{paths[0]} is {odd[1]}x{odd[0]} ({number} in all), the others {usual[1]}x{usual[0]}")
    found = [("images", "; ".join(problems))] if problems else []
    if same and still:
        found.append(("content", f"{folder}: no flow at all, every image is 128"))
    elif (black and same) or (equal and len(same) > 1):
        found.append(("content", f"{folder}: all images are {'black' if black else 'the same'}"))
    return found


def _differ(one: np.ndarray, two: np.ndarray) -> int:
    """The largest absolute difference between two uint8 images."""
    return int(np.abs(one.astype(int) - two).max())


def is_complete(split: Split) -> bool:
    """Whether the split has as many videos as the official one; always True for own datasets."""
    return split.official_counts in (None, (len(split.train), len(split.test)))


def summary(split: Split, indexes: dict[str, Index], problems: Iterable[Problem]) -> list[str]:
    """Report how many videos and images exist, whether an official split is complete, and unlisted videos."""
    absent = {problem.video for problem in problems if problem.kind in ("missing", "sequence")}
    train, test = (f"{sum(v not in absent for v in part)} of {len(part)}" for part in (split.train, split.test))
    lines = [f"split {split.number}: {train} training and {test} test videos are there"]
    if official := split.official_counts:
        whole = "complete" if is_complete(split) and not absent else "not complete"
        lines = [f"{split.dataset.upper()} {lines[0]} (officially {official[0]} and {official[1]}): {whole}"]
    for kind, index in indexes.items():
        listed = {locate_video(index, video) for video in split.train + split.test}
        channel, noun = ("rgb", "frame") if kind == "rgb" else ("x", "flow pair")
        videos = [index.videos.get(name or "", {}) for name in listed]
        line = f"{index.root}: {plural(sum(found[channel].count for found in videos if channel in found), noun)}"
        if others := sorted(set(index.names) - listed):
            line += f"; {plural(len(others), 'video')} in no list of this split ({first_few(others)})"
        lines.append(line)
    return lines


if __name__ == "__main__":
    run_main(main)
