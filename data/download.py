"""Get UCF101: videos and official lists from UCF's site, tsfusion's frames and flow from a mirror of yours.

  python data/download.py                                        # videos and lists
  python data/download.py rgb flow lists --base-url https://...  # prepared frames and optical flow, lists

Run it again after any interruption: it continues where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser, bounded
from data.archives import Unpacked, check_disk, rar_tools, unpack_rar, unpack_zip
from data.fetch import Client, Missing, Remote, Unreachable, fetch, kept_bytes, look_up
from utils import InputError, plural, run_main, write_json


@dataclass(frozen=True)
class Item:
    """Something to get: an archive, and what becomes of it."""

    archive: str
    growth: float  # disk its files take per byte of archive, estimated: small files take whole blocks
    use: str  # what to do with it afterwards


ITEMS = {
    "videos": Item("UCF101.rar", 1.1, "next: data/extract_rgb.py and data/extract_flow.py {0}/UCF-101 OUT"),
    "lists": Item("UCF101TrainTestSplits-RecognitionTask.zip", 20, "use them: --ucf-list {0}/ucfTrainTestlist"),
    "rgb": Item("ucf101_jpegs_256.zip", 1.3, "use them: --rgb-dir {0}/jpegs_256"),
    "flow": Item("ucf101_tvl1_flow.zip", 1.5, "use them: --flow-dir {0}/tvl1_flow"),
}
FROM_UCF = ("videos", "lists")


@dataclass(frozen=True)
class Archive:
    """An archive, or one part of it: where it goes, where it comes from (None: it is complete), sizes in bytes."""

    path: Path
    url: str | None
    size: int
    have: int


@dataclass(frozen=True)
class Job:
    """What is to be done for one item; `done` is what a former run completed."""

    name: str
    archives: list[Archive]
    done: Unpacked | None = None

    @property
    def size(self) -> int:
        return sum(archive.size for archive in self.archives)

    @property
    def missing(self) -> int:
        return sum(archive.size - archive.have for archive in self.archives)

    @property
    def unpacked(self) -> int:
        """Disk that the files will take, in bytes, estimated."""
        return int(self.size * ITEMS[self.name].growth)


def known_item(name: str) -> str:
    if name not in ITEMS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ITEMS)}")
    return name


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", nargs="*", type=known_item, metavar="WHAT",
                        help="any of videos, lists (UCF's), rgb, flow (tsfusion's); default: videos lists")
    parser.add_argument("--output", type=Path, default=Path("data"), metavar="DIR",
                        help="folder for the unpacked data; archives go to DIR/downloads")
    disk = parser.add_argument_group("disk")
    disk.add_argument("--dry-run", action="store_true", help="only say what it will take")
    disk.add_argument("--remove-archives", action="store_true", help="delete each archive once it is unpacked")
    disk.add_argument("--again", action="store_true",
                      help="check what a former run completed, file by file, and restore what is missing or differs")
    server = parser.add_argument_group("server")
    server.add_argument("--base-url", metavar="URL",
                        help="folder on a server that holds ucf101_jpegs_256.zip.001, ... and "
                             "ucf101_tvl1_flow.zip.001, ...; their first home is gone")
    server.add_argument("--ucf-url", default="https://www.crcv.ucf.edu/data/UCF101", metavar="URL",
                        help="folder that holds UCF101.rar and the lists")
    server.add_argument("--offline", action="store_true", help="ask no server: unpack what lies in DIR/downloads")
    server.add_argument("--retry-wait", type=bounded(float, 0), default=Client.retry_wait, metavar="S",
                        help="seconds before the first retry; doubled each time, a minute at most")
    server.add_argument("--no-check-certificate", action="store_true",
                        help="accept any TLS certificate: someone on the way could send other files")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    client = Client(retry_wait=args.retry_wait, check_certificate=not args.no_check_certificate)
    if args.no_check_certificate:
        print("warning: certificates are not checked; the files could come from anyone", file=sys.stderr)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with only_run(args.output):
            jobs = [plan(name, args, client) for name in dict.fromkeys(args.what or FROM_UCF)]
            if any(not job.done and ITEMS[job.name].archive.endswith(".rar") for job in jobs):
                rar_tools()  # better to hear of a missing program before 7 GB than after
            announce(jobs, args)
            if not args.dry_run:
                for job in jobs:
                    if not job.done:
                        carry_out(job, args, client)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or args.output}: {error.strerror or error}; put that right and "
                         "run this again, it continues where it stopped") from error


@contextlib.contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Hold a lock that ends with the process. Raises InputError if another run works in `output`: two would
    write into the same partial files."""
    lock = FileLock(output / ".download.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another download into {output} is running: wait for it or stop it") from None
    except NotImplementedError:
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


# ---- What there is to do


