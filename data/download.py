"""Get UCF101: videos and official lists from UCF's site, prepared frames and flow from tsfusion's.

  python data/download.py                        # videos and lists
  python data/download.py rgb flow lists         # prepared frames and optical flow, and lists

Run it again after any interruption: it continues where it stopped.
"""

from __future__ import annotations

import argparse
import bisect
import io
import lzma
import os
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import rarfile
import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser, bounded
from common.progress import Progress
from utils import InputError, atomic_path, plural, printable, run_main

UCF = "https://www.crcv.ucf.edu/data/UCF101"
TSFUSION = "http://ftp.tugraz.at/pub/feichtenhofer/tsfusion/data"  # Feichtenhofer et al. 2016
CHUNK = 1 << 16  # bytes read at once: what a cut connection loses at most
RETRIES = 20  # failures in a row without a new byte


@dataclass(frozen=True)
class Item:
    """Something to get: where its archive is, in how many parts, and what to do with its files."""

    base: str
    archive: str
    parts: int  # 0: one file; else .001, .002, ...
    growth: float  # bytes on disk per byte of archive, estimated: small files take whole blocks
    use: str

    @property
    def files(self) -> list[str]:
        return [f"{self.archive}.{part:03d}" for part in range(1, self.parts + 1)] or [self.archive]


ITEMS = {
    "videos": Item(UCF, "UCF101.rar", 0, 1.1, "next: data/extract_rgb.py and data/extract_flow.py {0}/UCF-101 OUT"),
    "lists": Item(UCF, "UCF101TrainTestSplits-RecognitionTask.zip", 0, 20, "use them: --ucf-list {0}/ucfTrainTestlist"),
    "rgb": Item(TSFUSION, "ucf101_jpegs_256.zip", 3, 1.3, "use them: --rgb-dir {0}/jpegs_256"),
    "flow": Item(TSFUSION, "ucf101_tvl1_flow.zip", 3, 1.5, "use them: --flow-dir {0}/tvl1_flow"),
}


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", nargs="*", default=["videos", "lists"], metavar="WHAT",
                        help=f"any of {', '.join(ITEMS)}")
    parser.add_argument("--output", type=Path, default=Path("data"), metavar="DIR",
                        help="folder for the unpacked data; archives go to DIR/downloads")
    parser.add_argument("--base-url", metavar="URL",
                        help=f"folder on another server that holds the archives (default: {UCF} for videos and lists, "
                             f"{TSFUSION} for rgb and flow)")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will take")
    parser.add_argument("--offline", action="store_true", help="ask no server: unpack what lies in DIR/downloads")
    parser.add_argument("--remove-archives", action="store_true", help="delete each archive once it is unpacked")
    parser.add_argument("--retry-wait", type=bounded(float, 0), default=1.0, metavar="S",
                        help="seconds before the first retry; doubled each time, a minute at most")
    args = parser.parse_args()
    for name in args.what:
        if name not in ITEMS:
            raise InputError(f"{name!r} is none of {', '.join(ITEMS)}")
    return args


