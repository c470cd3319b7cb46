"""Names of videos: derive class, group and key from the many ways in which a video's path is written."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from utils import printable

# In the order of classInd.txt.
UCF101_CLASSES = tuple(Path(__file__).with_name("ucf101_classes.txt").read_text(encoding="ascii").split())

VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".webm", ".mpg", ".mpeg", ".mov", ".m4v", ".wmv", ".flv", ".mts", ".m2ts", ".ts",
    ".3gp", ".ogv", ".gif", ".vob", ".asf", ".mod", ".divx", ".xvid", ".m2v", ".m1v", ".mpe", ".mpv", ".rm",
    ".rmvb", ".f4v", ".mxf", ".3g2", ".qt", ".dv", ".tod", ".ogm", ".m2t", ".nut", ".y4m", ".h264", ".264",
    ".h265", ".265", ".hevc", ".ivf", ".amv", ".wtv", ".mjpg", ".mjpeg", ".mk3d", ".mp4v", ".m4p", ".swf",
)  # fmt: skip

UCF_NAME = re.compile(r"v_(\w+)_g(\d\d)_c(\d\d)", re.IGNORECASE)

SIDES = {  # names of folders that hold one side of a split
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validate": "val", "validation": "val",
}  # fmt: skip


def without_suffix(path: str) -> str:
    """Return the path with forward slashes and without a video suffix; other dots are part of the name."""
    path = path.replace("\\", "/").rstrip("/")
    return path[: path.rindex(".")] if path.lower().endswith(VIDEO_SUFFIXES) else path


def ucf_parts(name: str) -> tuple[str, str, str] | None:
    """Return (class, group, clip) of a path or key in UCF101's naming, None for others.

    A key has no folder and no `v_`. With a folder before it, only `v_Class_gXX_cYY` is UCF101's naming.

    >>> ucf_parts("HandstandPushups/v_HandStandPushups_g01_c02.avi")
    ('HandStandPushups', '01', '02')
    """
    folder, _, stem = without_suffix(name).rpartition("/")
    match = UCF_NAME.fullmatch(stem if folder or stem[:2] in ("v_", "V_") else f"v_{stem}")
    return (match[1], match[2], match[3]) if match else None


def folded_name(name: str) -> str:
    """Normalise a video's name: ignore case, suffix, v_ and the form of accents (decomposed on macOS)."""
    if parts := ucf_parts(name):
        return f"{parts[0]}_g{parts[1]}_c{parts[2]}".casefold()
    return unicodedata.normalize("NFC", without_suffix(name)).casefold()


def video_key(path: str, class_name: str) -> str:
    """Return the key of the video at `path` with class `class_name`, in the class list's spelling."""
    parts = ucf_parts(path)
    if parts and parts[0].casefold() == class_name.casefold():
        return f"{class_name}_g{parts[1]}_c{parts[2]}"
    return f"{class_name}/{without_suffix(path).rpartition('/')[2]}"


def video_keys(paths: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the key of each video. Equal keys are told apart by folders: `walk/rec1/a`, or `test/walk/a`."""
    keys = [video_key(path, name) for path, name in zip(paths, classes, strict=True)]
    count = Counter(map(str.casefold, keys))
    for i, (path, name) in enumerate(zip(paths, classes, strict=True)):
        parts = without_suffix(path).split("/")
        at = [j for j, part in enumerate(parts[:-1]) if part.casefold() == name.casefold()]
        if at and count[keys[i].casefold()] > 1 and not ucf_parts(path):
            side = at[-1] > 0 and parts[at[-1] - 1].casefold() in SIDES
            keys[i] = "/".join(parts[at[-1] - side :])
    return keys


def find_groups(paths: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the recording or person of each video, as far as all the names together reveal it; else "".

    paths: of the videos, or their keys; classes: the class name of each. UCF101's and HMDB51's names contain
    each video's group. For other names, the first of these parts is taken that, in most classes,
    puts at least half of the videos into several groups of several videos each:
      the folders between the class's and the video   rec1 in walk/rec1/a.avi
      what precedes the class (KTH, Weizmann)         daria in run/daria_run.avi
      what follows it, without a number               daria in run/run_daria.avi
      all but the class and the last word (UCF11)     rec1 in walk/walk_rec1_2.avi, v_01 in v_biking_01_02
      all but the class and the last two words
    """
    groups = [_certain_group(path, name) for path, name in zip(paths, classes, strict=True)]
    left = [i for i, group in enumerate(groups) if not group]
    kinds = zip(*(_parts(paths[i], classes[i]) for i in left), strict=True)
    for parts, across in zip(kinds, (False, True, True, False, False), strict=False):
        if _are_groups(parts, [classes[i] for i in left], across):
            for i, part in zip(left, parts, strict=True):
                groups[i] = part
            break
    return groups


def _certain_group(path: str, class_name: str) -> str:
    if parts := ucf_parts(path):
        return parts[1]
    stem = without_suffix(path).rpartition("/")[2]
    hmdb51 = rf"(.+)_{re.escape(class_name)}_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+"
    match = re.fullmatch(hmdb51, stem, re.IGNORECASE)
    return match[1] if match else ""


def _parts(path: str, class_name: str) -> Iterator[str]:
    """Yield the parts of a name that may tell its recording, in find_groups' order; "" for an absent part."""
    *folders, stem = without_suffix(path).casefold().split("/")
    own = [i for i, folder in enumerate(folders) if folder == class_name.casefold()]
    yield "/".join(folders[own[-1] + 1 :]) if own else ""
    words = [word for word in re.split(r"[\W_]+", stem) if word]
    wanted = "".join(re.split(r"[\W_]+", class_name.casefold()))
    before, after = [], words
    # Find the last place where the class is named: run, or run2, but not run_2.
    for end in range(len(words), 0, -1):
        last = words[end - 1] if words[end - 1].isdigit() else words[end - 1].rstrip("0123456789")
        starts = [i for i in range(end) if wanted in ("".join(words[i:end]), "".join(words[i : end - 1]) + last)]
        if starts:
            before, after = words[: starts[0]], words[end:]
            break
    named = len(before) + len(after) < len(words)
    yield "_".join(before)
    yield "_".join(after) if named and not before and not re.search(r"\d", stem) else ""
    yield "_".join([*before, *after][:-1])
    yield "_".join([*before, *after][:-2])


def _are_groups(parts: Sequence[str], classes: Sequence[str], across: bool) -> bool:
    """Whether, in most classes, at least half of the videos are in several groups of several videos.

    `across` counts a group's videos over all classes. Two groups without a number do not count: IMG and MVI
    are what cameras name their files.
    """
    sizes = Counter((part, "" if across else name) for part, name in zip(parts, classes, strict=True) if part)
    of_class: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part, name in zip(parts, classes, strict=True):
        of_class[name].append((part, "" if across else name))
    agreed = 0
    for found in of_class.values():
        several = {key for key in found if sizes[key] > 1}
        numbered = any(re.search(r"\d", part) for part, _ in several)
        agreed += len(several) > (1 if numbered else 2) and 2 * sum(key in several for key in found) >= len(found)
    return 2 * agreed > len(of_class)


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Join the first few of many names for an error message: `a, b, c and 7 more`."""
    names = list(map(printable, names))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
