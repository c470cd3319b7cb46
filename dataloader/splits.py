"""Which video trains and which tests, and what its class is.

UCF101's and HMDB51's official lists, lists of one's own (also in TSN's form), and UCF101's group rule for
those who have no lists. Formats and traps: classInd's order is not a sort of the folder names; the lists
write `v_HandStandPushups`, the class is `HandstandPushups`; HMDB51's names hold spaces.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils import InputError

# fmt: off
UCF101_CLASSES: tuple[str, ...] = (  # in the order of classInd.txt
    "ApplyEyeMakeup", "ApplyLipstick", "Archery", "BabyCrawling", "BalanceBeam", "BandMarching",
    "BaseballPitch", "Basketball", "BasketballDunk", "BenchPress", "Biking", "Billiards", "BlowDryHair",
    "BlowingCandles", "BodyWeightSquats", "Bowling", "BoxingPunchingBag", "BoxingSpeedBag",
    "BreastStroke", "BrushingTeeth", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "CuttingInKitchen", "Diving", "Drumming", "Fencing", "FieldHockeyPenalty", "FloorGymnastics",
    "FrisbeeCatch", "FrontCrawl", "GolfSwing", "Haircut", "Hammering", "HammerThrow", "HandstandPushups",
    "HandstandWalking", "HeadMassage", "HighJump", "HorseRace", "HorseRiding", "HulaHoop", "IceDancing",
    "JavelinThrow", "JugglingBalls", "JumpingJack", "JumpRope", "Kayaking", "Knitting", "LongJump",
    "Lunges", "MilitaryParade", "Mixing", "MoppingFloor", "Nunchucks", "ParallelBars", "PizzaTossing",
    "PlayingCello", "PlayingDaf", "PlayingDhol", "PlayingFlute", "PlayingGuitar", "PlayingPiano",
    "PlayingSitar", "PlayingTabla", "PlayingViolin", "PoleVault", "PommelHorse", "PullUps", "Punch",
    "PushUps", "Rafting", "RockClimbingIndoor", "RopeClimbing", "Rowing", "SalsaSpin", "ShavingBeard",
    "Shotput", "SkateBoarding", "Skiing", "Skijet", "SkyDiving", "SoccerJuggling", "SoccerPenalty",
    "StillRings", "SumoWrestling", "Surfing", "Swing", "TableTennisShot", "TaiChi", "TennisSwing",
    "ThrowDiscus", "TrampolineJumping", "Typing", "UnevenBars", "VolleyballSpiking", "WalkingWithDog",
    "WallPushups", "WritingOnBoard", "YoYo",
)
# fmt: on

# (training, test) videos of each official split
UCF101_COUNTS = {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)}
HMDB51_COUNTS = {"1": (3570, 1530), "2": (3570, 1530), "3": (3570, 1530)}

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mpg", ".mpeg", ".mov", ".m4v", ".wmv")

_UCF_NAME = re.compile(r"v_(?P<class>.+)_g(?P<group>\d+)_c(?P<clip>\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Video:
    """One video of a split.

    name: its key in every prediction file: `<Class>_gXX_cYY` for a name of UCF101's form, else `<Class>/<stem>`
    label: 0-based, an index into Split.class_names
    listed: the name as the list writes it, or as found on disk
    """

    name: str
    label: int
    listed: str


@dataclass(frozen=True)
class Split:
    """One split of a dataset: "ucf101", "hmdb51" or "own". The videos stand in the order of their list."""

    dataset: str
    number: str
    class_names: list[str]
    train: list[Video]
    test: list[Video]

    def official_counts(self) -> tuple[int, int] | None:
        """(training, test) videos of the complete official split; None for one's own dataset."""
        return {"ucf101": UCF101_COUNTS, "hmdb51": HMDB51_COUNTS}.get(self.dataset, {}).get(self.number)


