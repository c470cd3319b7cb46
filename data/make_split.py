"""Split your own videos into training and test, and write the split as list files. Train with --ucf-list OUT.

  python data/make_split.py VIDEOS OUT

VIDEOS contains a folder per class. Each class is split in the same proportion. If VIDEOS contains folders train
and test (or val, validation) with class folders, their split is used. Videos of one recording or person,
and copies of one file, stay on one side; groups.csv beside the lists names these groups. A second
run updates the script's own lists: videos keep their side, new ones are added, deleted ones are removed. Other
flags than before split all of them anew.
"""

import argparse
import contextlib
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, Field

from common.commandline import ArgumentParser, bounded
from common.formats import read_json
from data.videos import find_videos, stamp
from dataloader.list_files import is_listable, read_column, read_groups
from dataloader.names import SIDES, find_groups, first_few, without_suffix
from utils import InputError, atomic_path, csv_text, file_digest, plural, printable, run_main, write_json

RECORD = "make_split.json"  # beside the lists: the flags with which they were made
LISTS = ("test.txt", "train.txt")  # a video's part, 0 or 1, is its place here


class Settings(BaseModel):
    """The flags with which lists were made, as stored in the record."""

    test_fraction: float = Field(0.3, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**32)
    groups: str | None = None


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write the lists")
    parser.add_argument("--test-fraction", type=bounded(float, 0.01, 0.99), metavar="F",
                        help="test share of each class (default: 0.3)")  # fmt: skip
    parser.add_argument("--groups", metavar="REGEX|CSV|none",
                        help="how to find a video's recording; one recording stays on one side. A regular expression: "
                        "its groups (...), or else its match, in the path under VIDEOS, such as 'rec\\d+'. A CSV file "
                        "with the columns video (path under VIDEOS) and group. none: each video by itself "
                        "(default: a part of the names, if most classes show it)")  # fmt: skip
    parser.add_argument("--without", type=Path, metavar="CSV",
                        help="file of videos to leave out, such as an extraction's failed.csv (video, reason)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**32 - 1), help="for the shuffle (default: 0)")
    args = parser.parse_args()
    made_with, anew = settings(args)
    if anew:
        print(f"{args.out} is split anew: its lists were made with other flags")
    without = read_column(args.without, "reason") if args.without else ()
    classes, sides = find_classes(args.videos, args.out, without)
    for name, count in sorted(Counter(classes.values()).items()):
        print(f"  {printable(name)}: {plural(count, 'video')}")
    copies = find_copies(args.videos, classes)
    before = {} if anew else read_before(args.out)
    groups = group_videos(classes, made_with.groups, copies)
    if sides:
        print(f"{args.videos} is split into training and test by folders: their split is taken")
    parts = sides or assign(classes, groups, made_with.test_fraction, made_with.seed, before)
    say_split(parts, classes, groups, None if sides else made_with.test_fraction)
    if several := [", ".join(same) for same in copies if len({classes[path] for path in same}) > 1]:
        print(f"warning: {plural(len(several), 'file')} in several classes: {first_few(several)}", file=sys.stderr)
    if before:
        new, gone = sorted(classes.keys() - before.keys()), sorted(before.keys() - classes.keys())
        for words, changed in ("new", new), ("gone", gone):
            if changed:
                print(f"{words} since the lists were made, {plural(len(changed), 'video')}: {first_few(changed)}")
        print("all others stay on their side" if new or gone else "the lists are as they were")
    if anew:  # a kill from here on leaves no lists of other flags than the record's
        (args.out / LISTS[0]).unlink(missing_ok=True)
    write_json(args.out / RECORD, made_with.model_dump())
    write_lists(args.out, classes, groups, parts)
    count = len(set(classes.values()))
    print(f"{plural(count, 'class')}, {plural(len(classes), 'video')}; train with --ucf-list {args.out}")


def settings(args: argparse.Namespace) -> tuple[Settings, bool]:
    """Return the flags, completed by those of existing lists, and whether they ask to split these anew."""
    given = {name: getattr(args, name) for name in Settings.model_fields if getattr(args, name) is not None}
    if args.groups and Path(args.groups).is_file():
        given["groups"] = str(Path(args.groups).resolve())  # the same file from any working directory
    anew = f"delete {args.out} to split anew"
    if (args.out / RECORD).is_file():
        made_with = read_json(args.out / RECORD, Settings, anew)
        wished = made_with.model_copy(update=given)
        return wished, wished != made_with
    if present := sorted(path.name for path in args.out.glob("*.txt")):
        raise InputError(f"make_split.py did not make the lists in {args.out} ({first_few(present)}): {anew}")
    return Settings(**given), False


def read_before(out: Path) -> dict[str, int]:
    """Read {path: part} from the lists in `out`. Empty if there are none, or incomplete ones of a killed run.

    Labels are not read: after a kill some are of the classes before.
    """
    try:
        texts = [(out / name).read_text(encoding="utf-8", errors="replace") for name in LISTS]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    lines = [(line.rpartition(" ")[0], part) for part, text in enumerate(texts) for line in text.split("\n")]
    return {path: part for path, part in lines if path}


def find_classes(
    root: Path, out: Path | None = None, without: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, int]]:
    """Find ({path under root, with "/": class}, sorted; {path: part}, a place in LISTS, if folders say so, or {}).

    A class is the first folder under root, or under root's folders train and test. Videos whose names can't
    be written to a list are left out with a warning. Raises InputError if the folders aren't classes.
    """
    found = sorted(video.name for video in find_videos(root, skip=out))
    sides = given_sides(found)  # of all: validation does not take the place of bad test videos
    depth = 1 if sides else 0
    if sides and (left_out := {path.split("/")[0] for path in found} - sides.keys()):
        print(f"note: {first_few(sorted(left_out))} is left out: train and test are the split")
        found = [path for path in found if path.split("/")[0] in sides]
    if loose := [path for path in found if path.count("/") <= depth]:
        raise InputError(f"{root}: in no class folder: {first_few(loose)}; give each class a folder")
    usable = {path: path.split("/")[depth] for path in found if csv_text(path) not in without}
    names = set(usable.values())
    classes = {path: name for path, name in usable.items() if is_listable(path, name, names)}
    names = set(classes.values())
    if bad := sorted(usable.keys() - classes.keys()):
        print(f"warning: {plural(len(bad), 'video')} left out, as no list can hold the names: {first_few(bad)}; rename "
              "what has spaces at its ends, a backslash, a line break, another class' name, or is not UTF-8",
              file=sys.stderr)  # fmt: skip
    if lost := {path.split("/")[depth] for path in found} - names:
        print(f"warning: no video of {first_few(sorted(lost))} can be used: there is no such class", file=sys.stderr)
    if len(names) < 2 or len(set(map(str.casefold, names))) < len(names):
        raise InputError(f"{root} has the class folders {first_few(sorted(names), 999) or 'none'}: give the folder "
                         "above them, with two or more that differ in more than upper case")  # fmt: skip
    side_of = {path: sides[path.split("/")[0]] for path in classes if sides}
    for side in sorted(set(sides.values())):
        if lacking := names - {name for path, name in classes.items() if side_of[path] == side}:
            raise InputError(f"{side} has no video of {first_few(sorted(lacking))}; add some")
    return classes, {path: int(side == "train") for path, side in side_of.items()}


