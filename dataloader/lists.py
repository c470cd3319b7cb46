"""Split of videos into training and test sets: by lists (UCF101, HMDB51, your own) or UCF101's group rule."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dataloader.list_files import read_groups, read_lists, split_by_groups
from dataloader.names import find_groups, first_few, video_keys, without_suffix
from utils import InputError, plural

USUAL_GROUPS = 18  # training groups in each class of UCF101
OFFICIAL_COUNTS = {  # (training, test) videos of each split
    "ucf101": {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)},
    "hmdb51": {"1": (3570, 1530), "2": (3570, 1530), "3": (3570, 1530)},
}


@dataclass(frozen=True)
class Video:
    """One video of a split.

    Videos of one group show the same recording or person. They are alike, so they stay on one side of any
    split and are resampled together. A group may span classes.
    """

    name: str  # key in every prediction file: `<Class>_gXX_cYY` for UCF101's naming, else `<Class>/<stem>`
    label: int  # from 0, an index into Split.class_names
    listed: str  # the name as the list writes it, or as found on disk
    group: str = field(default="", compare=False)  # its own name if it has none


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

    The lists (dataloader/list_files.py) decide: a listed video is in the split, whether on disk or not.

    Groups come from groups.csv beside the lists, if present (columns video and group; a video without a row
    is its own group), else from names.find_groups.

    The group rule needs `names_on_disk`: Index.names, or paths of videos. `verbose` prints the rule's counts
    beside the official ones. Raises a one-line InputError for anything wrong with a list.
    """
    number = str(number).strip().lstrip("0")
    place = None
    if list_dir is not None:
        place, (dataset, class_names, train, test) = read_lists(Path(list_dir), number)
    else:
        dataset, class_names, train, test = split_by_groups(names_on_disk, number)
    paths, labels = [path for path, _ in train + test], [label for _, label in train + test]
    classes = [class_names[label] for label in labels]
    keys = video_keys(paths, classes)
    count = Counter(map(str.casefold, keys))
    if repeated := [path for path, key in zip(paths, keys, strict=True) if count[key.casefold()] > 1]:
        raise InputError(f"{place}: of split {number}, {len(repeated)} lines name a video that another line names "
                         f"({first_few(repeated)}), and a video in both train and test leaks: delete all but one "
                         "line")  # fmt: skip
    if place and (place / "groups.csv").is_file():
        told = read_groups(place / "groups.csv")
        groups = [told.get(without_suffix(path).casefold(), "") for path in paths]
    else:
        groups = find_groups(paths, classes)
    groups = [group or key for group, key in zip(groups, keys, strict=True)]
    videos = [Video(*fields) for fields in zip(keys, labels, paths, groups, strict=True)]
    split = Split(dataset, number, class_names, videos[: len(train)], videos[len(train) :])
    if place is None and verbose:
        official = " (officially {} and {})".format(*split.official_counts) if split.official_counts else ""
        print(f"no split lists given: split {number} by UCF101's group rule has {len(train)} training and "
              f"{len(test)} test videos{official}")  # fmt: skip
    return split


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