def load_split(
    list_dir: str | Path | None, number: int | str, names_on_disk: Iterable[str] = (), verbose: bool = True
) -> Split:
    """The split `number`, from the lists in `list_dir`, or by UCF101's group rule if that is None.

    The lists are the authority: what they name is in the split, on disk or not (layouts.match compares).
    Their format is detected:
      UCF101   classInd.txt, trainlistNN.txt, testlistNN.txt
      HMDB51   <class>_test_splitN.txt, lines `name.avi 0|1|2`
      own      train.txt and test.txt, or several splits with a number in the file's name (trainlist02.txt,
               ucf101_rgb_val_split_2.txt; "val" means test where there is no test list); lines are `path`,
               `path label` or TSN's `path num_frames label`; the classes' order is that of classes.txt (or
               classInd.txt) if there is one, else the labels', else the sorted folder names'

    `names_on_disk` (for the group rule): video folders or files of UCF101's form, `v_Class_gXX_cYY`, in any
    folder, with or without the `v_`. `verbose` prints the rule's counts beside the official ones.
    Raises InputError, one line, for whatever is wrong with a list.
    """
    number = str(number).strip().lstrip("0") or "0"
    if list_dir is None:
        return _split_by_groups(names_on_disk, number, verbose)
    folder = Path(list_dir)
    if not folder.is_dir():
        raise InputError(f"no folder of split lists at {folder}; give the folder that holds them")
    for place in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        if any(_HMDB_FILE.fullmatch(file.name) for file in place.iterdir()):
            return _check(_read_hmdb51(place, number), place)
        if any(_role(file) for file in place.glob("*.txt")):
            return _check(_read_lists(place, number), place)
    raise InputError(
        f"no split lists in {folder}: expected trainlist01.txt and testlist01.txt (UCF101), "
        "<class>_test_split1.txt (HMDB51), or train.txt and test.txt (data/make_split.py writes those)"
    )


def hold_out_groups(train: list[Video], groups: int) -> tuple[list[Video], list[Video]]:
    """Move the last `groups` groups of each class out of training: (train, val).

    A group is what must not be on both sides, because its videos were cut from one recording: gXX in
    UCF101's names, the part before `_<class>_` in HMDB51's. A name that tells neither is a group by itself,
    so with one's own videos this holds out the last `groups` videos of each class, in the order of their names.
    """
    if groups < 1:
        raise InputError(f"--val-groups {groups}: at least one group must be held out")
    found: dict[int, set[str]] = defaultdict(set)
    for video in train:
        found[video.label].add(group_of(video.name))
    held_out = {label: set(sorted(names)[-groups:]) for label, names in found.items()}
    for video in train:
        if len(found[video.label]) <= groups:
            raise InputError(
                f"--val-groups {groups} leaves no training video in the class of {video.name}, which has "
                f"{len(found[video.label])} groups; hold out fewer"
            )
    val = [video for video in train if group_of(video.name) in held_out[video.label]]
    rest = [video for video in train if group_of(video.name) not in held_out[video.label]]
    return rest, val


def group_of(name: str) -> str:
    """The recording that a video (by its key) was cut from, as far as its name tells; sorts in group order."""
    folder, _, stem = name.rpartition("/")
    if ucf := ucf_parts(name):
        return f"{ucf[1]:06d}"
    source, found, _ = stem.partition(f"_{folder}_")  # HMDB51: <source>_<class>_<properties>_<number>
    return source if folder and found else stem


def ucf_parts(name: str) -> tuple[str, int, int] | None:
    """(class, group, clip) of a path or key of UCF101's form, None for other names.

    >>> ucf_parts("Class/v_HandStandPushups_g01_c02.avi")
    ('HandStandPushups', 1, 2)
    """
    stem = without_suffix(name)
    last = stem.rpartition("/")[2]
    match = _UCF_NAME.fullmatch(last if "/" in stem or last[:2].lower() == "v_" else f"v_{last}")
    return (match["class"], int(match["group"]), int(match["clip"])) if match else None


def without_suffix(path: str) -> str:
    """The path with slashes and without a video's suffix; other dots belong to the name."""
    path = path.replace("\\", "/").rstrip("/")
    return path[: path.rindex(".")] if path.lower().endswith(VIDEO_SUFFIXES) else path


def video_key(path: str, class_name: str) -> str:
    """The key of the video at `path` whose class is `class_name` (its spelling in the class list)."""
    stem = without_suffix(path).rpartition("/")[2]
    match = _UCF_NAME.fullmatch(stem if stem[:2].lower() == "v_" else f"v_{stem}")
    if match and match["class"].casefold() == class_name.casefold():
        return f"{class_name}_g{match['group']}_c{match['clip']}"
    return f"{class_name}/{stem}"