def given_sides(paths: Iterable[str]) -> dict[str, str]:
    """Return {folder: "train" or "test"} if the first folders are the sides of a split; else empty.

    With training and test folders, a validation folder is ignored. Raises InputError if one side is missing,
    or if other folders are beside both.
    """
    folders = sorted({path.split("/")[0] for path in paths if "/" in path})
    kinds = {folder: SIDES.get(folder.casefold()) for folder in folders}
    found = set(kinds.values())
    test = "test" if "test" in found else "val"
    is_split = {"train", test} <= found
    if not is_split and (None in found or not found):
        return {}
    if not is_split or None in found:
        raise InputError(f"the folders {first_few(folders)} are neither classes nor a split: give a folder of classes, "
                         "or one that holds train and test and nothing else")  # fmt: skip
    names = {"train": "train", test: "test"}
    return {folder: names[kind] for folder, kind in kinds.items() if kind in names}


def find_copies(root: Path, paths: Iterable[str]) -> list[list[str]]:
    """Find groups of non-empty files with the same bytes, each sorted. Only files of equal size are read."""
    sizes = {path: stamp(root / path)[0] for path in paths}
    count, by_content = Counter(sizes.values()), defaultdict(list)
    for path, size in sizes.items():
        if size and count[size] > 1:
            with contextlib.suppress(OSError):  # extraction will name it
                by_content[file_digest(root / path)].append(path)
    return [sorted(same) for same in by_content.values() if len(same) > 1]


def group_videos(classes: dict[str, str], how: str | None, copies: Iterable[list[str]]) -> dict[str, str]:
    """Return {path: its recording}; a video without one is its own. Prints the rule used, with an example.

    how: --groups, or None for the names. Copies within a class join the first copy's group.
    """
    told = given_groups(how, list(classes)) if how else find_groups(list(classes), list(classes.values()))
    groups = {path: group or path for path, group in zip(classes, told, strict=True)}
    if any(told):
        example = next(path for path, group in zip(classes, told, strict=True) if group)
        print(f"recordings by {'--groups' if how else 'the names'}, each kept on one side: {printable(example)} is "
              f"of {printable(groups[example])}; {plural(len(set(told) - {''}), 'recording')} in all")
    else:
        print("the names tell no recordings" if how is None else "no recordings", end=": each video is by itself\n")
    for first, *others in copies:
        for other in others:
            if classes[other] == classes[first]:  # and all videos of the copy's recording
                groups |= {path: groups[first] for path, group in groups.items() if group == groups[other]}
    return groups