def plan(name: str, args: argparse.Namespace, client: Client) -> Job:
    """Find out what is done, what lies here and what a server has. Raises InputError if an archive is nowhere."""
    done = None if args.again else former_result(args.output, name)
    if done:
        return Job(name, [], done)
    folder, archive = args.output / "downloads", ITEMS[name].archive
    if args.offline:
        return Job(name, local_archives(folder, archive))
    base = args.ucf_url if name in FROM_UCF else args.base_url
    if not base:
        raise InputError(f"{name} needs --base-url, a folder on a server that holds {archive}.001, .002, ... (their "
                         f"first home is gone); or put those into {folder} and run this with --offline")
    client = replace(client, retries=min(client.retries, 3))  # a wrong address should be heard of soon

    def look(file: str) -> Archive:
        url = f"{base.rstrip('/')}/{file}"
        remote = client.patiently(lambda: look_up_at_first(client, url, folder), url)
        path = folder / file
        if path.exists() and path.stat().st_size != remote.size:
            raise InputError(f"{path} has {path.stat().st_size} bytes, {url} has {remote.size}: delete or move it "
                             "away, then run this again")
        have = remote.size if path.exists() else kept_bytes(path, remote)
        return Archive(path, None if path.exists() else url, remote.size, have)

    return Job(name, [look(archive)] if name in FROM_UCF else look_for_parts(look, archive))


def look_up_at_first(client: Client, url: str, folder: Path) -> Remote:
    """fetch.look_up, but a machine without a network is told so: at the very beginning that is no interruption."""
    try:
        return look_up(client, url)
    except Unreachable as error:
        raise InputError(f"cannot reach {url} ({error}): check the network and the address, or put the archives into "
                         f"{folder} and run this with --offline") from error


def look_for_parts(look: Callable[[str], Archive], archive: str) -> list[Archive]:
    """The parts .001, .002, ... that a server has, or the archive in one piece. `look` raises Missing for none."""
    parts: list[Archive] = []
    try:
        while True:
            parts.append(look(f"{archive}.{len(parts) + 1:03d}"))
    except Missing as missing:
        if parts:
            return parts
        try:
            return [look(archive)]
        except Missing:
            raise missing from None


def local_archives(folder: Path, archive: str) -> list[Archive]:
    """The archive in `folder`, whole or in parts. Raises InputError if it is not there or a part is missing."""
    paths = [folder / archive] if (folder / archive).exists() else sorted(
        path for path in folder.glob(f"{archive}.*") if re.fullmatch(r"\.\d{3}", path.suffix))
    if not paths:
        raise InputError(f"{folder / archive} is not there, nor its parts .001, .002, ...: put it there, or run this "
                         "without --offline")
    for number, path in enumerate(paths, start=1):
        if path.name not in (archive, f"{archive}.{number:03d}"):
            raise InputError(f"{folder / archive}.{number:03d} is missing, yet {path.name} is there: add that part")
    return [Archive(path, None, path.stat().st_size, path.stat().st_size) for path in paths]


def announce(jobs: list[Job], args: argparse.Namespace) -> None:
    """Say what it will take. Raises InputError if the disk is too small."""
    print(f"Into {args.output} ({size_of(shutil.disk_usage(args.output).free)} free):")
    for job in jobs:
        if job.done:
            print(f"  {job.name:7} done before: {plural(job.done.files, 'file')} in {', '.join(job.done.folders)} "
                  "(--again checks them)")
        else:
            parts = f"{len(job.archives)} parts, " if len(job.archives) > 1 else ""
            print(f"  {job.name:7} {ITEMS[job.name].archive}: {parts}{size_of(job.size)}, of which "
                  f"{size_of(job.missing)} to fetch; unpacked about {size_of(job.unpacked)}")
    todo = [job for job in jobs if not job.done]
    if not todo:
        return
    peak = now = 0
    for job in todo:
        # An archive that is complete may be unpacked in part; what it still takes is counted when it is opened.
        now += job.missing + (job.unpacked if job.missing else 0)
        peak = max(peak, now)
        now -= job.size if args.remove_archives else 0
    print(f"  disk    about {size_of(peak)} more at most, archives included"
          + ("" if args.remove_archives else " (less with --remove-archives)")
          + ("" if all(job.missing for job in todo) else "; complete archives are measured when opened"))
    check_disk(peak, args.output, f"getting {', '.join(job.name for job in todo)}")


def size_of(count: float) -> str:
    return tqdm.format_sizeof(count, "B")


# ---- Doing it


def carry_out(job: Job, args: argparse.Namespace, client: Client) -> None:
    """Fetch, unpack, and note that it is done, in this order."""
    for archive in job.archives:
        if archive.url:
            fetch(client, archive.url, archive.path)
    paths = [archive.path for archive in job.archives]
    result = unpack_rar(paths[0], args.output) if paths[0].suffix == ".rar" else unpack_zip(paths, args.output)
    write_json(done_file(args.output, job.name), asdict(result))
    if args.remove_archives:
        for path in paths:
            path.unlink()
    folders = ", ".join(str(args.output / name) for name in result.folders)
    print(f"{job.name}: {plural(result.files, 'file')} in {folders} ({result.written:,} written now); "
          f"{ITEMS[job.name].use.format(args.output)}")


def done_file(output: Path, name: str) -> Path:
    return output / f".{name}.done.json"


def former_result(output: Path, name: str) -> Unpacked | None:
    """What a former run completed, if its folders are still there."""
    try:
        result = Unpacked(**json.loads(done_file(output, name).read_text(encoding="utf-8")))
        return result if all((output / folder).exists() for folder in result.folders) else None
    except (OSError, ValueError, TypeError):
        return None


if __name__ == "__main__":
    run_main(main)