def main() -> None:
    args = parse_arguments()
    try:
        downloads = args.output / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        with only_run(args.output):
            todo = [name for name in dict.fromkeys(args.what) if not is_done(args.output, name)]
            if "videos" in todo:
                check_rar_tool()  # better to hear of a missing program before 7 GB than after
            missing = {name: {} if args.offline else look_up(name, args, downloads) for name in todo}
            announce(missing, args)
            for name in todo if not args.dry_run else []:
                for url, target in missing[name]:
                    fetch(url, target, args.retry_wait)
                unpack(name, args.output, downloads, args.remove_archives)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or args.output}: {error.strerror or error}; put that right and run this "
            "again, it continues where it stopped"
        ) from error


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Hold a lock that ends with the process. Raises InputError if another run writes into `output`."""
    lock = FileLock(output / ".download.lock", timeout=0)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        raise InputError(f"another download into {output} is running: wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def done_file(output: Path, name: str) -> Path:
    return output / f".{name}.done"


def is_done(output: Path, name: str) -> bool:
    """Whether a former run unpacked all of `name`, in folders that are still there."""
    note = done_file(output, name)
    folders = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    if not folders or not all((output / folder).exists() for folder in folders):
        return False
    print(f"{name}: done before, in {', '.join(folders)} (delete {note} to check its files again)")
    return True


# --- fetching ------------------------------------------------------------------------------------------


def look_up(name: str, args: argparse.Namespace, downloads: Path) -> dict[tuple[str, Path], int]:
    """The files that must be fetched, {(address, target): bytes still missing}."""
    item = ITEMS[name]
    missing = {}
    for file in item.files:
        url, target = f"{(args.base_url or item.base).rstrip('/')}/{file}", downloads / file
        if target.exists():
            continue
        try:
            with ask(url) as response:
                missing[url, target] = max(0, whole_size(url, response) - partial_size(target))
        except Failure as failure:  # at the very beginning this is no interruption
            raise InputError(f"{failure}: check the network and the address, or put the archives into {downloads} and "
                             "run this with --offline") from None
    return missing


def announce(missing: dict[str, dict[tuple[str, Path], int]], args: argparse.Namespace) -> None:
    """Say what it will take. Raises InputError if the disk is too small."""
    needed = 0
    for name, files in missing.items():
        fetched = sum(files.values())
        unpacked = int(ITEMS[name].growth * fetched)  # a complete archive's files are counted when it is opened
        needed += fetched + unpacked
        print(f"{name}: {size_of(fetched)} to fetch ({plural(len(files), 'file')}), unpacked about {size_of(unpacked)}")
    check_disk(needed, args.output, "this")


def check_disk(needed: int, folder: Path, task: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{task} needs {size_of(needed)} in {folder}, where only {size_of(free)} are free: make room or choose "
            "another --output"
        )


def size_of(count: float) -> str:
    return tqdm.format_sizeof(count, "B")


class Failure(Exception):
    """A failure that trying again may cure: a cut connection, a time-out, a busy server."""


def ask(url: str, **headers: str) -> requests.Response:
    """Send a GET and return the response, its body unread. Raises Failure, or InputError where the server says no."""
    try:
        response = requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=60, allow_redirects=True
        )
    except requests.exceptions.SSLError as error:
        raise InputError(f"cannot verify the certificate of {url} ({short(error)}): update this system's certificates, "
                         "or set REQUESTS_CA_BUNDLE") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Failure(f"cannot reach {url} ({short(error)})") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise InputError(f"{url} cannot be fetched ({short(error)}); give another folder with --base-url") from None
    status, kind = response.status_code, response.headers.get("Content-Type", "")
    if status in (408, 429) or status >= 500:
        raise Failure(f"{url} answers HTTP {status}")
    if status not in (200, 206, 416) or kind.startswith("text/html"):
        response.close()
        what = "a web page" if status in (200, 206) else f"HTTP {status}"
        raise InputError(
            f"{url} answers with {what}, not the file: look for it in a browser, then give its new folder with "
            "--base-url, or put the archive into downloads/ inside --output and run this with --offline"
        )
    return response


def short(error: object) -> str:
    return printable(" ".join(str(error).split()))[:200]


def whole_size(url: str, response: requests.Response) -> int:
    """The file's size in bytes. Raises InputError where the server does not tell it."""
    text = response.headers.get("Content-Length", "")
    if response.status_code != 200:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(f"the server does not tell the size of {url}: fetch it by hand into downloads/ inside "
                         "--output and run this with --offline")
    return int(text)


