"""Split of videos into training and test sets: by lists (UCF101, HMDB51, your own) or UCF101's group rule.

Error messages about a list name the file and line.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataloader.names import UCF101_CLASSES, Video, find_groups, first_few, ucf_parts, video_keys, without_suffix
from utils import InputError, plural

USUAL_GROUPS = 18  # training groups in each class of UCF101
OFFICIAL_COUNTS = {  # (training, test) videos of each split
    "ucf101": {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)},
    "hmdb51": {"1": (3570, 1530), "2": (3570, 1530), "3": (3570, 1530)},
}
_HMDB51_FILE = re.compile(r"(?P<class>.+)_test_split(?P<number>\d+)\.txt")
_NUMBER = re.compile(r"(?:list|split|fold|train|test|val)[ _-]*0*(\d+)", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,9})[\s,]+(\S.*)")  # a class with its number
_TRAILING = re.compile(r"\s-?\d{1,9}(?=(?:\s-?\d{1,9})?$)")  # numbers after a path, at most two
_CLASS_FILES = ("classind.txt", "classes.txt")
_FORMS = ("`path`", "`path label`", "`path num_frames label`")


@dataclass(frozen=True)
class Split:
    """One split of a dataset: "ucf101", "hmdb51" or "own". The videos are in the order of their list."""

    dataset: str
    number: str
    class_names: list[str]
    train: list[Video]
    test: list[Video]

    @property
    def official_counts(self) -> tuple[int, int] | None:
        """(training, test) videos of the complete official split; None for your own dataset."""
        return OFFICIAL_COUNTS.get(self.dataset, {}).get(self.number)


def load_split(
    list_dir: str | Path | None, number: int | str, names_on_disk: Iterable[str] = (), verbose: bool = True
) -> Split:
    """Load split `number` from the lists in `list_dir`, or make it by UCF101's group rule if that is None.

    The lists decide: a listed video is in the split, whether on disk or not (frames.match compares).
    Their format is detected:
      UCF101   classInd.txt, trainlistNN.txt, testlistNN.txt
      HMDB51   <class>_test_splitN.txt for each class
      own      train.txt and test.txt; for several splits a number in the names, as in trainlist02.txt or
               ucf101_rgb_val_split_2.txt ("val" means test if there is no test list). Lines are `path`,
               `path label` or TSN's `path num_frames label`. A path names its class, by a folder or UCF101's
               naming, if any path does; otherwise labels do. Classes and order come from classes.txt (or
               classInd.txt) if there is one, else from the paths: ordered by label, as in UCF101, or sorted

    Groups come from groups.csv beside the lists, if present (columns video and group; a video without a row
    is its own group), else from names.find_groups.

    The group rule needs `names_on_disk`: Index.names, or paths of videos. `verbose` prints the rule's counts
    beside the official ones. Raises a one-line InputError for anything wrong with a list.
    """
    number = str(number).strip().lstrip("0")
    place = None
    if list_dir is not None:
        place, split = read_lists(Path(list_dir), number)
    else:
        split = _split_by_groups(names_on_disk, number)
        if verbose:
            official = "" if not split.official_counts else " (officially {} and {})".format(*split.official_counts)
            print(f"no split lists given: split {number} by UCF101's group rule has {len(split.train)} training and "
                  f"{len(split.test)} test videos{official}")  # fmt: skip
    videos = [*split.train, *split.test]
    if place and (place / "groups.csv").is_file():
        told = read_groups(place / "groups.csv")
        groups = [told.get(without_suffix(video.listed).casefold(), "") for video in videos]
    else:
        groups = find_groups([video.listed for video in videos], [split.class_names[v.label] for v in videos])
    videos = [replace(video, group=group) for video, group in zip(videos, groups, strict=True)]
    return replace(split, train=videos[: len(split.train)], test=videos[len(split.train) :])


def read_column(file: Path, column: str) -> dict[str, str]:
    """Return {video: its value in `column`} from a CSV file with these two columns. Raises InputError."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            return {row["video"].strip(): row[column].strip() for row in csv.DictReader(opened)}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    except (KeyError, AttributeError):
        raise InputError(f"{file}: expected a CSV file with the columns video and {column} in each row") from None


