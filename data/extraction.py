"""The part shared by both extractions: a killable, resumable, sharded run over a folder of videos.

OUT holds the results, `extraction.json` with their settings, and `failed.csv` if videos failed. Hidden
folders are `.done/<video>.json`, a marker per finished video, written last; `.failed/<video>.json`; and
`.partial/<run>/`, where a run writes each video before it moves it into place with one rename.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from common.commandline import bounded
from common.formats import read_json
from common.progress import Progress
from data.jobs import Report, run_jobs
from data.videos import VideoError, VideoFile
from dataloader.extracted import FILE, claim, read_marker
from utils import InputError, atomic_path, csv_text, file_digest, plural, printable

LONGEST_NAME = 255  # bytes in a file name, on all common file systems

# Writes one video's images to a folder and returns their number: (video, folder, progress) -> images.
# Meanwhile it calls `progress` now and then with the share that is done, 0 to 1.
Writer = Callable[[Path, Path, Callable[[float], None]], int]


def add_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of both extractions. Returns the argument group of those that change the images."""
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos, nested in any way")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    images = parser.add_argument_group("images")
    images.add_argument("--short-side", type=bounded(int, 0), default=256, metavar="PIXELS",
                        help="scale the shorter side to this; 0 keeps the size")
    images.add_argument("--quality", type=bounded(int, 1, 100), default=90, help="JPEG quality, 1 to 100")
    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=bounded(int, 1), metavar="N", help="processes (default: one per core)")
    running.add_argument("--shard", type=parse_shard, default="1/1", metavar="K/N", help="do only the K-th of N parts "
                         "of the videos, K from 1 to N, so that several machines can share one OUT")
    running.add_argument("--overwrite", action="store_true", help="redo what is done, with these settings")
    return images


def parse_shard(text: str) -> tuple[int, int]:
    """Parse '3/16' as (3, 16)."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r}: give K/N with K from 1 to N, such as 3/16")
    return part, parts


class Failure(BaseModel):
    """The content of .failed/<video>.json."""

    video: str
    reason: str


@dataclass(frozen=True)
class Output:
    """The output folder, shared by all processes and machines that extract into it."""

    root: Path
    parts: tuple[str, ...]  # the subfolders that hold each video's folder: (".",) or ("u", "v")
    settings: str  # digest of the settings; markers with another digest are ignored
    run: Path  # this run's own folder under .partial
    overwrite: bool

    def folders(self, video: VideoFile) -> list[Path]:
        return [self.root / part / video.folder for part in self.parts]

    def is_done(self, video: VideoFile) -> bool:
        """Whether a video was extracted with these settings, from this very file, and its images still exist.

        A file is the same if its size and time are. If only the time differs (a copy), its content decides.
        """
        made = read_marker(self.root, video.folder)
        if not made or (made.settings, made.bytes) != (self.settings, video.size):
            return False
        with contextlib.suppress(OSError):
            same = made.mtime_ns in (None, video.mtime_ns) or made.sha256 == content_digest(video)
            return same and all(folder.is_dir() for folder in self.folders(video))
        return False

    def discard(self, video: VideoFile) -> None:
        """Remove a video's results: first the marker, then each folder with one rename."""
        self._state(".done", video).unlink(missing_ok=True)
        for folder in self.folders(video):
            trash = self.run / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def discard_renamed(self, videos: Sequence[VideoFile]) -> None:
        """Remove what was made of a video when its name differed from now in case or accents' form alone.

        Loaders take the two for one, and would refuse both.
        """
        done, names = self.root / ".done", {video.folder for video in videos}
        now = {_fold(video.folder): video for video in videos}
        for marker in list(done.rglob("*.json")):
            was = marker.relative_to(done).as_posix().removesuffix(".json")
            video = now.get(_fold(was))
            if video and was not in names:
                other = self._state(".done", video)
                if not (other.exists() and other.samefile(marker)):  # as where the system takes them for one
                    self.discard(dataclasses.replace(video, folder=was))

    def commit(self, video: VideoFile, attempt: Path, sha256: str, images: int) -> None:
        """Move a video's finished images into place, then write its marker."""
        for part, folder in zip(self.parts, self.folders(video), strict=True):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                (attempt / part).rename(folder)
            except OSError:
                if not folder.is_dir():  # if it exists, a faster run wrote the same bytes
                    raise
        made_of = {"bytes": video.size, "mtime_ns": video.mtime_ns, "sha256": sha256}
        path = os.path.abspath(video.path)
        self._write_state(".done", video, {"settings": self.settings, **made_of, "path": path, "images": images})
        self._state(".failed", video).unlink(missing_ok=True)

    def fail(self, video: VideoFile, reason: str) -> None:
        self._write_state(".failed", video, {"video": printable(video.name), "reason": printable(reason)})

    def write_failed_csv(self, videos: Sequence[VideoFile]) -> None:
        """Write failed.csv from the failures of all shards, or remove it if there are none.

        Shards may end at the same moment. Each reads again after writing, so the last writer has seen all.
        """
        written = None
        while (rows := self._failures(videos)) != written:
            if rows:
                place = atomic_path(self.root / "failed.csv")
                with place as path, open(path, "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(map(csv_text, row) for row in [("video", "reason"), *rows])
            else:
                (self.root / "failed.csv").unlink(missing_ok=True)
            written = rows

    def _failures(self, videos: Sequence[VideoFile]) -> list[tuple[str, str]]:
        rows = []
        for path in (self._state(".failed", video) for video in videos):
            with contextlib.suppress(InputError):  # most videos have no such file
                failure = read_json(path, Failure, "")
                rows.append((failure.video, failure.reason))
        return sorted(rows)

    def _write_state(self, kind: str, video: VideoFile, content: dict) -> None:
        """Write a marker through this run's folder, so that a killed run leaves no partial file elsewhere."""
        temporary = self.run / f"{uuid.uuid4().hex}.json"
        temporary.write_text(_json(content), encoding="utf-8")
        path = self._state(kind, video)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)

    def _state(self, kind: str, video: VideoFile) -> Path:
        name = video.folder if _bad_name(video) is None else hashlib.sha256(os.fsencode(video.folder)).hexdigest()
        return self.root / kind / f"{name}.json"


