"""Check a prepared dataset: is each listed video present, complete, long enough, and does it show anything?

  python data/check.py --rgb-dir data/rgb --flow-dir data/flow

The output lists what is present and what is missing, then what to do, then the problems. Every image is
decoded as in training. With --quick only names are checked: that finds missing files, but no broken images.
The exit code is 1 if anything is wrong.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.commandline import ArgumentParser, bounded
from common.progress import progress_bar
from data.jobs import run_jobs
from dataloader.extracted import extraction_settings
from dataloader.frames import Frames, Index, Kind, decode_gray, decode_rgb, find, locate_video
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
# Images without content: their grey level (None: the first image's), and how much coding may add to it.
EMPTY: dict[str, dict[str, tuple[int | None, int]]] = {
    "rgb": {"all images are black": (0, 24), "all images are the same": (None, 8)},
    "flow": {"no flow at all, every image is 128": (128, 1)},
}

Job = tuple[Video, Path, list[Frames]]  # the video, the root, and the sequences to decode: one, or x and y


class Problem(NamedTuple):
    """A problem with one video. `kind` is a key of ADVICE; `text` includes the video's name."""

    video: Video
    kind: str
    text: str


def main() -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rgb-dir", type=Path, metavar="DIR", help="RGB frames")
    parser.add_argument("--flow-dir", type=Path, metavar="DIR",
                        help="optical flow (given neither: data/rgb and data/flow, as far as they are there)")
    parser.add_argument("--ucf-list", metavar="DIR", help="folder of split lists, or 'none': by UCF101's group rule "
                        "(default: data/ucfTrainTestlist if it is there, else none)",
                        default="data/ucfTrainTestlist" if Path("data/ucfTrainTestlist").is_dir() else "none")
    parser.add_argument("--split", default="1", metavar="N", help="number of the split")
    parser.add_argument("--quick", action="store_true", help="don't decode the images")
    parser.add_argument("--workers", type=bounded(int, 1), default=cpu_count(), help="processes that decode")
    parser.add_argument("--all", action="store_true", help=f"show all problems, not just {SHOWN} of each kind")
    args = parser.parse_args()
    folders: dict[Kind, Path] = {"rgb": args.rgb_dir, "flow": args.flow_dir}
    if not any(folders.values()):
        folders = {kind: folder for kind in folders if (folder := Path("data", kind)).is_dir()}
    if not folders:
        raise InputError("nothing to check: no data/rgb or data/flow is here; give --rgb-dir or --flow-dir or both")
    indexes = {kind: index_frames(folder, kind) for kind, folder in folders.items() if folder}
    names = {name for index in indexes.values() for name in index.names}
    split = load_split(None if args.ucf_list == "none" else args.ucf_list, args.split, names)
    problems, jobs = check_names(indexes, split.train + split.test)
    if not args.quick:
        problems += check_images(jobs, args.workers)
    lines, complete = summary(split, indexes, problems)
    wrong = bool(problems) or not complete
    lines.append("something is wrong" if wrong else "all is well")
    by_kind = {kind: found for kind in ADVICE if (found := [one for one in problems if one.kind == kind])}
    for number, (kind, found) in enumerate(by_kind.items(), 1):
        videos = Counter(split.class_names[video.label] for video in {one.video: None for one in found})
        classes = first_few([f"{name} {count}" for name, count in videos.most_common()])
        lines.append(f"{number}. {kind}, {plural(videos.total(), 'video')} ({classes}): {ADVICE[kind]}")
    for kind, found in by_kind.items():
        shown = len(found) if args.all else SHOWN
        lines += [f"{kind}: {problem.text}" for problem in found[:shown]]
        if found[shown:]:
            lines.append(f"{kind}: ... and {len(found) - shown} more (--all shows them)")
    print("\n".join(map(printable, lines)))
    return int(wrong)


