"""What both extractions share: a killable, resumable, sharded run over a folder of videos.

Under OUT lie the results, `extraction.json` with the settings that made them, `failed.csv` if videos failed, and
hidden: `.done/<video>.json` (a marker per finished video, written last), `.failed/<video>.json`, and
`.partial/<run>/` where each running extraction writes a video before moving it into place in one rename.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from data.jobs import Report, cpu_count, run_jobs
from data.videos import Video, VideoError
from utils import InputError, atomic_path

# Writes the images of one video under a folder and says how many: (video, folder, report) -> images.
# While at it, it reports ("claimed", images to expect) once and ("images", how many more) now and then.
Writer = Callable[[Path, Path, Report], int]


def add_arguments(parser: argparse.ArgumentParser, quality: int) -> argparse._ArgumentGroup:
    """The flags that both extractions have; returns the group of those that change the images."""
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos, nested in any way")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    images = parser.add_argument_group("images")
    images.add_argument("--short-side", type=int, default=256, metavar="PIXELS",
                        help="scale the shorter side to this; 0 keeps the size")
    images.add_argument("--quality", type=int, default=quality, help="JPEG quality, 1 to 100")
    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    running.add_argument("--shard", type=parse_shard, default=(1, 1), metavar="K/N",
                         help="do only the K-th of N parts of the videos, K from 1 to N; start the N parts on as many "
                         "machines as you like, on one shared OUT (default: 1/1)")
    running.add_argument("--overwrite", action="store_true", help="redo videos that are done; replaces other settings")
    return images


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for a value that can't work."""
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: give 1 to 100")
    if args.short_side < 0:
        raise InputError(f"--short-side {args.short_side}: give pixels, or 0 to keep the size")
    if args.workers < 0:
        raise InputError(f"--workers {args.workers}: give how many processes, or 0 for one per core")


def parse_shard(text: str) -> tuple[int, int]:
    """'3/16' -> (3, 16)."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r}: give K/N with K from 1 to N, such as 3/16")
    return part, parts


@dataclass(frozen=True)
class Output:
    """The folder written to, shared by all processes and machines that extract into it."""

    root: Path
    parts: tuple[str, ...]  # the subfolders that hold each video's folder: (".",) or ("u", "v")
    settings: str  # digest of the settings; a marker with another one doesn't count
    run: Path  # this run's own folder under .partial
    overwrite: bool

    def folders(self, video: Video) -> list[Path]:
        return [self.root / part / video.folder for part in self.parts]

    def is_done(self, video: Video) -> bool:
        """Finished with these settings, from this very file (by its size), and still there."""
        try:
            marker = json.loads(self._state(".done", video).read_text())
        except (OSError, ValueError):
            return False
        same = marker.get("settings") == self.settings and marker.get("bytes") == video.size
        return same and all(folder.is_dir() for folder in self.folders(video))

    def discard(self, video: Video) -> None:
        """Remove what there is of a video: first the marker, then the folders, each in one rename."""
        self._state(".done", video).unlink(missing_ok=True)
        for folder in self.folders(video):
            trash = self.run / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def commit(self, video: Video, attempt: Path, images: int) -> None:
        """Move a video's finished images into place and then write its marker."""
        for part, folder in zip(self.parts, self.folders(video), strict=True):
            folder.parent.mkdir(parents=True, exist_ok=True)
            (attempt / part).rename(folder)
        marker = {"settings": self.settings, "bytes": video.size, "images": images}
        _write_json(self._state(".done", video), marker)
        self._state(".failed", video).unlink(missing_ok=True)

    def fail(self, video: Video, reason: str) -> None:
        _write_json(self._state(".failed", video), {"video": video.name, "reason": reason})

    def write_failed_csv(self, videos: Sequence[Video]) -> None:
        """Write failed.csv from the failures of all shards; no file where there is none.

        Shards may end at the same moment: each looks again after writing, so the last one to write has seen all.
        """
        known = {self._state(".failed", video) for video in videos}
        written = None
        while (rows := self._failures(known)) != written:
            if rows:
                with atomic_path(self.root / "failed.csv") as path, open(path, "w", newline="") as file:
                    csv.writer(file).writerows([("video", "reason"), *rows])
            else:
                (self.root / "failed.csv").unlink(missing_ok=True)
            written = rows

    def _failures(self, known: set[Path]) -> list[tuple[str, str]]:
        rows = []
        for path in (self.root / ".failed").rglob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                if path in known and not path.name.startswith("."):
                    failure = json.loads(path.read_text())
                    rows.append((failure["video"], failure["reason"]))
        return sorted(rows)

    def _state(self, kind: str, video: Video) -> Path:
        return self.root / kind / f"{video.folder}.json"