@contextlib.contextmanager
def open_output(root: Path, kind: str, parts: tuple[str, ...], settings: dict, overwrite: bool) -> Iterator[Output]:
    """Open `root` as the output folder for `kind`, "rgb" or "flow". `settings` are those that affect images.

    Raises InputError if the folder holds anything made with other settings, unless `overwrite` is set. If
    machines start at the same moment, the first one's settings count. Leftovers of killed runs are removed,
    those of running ones are not.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; give a folder to write to")
    strangers = [] if (root / FILE).exists() else _folders(root)
    if strangers and not overwrite:
        raise InputError(f"{root} holds folders that this program did not extract ({strangers[0]}, ...); "
                         "choose an empty folder, or --overwrite to write among them")
    run = root / ".partial" / uuid.uuid4().hex
    alive = FileLock(run.with_suffix(".lock"))  # released when this process ends, even if it is killed
    try:
        try:
            run.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".lock", timeout=60):
                _clean(root)
                # If no video is done and no other run is active, the folder may take any kind and settings.
                # Flow is in u/ and v/, RGB frames are beside them.
                empty = not any(run.parent.glob("*.lock")) and not any(_folders(root / part) for part in (*parts, "."))
                run.mkdir(parents=True)
                alive.acquire()
                claim(root, kind, settings, overwrite, empty)
        except OSError as error:
            raise InputError(f"cannot write to {root}: {error.strerror or error}") from error
        digest = hashlib.sha256(_json(settings).encode()).hexdigest()[:16]
        yield Output(root, parts, digest, run, overwrite)
    finally:
        alive.release()
        with contextlib.suppress(OSError), FileLock(root / ".lock"):
            _clean(root)


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")]


def _clean(root: Path) -> None:
    """Remove what dead runs left in .partial. A run is dead if its lock can be acquired."""
    partial = root / ".partial"
    for path in list(partial.glob("*.lock")):
        try:
            with FileLock(path, timeout=0):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        except (Timeout, OSError, NotImplementedError):
            continue
        if not path.with_suffix("").exists():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial.rmdir()


def content_digest(video: VideoFile) -> str:
    """SHA-256 of a video file's bytes, or of the names, sizes and times in a folder of .flo files."""
    if video.path.is_file():
        return file_digest(video.path)
    files = [(path.name, path.stat()) for path in sorted(video.path.glob("*.flo"))]
    status = [(name, s.st_size, max(s.st_mtime_ns, s.st_ctime_ns)) for name, s in files]
    return hashlib.sha256(repr(status).encode()).hexdigest()


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _json(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _bad_name(video: VideoFile) -> str | None:
    """Return why a video's name can't be used; None if lists and file systems can hold it."""
    try:
        longest = max(len(part.encode()) for part in video.folder.split("/"))
    except UnicodeEncodeError:
        return "its name is not UTF-8, which no list can hold: rename it"
    if longest + len(".json") > LONGEST_NAME:
        return f"its name is too long ({longest} bytes without suffix): rename it to {LONGEST_NAME - 5} at most"
    return None


def extract_one(output: Output, write: Writer, video: VideoFile, report: Report) -> int | str:
    """Extract one video in a worker process. Returns its number of images, or the reason why it failed.

    Raises InputError for errors that would also affect every other video.
    """
    if not output.overwrite and output.is_done(video):
        return 0  # another run on the same folder was faster
    attempt = output.run / uuid.uuid4().hex
    try:
        if bad_name := _bad_name(video):
            raise VideoError(bad_name)
        output.discard(video)
        for part in output.parts:
            (attempt / part).mkdir(parents=True)
        sha256 = content_digest(video)  # before decoding: a file that changes meanwhile isn't done
        images = write(video.path, attempt, functools.partial(report, "share"))
        output.commit(video, attempt, sha256, images)
        return images
    except InputError:
        raise
    except VideoError as error:
        reason = str(error)
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM) and error.filename != str(video.path)
        if denied or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise InputError(f"cannot write to {output.root}: {error.strerror}; finished videos are kept") from error
        reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:
        report("bug", traceback.format_exc())
        reason = f"internal error: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    output.fail(video, reason)
    return reason