def given_groups(how: str, paths: list[str]) -> list[str]:
    """Return each video's group by --groups, "" for none. Raises InputError if no video has one."""
    if how == "none":
        return [""] * len(paths)
    if how.lower().endswith(".csv") or Path(how).is_file():
        told = read_groups(Path(how))
        parts = [without_suffix(path).casefold().split("/") for path in paths]
        ends = [["/".join(part[i:]) for i in range(len(part))] for part in parts]  # test/walk/1 or walk/1 or 1
        groups = [next((told[end] for end in each if end in told), "") for each in ends]
    else:
        try:
            matches = [re.search(how, path) for path in paths]
        except re.error as error:
            raise InputError(f"--groups {how}: no regular expression ({error}), and no .csv file") from None
        groups = ["_".join(filter(None, match.groups())) or match[0] if match else "" for match in matches]
    if not any(groups):
        raise InputError(f"--groups {how}: tells no video's recording, such as that of {paths[0]}")
    return groups


def assign(
    classes: dict[str, str], groups: dict[str, str], share: float, seed: int, before: dict[str, int]
) -> dict[str, int]:
    """Return {path: part}. Groups, in shuffled order, go to the part that they bring nearest to its share.

    If a class' share is far off then, large groups go first, as small ones can fill what they leave.

    share: of the test videos. before: {path: part} of videos that stay in place, with their groups. A part
    without videos of a class has priority. Raises InputError if a class has too few groups.
    """
    names = sorted(set(classes.values()))
    sizes = {group: np.zeros(len(names)) for group in groups.values()}  # videos of each class
    kept = {groups[path]: part for path, part in before.items() if path in groups}
    had = np.zeros((2, len(names)))  # (parts, classes)
    for path, group in groups.items():
        column = names.index(classes[path])
        sizes[group][column] += 1
        if group in kept:
            had[before.get(path, kept[group]), column] += 1
    wanted = np.outer([share, 1 - share], sum(sizes.values()))  # (parts, classes)
    free = sorted(sizes.keys() - kept.keys())
    shuffled = [free[i] for i in np.random.RandomState(seed).permutation(len(free))]
    for order in shuffled, sorted(shuffled, key=lambda group: -sizes[group].sum()):
        place, have = dict(kept), had.copy()
        for group in order:
            new = sizes[group]
            lacking = ((have == 0) & (new > 0)).sum(1)
            error = (new * (new + 2 * (have - wanted)) / wanted).sum(1)  # adds to sum((have - wanted)² / wanted)
            part = int(np.lexsort((error, -lacking))[0])
            place[group], have[part] = part, have[part] + new
        if not is_far(have[0], wanted[0], wanted.sum(0)).any():
            break
    for label in np.flatnonzero((have == 0).any(0)):
        own = sorted(group for group in sizes if sizes[group][label])
        raise InputError(
            f"{names[label]} has {plural(int(wanted[:, label].sum().round()), 'video')} of "
            f"{plural(len(own), 'recording')} ({first_few(own)}), which stay together, and two are needed, one "
            "for each side; add others, leave the class out, or say with --groups what the recordings are"
            + ("; or delete the lists: these keep each video on its side" if before else "")
        )
    return {path: before.get(path, place[group]) for path, group in groups.items()}


def is_far(test: Any, wanted: Any, videos: Any) -> Any:
    """Whether a class has more test videos than wanted, or fewer: by more than one and by 15 % of its videos."""
    return abs(test - wanted) > np.maximum(1, 0.15 * videos)


def say_split(parts: dict[str, int], classes: dict[str, str], groups: dict[str, str], share: float | None) -> None:
    """Print the sizes and the classes' test shares. Warn of shares far off `share`, and recordings on both sides."""
    total = Counter(classes.values())
    test = Counter(name for path, name in classes.items() if not parts[path])
    shares = {name: test[name] / total[name] for name in sorted(total)}
    low, high = min(shares.values()), max(shares.values())
    print(f"train.txt: {plural(len(classes) - test.total(), 'video')}, test.txt: {plural(test.total(), 'video')}, "
          f"{test.total() / len(classes):.0%} ({low:.0%} to {high:.0%} of a class)", flush=True)
    if far := [f"{found:.0%} of {name}" for name, found in shares.items()
               if share and is_far(test[name], share * total[name], total[name])]:  # fmt: skip
        print(f"warning: {first_few(far)} test, not {share:.0%}, as recordings stay together", file=sys.stderr)
    sides = [{groups[path] for path in classes if parts[path] == part} for part in (0, 1)]
    if both := sorted(sides[0] & sides[1]):
        print(f"warning: {plural(len(both), 'recording')} in training and test, as the folders or earlier lists are: "
              f"{first_few(both)} (without the earlier lists, all are split anew)", file=sys.stderr)  # fmt: skip


def write_lists(out: Path, classes: dict[str, str], groups: dict[str, str], parts: dict[str, int]) -> None:
    """Write groups.csv, classes.txt and the lists."""
    rows = [(path, "" if group == path else group) for path, group in sorted(groups.items())]
    with atomic_path(out / "groups.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("video", "group"), *rows])
    labels = {name: label for label, name in enumerate(sorted(set(classes.values())))}
    files = {"classes.txt": [f"{label} {name}" for name, label in labels.items()]}
    for part, name in enumerate(LISTS):
        listed = sorted((label, path) for path, label in classes.items() if parts[path] == part)
        files[name] = [f"{path} {labels[label]}" for label, path in listed]
    for name, lines in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run_main(main)
