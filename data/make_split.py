"""Split your own videos into training and test, once, and write the split as list files.

  python data/make_split.py VIDEOS OUT                 one split: train.txt, test.txt
  python data/make_split.py VIDEOS OUT --folds 5       five: trainlist01.txt, testlist01.txt, ... for --split 1 to 5

VIDEOS holds a folder for each class, or folders train and test that do: that split is then taken. Each class is split
in the same proportion (stratified). Videos that were cut from one recording, as far as their names tell
(v_Class_gXX_cYY, or HMDB51's names), and copies of one file stay on one side. Train with --ucf-list OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.commandline import ArgumentParser, bounded
from data.videos import find_videos
from dataloader.names import find_groups, first_few, video_key
from utils import InputError, atomic_path, check_writable, plural, run_main

SIDES = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # names of folders


def main() -> int:
    args = parse_arguments()
    if not 0 < args.test_fraction < 1:
        raise InputError(f"--test-fraction {args.test_fraction}: give a number between 0 and 1")
    labels, class_names = find_classes(args.videos)
    for label, name in enumerate(class_names):
        print(f"  {name}: {plural(sum(of == label for of in labels.values()), 'video')}")
    copies = find_copies(args.videos, list(labels))
    groups = group_videos(labels, class_names, copies)
    sides = given_sides(args.videos, list(labels))
    if sides and args.folds:
        raise InputError(f"{args.videos} is split into {' and '.join(sorted(sides))} already; leave --folds out")
    if sides:
        print(f"{args.videos} holds the folders {' and '.join(sorted(sides))}: their split is taken")
        splits = [given_split(list(labels), class_names, labels, sides)]
        names = [("train.txt", "test.txt")]
    elif args.folds:
        splits = list(folds(groups, class_names, args.folds, args.seed))
        names = [(f"trainlist{i:02d}.txt", f"testlist{i:02d}.txt") for i in range(1, len(splits) + 1)]
    else:
        splits = [holdout(groups, class_names, args.test_fraction, args.seed)]
        names = [("train.txt", "test.txt")]
    files = {"classes.txt": [f"{label} {name}" for label, name in enumerate(class_names)]}
    for pair, split in zip(names, splits, strict=True):
        for name, paths in zip(pair, split, strict=True):
            files[name] = [f"{path} {labels[path]}" for path in sorted(paths, key=lambda path: (labels[path], path))]
    write_lists(args.out, files)
    warn_of_copies(copies, labels, splits)
    for pair, split in zip(names, splits, strict=True):
        print(", ".join(f"{name}: {plural(len(part), 'video')}" for name, part in zip(pair, split, strict=True)))
    print(f"{len(class_names)} classes, {len(labels):,} videos; train with --ucf-list {args.out}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write the lists")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--test-fraction", type=float, default=0.3, metavar="F", help="part of each class that tests")
    how.add_argument("--folds", type=bounded(int, 2), metavar="K",
                     help="K splits instead; each video tests in one of them")  # fmt: skip
    parser.add_argument("--seed", type=bounded(int, 0, 2**32 - 1), default=0, help="of the shuffle")
    return parser.parse_args()


def given_sides(root: Path, paths: list[str]) -> dict[str, str]:
    """{folder: "train" or "test"} where the folders under `root` are sides of a split; else empty.

    Raises InputError where one of three is for validation, or there is one side only.
    """
    folders = {path.split("/")[0] for path in paths if "/" in path}
    sides = {folder: SIDES[folder.casefold()] for folder in folders if folder.casefold() in SIDES}
    others = folders - sides.keys()
    if not sides or any(not other.casefold().startswith("val") for other in others):
        return {}
    if others or len(set(sides.values())) < 2:
        found = " and ".join(sorted(folders))
        raise InputError(
            f"{root} holds {found}, which are no classes: give one folder of classes, or one that holds train and test"
        )
    return sides


def given_split(
    paths: list[str], class_names: list[str], labels: dict[str, int], sides: dict[str, str]
) -> tuple[list[str], list[str]]:
    """The split that the folders train and test make: (training paths, test paths), each with every class."""
    parts = {side: [path for path in paths if sides[path.split("/")[0]] == side] for side in ("train", "test")}
    for side, part in parts.items():
        lacking = sorted(set(range(len(class_names))) - {labels[path] for path in part})
        if lacking:
            raise InputError(f"{side} has no video of {first_few(class_names[label] for label in lacking)}; add some")
    return parts["train"], parts["test"]


def find_classes(root: Path) -> tuple[dict[str, int], list[str]]:
    """({path under root, with "/": label}, sorted class names).

    A video's class is the first folder under root, or under root's folders train and test.
    """
    paths = sorted(video.name for video in find_videos(root))
    depth = 1 if given_sides(root, paths) else 0
    loose = [path for path in paths if path.count("/") <= depth]
    if loose:
        raise InputError(f"{root}: in no class folder: {first_few(loose)}; give each class a folder")
    class_names = sorted({path.split("/")[depth] for path in paths})
    empty = [] if depth else empty_folders(root, class_names)
    if len(class_names) < 2:
        beside = f" ({first_few(empty)} beside it holds no video)" if empty else ""
        raise InputError(
            f"{root} has one class folder, {class_names[0]}{beside}; give the folder above the class folders"
        )
    if empty:
        raise InputError(f"{root}: the class folder {first_few(empty)} holds no video; fill it or remove it")
    labels = {path: class_names.index(path.split("/")[depth]) for path in paths}
    keys = Counter(video_key(path, class_names[label]).casefold() for path, label in labels.items())
    repeated = [path for path, label in labels.items() if keys[video_key(path, class_names[label]).casefold()] > 1]
    if repeated:
        raise InputError(f"{root}: {first_few(repeated, 2)} have one name in one class; rename one")
    return labels, class_names


def empty_folders(root: Path, class_names: list[str]) -> list[str]:
    """Folders beside the classes' that hold no video."""
    folders = (entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(set(folders) - set(class_names))


def find_copies(root: Path, paths: list[str]) -> list[list[str]]:
    """Paths of files with the same bytes, each group sorted; empty files aside. Only files of one size are read."""
    by_size, copies = defaultdict(list), []
    for path in paths:
        by_size[(root / path).stat().st_size].append(path)
    for size, alike in by_size.items():
        if size and len(alike) > 1:
            by_content = defaultdict(list)
            for path in alike:
                with open(root / path, "rb") as file:
                    by_content[hashlib.sha256(file.read()).digest()].append(path)
            copies += [sorted(same) for same in by_content.values() if len(same) > 1]
    return copies


def warn_of_copies(copies: list[list[str]], labels: dict[str, int], splits: list[tuple[list[str], list[str]]]) -> None:
    """Name files that are the same in two classes, or on both sides of a split."""
    for same in copies:
        if len({labels[path] for path in same}) > 1:
            print(f"warning: one file in several classes: {first_few(same)}", file=sys.stderr)
        elif any(set(same) & set(train) and set(same) & set(test) for train, test in splits):
            print(f"warning: one file in training and test: {first_few(same)}", file=sys.stderr)


def group_videos(
    labels: dict[str, int], class_names: list[str], copies: Sequence[Sequence[str]] = ()
) -> dict[tuple[int, str], list[str]]:
    """{(label, group): its paths}: what has to stay together. Copies of a class are of the first one's group."""
    found = find_groups(list(labels), [class_names[label] for label in labels.values()])
    group = {path: of or path for path, of in zip(labels, found, strict=True)}
    for first, *others in copies:
        for other in others:
            joined, kept = (labels[other], group[other]), group[first]
            if labels[other] == labels[first]:  # with everything of the copy's own recording
                group |= {path: kept for path in group if (labels[path], group[path]) == joined}
    groups = defaultdict(list)
    for path, label in labels.items():
        groups[label, group[path]].append(path)
    return dict(groups)


def holdout(groups: dict, class_names: list[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """One split, class by class, with at least one group of each on both sides: (training paths, test paths)."""
    require(groups, class_names, 2)
    from sklearn.model_selection import train_test_split  # takes a second: not before the input is known good

    rng = np.random.RandomState(seed)
    train, test = [], []
    for label in range(len(class_names)):
        of_class = [key for key in groups if key[0] == label]
        number = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        kept, held_out = train_test_split(of_class, test_size=number, random_state=rng)
        train += kept
        test += held_out
    return paths_of(groups, train), paths_of(groups, test)


def folds(groups: dict, class_names: list[str], number: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """`number` stratified splits: each group tests in exactly one."""
    keys = list(groups)
    require(groups, class_names, number)
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(number, shuffle=True, random_state=seed)
    for train, test in splitter.split(keys, [label for label, _ in keys]):
        yield paths_of(groups, [keys[i] for i in train]), paths_of(groups, [keys[i] for i in test])


def paths_of(groups: dict, keys: list) -> list[str]:
    """All paths of some groups."""
    return [path for key in keys for path in groups[key]]


def require(groups: dict, class_names: list[str], number: int) -> None:
    """Each class needs at least `number` groups."""
    have = Counter(label for label, _ in groups)
    for label, count in sorted(have.items()):
        videos = [path for (of, _), paths in groups.items() if of == label for path in paths]
        if count < number <= len(videos):
            names = first_few(group for of, group in groups if of == label)
            raise InputError(
                f"{class_names[label]} has {len(videos)} videos, but they are of {plural(count, 'recording')} "
                f"({names}), which stay together, and {number} are needed; add others, or leave the class out"
            )
    short = [class_names[label] for label, count in sorted(have.items()) if count < number]
    if short:
        raise InputError(f"fewer than {number} videos in {first_few(short)}; add some, or leave the class out")


def write_lists(out: Path, files: dict[str, list[str]]) -> None:
    """Write all files, or none where one of them, or another list, is there already."""
    present = sorted(file.name for file in out.glob("*.txt")) if out.is_dir() else []
    if present:
        raise InputError(f"{out} holds lists already ({first_few(present)}); delete them, or write to another folder")
    check_writable(out)
    for name, lines in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