def extract_all(
    videos: Sequence[VideoFile],
    output: Output,
    make_writers: Callable[[Sequence[VideoFile]], Sequence[Writer]],
    shard: tuple[int, int],
) -> int:
    """Extract this shard's unfinished videos. Returns the exit code, 0 or 1.

    `make_writers` returns one writer per process. It is called with the unfinished videos, if there are any.
    """
    part, parts = shard
    mine = videos[part - 1 :: parts]
    output.discard_renamed(videos)
    todo = [video for video in mine if output.overwrite or not output.is_done(video)]
    share_of = f" of {len(videos):,} (shard {part}/{parts})" if parts > 1 else ""
    workers = [functools.partial(extract_one, output, write) for write in (make_writers(todo) if todo else [])]
    processes = plural(min(len(workers), len(todo)), "process")
    left = f"{len(mine) - len(todo):,} done before, {len(todo):,} to do in {processes}"
    print(f"{plural(len(mine), 'video')}{share_of}: {left if todo else 'nothing left to do'}", flush=True)
    failed: dict[str, str] = {}
    shares: dict[int, float] = {}  # index of a started video -> share that is done
    images, finished, started = 0, 0, time.monotonic()
    sizes = [max(1, video.size) for video in todo]  # bytes, the best estimate of the work before opening
    with Progress(
        desc="extraction", total=sum(sizes), disable=not todo, smoothing=0, mininterval=0.3,
        bar_format="{percentage:3.0f} %|{bar}| {elapsed} gone, {remaining} left{postfix}",
    ) as bar:  # fmt: skip
        for index, event, value in run_jobs(workers, todo):
            if event == "bug":
                bar.say(value)
                continue
            share = value if event == "share" else 1.0
            if event == "crashed":
                output.fail(todo[index], value)
            if event != "share":
                finished += 1
                if isinstance(value, str):
                    failed[todo[index].name] = value
                else:
                    images += value
            failures = f", {len(failed)} failed" if failed else ""
            bar.set_postfix_str(f"{finished:,}/{len(todo):,} videos{failures}", refresh=False)
            bar.update(sizes[index] * (share - shares.get(index, 0.0)))
            shares[index] = share
    output.write_failed_csv(videos)
    if len(todo) > len(failed):
        extracted = f"{plural(len(todo) - len(failed), 'video')}, {plural(images, 'frame')}"
        print(f"extracted: {extracted} in {time.monotonic() - started:.0f} s -> {output.root}")
    if failed:
        print(f"failed: {plural(len(failed), 'video')}, listed in {output.root / 'failed.csv'}:", file=sys.stderr)
        for name, reason in list(failed.items())[:20]:
            print(f"  {printable(name)}: {printable(reason)}", file=sys.stderr)
        if len(failed) > 20:
            print(f"  ... and {len(failed) - 20} more", file=sys.stderr)
    return 1 if failed else 0
