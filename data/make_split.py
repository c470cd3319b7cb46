"""Split your own videos into training and test, and write the split as list files. Train with --ucf-list OUT.

  python data/make_split.py VIDEOS OUT                 one split: train.txt, test.txt
  python data/make_split.py VIDEOS OUT --folds 5       five: trainlist01.txt, testlist01.txt, ... for --split 1 to 5
  python data/make_split.py VIDEOS OUT --test TEST     the videos of TEST, in folders of the same classes, test

VIDEOS holds a folder for each class, or folders train and test (or val, validation) that do: that split is then taken.
Else each class is split in the same proportion. Videos of one recording or person, and copies of one file, stay on one
side; groups.csv beside the lists says which these are. Run again, it updates its own lists: videos keep their side, new
ones are added, deleted ones leave. The videos of TEST are listed as test/...: extract their frames to RGB_DIR/test.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, Field

from common.commandline import ArgumentParser, bounded
from data.videos import find_videos
from dataloader.lists import is_listable, load_split, read_groups
from dataloader.names import SIDES, find_groups, first_few, video_keys, without_suffix
from utils import InputError, atomic_path, check_writable, csv_text, plural, printable, run_main, write_json

RECORD = "make_split.json"  # beside the lists: with which flags they were made


class Settings(BaseModel, extra="forbid"):
    """The flags that lists were made with, as the record has them."""

    test_fraction: float = Field(0.3, gt=0, lt=1)
    folds: int | None = Field(None, ge=2)
    seed: int = Field(0, ge=0, lt=2**32)
    groups: str | None = None
    test: str | None = None


def main() -> int:
    args = parse_arguments()
    made_with = settings(args)
    classes, given = find_classes(args.videos, args.out, args.test, videos_in(args.without) if args.without else ())
    paths, class_names = list(classes), sorted(set(classes.values()))
    for name in class_names:
        print(f"  {printable(name)}: {plural(sum(of == name for of in classes.values()), 'video')}")
    roots = {path: args.test / path.removeprefix("test/") if args.test and path.startswith("test/") else
             args.videos / path for path in paths}  # fmt: skip
    copies = find_copies(roots)
    before = read_before(args.out, made_with)
    groups = group_videos(classes, made_with.groups, copies, before[1])
    if given and made_with.folds:
        raise InputError(f"{args.videos} is split into training and test already; leave --folds out")
    if given:
        print(f"{args.videos} is split into training and test by folders: their split is taken")
        parts = {path: 0 if given[path] == "test" else 1 for path in paths}
        names = [("train.txt", "test.txt")]
    else:
        fraction, number = made_with.test_fraction, made_with.folds
        shares = [1 / number] * number if number else [fraction, 1 - fraction]
        parts = assign(classes, groups, shares, made_with.seed, before[0])
        names = [(f"trainlist{i + 1:02d}.txt", f"testlist{i + 1:02d}.txt") for i in range(number or 0)]
        names = names or [("train.txt", "test.txt")]
    files = {"classes.txt": [f"{label} {name}" for label, name in enumerate(class_names)]}
    for part, pair in enumerate(names):
        split = ([path for path in paths if parts[path] != part], [path for path in paths if parts[path] == part])
        say_shares(pair, split, classes, None if given else shares[0])
        say_shared(split, groups, copies, classes)
        for name, members in zip(pair, split, strict=True):
            order = sorted(members, key=lambda path: (classes[path], path))
            files[name] = [f"{path} {class_names.index(classes[path])}" for path in order]
    if before[0]:
        say_changes(set(before[0]), set(paths))
    write_lists(args.out, files, groups, made_with)
    print(f"{plural(len(class_names), 'class')}, {plural(len(paths), 'video')}; train with --ucf-list {args.out}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write the lists")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--test-fraction", type=bounded(float, 0.01, 0.99), metavar="F",
                     help="part of each class that tests (default: 0.3)")  # fmt: skip
    how.add_argument("--folds", type=bounded(int, 2), metavar="K",
                     help="K splits instead; each video tests in one of them")  # fmt: skip
    how.add_argument("--test", type=Path, metavar="TEST", help="folder of class folders of test videos")
    parser.add_argument("--groups", metavar="REGEX|CSV|none",
                        help="what tells videos of one recording, which stay on one side: a regular expression, whose "
                        "groups (...) or whole match in a video's path under VIDEOS are its recording, such as "
                        "'rec\\d+'; or a CSV file with the columns video (path under VIDEOS) and group; none: each "
                        "video is by itself (default: the names, where a part of them is the recording in most "
                        "classes)")  # fmt: skip
    parser.add_argument("--without", type=Path, metavar="CSV",
                        help="videos to leave out, a row for each, as in the extractions' failed.csv")
    parser.add_argument("--seed", type=bounded(int, 0, 2**32 - 1), help="of the shuffle (default: 0)")
    return parser.parse_args()


# --- what was made before ------------------------------------------------------------------------------


def settings(args: argparse.Namespace) -> Settings:
    """The flags, and where lists are there, those that they were made with. InputError where the two differ."""
    given = {name: getattr(args, name) for name in Settings.model_fields if getattr(args, name) is not None}
    if args.test:
        given["test"] = str(args.test.resolve())  # the same folder from wherever it is named
    if args.groups and Path(args.groups).is_file():
        given["groups"] = str(Path(args.groups).resolve())
    record = args.out / RECORD
    if not record.is_file():
        if present := sorted(path.name for path in args.out.glob("*.txt")):
            raise InputError(
                f"{args.out} holds lists already that make_split.py did not make ({first_few(present)}); delete them, "
                "or write to another folder"
            )
        return Settings(**given)
    try:
        made_with = Settings.model_validate_json(record.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {record} ({str(error)[:99]!r}); delete {args.out} to split anew") from None
    had = made_with.model_dump()
    if other := [f"--{name.replace('_', '-')} {had[name]}" for name in given if given[name] != had[name]]:
        raise InputError(
            f"the lists in {args.out} were made with {' '.join(other)} (None: without); leave the flag as it was, or "
            f"delete {args.out} to split anew"
        )
    args.test = Path(made_with.test) if made_with.test else None
    return made_with


def read_before(out: Path, made_with: Settings) -> tuple[dict[str, int], dict[str, str]]:
    """({path: part}, {path without suffix, lower case: group}) of the lists in `out`; empty where there are none.

    A part is a fold, or 0 for the test videos and 1 for training. Lists that a killed run left half are not counted.
    """
    number = made_with.folds or 1
    names = [name for i in range(1, number + 1) for name in (f"trainlist{i:02d}.txt", f"testlist{i:02d}.txt")]
    names = names if made_with.folds else ["train.txt", "test.txt"]
    if not all((out / name).is_file() for name in (*names, "classes.txt", "groups.csv")):
        return {}, {}
    splits = [load_split(out, i + 1) for i in range(number)]
    parts = {video.listed: part for part, split in enumerate(splits) for video in split.test}
    if number == 1:
        parts |= {video.listed: 1 for video in splits[0].train}
    return parts, read_groups(out / "groups.csv")


def say_changes(old: set[str], new: set[str]) -> None:
    """Say what is new and what has gone since the lists were made."""
    if added := sorted(new - old):
        print(f"{plural(len(added), 'new video')} since the lists were made: {first_few(added)}")
    if gone := sorted(old - new):
        print(f"{plural(len(gone), 'video')} of the lists gone: {first_few(gone)}")
    print("all others stay on their side" if added or gone else "the lists are as they were")


# --- the videos ----------------------------------------------------------------------------------------


def videos_in(path: Path) -> set[str]:
    """The videos that a CSV names, as csv_text writes them."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row[0] for row in csv.reader(file) if row}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--without {path} cannot be read: {error}") from None


