"""The part shared by both extractions: a killable, resumable, sharded run over a folder of videos.

OUT holds the results, `extraction.json` with their settings, and `failed.csv` if videos failed. Hidden
folders are `.done/<video>.json`, a marker per finished video, written last; `.failed/`, the reasons of failures;
and `.partial/<run>/`, where a run writes each video before it moves it into place with one rename.
"""

import argparse
import contextlib
import csv
import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from common.commandline import bounded
from common.progress import progress_bar
from data.jobs import run_jobs
from data.videos import VideoError, VideoFile
from dataloader.extracted import FILE, claim, read_marker
from utils import InputError, atomic_path, csv_text, file_digest, plain_cause, plural, printable, write_json

Writer = Callable[[Path, Path], int]  # writes one video's images to a folder and returns their number
# Errors that would affect every other video, too.
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
    return images


def parse_shard(text: str) -> tuple[int, int]:
    """Parse '3/16' as (3, 16)."""
    part, parts = (int(number) if number.isdecimal() else 0 for number in text.partition("/")[::2])
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r}: give K/N with K from 1 to N, such as 3/16")
    return part, parts


@dataclass(frozen=True)
class Output:
    """The output folder, shared by all processes and machines that extract into it."""

    root: Path
    parts: tuple[str, ...]  # the subfolders that hold each video's folder: (".",) or ("u", "v")
    settings: str  # digest of the settings; markers with another digest are ignored
    run: Path  # this run's own folder under .partial

    def folders(self, video: VideoFile) -> list[Path]:
        return [self.root / part / video.folder for part in self.parts]

    def marker(self, video: VideoFile) -> Path:
        return self.root / ".done" / f"{video.folder}.json"

    def failure(self, video: VideoFile) -> Path:
        """The file with the reason of a failure. Its name is a digest, as the video's own may be the reason."""
        return self.root / ".failed" / f"{hashlib.sha256(os.fsencode(video.folder)).hexdigest()}.txt"

    def is_done(self, video: VideoFile) -> bool:
        """Whether a video was extracted with these settings, from this very file, and its images still exist.

        A file is the same if its size and time are. If only the time differs (a copy), its content decides.
        """
        made = read_marker(self.root, video.folder)
        if made and (made.settings, made.bytes) == (self.settings, video.size):
            with contextlib.suppress(OSError):
                same = made.mtime_ns in (None, video.mtime_ns) or made.sha256 == file_digest(video.path)
                return same and all(folder.is_dir() for folder in self.folders(video))
        return False

    def discard(self, video: VideoFile) -> None:
        """Remove a video's results: first the marker, then each folder with one rename."""
        self.marker(video).unlink(missing_ok=True)
        for folder in self.folders(video):
            trash = self.run / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def commit(self, video: VideoFile, attempt: Path, sha256: str, images: int) -> None:
        """Move a video's finished images into place, then its marker."""
        for part, folder in zip(self.parts, self.folders(video), strict=True):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                (attempt / part).rename(folder)
            except OSError:
                if not folder.is_dir():  # if it exists, a faster run wrote the same bytes
                    raise
        written = self.run / f"{uuid.uuid4().hex}.json"  # a killed run leaves no partial file elsewhere
        write_json(written, {"settings": self.settings, "bytes": video.size, "mtime_ns": video.mtime_ns,
                             "sha256": sha256, "path": os.path.abspath(video.path), "images": images})
        self.marker(video).parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, self.marker(video))


