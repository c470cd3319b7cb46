"""Split your own videos into training and test, once, and write the split as list files.

  python data/make_split.py VIDEOS OUT                 one split: train.txt, test.txt
  python data/make_split.py VIDEOS OUT --folds 5       five: trainlist01.txt, testlist01.txt, ... for --split 1 to 5

VIDEOS holds a folder for each class. Each class is split in the same proportion (stratified). Videos that were
cut from one recording, as far as their names tell (v_Class_gXX_cYY, or HMDB51's names), stay on one side.
Train with --ucf-list OUT.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.videos import find_videos
from dataloader.names import first_few, group_of, video_key
from utils import ArgumentParser, InputError, atomic_path, bounded, check_writable, plural, run_main


def main() -> int:
    args = parse_arguments()
    if not 0 < args.test_fraction < 1:
        raise InputError(f"--test-fraction {args.test_fraction}: give a number between 0 and 1")
    labels, class_names = find_classes(args.videos)
    groups = group_videos(labels, class_names)
    if args.folds:
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


def find_classes(root: Path) -> tuple[dict[str, int], list[str]]:
    """({path under root, with "/": label}, sorted class names): a video's class is the first folder under root."""
    paths = sorted(video.name for video in find_videos(root))
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise InputError(f"{root}: in no class folder: {first_few(loose)}; give each class a folder")
    class_names = sorted({path.split("/")[0] for path in paths})
    if len(class_names) < 2:
        raise InputError(f"{root} has one class folder, {class_names[0]}; give the folder above the class folders")
    labels = {path: class_names.index(path.split("/")[0]) for path in paths}
    keys = Counter(video_key(path, class_names[label]).casefold() for path, label in labels.items())
    repeated = [path for path, label in labels.items() if keys[video_key(path, class_names[label]).casefold()] > 1]
    if repeated:
        raise InputError(f"{root}: {first_few(repeated, 2)} have one name in one class; rename one")
    return labels, class_names


def group_videos(labels: dict[str, int], class_names: list[str]) -> dict[tuple[int, str], list[str]]:
    """{(label, group): its paths}: what has to stay together."""
    groups = defaultdict(list)
    for path, label in labels.items():
        groups[label, group_of(video_key(path, class_names[label]))].append(path)
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