def check_names(indexes: dict[Kind, Index], videos: list[Video]) -> tuple[list[Problem], list[Job]]:
    """Check the names of folders and images. Returns the problems and the jobs left to decode."""
    problems: list[Problem] = []
    jobs: list[Job] = []
    rate = extraction_settings(indexes["rgb"].root).get("sampling_rate", 0) if "rgb" in indexes else 0
    for video in videos:
        counts: dict[str, int] = {}
        for kind, index in indexes.items():
            name = locate_video(index, video) or video.name
            try:
                frames = find(index, name)
            except InputError as error:
                noun = "RGB frames" if kind == "rgb" else "flow pairs"
                missing = Problem(video, "missing", f"{video.listed}: no {noun} under {index.root}")
                problems.append(Problem(video, "sequence", str(error)) if name in index.problems else missing)
                continue
            sequences = list(frames) if isinstance(frames, tuple) else [frames]
            counts[kind] = sequences[0].count
            jobs.append((video, index.root, sequences))
        images, pairs = counts.get("rgb"), counts.get("flow")
        if pairs and pairs < PAIRS:
            text = f"{video.listed}: {plural(pairs, 'flow pair')}, a clip needs {PAIRS}"
            problems.append(Problem(video, "short", text))
        # For every `rate`-th of N frames there are N - 1 flow pairs.
        if rate and images and pairs and images != (expected := -(-(pairs + 1) // rate)):
            text = f"{plural(images, 'RGB frame')} for {plural(pairs, 'flow pair')}, not {expected}"
            problems.append(Problem(video, "length", f"{video.listed}: {text}; extract it again"))
    return problems, jobs


def check_images(jobs: list[Job], workers: int) -> list[Problem]:
    """Decode every image of every job in `workers` processes. Returns the problems."""
    problems: dict[int, list[Problem]] = {}
    counts = [sum(sequence.count for sequence in sequences) for _, _, sequences in jobs]
    with progress_bar(sum(counts), "decoding", " images") as bar:
        for i, found in run_jobs([decode_video] * workers, jobs):
            if isinstance(found, str):  # the process has died
                video, _, sequences = jobs[i]
                found = [Problem(video, "images", f"decoding {sequences[0].folder}: {found}")]
            problems[i] = found
            bar.update(counts[i])
    return [problem for _, found in sorted(problems.items()) for problem in found]


def decode_video(job: Job) -> list[Problem]:
    """Decode one video's images. Returns its problems: broken images, mixed sizes, no content."""
    video, root, sequences = job
    decode = decode_gray if sequences[1:] else decode_rgb
    looks = EMPTY["flow" if sequences[1:] else "rgb"]
    broken: list[str] = []
    sizes: dict[tuple[int, ...], list[str]] = defaultdict(list)  # (height, width) -> paths of the images
    for sequence in sequences:
        first = None
        for i in range(sequence.count):
            try:
                path, data = next(sequence.read(root, [i]))
                image = decode(data, path)
            except InputError as error:
                broken.append(str(error))
                continue
            sizes[image.shape[:2]].append(path)
            first = image if first is None else first
            looks = {look: (level, most) for look, (level, most) in looks.items()
                     if _is_like(image, first if level is None else np.array(level), most)}  # fmt: skip
    texts = broken if len(broken) < 2 else [f"{len(broken)} broken images, the first: {broken[0]}"]
    usual, *others = sorted(sizes, key=lambda size: -len(sizes[size])) or [()]
    if others:
        (height, width), number = others[0], sum(len(sizes[size]) for size in others)
        odd = f"{sizes[others[0]][0]} is {width}x{height} ({number} in all)"
        texts.append(f"{odd}, the others {usual[1]}x{usual[0]}")
    if len(sizes[usual]) < 2:  # a single image is like itself
        looks = {look: known for look, known in looks.items() if known[0] is not None}
    found = [Problem(video, "images", "; ".join(texts))] if texts else []
    if looks and sizes[usual]:
        found.append(Problem(video, "content", f"{sequences[0].folder}: {next(iter(looks))}"))
    return found


def _is_like(image: np.ndarray, other: np.ndarray, most: int) -> bool:
    """Whether no pixel of an image differs by more than `most` from another image, or from one grey level."""
    return other.shape in ((), image.shape) and abs(image.astype(int) - other).max() <= most


def summary(split: Split, indexes: dict[Kind, Index], problems: Iterable[Problem]) -> tuple[list[str], bool]:
    """Return lines on how many videos and images exist, and whether the split is complete.

    It is incomplete if the official one has another number of videos. Own datasets are always complete.
    """
    absent = {problem.video for problem in problems if problem.kind in ("missing", "sequence")}
    train, test = (f"{sum(v not in absent for v in part)} of {len(part)}" for part in (split.train, split.test))
    lines = [f"split {split.number}: {train} training and {test} test videos are there"]
    official = split.official_counts
    complete = official in (None, (len(split.train), len(split.test)))
    if official:
        whole = "complete" if complete and not absent else "not complete"
        lines = [f"{split.dataset.upper()} {lines[0]} (officially {official[0]} and {official[1]}): {whole}"]
    for kind, index in indexes.items():
        listed = {locate_video(index, video) for video in split.train + split.test}
        channel, noun = ("rgb", "frame") if kind == "rgb" else ("x", "flow pair")
        videos = [index.videos.get(name or "", {}) for name in listed]
        line = f"{index.root}: {plural(sum(found[channel].count for found in videos if channel in found), noun)}"
        if others := sorted(set(index.names) - listed):
            line += f"; {plural(len(others), 'video')} in no list of this split ({first_few(others)})"
        lines.append(line)
    return lines, complete


if __name__ == "__main__":
    run_main(main)
