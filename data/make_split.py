"""Split your own videos into training and test, and write the split as list files. Train with --ucf-list OUT.

  python data/make_split.py VIDEOS OUT                 one split: train.txt, test.txt
  python data/make_split.py VIDEOS OUT --folds 5       five: trainlist01.txt, testlist01.txt, ... for --split 1 to 5

VIDEOS contains a folder per class. Each class is split in the same proportion. If VIDEOS contains folders train
and test (or val, validation) with class folders, their split is used. Videos of one recording or person,
and copies of one file, stay on one side; groups.csv beside the lists names these groups. A second
run updates the script's own lists: videos keep their side, new ones are added, deleted ones are removed. Other
--groups than before split all of them anew.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, Field

from common.commandline import ArgumentParser, bounded
from common.formats import read_json
from data.videos import find_videos
from dataloader.lists import is_listable, read_column, read_groups
from dataloader.names import SIDES, find_groups, first_few, without_suffix
from utils import (
    InputError,
    atomic_path,
    check_writable,
    csv_text,
    file_digest,
    plural,
    printable,
    run_main,
    write_json,
)

RECORD = "make_split.json"  # beside the lists: the flags with which they were made


class Settings(BaseModel, extra="forbid"):
    """The flags with which lists were made, as stored in the record."""

    test_fraction: float = Field(0.3, gt=0, lt=1)
    folds: int | None = Field(None, ge=2)
    seed: int = Field(0, ge=0, lt=2**32)
    groups: str | None = None


def main() -> int:
    args = parse_arguments()
    made_with, anew = settings(args)
    if anew:
        print(f"{args.out} is split anew: its lists were made with other --groups")
    without = read_column(args.without, "reason") if args.without else ()
    classes, given = find_classes(args.videos, args.out, without)
    paths, class_names = list(classes), sorted(set(classes.values()))
    for name in class_names:
        print(f"  {printable(name)}: {plural(list(classes.values()).count(name), 'video')}")
    copies = find_copies(args.videos, paths)
    before, known = ({}, {}) if anew else read_before(args.out, made_with)
    groups = group_videos(classes, made_with.groups, copies, known)
    if given and made_with.folds:
        raise InputError(f"{args.videos} is split into training and test already; leave --folds out")
    if given:
        print(f"{args.videos} is split into training and test by folders: their split is taken")
        parts, share = {path: 0 if given[path] == "test" else 1 for path in paths}, None
    else:
        number, share = made_with.folds, made_with.test_fraction
        shares = [1 / number] * number if number else [share, 1 - share]
        parts, share = assign(classes, groups, shares, made_with.seed, before), shares[0]
    files = {"classes.txt": [f"{label} {name}" for label, name in enumerate(class_names)]}
    for part, pair in enumerate(list_names(None if given else made_with.folds)):
        split = ([path for path in paths if parts[path] != part], [path for path in paths if parts[path] == part])
        say_split(pair, split, classes, groups, share)
        for name, members in zip(pair, split, strict=True):
            order = sorted(members, key=lambda path: (classes[path], path))
            files[name] = [f"{path} {class_names.index(classes[path])}" for path in order]
    if several := [", ".join(same) for same in copies if len({classes[path] for path in same}) > 1]:
        print(f"warning: {plural(len(several), 'file')} in several classes: {first_few(several)}", file=sys.stderr)
    if before:
        say_changes(set(before), set(paths))
    write_lists(args.out, files, groups, made_with)
    print(f"{plural(len(class_names), 'class')}, {plural(len(paths), 'video')}; train with --ucf-list {args.out}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write the lists")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--test-fraction", type=bounded(float, 0.01, 0.99), metavar="F",
                     help="test share of each class (default: 0.3)")  # fmt: skip
    how.add_argument("--folds", type=bounded(int, 2), metavar="K",
                     help="K splits instead; each video is tested in one of them")  # fmt: skip
    parser.add_argument("--groups", metavar="REGEX|CSV|none",
                        help="how to find a video's recording; one recording stays on one side. A regular expression: "
                        "its groups (...), or else its match, in the path under VIDEOS, such as 'rec\\d+'. A CSV file "
                        "with the columns video (path under VIDEOS) and group. none: each video by itself "
                        "(default: a part of the names, if most classes show it)")  # fmt: skip
    parser.add_argument("--without", type=Path, metavar="CSV",
                        help="file of videos to leave out, such as an extraction's failed.csv (video, reason)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**32 - 1), help="for the shuffle (default: 0)")
    return parser.parse_args()


# --- what was made before ------------------------------------------------------------------------------


def settings(args: argparse.Namespace) -> tuple[Settings, bool]:
    """Return the flags, or those of existing lists, and whether other --groups ask to split these anew.

    Raises InputError if other flags differ from those of existing lists.
    """
    given = {name: getattr(args, name) for name in Settings.model_fields if getattr(args, name) is not None}
    if args.groups and Path(args.groups).is_file():
        given["groups"] = str(Path(args.groups).resolve())  # the same file from any working directory
    anew = f"delete {args.out} to split anew"
    if not (args.out / RECORD).is_file():
        if present := sorted(path.name for path in args.out.glob("*.txt")):
            raise InputError(f"make_split.py did not make the lists in {args.out} ({first_few(present)}): {anew}")
        return Settings(**given), False
    made_with = read_json(args.out / RECORD, Settings, anew)
    had = made_with.model_dump()
    for name in given:
        if given[name] != had[name] and name != "groups":
            flag = f"--{name.replace('_', '-')}"
            made = f"without {flag}" if had[name] is None else f"with {flag} {had[name]}"
            raise InputError(f"{args.out} has lists that were made {made}: keep to that, or {anew}")
    return Settings(**{**had, **given}), given.get("groups", had["groups"]) != had["groups"]


def list_names(folds: int | None) -> list[tuple[str, str]]:
    """The file names (training list, test list) of each split."""
    numbered = [(f"trainlist{i + 1:02d}.txt", f"testlist{i + 1:02d}.txt") for i in range(folds or 0)]
    return numbered or [("train.txt", "test.txt")]


def read_before(out: Path, made_with: Settings) -> tuple[dict[str, int], dict[str, str]]:
    """Read ({path: part}, {path without suffix, lower case: group}) from the lists in `out`, empty if none.

    A part is a fold, or 0 for test and 1 for training videos. Incomplete lists of a killed run are ignored.
    Labels are not read: after a kill some are of the classes before.
    """
    names = [name for pair in list_names(made_with.folds) for name in pair]
    if not all((out / name).is_file() for name in (*names, "classes.txt", "groups.csv")):
        return {}, {}
    parts = {}
    for part, name in [(1, names[0]), *enumerate(names[1::2])]:  # with folds, each video tests once
        text = (out / name).read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        for line in filter(None, text.split("\n")):
            path, _, label = line.rpartition(" ")
            if not path or not label.isdigit():
                what = f"`{printable(line)}` is no path and label"
                raise InputError(f"{out / name}: {what}; delete {out} to split anew")
            parts[path] = part
    return parts, read_groups(out / "groups.csv")


def say_changes(old: set[str], new: set[str]) -> None:
    """Print which videos were added or removed since the lists were made."""
    if added := sorted(new - old):
        print(f"{plural(len(added), 'new video')} since the lists were made: {first_few(added)}")
    if gone := sorted(old - new):
        print(f"{plural(len(gone), 'video')} of the lists gone: {first_few(gone)}")
    print("all others stay on their side" if added or gone else "the lists are as they were")


# --- the videos ----------------------------------------------------------------------------------------


def find_classes(
    root: Path, out: Path | None = None, without: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Find ({path under root, with "/": class}, sorted; {path: "train" or "test"} if folders say so, or {}).

    A class is the first folder under root, or under root's folders train and test. Videos whose names can't
    be written to a list are left out with a warning. Raises InputError if the folders aren't classes.
    """
    found = sorted(video.name for video in find_videos(root, skip=out))
    paths = [path for path in found if csv_text(path) not in without]
    sides = given_sides(found)  # of all: validation does not take the place of bad test videos
    depth = 1 if sides else 0
    if left_out := {path.split("/")[0] for path in paths} - sides.keys() if sides else set():
        print(f"note: {first_few(sorted(left_out))} is left out: train and test are the split")
        paths = [path for path in paths if path.split("/")[0] in sides]
    if loose := [path for path in paths if path.count("/") <= depth]:
        raise InputError(f"{root}: in no class folder: {first_few(loose)}; give each class a folder")
    classes = {path: path.split("/")[depth] for path in paths}
    names = set(classes.values())
    if bad := [path for path, name in classes.items() if not is_listable(path, name, names)]:
        what = "spaces at its ends, a backslash, a line break, another class' name, or is not UTF-8"
        print(f"warning: {plural(len(bad), 'video')} left out, as no list can hold the names: {first_few(bad)}; "
              f"rename what has {what}", file=sys.stderr)  # fmt: skip
        classes = {path: name for path, name in classes.items() if path not in set(bad)}
        names = set(classes.values())
    if lost := {path.split("/")[depth] for path in found if path.count("/") > depth} - names:
        print(f"warning: no video of {first_few(sorted(lost))} can be used: there is no such class", file=sys.stderr)
    if len(names) < 2:
        raise InputError(f"{root} has one class folder ({first_few(names)}), or none: give the folder above them")
    if len(set(map(str.casefold, names))) < len(names):
        raise InputError(f"{root}: of {first_few(sorted(names), 999)} two are one class but for upper case; join them")
    given = {path: sides[path.split("/")[0]] for path in classes} if sides else {}
    for side in ("test", "train") if given else ():
        if lacking := names - {name for path, name in classes.items() if given[path] == side}:
            raise InputError(f"{side} has no video of {first_few(sorted(lacking))}; add some")
    return classes, given