# ---------------------------------------------------------------------------------------- the group rule


def _split_by_groups(names: Iterable[str], number: str, verbose: bool) -> Split:
    """Groups 1-7 are split 1's test set, 8-14 split 2's, 15-21 split 3's; all others train."""
    if number not in UCF101_COUNTS:
        raise InputError(f"--split {number}: without list files there are the splits 1, 2 and 3")
    found = {}
    for name in names:
        parts = ucf_parts(name)
        if parts is None:
            raise InputError(
                f"{name} is not named as UCF101's videos are (v_Class_gXX_cYY), so no rule splits it: write lists "
                "with data/make_split.py and give their folder as --ucf-list"
            )
        found[name] = parts
    if not found:
        raise InputError("no videos on disk to split; extract frames first (data/extract_rgb.py)")
    spelling = {class_.casefold(): class_ for class_ in UCF101_CLASSES}
    unknown = {class_ for class_, _, _ in found.values() if class_.casefold() not in spelling}
    dataset, class_names = "ucf101", list(UCF101_CLASSES)
    if unknown:
        if any(class_.casefold() in spelling for class_, _, _ in found.values()):
            raise InputError(
                f"not classes of UCF101: {first_few(unknown)}; give list files (--ucf-list) or move them away"
            )
        dataset, class_names = "own", sorted(unknown)
        spelling = {class_.casefold(): class_ for class_ in class_names}
    label = {name: index for index, name in enumerate(class_names)}
    videos = []
    for name, (class_, group, clip) in found.items():
        class_ = spelling[class_.casefold()]
        videos.append((label[class_], group, clip, Video(video_key(name, class_), label[class_], name)))
    videos.sort(key=lambda video: video[:3])
    first_test_group = 7 * int(number) - 6
    test_groups = range(first_test_group, first_test_group + 7)
    split = Split(
        dataset,
        number,
        class_names,
        [video for _, group, _, video in videos if group not in test_groups],
        [video for _, group, _, video in videos if group in test_groups],
    )
    if verbose:
        official = split.official_counts()
        beside = f" (official: {official[0]} and {official[1]})" if official else ""
        print(
            f"split {number} by the group rule (groups {test_groups[0]}-{test_groups[-1]} test): "
            f"{len(split.train)} training and {len(split.test)} test videos on disk{beside}"
        )
    return split


# ------------------------------------------------------------------------------------------- list files

_HMDB_FILE = re.compile(r"(?P<class>.+)_test_split(?P<number>\d+)\.txt")
_NUMBER_IN_NAME = re.compile(r"(?:list|split|fold|train|test|val)[ _-]*0*(\d+)", re.IGNORECASE)
_CLASS_FILES = ("classind.txt", "classes.txt")


@dataclass(frozen=True)
class _Line:
    where: str  # "trainlist01.txt line 7"
    path: str
    label: int | None  # as written: counted from 0 or from 1


