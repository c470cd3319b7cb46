"""Which videos train and which test: by official lists, by lists of one's own, or by UCF101's group rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dataloader.lists import read_lists
from dataloader.names import UCF101_CLASSES, Video, first_few, group_of, ucf_parts, video_key
from utils import InputError, plural

USUAL_GROUPS = 18  # of UCF101's training sets, in each class
OFFICIAL_COUNTS = {  # (training, test) videos of each split
    "ucf101": {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)},
    "hmdb51": {"1": (3570, 1530), "2": (3570, 1530), "3": (3570, 1530)},
}


@dataclass(frozen=True)
class Split:
    """One split of a dataset: "ucf101", "hmdb51" or "own". The videos stand in the order of their list."""

    dataset: str
    number: str
    class_names: list[str]
    train: list[Video]
    test: list[Video]

    @property
    def official_counts(self) -> tuple[int, int] | None:
        """(training, test) videos of the complete official split; None for one's own dataset."""
        return OFFICIAL_COUNTS.get(self.dataset, {}).get(self.number)


def load_split(
    list_dir: str | Path | None, number: int | str, names_on_disk: Iterable[str] = (), verbose: bool = True
) -> Split:
    """The split `number`, from the lists in `list_dir`, or by UCF101's group rule if that is None.

    The lists are the authority: what they name is in the split, on disk or not (layouts.match compares).
    Their format is detected:
      UCF101   classInd.txt, trainlistNN.txt, testlistNN.txt
      HMDB51   <class>_test_splitN.txt for each class
      own      train.txt and test.txt; for several splits a number in the names, as in trainlist02.txt or
               ucf101_rgb_val_split_2.txt ("val" means test where there is no test list). Lines are `path`,
               `path label` or TSN's `path num_frames label`. The classes and their order: classes.txt (or
               classInd.txt) if there is one; UCF101's if all are of it; by labels; else the sorted folders

    `names_on_disk`, for the group rule: Index.names, or paths of videos. `verbose` prints the rule's counts
    beside the official ones. Raises InputError, one line, for whatever is wrong with a list.
    """
    number = str(number).strip().lstrip("0")
    if list_dir is None:
        split = _split_by_groups(names_on_disk, number)
        if verbose:
            counts = f"{len(split.train)} training and {len(split.test)} test videos"
            official = "".join(f" (officially {n} and {m})" for n, m in filter(None, [split.official_counts]))
            print(f"no split lists given: split {number} by UCF101's group rule has {counts}{official}")
        return split
    lists = read_lists(Path(list_dir), number)
    return Split(lists.dataset, number, lists.class_names, lists.train, lists.test)


def _split_by_groups(names: Iterable[str], number: str) -> Split:
    """Groups 1-7 are split 1's test set, 8-14 split 2's, 15-21 split 3's; all others train."""
    if number not in ("1", "2", "3"):
        raise InputError(f"--split {number}: without lists (--ucf-list) there are the splits 1, 2 and 3")
    found = {}
    for name in names:
        parts = ucf_parts(name)
        if parts is None:
            raise InputError(
                f"{name} is not named like UCF101's v_Class_gXX_cYY, so no rule tells its split: write lists "
                "with data/make_split.py and give their folder to --ucf-list"
            )
        found[name] = parts
    if not found:
        raise InputError("no videos on disk to split; extract frames first (data/extract_rgb.py)")
    ucf101 = {name.casefold(): name for name in UCF101_CLASSES}
    on_disk = {class_.casefold(): class_ for class_, _, _ in found.values()}
    others = sorted(on_disk[folded] for folded in on_disk.keys() - ucf101.keys())
    if others and len(others) < len(on_disk):
        raise InputError(
            f"UCF101 has no class {first_few(others)}; move such videos away, or give lists (--ucf-list)"
        )
    dataset, class_names = ("own", others) if others else ("ucf101", list(UCF101_CLASSES))
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    train: dict[str, Video] = {}
    test: dict[str, Video] = {}
    first_test_group = 7 * int(number) - 6
    for name, (class_, group, _) in sorted(found.items()):
        label = labels[class_.casefold()]
        video = Video(video_key(name, class_names[label]), label, name)
        side = test if first_test_group <= int(group) < first_test_group + 7 else train
        side.setdefault(video.name, video)  # the same video in two folders: layouts reports it
    return Split(dataset, number, class_names, _by_label(train.values()), _by_label(test.values()))


def _by_label(videos: Iterable[Video]) -> list[Video]:
    return sorted(videos, key=lambda video: (video.label, video.name))


def hold_out_groups(train: list[Video], groups: int) -> tuple[list[Video], list[Video]]:
    """Move the last `groups` groups of each class out of training, to select and schedule by: (train, val).

    Groups are names.group_of's: UCF101's, HMDB51's source videos. Where names tell no groups, each video would be
    one, and a few videos would choose the model: there the part of each class is held out that `groups` are of
    UCF101's USUAL_GROUPS in training, in the order of names.
    """
    of_class: dict[int, set[str]] = defaultdict(set)
    for video in train:
        of_class[video.label].add(group_of(video.name))
    if groups > 0 and all(group_of(video.name) == video.name.rpartition("/")[2] for video in train):
        return _hold_out_fraction(train, min(groups / USUAL_GROUPS, 0.5))
    for video in train:
        if not 0 < groups < len(of_class[video.label]):
            raise InputError(
                f"--val-groups {groups}: {video.name}'s class trains on {plural(len(of_class[video.label]), 'group')}; "
                "hold out at least one and leave at least one"
            )
    last = {label: set(sorted(found)[-groups:]) for label, found in of_class.items()}
    val = [video for video in train if group_of(video.name) in last[video.label]]
    rest = [video for video in train if group_of(video.name) not in last[video.label]]
    return rest, val


def _hold_out_fraction(train: list[Video], fraction: float) -> tuple[list[Video], list[Video]]:
    """The last videos of each class, by name, at least one of each that has two: (train, val)."""
    of_class: dict[int, list[str]] = defaultdict(list)
    for video in train:
        of_class[video.label].append(video.name)
    val_names = set()
    for names in of_class.values():
        held_out = min(max(1, round(fraction * len(names))), len(names) - 1)
        val_names.update(sorted(names)[len(names) - held_out :])
    return [v for v in train if v.name not in val_names], [v for v in train if v.name in val_names]