def partial_files(target: Path) -> tuple[Path, Path]:
    """Where an unfinished download lies, and the note of which version it is (an ETag or a date)."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.version")


def partial_size(target: Path) -> int:
    part, note = partial_files(target)
    return part.stat().st_size if part.exists() and note.exists() else 0


def fetch(url: str, target: Path, retry_wait: float) -> None:
    """Download `url` to `target`, continuing `target.part`. `target` appears when it is complete.

    Bytes of two versions of a file are never joined: a continued request carries If-Range with the strong ETag or date
    of the first (RFC 9110, 13.1.5), and a server that gave neither is asked for the whole file again.
    """
    part, note = partial_files(target)
    failures, best = 0, partial_size(target)
    with Progress(desc=target.name, total=0, unit="B", unit_scale=True) as bar:
        while True:
            try:
                fetch_rest(url, part, note, bar)
                break
            except Failure as failure:
                reached = partial_size(target)
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                if failures > RETRIES:
                    raise InputError(f"{failure}, {plural(failures, 'time')} in a row: check the connection and run "
                                     "this again, it continues where it stopped") from None
                pause = min(60.0, retry_wait * 2 ** (failures - 1))
                tqdm.write(f"{failure}; trying again in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)
    with open(part, "ab") as file:
        os.fsync(file.fileno())
    part.replace(target)
    note.unlink()


def fetch_rest(url: str, part: Path, note: Path, bar: tqdm) -> None:
    """Append to `part` what it lacks. Raises Failure where that ends too soon."""
    version = note.read_text(encoding="utf-8") if note.exists() else ""
    have = part.stat().st_size if version and part.exists() else 0
    with ask(url, **({"Range": f"bytes={have}-", "If-Range": version} if have else {})) as response:
        size = whole_size(url, response)
        if response.status_code == 416:
            if have == size:  # killed between the last byte and the rename
                return
            have = 0
        elif response.status_code == 200:  # the first time, another version, or a server without ranges
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise Failure(f"{url}: the server sent another range than was asked for")
        if have == 0:
            etag = response.headers.get("ETag", "")
            strong = etag if not etag.startswith("W/") else ""
            with atomic_path(note) as temporary:
                temporary.write_text(strong or response.headers.get("Last-Modified", ""), encoding="utf-8")
        if response.status_code == 416:
            part.unlink()
            raise Failure(f"{url}: the file has changed on the server")
        bar.reset(size)
        bar.update(have)
        with open(part, "ab") as file:
            file.truncate(have)
            try:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    bar.update(len(chunk))
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise Failure(f"{url}: the connection was cut ({short(error)})") from None
    if have != size:
        raise Failure(f"{url}: the connection was cut")


# --- unpacking -----------------------------------------------------------------------------------------

INSTALL = "apt install unar (or libarchive-tools), brew install unar, winget install 7zip.7zip"
# What zipfile and rarfile raise for an archive that is damaged, cut, encrypted or of an unknown kind.
DAMAGE = (
    zipfile.BadZipFile, rarfile.Error, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error,
    MemoryError,
)  # fmt: skip


def check_rar_tool() -> None:
    """Raise InputError where no program is installed that rarfile unpacks with."""
    try:
        rarfile.tool_setup()
    except rarfile.RarCannotExec:
        raise InputError(f"no program here unpacks .rar: install one, {INSTALL}") from None


def unpack(name: str, output: Path, downloads: Path, remove: bool) -> None:
    """Unpack an item's archive, whole or in parts, into `output`, and note that it is done.

    All names and the free disk are checked before the first byte is written. A file already there and intact is kept,
    so a stopped run continues.
    """
    item = ITEMS[name]
    whole = downloads / item.archive
    parts = [whole] if whole.exists() else [downloads / file for file in item.files]
    for path in parts:
        if not path.exists():
            raise InputError(f"{path} is not there: put it there, or run this without --offline")
    written = 0
    with opened(parts) as archive:
        entries = {safe_path(entry, parts[0]): entry for entry in archive.infolist() if not is_folder(entry)}
        needed = sum(-(-e.file_size // 4096) * 4096 for path, e in entries.items() if not (output / path).exists())
        check_disk(needed, output, f"unpacking {item.archive}")  # in the blocks of a usual file system
        with Progress(total=len(entries), desc=f"unpack {item.archive}", unit=" files") as bar:
            for place, entry in entries.items():
                if not is_intact(output / place, entry.file_size, entry.CRC):
                    write_entry(archive, entry, output / place, parts)
                    written += 1
                bar.update()
    folders = sorted({path.parts[0] for path in entries})
    with atomic_path(done_file(output, name)) as temporary:
        temporary.write_text("\n".join(folders) + "\n", encoding="utf-8")
    for path in parts if remove else []:
        path.unlink()
    print(f"{name}: {plural(len(entries), 'file')} in {', '.join(str(output / folder) for folder in folders)} "
          f"({written:,} written now); {item.use.format(output)}")


@contextmanager
def opened(parts: Sequence[Path]) -> Iterator[Any]:
    """A ZipFile over the joined parts, or a RarFile. Raises InputError where the index is damaged."""
    with ExitStack() as stack:
        try:
            if parts[0].suffix == ".rar":
                archive = stack.enter_context(rarfile.RarFile(str(parts[0]), part_only=True, errors="strict"))
                if archive.needs_password() or not archive.infolist():
                    raise rarfile.Error("it needs a password" if archive.needs_password() else "it is empty")
            else:
                joined = stack.enter_context(io.BufferedReader(Joined(parts), 1 << 16))
                archive = stack.enter_context(zipfile.ZipFile(joined))
        except DAMAGE as error:
            names = " or ".join(map(str, parts))
            raise InputError(f"{names} is no complete archive ({error}): delete it and run this again") from None
        if getattr(archive, "is_solid", bool)():  # rarfile would unpack all that stands before a file, for each file
            raise InputError(f"{parts[0]} is a solid archive: unpack it with `unrar x` by hand")
        yield archive


def is_folder(entry: Any) -> bool:
    return entry.filename.endswith("/") if isinstance(entry, zipfile.ZipInfo) else entry.is_dir()


def safe_path(entry: Any, archive: Path) -> PurePosixPath:
    """The path below the target folder that an entry may be written to.

    Raises InputError for a link or device, and for a name that could leave the target on any system.
    """
    name, path = entry.filename, PurePosixPath(entry.filename)
    if isinstance(entry, zipfile.ZipInfo):
        plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)  # 0: not from Unix
    else:
        plain = entry.is_file() and not getattr(entry, "file_redir", None)
    unsafe = path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable()
    if unsafe or "\\" in name or ":" in name or not plain:
        what = "the unsafe name" if plain else "a link or device,"
        raise InputError(f"{archive} holds {what} {name!r}; nothing was unpacked: don't trust this file")
    return path


def is_intact(path: Path, size: int, crc: int) -> bool:
    """Whether `path` is a plain file of this size and CRC-32."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != size:
        return False
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found == crc


