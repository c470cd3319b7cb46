"""The videos of a split's two sides: by files of lists, whose format is detected, or by UCF101's group rule.

  UCF101   classInd.txt, trainlistNN.txt, testlistNN.txt
  HMDB51   <class>_test_splitN.txt for each class
  own      train.txt and test.txt; for several splits a number in the names, as in trainlist02.txt or
           ucf101_rgb_val_split_2.txt ("val" means test if there is no test list). Lines are `path`,
           `path label` or TSN's `path num_frames label`. A path names its class, by a folder or UCF101's
           naming, if any path does; otherwise labels do. Classes and order come from classes.txt (or
           classInd.txt) if there is one, else from the paths: ordered by label, as in UCF101, or sorted

Error messages name the file and line. groups.csv, beside the lists, tells the groups.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from dataloader.names import UCF101_CLASSES, first_few, ucf_parts, video_key, without_suffix
from utils import InputError

# (dataset, its classes in label order, training videos, test videos); a video is (path as listed, label)
Listed: TypeAlias = tuple[str, list[str], list[tuple[str, int]], list[tuple[str, int]]]

_HMDB51_FILE = re.compile(r"(?P<class>.+)_test_split(?P<number>\d+)\.txt")
_NUMBER = re.compile(r"(?:list|split|fold|train|test|val)[ _-]*0*(\d+)", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,9})[\s,]+(\S.*)")  # a class with its number
_TRAILING = re.compile(r"\s-?\d{1,9}(?=(?:\s-?\d{1,9})?$)")  # numbers after a path, at most two
_CLASS_FILES = ("classind.txt", "classes.txt")
_FORMS = ("`path`", "`path label`", "`path num_frames label`")


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


def split_by_groups(names: Iterable[str], number: str) -> Listed:
    """Split by group: groups 1-7 are tested in split 1, 8-14 in split 2, 15-21 in split 3; others train."""
    if number not in ("1", "2", "3"):
        raise InputError(f"--split {number}: without lists (--ucf-list) there are the splits 1, 2 and 3")
    named = {name: ucf_parts(name) or ("", "", "") for name in sorted(names)}
    if not named:
        raise InputError("no videos on disk to split; extract frames first (data/extract_rgb.py)")
    if other := next((name for name, (class_, _, _) in named.items() if not class_), None):
        raise InputError(f"{other} is not named like UCF101's v_Class_gXX_cYY, so no rule tells its split: write "
                         "lists with data/make_split.py and give their folder to --ucf-list")  # fmt: skip
    on_disk = {class_.casefold(): class_ for class_, _, _ in named.values()}
    ucf101 = on_disk.keys() <= {name.casefold() for name in UCF101_CLASSES}
    dataset, class_names = ("ucf101", list(UCF101_CLASSES)) if ucf101 else ("own", sorted(on_disk.values()))
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    sides: tuple[dict, dict] = {}, {}  # training, test: {(label, key): path}
    for name, (class_, group, _) in named.items():
        label = labels[class_.casefold()]
        tests = (int(group) - 1) // 7 == int(number) - 1
        sides[tests].setdefault((label, video_key(name, class_names[label])), name)  # it may be in two folders
    train, test = ([(path, label) for (label, _), path in sorted(side.items())] for side in sides)
    return dataset, class_names, train, test


def read_lists(folder: Path, number: str) -> tuple[Path, Listed]:
    """Return the folder of split `number`'s lists (`folder` or a subfolder), and what they list."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that holds the split lists")
    for place in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        files = sorted(place.glob("*.txt"))
        if any(_HMDB51_FILE.fullmatch(file.name) for file in files):
            return place, _read_hmdb51(place, files, number)
        if any(_role(file) for file in files):
            return place, _read_train_and_test(place, files, number)
    raise InputError(f"{folder} holds no split lists; expected trainlist01.txt and testlist01.txt (UCF101), "
                     "<class>_test_split1.txt (HMDB51), or train.txt and test.txt (data/make_split.py writes them)")