def read_groups(file: Path) -> dict[str, str]:
    """Return {lower-case path without suffix: group} from groups.csv (video, group). Raises InputError."""
    return {without_suffix(video).casefold(): group for video, group in read_column(file, "group").items()}


def _split_by_groups(names: Iterable[str], number: str) -> Split:
    """Split by group: groups 1-7 are tested in split 1, 8-14 in split 2, 15-21 in split 3; others train."""
    if number not in ("1", "2", "3"):
        raise InputError(f"--split {number}: without lists (--ucf-list) there are the splits 1, 2 and 3")
    found = {name: ucf_parts(name) for name in names}
    if not found:
        raise InputError("no videos on disk to split; extract frames first (data/extract_rgb.py)")
    if other := next((name for name, parts in found.items() if not parts), None):
        raise InputError(f"{other} is not named like UCF101's v_Class_gXX_cYY, so no rule tells its split: write "
                         "lists with data/make_split.py and give their folder to --ucf-list")  # fmt: skip
    named = {name: parts for name, parts in sorted(found.items()) if parts}
    on_disk = {class_.casefold(): class_ for class_, _, _ in named.values()}
    ucf101 = on_disk.keys() <= {name.casefold() for name in UCF101_CLASSES}
    dataset, class_names = ("ucf101", list(UCF101_CLASSES)) if ucf101 else ("own", sorted(on_disk.values()))
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    sides: tuple[dict[str, Video], dict[str, Video]] = {}, {}
    for name, (class_, group, _) in named.items():
        label = labels[class_.casefold()]
        video = Video(video_keys([name], [class_names[label]])[0], label, name)
        tests = (int(group) - 1) // 7 == int(number) - 1
        sides[tests].setdefault(video.name, video)  # the index reports a video in two folders
    train, test = (sorted(side.values(), key=lambda video: (video.label, video.name)) for side in sides)
    return Split(dataset, number, class_names, train, test)


def hold_out_groups(train: list[Video], groups: int) -> tuple[list[Video], list[Video]]:
    """Move the last `groups` groups of each class out of training, for model selection: (train, val).

    If no groups are known, the share `groups` / USUAL_GROUPS (UCF101's training groups) of each class's videos
    is held out, in order of names: else a few videos would choose the model.
    """
    known = groups <= 0 or any(video.group != video.name for video in train)
    held_out: set[tuple[int, str]] = set()
    for label in {video.label: None for video in train}:
        units = sorted({video.group for video in train if video.label == label})
        number = groups
        if not known:
            number = min(max(1, round(min(groups / USUAL_GROUPS, 0.5) * len(units))), len(units) - 1)
        elif not 0 < groups < len(units):
            raise InputError(f"--val-groups {groups}: a class trains on {plural(len(units), 'group')}; hold out at "
                             "least one and leave at least one")  # fmt: skip
        held_out |= {(label, unit) for unit in units[len(units) - number :]}
    val = [video for video in train if (video.label, video.group) in held_out]
    return [video for video in train if (video.label, video.group) not in held_out], val


# --- reading lists -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    where: str  # "lists/trainlist01.txt line 7"
    path: str
    label: int | None  # as written, counted from 0 or from 1