def write_entry(archive: Any, entry: Any, path: Path, parts: Sequence[Path]) -> None:
    """Write one entry beside its place, check size and CRC, and rename it.

    Without fsync, which would take hours for millions of files: a power cut's loss is found by the next run's CRC.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with archive.open(entry) as source, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)  # zipfile yields no more than the declared size
        if not is_intact(temporary, entry.file_size, entry.CRC):
            raise ValueError("its size or checksum is wrong")
        os.replace(temporary, path)
    except rarfile.RarCannotExec as error:
        raise InputError(f"no program here unpacks {parts[0]} ({error}): install one, {INSTALL}") from None
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # bz2 says OSError without a number for damage
            raise
        names = " or ".join(map(str, parts))
        raise InputError(f"{entry.filename} is damaged ({short(error)}): delete {names} and run this again") from None
    finally:
        temporary.unlink(missing_ok=True)


class Joined(io.RawIOBase):
    """Several files read as one, seekable: a zip in parts opens without a joined copy on disk."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.files = [open(part, "rb", buffering=0) for part in parts]  # noqa: SIM115 (see close)
        self.ends = list(accumulate(part.stat().st_size for part in parts))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.ends[-1])[whence]
        if self.position < 0:
            raise ValueError(f"negative position {self.position}")
        return self.position

    def readinto(self, buffer) -> int:  # type: ignore[override]
        if self.position >= self.ends[-1]:
            return 0
        index = bisect.bisect_right(self.ends, self.position)
        self.files[index].seek(self.position - (self.ends[index - 1] if index else 0))
        with memoryview(buffer) as view:
            count = self.files[index].readinto(view[: self.ends[index] - self.position])
        self.position += count
        return count

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


if __name__ == "__main__":
    run_main(main)