@contextlib.contextmanager
def open_output(root: Path, kind: str, parts: tuple[str, ...], settings: dict, overwrite: bool) -> Iterator[Output]:
    """Take `root` as output folder for `kind` ("rgb" or "flow") with `settings`, which change the images' bytes.

    Raises InputError where it holds anything made otherwise, unless `overwrite`. Machines may start at the same
    moment: the first one's settings stand. Leftovers of killed runs are removed, those of running ones are not.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _claim(root, {"kind": kind, "version": 1, "settings": settings}, overwrite)
        run = root / ".partial" / uuid.uuid4().hex
        with FileLock(root / ".lock"):
            _clean(root)
            run.mkdir(parents=True)
            alive = FileLock(run.with_suffix(".lock"))  # held, however this process ends, as long as it lives
            alive.acquire()
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}") from error
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    try:
        yield Output(root, parts, digest, run, overwrite)
    finally:
        alive.release()
        with FileLock(root / ".lock"):
            _clean(root)


def _claim(root: Path, wanted: dict, overwrite: bool) -> None:
    path = root / "extraction.json"
    if not path.exists():
        strangers = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        if strangers and not overwrite and not path.exists():
            raise InputError(
                f"{root} holds folders that weren't extracted by this program ({strangers[0]}, ...); "
                "choose an empty folder, or --overwrite to write among them"
            )
        temporary = root / f".extraction.{uuid.uuid4().hex}.tmp"
        temporary.write_text(json.dumps(wanted, indent=2) + "\n")
        try:
            os.link(temporary, path)  # unlike a rename, this never replaces what another machine just wrote
        except OSError:
            if not path.exists():  # a file system without hard links
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = {}
    if found == wanted:
        return
    if overwrite:
        _write_json(path, wanted)
        return
    was, now = ({"kind": made.get("kind"), **made.get("settings", {})} for made in (found, wanted))
    differences = [f"{key} {was.get(key)} there, {now.get(key)} asked"
                   for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    raise InputError(f"{root} was extracted with other settings ({'; '.join(differences)}); "
                     "choose another folder or the same settings, or --overwrite to redo it")


def _clean(root: Path) -> None:
    """Remove what dead runs left in .partial; a run is dead when its lock can be taken."""
    partial = root / ".partial"
    for path in list(partial.glob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):
            continue
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        lock.release()
        if not path.with_suffix("").exists():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial.rmdir()


def _write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def extract_one(output: Output, write: Writer, video: Video, report: Report) -> str | None:
    """Extract one video, in a worker process. Returns None when done, else the reason why it failed.

    Raises InputError for what would fail every other video as well.
    """
    if not output.overwrite and output.is_done(video):
        return None  # another run on the same folder was faster
    attempt = output.run / uuid.uuid4().hex
    try:
        output.discard(video)
        for part in output.parts:
            (attempt / part).mkdir(parents=True)
        images = write(video.path, attempt, report)
        output.commit(video, attempt, images)
        return None
    except InputError:
        raise
    except VideoError as error:
        reason = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise InputError(f"cannot write to {output.root}: {error.strerror}; finished videos are kept") from error
        reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:
        report("bug", traceback.format_exc())
        reason = f"internal error: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    output.fail(video, reason)
    return reason


def extract_all(videos: Sequence[Video], output: Output, writers: Sequence[Writer], shard: tuple[int, int]) -> int:
    """Extract this shard's videos that aren't done, one process per writer; returns the exit code, 0 or 1."""
    part, parts = shard
    mine = videos[part - 1 :: parts]
    todo = [video for video in mine if output.overwrite or not output.is_done(video)]
    share = f" in shard {part}/{parts} of {len(videos)}" if parts > 1 else ""
    print(f"{len(mine)} videos{share}: {len(mine) - len(todo)} already done, {len(todo)} to do, "
          f"{min(len(writers), len(todo))} processes", flush=True)
    workers = [functools.partial(extract_one, output, write) for write in writers]
    failed: dict[str, str] = {}
    started = time.monotonic()
    with _Bar(todo) as bar:
        for index, event, value in run_jobs(workers, todo):
            if event == "claimed":
                bar.expect(index, value)
            elif event == "images":
                bar.advance(index, value)
            elif event == "bug":
                bar.write(value)
            else:  # "result" or "crashed"
                if event == "crashed":
                    output.fail(todo[index], value)
                if value is not None:
                    failed[todo[index].name] = value
                bar.finish(index, len(failed))
    output.write_failed_csv(videos)
    seconds = time.monotonic() - started
    print(f"{len(todo) - len(failed)} videos done, {bar.images:,} images in {seconds:.0f} s -> {output.root}")
    if failed:
        print(f"{len(failed)} videos failed, listed in {output.root / 'failed.csv'}:", file=sys.stderr)
        for name, reason in list(failed.items())[:20]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(failed) > 20:
            print(f"  ... and {len(failed) - 20} more", file=sys.stderr)
    return 1 if failed else 0


class _Bar:
    """One bar over all videos in images/s.

    How many images there will be is known for the videos opened so far (what the file claims, then what it
    had); for the others it is guessed from their size in bytes.
    """

    def __init__(self, videos: Sequence[Video]) -> None:
        self.sizes = [video.size for video in videos]
        self.expected: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.finished = 0
        self.images = 0
        interval = 0.3 if sys.stderr.isatty() else 30  # a log file isn't redrawn: every line stays
        self.bar = tqdm(unit="img", smoothing=0.05, mininterval=interval, maxinterval=max(10, interval),
                        dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def write(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def expect(self, index: int, images: int) -> None:
        self.expected[index] = images
        self._guess_total()

    def advance(self, index: int, images: int) -> None:
        self.written[index] = self.written.get(index, 0) + images
        self.images += images
        self.bar.update(images)

    def finish(self, index: int, failed: int) -> None:
        self.expected[index] = self.written.get(index, 0)
        self.finished += 1
        failures = f", {failed} failed" if failed else ""
        self.bar.set_postfix_str(f"{self.finished}/{len(self.sizes)} videos{failures}", refresh=False)
        self._guess_total()

    def _guess_total(self) -> None:
        known_bytes = sum(self.sizes[index] for index in self.expected)
        images = sum(self.expected.values())
        if known_bytes:
            self.bar.total = max(self.images, round(images * sum(self.sizes) / known_bytes))


class Reporter:
    """Passes a count of written images on to the parent a few times a second rather than for each."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.count = 0
        self.unsent = 0
        self.sent_at = time.monotonic()

    def add(self) -> int:
        """Count one more image written; returns the count."""
        self.count += 1
        self.unsent += 1
        if time.monotonic() - self.sent_at > 0.2:
            self.flush()
        return self.count

    def flush(self) -> None:
        self.report("images", self.unsent)
        self.unsent = 0
        self.sent_at = time.monotonic()


def worker_count(wanted: int) -> int:
    return wanted or cpu_count()