def read_lists(folder: Path, number: str) -> tuple[Path, Split]:
    """Return the folder of split `number`'s lists (`folder` or a subfolder) and the split; see load_split."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that holds the split lists")
    for place in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        files = sorted(place.glob("*.txt"))
        if any(_HMDB51_FILE.fullmatch(file.name) for file in files):
            split = _read_hmdb51(place, files, number)
        elif any(_role(file) for file in files):
            split = _read_train_and_test(place, files, number)
        else:
            continue
        videos = [*split.train, *split.test]
        count = Counter(video.name.casefold() for video in videos)
        if repeated := [video.listed for video in videos if count[video.name.casefold()] > 1]:
            raise InputError(f"{place}: of split {number}, {len(repeated)} lines name a video that another line names "
                             f"({first_few(repeated)}), and a video in both train and test leaks: delete all but one "
                             "line")  # fmt: skip
        return place, split
    raise InputError(f"{folder} holds no split lists; expected trainlist01.txt and testlist01.txt (UCF101), "
                     "<class>_test_split1.txt (HMDB51), or train.txt and test.txt (data/make_split.py writes them)")


def _read_hmdb51(folder: Path, files: Sequence[Path], number: str) -> Split:
    matches = [(match, file) for file in files if (match := _HMDB51_FILE.fullmatch(file.name))]
    found = {(match["class"], match["number"].lstrip("0")): file for match, file in matches}
    class_names = sorted({class_ for class_, _ in found})
    sides: dict[str, list[Video]] = {"0": [], "1": [], "2": []}  # unused in this split, training, test
    for label, class_ in enumerate(class_names):
        if (class_, number) not in found:
            others = sorted({n for c, n in found if c == class_})
            raise InputError(f"{folder} has no {class_}_test_split{number}.txt, only of split {first_few(others)}")
        for where, text in _read_text(found[class_, number]):
            path, use, *_ = [*text.rsplit(None, 1), ""]  # split from the right: names may contain spaces
            if use not in sides:
                raise InputError(f"{where}: expected `name.avi 0|1|2`, found `{text[:80]}`; correct the line")
            sides[use].append(Video(video_keys([path], [class_])[0], label, f"{class_}/{path}"))
    return Split("hmdb51", number, class_names, sides["1"], sides["2"])


def _read_train_and_test(folder: Path, files: Sequence[Path], number: str) -> Split:
    by_role: dict[tuple[str, str], Path] = {}
    for file in files:
        if role := _role(file):
            in_name = _NUMBER.search(file.stem)
            # TSN has two lists of the same videos, rgb and flow; either will do.
            by_role.setdefault((role, in_name[1] if in_name else "only"), file)
    splits = sorted({"1" if n == "only" else n for _, n in by_role})
    if number not in splits:
        raise InputError(f"{folder} has no lists of split {number}, only of split {first_few(splits, 10)}")
    chosen = number if any(n == number for _, n in by_role) else "only"
    test_role = "test" if ("test", chosen) in by_role else "val"
    for role, name in (("train", "train"), (test_role, "test")):
        if (role, chosen) not in by_role:
            raise InputError(f"{folder} has no {name} list of split {number}; add it, as {name}.txt for example")
    train, test = (_parse_list(_read_text(by_role[role, chosen])) for role in ("train", test_role))
    lines = [*train, *test]
    class_names, labels = _classes_and_labels(lines, folder)
    keys = video_keys([line.path for line in lines], [class_names[label] for label in labels])
    videos = [Video(key, label, line.path) for key, label, line in zip(keys, labels, lines, strict=True)]
    dataset = "ucf101" if tuple(class_names) == UCF101_CLASSES else "own"
    return Split(dataset, number, class_names, videos[: len(train)], videos[len(train) :])


def _role(file: Path) -> str | None:
    if file.name.casefold() in _CLASS_FILES:
        return None
    return next((role for role in ("train", "test", "val") if role in file.stem.casefold()), None)


def _read_text(file: Path) -> list[tuple[str, str]]:
    """Return ("file line 7", text) of every non-blank line; CRLF and a byte-order mark are accepted.

    Bytes that are not UTF-8 are decoded like file names, to match names on disk.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as opened:
            lines = _lines(opened, str(file))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    if not lines or any("\0" in text for _, text in lines):
        raise InputError(f"{file} is empty or not UTF-8 text; write a line per video, or per class")
    return lines


def _lines(opened: Iterable[str], name: str) -> list[tuple[str, str]]:
    return [(f"{name} line {i}", line.strip()) for i, line in enumerate(opened, 1) if line.strip()]


def _parse_list(texts: list[tuple[str, str]]) -> list[_Line]:
    """Parse lines, from the right, as `path`, `path label` or `path num_frames label`, as most lines are."""
    trailing = [_TRAILING.findall(re.sub(r"\s+", " ", text)) for _, text in texts]
    form = Counter(map(len, trailing)).most_common(1)[0][0]
    lines = []
    for (where, text), numbers in zip(texts, trailing, strict=True):
        path = text.rsplit(None, form)[0] if len(numbers) >= form > 0 else text
        if path[0] == path[-1] == '"':  # as Windows copies a path
            path = path[1:-1]
        path = path.replace("\\", "/").rstrip("/")
        if len(numbers) < form or without_suffix(path)[-1:] in ("", "/"):
            found = text[:80]
            raise InputError(f"{where}: expected {_FORMS[form]} as in other lines, found `{found}`; correct the line")
        lines.append(_Line(where, path, int(numbers[-1]) if form else None))
    return lines


