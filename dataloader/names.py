"""What a video is called: its class, its group and its key, from the many ways its path is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from utils import printable

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

VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".webm", ".mpg", ".mpeg", ".mov", ".m4v",
    ".wmv", ".flv", ".mts", ".m2ts", ".ts", ".3gp", ".ogv",
)  # fmt: skip

UCF_NAME = re.compile(r"v_(\w+)_g(\d\d)_c(\d\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Video:
    """One video of a split.

    name: its key in every prediction file, `<Class>_gXX_cYY` for UCF101's naming, else `<Class>/<stem>`
    label: 0-based, an index into Split.class_names
    listed: the name as the list writes it, or as found on disk
    """

    name: str
    label: int
    listed: str


def without_suffix(path: str) -> str:
    """The path with slashes and without a video's suffix; other dots belong to the name."""
    path = path.replace("\\", "/").rstrip("/")
    return path[: path.rindex(".")] if path.lower().endswith(VIDEO_SUFFIXES) else path


def ucf_parts(name: str) -> tuple[str, str, str] | None:
    """(class, group, clip) of a path or key of UCF101's naming, None for others.

    A key has no folder and no `v_`; with a folder before it, only `v_Class_gXX_cYY` is of UCF101's naming.

    >>> ucf_parts("HandstandPushups/v_HandStandPushups_g01_c02.avi")
    ('HandStandPushups', '01', '02')
    """
    folder, _, stem = without_suffix(name).rpartition("/")
    match = UCF_NAME.fullmatch(stem if folder or stem[:2] in ("v_", "V_") else f"v_{stem}")
    return (match[1], match[2], match[3]) if match else None


def video_key(path: str, class_name: str) -> str:
    """The key of the video at `path` whose class is `class_name`, in the class list's spelling."""
    parts = ucf_parts(path)
    if parts and parts[0].casefold() == class_name.casefold():
        return f"{class_name}_g{parts[1]}_c{parts[2]}"
    return f"{class_name}/{without_suffix(path).rpartition('/')[2]}"


def group_of(name: str) -> str:
    """The recording that a video, given by its key, was cut from: videos of one must not be on both sides.

    The group in UCF101's names, the part before `_<class>_` in HMDB51's, or before a last `_<class>` (Weizmann's
    `daria_run`); a name that tells neither is a group by itself. Sorted as text, groups are in order.
    """
    if parts := ucf_parts(name):
        return parts[1]
    folder, _, stem = name.rpartition("/")
    return f"{stem}_".partition(f"_{folder}_")[0].removesuffix("_") if folder else stem


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first few of many names, for an error's line: `a, b, c and 7 more`."""
    names = list(map(printable, names))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