def write_reasons(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a CSV of (video, why it cannot be used)."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(map(csv_text, row) for row in [("video", "reason"), *sorted(rows)])


@contextlib.contextmanager
def open_output(root: Path, kind: str, parts: tuple[str, ...], settings: dict) -> Iterator[Output]:
    """Open `root` as the output folder for `kind`, "rgb" or "flow". `settings` are those that affect images.

    Raises InputError if the folder holds anything else, or made with other settings. If machines start at the
    same moment, the first one's settings count. Leftovers of killed runs are removed, those of running ones
    are not.
    """
    if (folders := _folders(root)) and not (root / FILE).exists():
        raise InputError(f"{root} holds folders that this program did not extract ({folders[0]}, ...); "
                         "choose an empty folder")
    run = root / ".partial" / uuid.uuid4().hex
    alive = FileLock(run.with_suffix(".lock"))  # released when this process ends, even if it is killed
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    try:
        try:
            run.parent.mkdir(parents=True, exist_ok=True)
            (root / ".failed").mkdir(exist_ok=True)
            with FileLock(root / ".lock", timeout=60):
                _clean(root)
                # If no video is done and no other run is active, the folder may take any kind and settings.
                empty = not any(run.parent.glob("*.lock")) and not _folders(root)
                run.mkdir()
                alive.acquire()
                claim(root, kind, settings, empty)
        except OSError as error:
            raise InputError(f"cannot write to {root}: {error.strerror or error}") from error
        yield Output(root, parts, hashlib.sha256(text.encode()).hexdigest()[:16], run)
    finally:
        alive.release()
        with contextlib.suppress(OSError), FileLock(root / ".lock"):
            _clean(root)
            run.parent.rmdir()


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")]


def _clean(root: Path) -> None:
    """Remove what dead runs left in .partial. A run is dead if its lock can be acquired."""
    for path in list((root / ".partial").glob("*.lock")):
        with contextlib.suppress(Timeout, OSError, NotImplementedError), FileLock(path, timeout=0):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def extract_one(output: Output, write: Writer, video: VideoFile) -> int | str:
    """Extract one video in a worker process. Returns its number of images, or the reason why it failed.

    Raises InputError for errors that would also affect every other video.
    """
    if output.is_done(video):
        return 0  # another run on the same folder was faster
    attempt = output.run / uuid.uuid4().hex
    try:
        video.folder.encode()
        output.discard(video)
        for part in output.parts:
            (attempt / part).mkdir(parents=True)
        # Before decoding: a file that changes meanwhile isn't done. A pipe would wait for a writer.
        sha256 = file_digest(video.path) if video.path.is_file() else ""
        images = write(video.path, attempt)
        output.commit(video, attempt, sha256, images)
        return images
    except InputError:
        raise
    except VideoError as error:
        return str(error)
    except UnicodeEncodeError:
        return "its name is not UTF-8, which no list can hold: rename it"
    except OSError as error:
        if error.errno in FATAL and error.filename != str(video.path):
            raise InputError(f"cannot write to {output.root}: {error.strerror}; finished videos are kept") from error
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:
        if cause := plain_cause(error, "lower --workers, or --batch-frames on a GPU"):
            return cause
        traceback.print_exc()
        return f"internal error: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def extract_all(
    videos: Sequence[VideoFile], output: Output, writers: Sequence[Writer], shard: tuple[int, int]
) -> int:
    """Extract this shard's unfinished videos with one process per writer. Returns the exit code, 0 or 1."""
    part, parts = shard
    mine = videos[part - 1 :: parts]
    todo = [video for video in mine if not output.is_done(video)]
    share_of = f" of {len(videos):,} (shard {part}/{parts})" if parts > 1 else ""
    processes = plural(min(len(writers), len(todo)), "process")
    left = f"{len(mine) - len(todo):,} done before, {len(todo):,} to do in {processes}"
    print(f"{plural(len(mine), 'video')}{share_of}: {left if todo else 'nothing left to do'}", flush=True)
    failed: list[str] = []
    images, started = 0, time.monotonic()
    workers = [functools.partial(extract_one, output, write) for write in writers]
    with progress_bar(len(todo), "extraction", " videos", disable=not todo) as bar:
        for index, value in run_jobs(workers, todo):
            name, failure = printable(todo[index].name), output.failure(todo[index])
            if isinstance(value, str):
                failure.write_text(printable(value), encoding="utf-8")
                failed.append(f"  {name}: {printable(value)}")
                bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            else:
                failure.unlink(missing_ok=True)
                images += value
            bar.update()
    table = output.root / "failed.csv"  # of all shards
    with FileLock(output.root / ".lock"):  # of shards that end at the same moment, the last one has seen all
        failures = [(video.name, output.failure(video)) for video in videos]
        reasons = [(name, file.read_text(encoding="utf-8")) for name, file in failures if file.exists()]
        if reasons:
            write_reasons(table, reasons)
        else:
            table.unlink(missing_ok=True)
    if done := len(todo) - len(failed):
        extracted = f"{plural(done, 'video')}, {plural(images, 'frame')}"
        print(f"extracted: {extracted} in {time.monotonic() - started:.0f} s -> {output.root}")
    if failed:
        more = [f"  ... and {len(failed) - 20} more"] if len(failed) > 20 else []
        print(f"failed: {plural(len(failed), 'video')}, listed in {table}:", *failed[:20], *more,
              sep="\n", file=sys.stderr)  # fmt: skip
    return 1 if failed else 0