def is_listable(path: str, class_name: str, class_names: Iterable[str]) -> bool:
    """Return whether lists can hold a video: reading back its line gives the same path and class."""
    numbered = _NUMBERED.fullmatch(f"0 {class_name}".strip())
    index = {name.casefold(): i for i, name in enumerate(class_names)}
    try:
        text = io.TextIOWrapper(io.BytesIO(f"{path} 0\n".encode()), "utf-8-sig")
        (line,) = _parse_list(_lines(text, ""))
    except (InputError, ValueError):
        return False
    same = line.path == path and numbered is not None and numbered[2] == class_name
    return same and _named_class(path, index) == index[class_name.casefold()]


def _classes_and_labels(lines: list[_Line], folder: Path) -> tuple[list[str], list[int]]:
    """Return the class names in label order, and each line's class, 0-based."""
    remedy = f"name the classes in {folder / 'classes.txt'}, one per line in the order of their labels"
    class_file = next((file for file in folder.glob("*.txt") if file.name.casefold() in _CLASS_FILES), None)
    names, first = _read_classes(class_file) if class_file else (_classes_in(lines, remedy), 0)
    index = {name.casefold(): i for i, name in enumerate(names)}
    labels = [_named_class(line.path, index) for line in lines]
    if labels.count(None) == len(labels):  # no path names a class: the labels alone do
        labels = [None if line.label is None else line.label - first for line in lines]
    written: dict[int, int] = {}  # class -> its label in the lists
    meant: dict[int, int] = {}  # and back
    result = []
    for line, label in zip(lines, labels, strict=True):
        if label is None or not 0 <= label < len(names):
            raise InputError(f"{line.where}: {line.path} is of none of the {len(names)} classes; correct the line")
        result.append(label)
        if line.label is not None:
            before = written.setdefault(label, line.label), meant.setdefault(line.label, label)
            if before != (line.label, label):
                raise InputError(f"{line.where}: earlier lines give {line.label} another class, or {names[label]} "
                                 f"another label; correct the line, or {remedy}")  # fmt: skip
    if class_file or not written:
        return names, result
    order = sorted(range(len(names)), key=lambda label: written.get(label, len(names)))
    return [names[label] for label in order], [order.index(label) for label in result]


def _read_classes(file: Path) -> tuple[list[str], int]:
    """Read lines `1 ApplyEyeMakeup` or plain names: (class names in label order, first label as written)."""
    names, first = [text for _, text in _read_text(file)], 0
    if _NUMBERED.fullmatch(names[0]):
        by_number = {int(match[1]): match[2] for match in map(_NUMBERED.fullmatch, names) if match}
        first, lines = min(by_number), len(names)
        names = [by_number[i] for i in sorted(by_number)]
        if first > 1 or sorted(by_number) != list(range(first, first + lines)):
            raise InputError(f"{file}: number all classes 1, 2, 3, ... without a gap or a repeat, or none")
    if len({name.casefold() for name in names}) < len(names):
        raise InputError(f"{file}: a class occurs twice; delete one of the two lines")
    return names, first


def _classes_in(lines: list[_Line], remedy: str) -> list[str]:
    """Return the classes that the paths name: in UCF101's order if they are UCF101's, else sorted."""
    names: dict[str, str] = {}
    for line in lines:
        parts, folders = ucf_parts(line.path), line.path.split("/")[:-1]
        if not parts and not folders:
            raise InputError(f"{line.where}: no folder tells the class of {line.path}; {remedy}")
        name = parts[0] if parts else folders[-1]
        names.setdefault(name.casefold(), name)
    if names.keys() <= {name.casefold() for name in UCF101_CLASSES}:
        return [name for name in UCF101_CLASSES if name.casefold() in names]
    return [names[name] for name in sorted(names)]


def _named_class(path: str, index: dict[str, int]) -> int | None:
    """Return the class that a path names, from `index` {lower-case name: class}, or None."""
    parts = ucf_parts(path)
    candidates = [*(parts[:1] if parts else ()), *reversed(path.split("/")[:-1])]
    return next((index[name.casefold()] for name in candidates if name.casefold() in index), None)