def _read_hmdb51(folder: Path, files: Sequence[Path], number: str) -> Listed:
    of_class: dict[str, dict[str, Path]] = defaultdict(dict)  # class -> split -> its file
    for match in filter(None, (_HMDB51_FILE.fullmatch(file.name) for file in files)):
        of_class[match["class"]][match["number"].lstrip("0")] = folder / match.string
    class_names = sorted(of_class)
    sides: dict[str, list[tuple[str, int]]] = {"0": [], "1": [], "2": []}  # unused in this split, training, test
    for label, class_ in enumerate(class_names):
        if number not in of_class[class_]:
            others = first_few(sorted(of_class[class_]))
            raise InputError(f"{folder} has no {class_}_test_split{number}.txt, only of split {others}")
        for where, text in _read_text(of_class[class_][number]):
            path, use, *_ = [*text.rsplit(None, 1), ""]  # split from the right: names may contain spaces
            if use not in sides:
                raise InputError(f"{where}: expected `name.avi 0|1|2`, found `{text[:80]}`; correct the line")
            sides[use].append((f"{class_}/{path}", label))
    return "hmdb51", class_names, sides["1"], sides["2"]


def _read_train_and_test(folder: Path, files: Sequence[Path], number: str) -> Listed:
    found: dict[str, dict[str, Path]] = defaultdict(dict)  # split, "" if unnumbered -> role -> file
    for file in files:
        if role := _role(file):
            in_name = _NUMBER.search(file.stem)
            # TSN has two lists of the same videos, rgb and flow; either will do.
            found[in_name[1] if in_name else ""].setdefault(role, file)
    splits = sorted({split or "1" for split in found})
    if number not in splits:
        raise InputError(f"{folder} has no lists of split {number}, only of split {first_few(splits, 10)}")
    of_split = found[number if number in found else ""]
    if "val" in of_split:
        of_split.setdefault("test", of_split["val"])
    if absent := ", ".join({"train", "test"} - of_split.keys()):
        raise InputError(f"{folder} has no {absent} list of split {number}; add it, as {absent}.txt for example")
    train, test = (_parse_list(_read_text(of_split[role])) for role in ("train", "test"))
    class_names, labels = _classes_and_labels([*train, *test], folder)
    listed = [(line.path, label) for line, label in zip([*train, *test], labels, strict=True)]
    dataset = "ucf101" if tuple(class_names) == UCF101_CLASSES else "own"
    return dataset, class_names, listed[: len(train)], listed[len(train) :]


def _role(file: Path) -> str | None:
    if file.name.casefold() in _CLASS_FILES:
        return None
    return next((role for role in ("train", "test", "val") if role in file.stem.casefold()), None)


def _read_text(file: Path) -> list[tuple[str, str]]:
    """Return ("file line 7", text) of every non-blank line. Raises InputError if there is none."""
    try:
        lines = _lines(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    if not lines or any("\0" in text for _, text in lines):
        raise InputError(f"{file} is empty or not UTF-8 text; write a line per video, or per class")
    return lines


def _lines(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return ("name line 7", text) of every non-blank line; CRLF and a byte-order mark are accepted."""
    text = data.decode("utf-8-sig", "surrogateescape")  # as file names are decoded, to match names on disk
    lines = io.StringIO(text, newline=None)
    return [(f"{name} line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


class _Line(NamedTuple):
    where: str  # "lists/trainlist01.txt line 7"
    path: str
    label: int | None  # as written, counted from 0 or from 1


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
            raise InputError(f"{where}: expected {_FORMS[form]} as in other lines, found `{text[:80]}`; correct the "
                             "line")  # fmt: skip
        lines.append(_Line(where, path, int(numbers[-1]) if form else None))
    return lines


def is_listable(path: str, class_name: str, class_names: Iterable[str]) -> bool:
    """Return whether lists can hold a video: reading back its line gives the same path and class."""
    numbered = _NUMBERED.fullmatch(f"0 {class_name}".strip())
    index = {name.casefold(): i for i, name in enumerate(class_names)}
    try:
        (line,) = _parse_list(_lines(f"{path} 0\n".encode(), ""))
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
        first = min(by_number)
        if first > 1 or sorted(by_number) != list(range(first, first + len(names))):
            raise InputError(f"{file}: number all classes 1, 2, 3, ... without a gap or a repeat, or none")
        names = [by_number[i] for i in sorted(by_number)]
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