def given_sides(paths: Iterable[str]) -> dict[str, str]:
    """Return {folder: "train" or "test"} if the first folders are the sides of a split; else empty.

    With training and test folders, a validation folder is ignored. Raises InputError if one side is missing,
    or if other folders are beside both.
    """
    folders = {path.split("/")[0] for path in paths if "/" in path}
    kinds = {folder: SIDES.get(folder.casefold()) for folder in folders}
    test = "test" if "test" in kinds.values() else "val"
    whole = {"train", test} <= set(kinds.values())
    if others := sorted(folder for folder, kind in kinds.items() if kind is None):
        if whole:
            raise InputError(f"beside training and test folders there is {first_few(others)}, which is neither; "
                             "move it out, or into them")  # fmt: skip
        return {}
    if folders and not whole:
        raise InputError(f"there is a folder {first_few(sorted(folders))}, which is no class: give one of classes, or "
                         "one that holds train and test")  # fmt: skip
    return {folder: "train" if kind == "train" else "test" for folder, kind in kinds.items() if kind in ("train", test)}


# --- recordings ----------------------------------------------------------------------------------------


def find_copies(root: Path, paths: Iterable[str]) -> list[list[str]]:
    """Find groups of non-empty files with the same bytes, each sorted. Only files of equal size are read."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for path in paths:
        by_size[(root / path).stat().st_size if (root / path).exists() else 0].append(path)
    for size, alike in by_size.items():
        for path in alike if size and len(alike) > 1 else ():
            with contextlib.suppress(OSError):  # extraction will name it
                by_content[file_digest(root / path)].append(path)
    return [sorted(same) for same in by_content.values() if len(same) > 1]


def group_videos(
    classes: dict[str, str], how: str | None, copies: Iterable[list[str]], before: dict[str, str]
) -> dict[str, str]:
    """Return {path: its recording}; a video without one is its own. Prints the rule used, with an example.

    how: --groups, or None for the names. before: recorded groups, which their videos keep; a new video that
    belongs to several of these joins the first. Copies within a class join the first copy's group. Raises
    InputError where --groups now joins several recorded groups; for names it is a warning.
    """
    told = given_groups(how, list(classes)) if how else find_groups(list(classes), list(classes.values()))
    groups = {path: group or path for path, group in zip(classes, told, strict=True)}
    if example := next((path for path, group in zip(classes, told, strict=True) if group), None):
        print(f"recordings by {'--groups' if how else 'the names'}, each kept on one side: {printable(example)} is of "
              f"{printable(groups[example])}; {plural(len(set(told) - {''}), 'recording')} in all")  # fmt: skip
    else:
        print("the names tell no recordings" if how is None else "no recordings", end=": each video is by itself\n")
    for first, *others in copies:
        for other in others:
            if classes[other] == classes[first]:  # and all videos of the copy's recording
                joined = groups[other]
                groups |= {path: groups[first] for path in classes if groups[path] == joined}
    keys = {path: without_suffix(path).casefold() for path in classes}
    recorded = {path: before[key] or path for path, key in keys.items() if key in before}
    kept: dict[str, str] = {}
    pairs = [(path, group) for path, group in zip(classes, told, strict=True) if group and path in recorded]
    if apart := [path for path, group in pairs if kept.setdefault(group, recorded[path]) != recorded[path]]:
        words = f"recordings of {first_few(apart)} are others than in the lists; delete those to split anew"
        if how:
            raise InputError(f"--groups {how}: {words}")
        print(f"warning: {words}, else they keep theirs", file=sys.stderr)
    joins = {groups[path]: group for path, group in reversed(recorded.items())}
    return {path: recorded.get(path, joins.get(group, group)) for path, group in groups.items()}


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


# --- the split -----------------------------------------------------------------------------------------


def assign(
    classes: dict[str, str], groups: dict[str, str], shares: list[float], seed: int, before: dict[str, int]
) -> dict[str, int]:
    """Return {path: part}. Groups, in shuffled order, go to the part that they bring nearest to its share.

    shares: the parts' shares, with sum 1. before: {path: part} of videos that stay in place, with their
    groups. A part without videos of a class has priority. Raises InputError if a class has too few groups.
    """
    names = sorted(set(classes.values()))
    sizes = {group: np.zeros(len(names)) for group in groups.values()}  # videos of each class
    for path, group in groups.items():
        sizes[group][names.index(classes[path])] += 1
    place = {groups[path]: part for path, part in before.items() if path in groups}
    wanted = np.outer(shares, sum(sizes.values()))  # (parts, classes)
    have = np.zeros_like(wanted)
    for group, part in place.items():
        have[part] += sizes[group]
    free = sorted(sizes.keys() - place.keys())
    for i in np.random.RandomState(seed).permutation(len(free)):
        new = sizes[free[i]]
        lacking = ((have == 0) & (new > 0)).sum(1)
        error = (new * (new + 2 * (have - wanted)) / wanted).sum(1)  # adds to sum((have - wanted)² / wanted)
        part = int(np.lexsort((error, -lacking))[0])
        place[free[i]], have[part] = part, have[part] + new
    for label in np.flatnonzero((have == 0).any(0)):
        own = sorted(group for group in sizes if sizes[group][label])
        raise InputError(
            f"{names[label]} has {plural(int(wanted[:, label].sum().round()), 'video')} of "
            f"{plural(len(own), 'recording')} ({first_few(own)}), which stay together, and {len(shares)} are needed "
            "that may go to either side; add others, leave the class out, or say with --groups what the recordings are"
        )
    return {path: before.get(path, place[group]) for path, group in groups.items()}


def say_split(
    pair: tuple[str, str], split: tuple[list[str], list[str]], classes: dict, groups: dict, share: float | None
) -> None:
    """Print the sizes and the classes' test shares. Warn of shares far off and recordings on both sides.

    Far off means by more than one video and by more than 15 %.
    """
    test, of = (Counter(classes[path] for path in some) for some in (split[1], classes))
    shares = {name: test[name] / of[name] for name in sorted(of)}
    print(f"{pair[0]}: {plural(len(split[0]), 'video')}, {pair[1]}: {plural(len(split[1]), 'video')}, "
          f"{len(split[1]) / len(classes):.0%} ({min(shares.values()):.0%} to {max(shares.values()):.0%} of a class)",
          flush=True)  # fmt: skip
    far = [f"{value:.0%} of {name}" for name, value in shares.items()
           if share and abs(value - share) * of[name] > max(1, 0.15 * of[name])]  # fmt: skip
    if far:
        print(f"warning: {first_few(far)} tests, not {share:.0%}, as recordings stay together", file=sys.stderr)
    if both := sorted({groups[path] for path in split[0]} & {groups[path] for path in split[1]}):
        print(f"warning: {plural(len(both), 'recording')} in training and test: {first_few(both)}", file=sys.stderr)


def write_lists(out: Path, files: dict[str, list[str]], groups: dict[str, str], made_with: Settings) -> None:
    """Write the record, groups.csv and the lists. Files that are already up to date are not written."""
    check_writable(out)
    table = io.StringIO()
    rows = ((path, "" if group == path else group) for path, group in sorted(groups.items()))
    csv.writer(table, lineterminator="\n").writerows([("video", "group"), *rows])
    if not (out / RECORD).is_file():
        write_json(out / RECORD, made_with.model_dump())
    texts = {"groups.csv": table.getvalue()} | {name: "\n".join(lines) + "\n" for name, lines in files.items()}
    for name, text in texts.items():
        if not (out / name).is_file() or (out / name).read_bytes() != text.encode():
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(text.encode())
    if read_json(out / RECORD, Settings, "") != made_with:  # last: after a kill, the lists are split anew again
        write_json(out / RECORD, made_with.model_dump())


if __name__ == "__main__":
    run_main(main)