def find_classes(
    root: Path, out: Path | None = None, test: Path | None = None, without: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """({path under root, with "/": class}, sorted; {path: "train" or "test"} where folders tell the side, else empty).

    Videos of `test` are test/.... A class is the first folder under root, or under root's folders train and test.
    Videos whose names no list can hold are left out, with a warning.
    """
    own = os.path.relpath(out or root, root).split(os.sep)[0]  # where OUT lies in VIDEOS, as record/ in `run.py .`
    paths = sorted(video.name for video in find_videos(root, root / own if own not in (".", "..") else None))
    if test:
        if given_sides(paths):
            raise InputError(f"{root} is split into folders already; leave --test out, or give its training folder")
        paths = [f"train/{path}" for path in paths] + sorted(f"test/{video.name}" for video in find_videos(test))
    paths = [path for path in paths if csv_text(path) not in without]
    sides = given_sides(paths)
    depth = 1 if sides else 0
    if left_out := {path.split("/")[0] for path in paths} - sides.keys() if sides else set():
        print(f"note: {first_few(sorted(left_out))} is left out: train and test are the split")
        paths = [path for path in paths if path.split("/")[0] in sides]
    loose = [path for path in paths if path.count("/") <= depth]
    if loose:
        raise InputError(f"{root}: in no class folder: {first_few(loose)}; give each class a folder")
    named = "train/" if test else ""  # as the videos of VIDEOS are called here, but not in the lists
    classes = {path.removeprefix(named): path.split("/")[depth] for path in paths}
    given = {path.removeprefix(named): sides[path.split("/")[0]] for path in paths} if sides else {}
    used = {path.split("/")[0] for path in classes} | {own}
    bad = [path for path, name in classes.items() if not is_listable(path, name, set(classes.values()))]
    if bad:
        what = "spaces at its ends, a backslash, a line break, another class' name, or is not UTF-8"
        print(f"warning: {plural(len(bad), 'video')} left out, as no list can hold the names: {first_few(bad)}; "
              f"rename what has {what}", file=sys.stderr)  # fmt: skip
        classes = {path: name for path, name in classes.items() if path not in set(bad)}
    check_classes(root, classes, given, used)
    return classes, given


def check_classes(root: Path, classes: dict[str, str], given: dict[str, str], used: set) -> None:
    """Raise InputError where the folders are no classes to tell apart, or two videos have one name."""
    names = sorted(set(classes.values()))
    folders = (entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    empty = [] if given else sorted(set(folders) - used)
    if len(names) < 2:
        beside = f" ({first_few(empty)} beside it holds no video)" if empty else ""
        what = f"one class folder, {first_few(names)}{beside}" if names else "no class folder"
        raise InputError(f"{root} has {what}; give the folder above the class folders")
    if empty:
        raise InputError(f"{root}: the class folder {first_few(empty)} holds no video; fill it or remove it")
    spelled = Counter(map(str.casefold, names))
    if twice := [name for name in names if spelled[name.casefold()] > 1]:
        raise InputError(f"{root}: {first_few(twice)} are one class but for upper case; join the folders")
    for side in sorted(set(given.values())):
        lacking = set(names) - {name for path, name in classes.items() if given[path] == side}
        if lacking:
            raise InputError(f"{side} has no video of {first_few(sorted(lacking))}; add some")
    keys = video_keys(list(classes), list(classes.values()))
    count = Counter(map(str.casefold, keys))
    repeated = [path for path, key in zip(classes, keys, strict=True) if count[key.casefold()] > 1]
    if repeated:
        raise InputError(f"{root}: {first_few(repeated, 2)} have one name in one class; rename one")


def given_sides(paths: Iterable[str]) -> dict[str, str]:
    """{folder: "train" or "test"} where the first folders are sides of a split; else empty.

    Beside folders for training and test, one for validation is none of the two. Raises InputError for one side only.
    """
    folders = {path.split("/")[0] for path in paths if "/" in path}
    kinds = {folder: SIDES.get(folder.casefold()) for folder in folders}
    if None in kinds.values() or not folders:
        return {}
    test = "test" if "test" in kinds.values() else "val"
    if not {"train", test} <= set(kinds.values()):
        raise InputError(f"there is a folder {first_few(sorted(folders))}, which is no class: give one of classes, or "
                         "one that holds train and test")  # fmt: skip
    return {folder: "train" if kind == "train" else "test" for folder, kind in kinds.items() if kind in ("train", test)}


# --- recordings ----------------------------------------------------------------------------------------


def find_copies(roots: dict[str, Path]) -> list[list[str]]:
    """Paths of files with the same bytes, each group sorted; empty files aside. Only files of one size are read."""
    by_size, copies = defaultdict(list), []
    for path, file in roots.items():
        by_size[file.stat().st_size if file.exists() else 0].append(path)
    for size, alike in by_size.items():
        if size and len(alike) > 1:
            by_content = defaultdict(list)
            for path in alike:
                with open(roots[path], "rb") as opened:
                    by_content[hashlib.sha256(opened.read()).digest()].append(path)
            copies += [sorted(same) for same in by_content.values() if len(same) > 1]
    return copies


def group_videos(
    classes: dict[str, str], how: str | None, copies: Iterable[list[str]], before: dict[str, str]
) -> dict[str, str]:
    """{path: its recording}; a video without one is its own. What was taken is printed, with an example.

    how: --groups, None for the names. before: groups that are recorded, which their videos keep; a new video that
    belongs to some of these joins the first. Copies of a class are of the first one's group.
    """
    paths = list(classes)
    told = given_groups(how, paths) if how else find_groups(paths, list(classes.values()))
    if any(told):
        example, group = next((path, group) for path, group in zip(paths, told, strict=True) if group)
        print(
            f"recordings by {'--groups' if how else 'the names'}, each kept on one side: {printable(example)} is of "
            f"{printable(group)}; {plural(len(set(told) - {''}), 'recording')} in all"
        )
    else:
        print("the names tell no recordings" if how is None else "no recordings", end=": each video is by itself\n")
    groups = dict(zip(paths, (group or path for path, group in zip(paths, told, strict=True)), strict=True))
    for first, *others in copies:
        for other in others:
            if classes[other] == classes[first]:  # with everything of the copy's own recording
                joined = groups[other]
                groups |= {path: groups[first] for path in paths if groups[path] == joined}
    keys = {path: without_suffix(path).casefold() for path in paths}
    recorded = {path: before[key] or path for path, key in keys.items() if key in before}
    joins = {groups[path]: kept for path, kept in reversed(recorded.items())}
    return {path: recorded.get(path, joins.get(groups[path], groups[path])) for path in paths}


def given_groups(how: str, paths: list[str]) -> list[str]:
    """The group of each video by --groups, "" for none. Raises InputError where it tells none at all."""
    if how == "none":
        return [""] * len(paths)
    if how.lower().endswith(".csv") or Path(how).is_file():
        told = read_groups(Path(how))
        groups = []
        for path in paths:
            parts = without_suffix(path).casefold().split("/")
            ends = ("/".join(parts[i:]) for i in range(len(parts)))  # test/walk/1 or walk/1 or 1
            groups.append(next((told[end] for end in ends if end in told), ""))
    else:
        try:
            matches = [re.search(how, path) for path in paths]
        except re.error as error:
            raise InputError(f"--groups {how}: no regular expression ({error}), and no .csv file") from None
        groups = ["_".join(filter(None, match.groups())) or match[0] if match else "" for match in matches]
    if not any(groups):
        raise InputError(f"--groups {how}: tells no video's recording, such as that of {paths[0]}")
    return groups


def say_shared(split: tuple[list[str], list[str]], groups: dict, copies: list[list[str]], classes: dict) -> None:
    """Warn of recordings and copies on both sides of a split, and of files that are the same in two classes."""
    train, test = map(set, split)
    recordings = sorted({groups[path] for path in train} & {groups[path] for path in test})
    twice = [same[0] for same in copies if set(same) & train and set(same) & test]
    several = [", ".join(same) for same in copies if len({classes[path] for path in same}) > 1]
    both, more = "in training and test", "in several classes"
    for what, where, found in ("recording", both, recordings), ("file", both, twice), ("file", more, several):
        if found:
            print(f"warning: {plural(len(found), what)} {where}: {first_few(found)}", file=sys.stderr)


# --- the split -----------------------------------------------------------------------------------------


def assign(
    classes: dict[str, str], groups: dict[str, str], shares: list[float], seed: int, before: dict[str, int]
) -> dict[str, int]:
    """{path: part}: whole groups in shuffled order, as many to each part as brings its classes nearest to its share.

    shares: of the parts, in all 1. before: {path: part} of the videos that stay where they are, with their groups.
    Each class gets at least one group in each part; raises InputError where it has too few.
    """
    names = sorted(set(classes.values()))
    sizes = {group: np.zeros(len(names)) for group in groups.values()}  # videos of each class
    for path, group in groups.items():
        sizes[group][names.index(classes[path])] += 1
    place = {groups[path]: part for path, part in before.items() if path in groups}
    rng = np.random.RandomState(seed)
    order: list[str] = []
    for name in names:
        of_class = list(dict.fromkeys(group for path, group in groups.items() if classes[path] == name))
        order += [of_class[i] for i in rng.permutation(len(of_class))]
    order = [group for group in dict.fromkeys(order) if group not in place]
    rest = sum(sizes.values(), np.zeros(len(names)))
    for part, share in enumerate(shares):
        wanted = np.maximum(1, np.round(rest * share / sum(shares[part:])))
        have = sum((sizes[group] for group, at in place.items() if at == part), np.zeros(len(names)))
        for group in order:
            new = sizes[group]
            last = part == len(shares) - 1
            if group not in place and (last or (new * (new + 2 * (have - wanted)) / rest.clip(1)).sum() < 0):
                place[group], have = part, have + new
        rest = rest - have
    fill(place, sizes, names, set(order), len(shares))
    return {path: before.get(path, place[group]) for path, group in groups.items()}


def fill(place: dict[str, int], sizes: dict, names: list[str], free: set[str], parts: int) -> None:
    """Move groups, the smallest first, to the parts that have none of a class; those that are not `free` stay."""
    for label, name in enumerate(names):
        of_class = [group for group in place if sizes[group][label]]
        of_class.sort(key=lambda group: (sizes[group].sum(), group))
        for part in range(parts):
            if any(place[group] == part for group in of_class):
                continue
            having = np.zeros((parts, len(names)))  # groups of each class in each part
            for group, at in place.items():
                having[at] += sizes[group] > 0
            spare = [g for g in of_class if g in free and (having[place[g]][sizes[g] > 0] > 1).all()]
            if not spare:
                videos = int(sum(sizes[group][label] for group in of_class))
                raise InputError(
                    f"{name} has {plural(videos, 'video')} of {plural(len(of_class), 'recording')} "
                    f"({first_few(of_class)}), which stay together, and {parts} are needed that may "
                    "go to either side; add others, leave the class out, or say with --groups what the recordings are"
                )
            place[spare[0]] = part


def say_shares(pair: tuple[str, str], split: tuple[list[str], list[str]], classes: dict, share: float | None) -> None:
    """Print the sizes and each class' share of test videos; warn where one is more than a video and 10 % off."""
    test, of = (Counter(classes[path] for path in some) for some in (split[1], classes))
    shares = {name: test[name] / of[name] for name in sorted(of)}
    print(
        f"{pair[0]}: {plural(len(split[0]), 'video')}, {pair[1]}: {plural(len(split[1]), 'video')}, "
        f"{len(split[1]) / len(classes):.0%} ({min(shares.values()):.0%} to {max(shares.values()):.0%} of a class)"
    )
    far = [f"{value:.0%} of {name}" for name, value in shares.items()
           if share and abs(value - share) * of[name] > max(1, 0.15 * of[name])]  # fmt: skip
    if far:
        print(f"warning: {first_few(far)} tests, not {share:.0%}, as recordings stay together", file=sys.stderr)


def write_lists(out: Path, files: dict[str, list[str]], groups: dict[str, str], made_with: Settings) -> None:
    """Write the record, groups.csv and the lists: what differs from what is there."""
    check_writable(out)
    table = io.StringIO()
    rows = ((path, "" if group == path else group) for path, group in sorted(groups.items()))
    csv.writer(table, lineterminator="\n").writerows([("video", "group"), *rows])
    texts = {"groups.csv": table.getvalue()} | {name: "\n".join(lines) + "\n" for name, lines in files.items()}
    if not (out / RECORD).is_file():
        write_json(out / RECORD, made_with.model_dump())
    for name, text in texts.items():
        if not (out / name).is_file() or (out / name).read_bytes() != text.encode():
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(text.encode())


if __name__ == "__main__":
    run_main(main)