def _read_text(file: Path) -> list[tuple[str, str]]:
    """[("file line 7", text)] of every line that isn't blank; CRLF and a byte-order mark do no harm."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    lines = re.split(r"\r\n|\r|\n", text)
    return [(f"{file} line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


def _read_hmdb51(folder: Path, number: str) -> Split:
    files = {}
    for file in sorted(folder.iterdir()):
        if match := _HMDB_FILE.fullmatch(file.name):
            files[match["class"], match["number"].lstrip("0")] = file
    class_names = sorted({class_ for class_, _ in files})
    train, test = [], []
    for label, class_ in enumerate(class_names):
        if (class_, number) not in files:
            splits = sorted({n for c, n in files if c == class_})
            raise InputError(
                f"no {class_}_test_split{number}.txt in {folder}; of that class it has split {first_few(splits)}"
            )
        for where, line in _read_text(files[class_, number]):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name.strip():
                raise InputError(f"{where}: expected `name.avi 0|1|2`, found `{line}`; correct the line")
            video = Video(video_key(name.strip(), class_), label, f"{class_}/{name.strip()}")
            if use != "0":
                (train if use == "1" else test).append(video)
    return Split("hmdb51", number, class_names, train, test)


def _role(file: Path) -> str | None:
    name = file.stem.casefold()
    if f"{name}.txt" in _CLASS_FILES:
        return None
    return next((role for role in ("train", "test", "val") if role in name), None)


def _read_lists(folder: Path, number: str) -> Split:
    files = defaultdict(list)
    for file in sorted(folder.glob("*.txt")):
        if role := _role(file):
            in_name = _NUMBER_IN_NAME.search(file.stem)
            files[role, in_name[1] if in_name else None].append(file)
    numbers = {n for _, n in files if n}
    chosen = number if number in numbers else None
    if chosen is None and (number != "1" or not any(n is None for _, n in files)):
        raise InputError(
            f"no lists of split {number} in {folder}; it has split {first_few(sorted(numbers or {'1'}))}"
        )
    test_role = "test" if ("test", chosen) in files else "val"
    for role in ("train", test_role):
        if (role, chosen) not in files:
            names = "train.txt" if role == "train" else "test.txt"
            raise InputError(f"{folder} has no {role} list for split {number} (such as {names}); add it")
    class_names, first_index = _read_classes(folder)
    train_lines = _read_list(files["train", chosen])
    test_lines = _read_list(files[test_role, chosen])
    lines = train_lines + test_lines
    if class_names is None:
        class_names = _classes_of_lines(lines, folder)
    labels = _labels(lines, class_names, first_index, folder)
    videos = [
        Video(video_key(line.path, class_names[label]), label, line.path)
        for line, label in zip(lines, labels, strict=True)
    ]
    for part, part_lines in (
        (videos[: len(train_lines)], train_lines),
        (videos[len(train_lines) :], test_lines),
    ):
        seen: dict[str, str] = {}
        for video, line in zip(part, part_lines, strict=True):
            if (first := seen.setdefault(video.name.casefold(), line.where)) is not line.where:
                raise InputError(
                    f"{line.where}: {video.listed} stands already in {first}; delete one of the two lines"
                )
    is_ucf101 = tuple(class_names) == UCF101_CLASSES
    return Split(
        "ucf101" if is_ucf101 else "own",
        number,
        class_names,
        videos[: len(train_lines)],
        videos[len(train_lines) :],
    )


def _read_classes(folder: Path) -> tuple[list[str] | None, int]:
    """(class names in label order, what the first one's label is as written) of classInd.txt or classes.txt."""
    file = next(
        (f for name in _CLASS_FILES for f in sorted(folder.glob("*.txt")) if f.name.casefold() == name), None
    )
    if file is None:
        return None, 0
    lines = [text for _, text in _read_text(file)]
    numbered = [re.fullmatch(r"(\d+)[\s,]+(.+)", text) for text in lines]
    first_index = 0
    if lines and all(numbered):
        entries = sorted((int(match[1]), match[2]) for match in numbered if match)
        first_index = entries[0][0]
        if [index for index, _ in entries] != list(
            range(first_index, first_index + len(entries))
        ) or first_index > 1:
            raise InputError(f"{file}: the classes are not numbered 1, 2, 3, ... without a gap; correct it")
        lines = [name for _, name in entries]
    repeated = [name for name, count in Counter(name.casefold() for name in lines).items() if count > 1]
    if repeated or not lines:
        raise InputError(
            f"{file}: {f'the class {repeated[0]} stands there twice' if repeated else 'no classes'}; correct it"
        )
    return lines, first_index


def _read_list(files: list[Path]) -> list[_Line]:
    """The lines of one list. Two lists for the same split (TSN's rgb and flow) must name the same videos."""
    lists = [_parse_list(file) for file in files]
    contents = {frozenset((without_suffix(line.path), line.label) for line in lines) for lines in lists}
    if len(contents) > 1:
        raise InputError(
            f"{files[0]} and {files[1].name} are lists of the same split but differ; leave one of them"
        )
    return lists[0]


def _parse_list(file: Path) -> list[_Line]:
    """`path`, `path label` or `path num_frames label`, whichever most lines are; read from the right."""
    lines = _read_text(file)
    if not lines:
        raise InputError(f"{file} is empty; list at least one video")
    integers = [len(re.search(r"(?:\s+-?\d+){0,2}$", text)[0].split()) for _, text in lines]  # type: ignore[index]
    form = Counter(integers).most_common(1)[0][0]
    wanted = ("`path`", "`path label`", "`path num_frames label`")[form]
    parsed = []
    for (where, text), found in zip(lines, integers, strict=True):
        path, *numbers = text.rsplit(None, form) if form else [text]
        cut = without_suffix(path.split()[0]) != path.split()[0] and len(path.split()) > 1
        if found < form or cut or "\0" in path:
            raise InputError(
                f"{where}: expected {wanted} as in the other lines, found `{text}`; correct the line"
            )
        parsed.append(_Line(where, path.replace("\\", "/"), int(numbers[-1]) if numbers else None))
    return parsed


def _classes_of_lines(lines: list[_Line], folder: Path) -> list[str]:
    """Class names where no file gives them: UCF101's if all are of it, else what the paths say, by label."""
    named = [_class_in_path(line.path) for line in lines]
    ucf101 = {name.casefold() for name in UCF101_CLASSES}
    if all(name and name.casefold() in ucf101 for name in named):
        return list(UCF101_CLASSES)
    for line, name in zip(lines, named, strict=True):
        if not name:
            raise InputError(
                f"{line.where}: {line.path} has no class folder; name the classes, one per line, in {folder / 'classes.txt'}"
            )
    by_label: dict[int, set[str]] = defaultdict(set)
    for line, name in zip(lines, named, strict=True):
        if line.label is not None and name:
            by_label[line.label].add(name)
    if not by_label:
        return sorted({name for name in named if name})
    labels, names = sorted(by_label), [name for found in by_label.values() for name in found]
    if (
        len(names) != len(labels)
        or len(set(names)) != len(names)
        or labels != list(range(labels[0], labels[0] + len(labels)))
    ):
        raise InputError(
            f"the labels in {folder} don't tell the classes' order (a label for two folders, a folder with two labels, "
            "or a gap); correct them, or name the classes, one per line, in classes.txt"
        )
    return [next(iter(by_label[label])) for label in labels]


def _class_in_path(path: str) -> str | None:
    parts = ucf_parts(path)
    return parts[0] if parts else PurePosixPath(path).parent.name or None


def _labels(lines: list[_Line], class_names: list[str], first_index: int, folder: Path) -> list[int]:
    """Each line's class, 0-based, by its path and by its label; the two must agree.

    Labels count from 0 (TSN) or from 1 (classInd): the paths tell which, where they name classes.
    """
    index = {name.casefold(): i for i, name in enumerate(class_names)}

    def by_path(path: str) -> int | None:
        parts = ucf_parts(path)
        folders = [part.casefold() for part in reversed(path.split("/")[:-1])]
        candidates = [*([parts[0].casefold()] if parts else []), *folders]
        return next((index[name] for name in candidates if name in index), None)

    told = [by_path(line.path) for line in lines]
    paths_tell = any(label is not None for label in told)
    offsets = Counter(
        line.label - label for line, label in zip(lines, told, strict=True) if None not in (line.label, label)
    )
    base = offsets.most_common(1)[0][0] if offsets else first_index
    labels = []
    for line, label in zip(lines, told, strict=True):
        if label is None and (paths_tell or line.label is None):
            raise InputError(
                f"{line.where}: {line.path} is of no class in {_classes_named(folder, class_names)}; correct the line"
            )
        written = None if line.label is None else line.label - base
        if written is not None and not 0 <= written < len(class_names):
            raise InputError(
                f"{line.where}: label {line.label} is none of {_classes_named(folder, class_names)}; correct the line"
            )
        if None not in (written, label) and written != label:
            raise InputError(
                f"{line.where}: the label {line.label} means {class_names[written]}, the name says "
                f"{class_names[label]}; correct the line"
            )
        labels.append(written if label is None else label)
    return labels


def _classes_named(folder: Path, class_names: list[str]) -> str:
    return f"the {len(class_names)} classes of {folder}"


def _check(split: Split, folder: Path) -> Split:
    """A video in both train and test is a leak: the test would be on what was learnt."""
    trained = {video.name.casefold() for video in split.train}
    leaked = [video.listed for video in split.test if video.name.casefold() in trained]
    if leaked:
        raise InputError(
            f"{folder}: in both train and test of split {split.number}: {first_few(leaked)}; take them out of one"
        )
    return split


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first few of many names, for an error line: `a, b, c and 7 more`."""
    names = sorted(names) if isinstance(names, set) else list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
