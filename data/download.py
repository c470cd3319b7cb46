"""Download UCF101: videos and official lists from UCF's site, prepared frames and flow from tsfusion's.

  python data/download.py                        # videos and lists
  python data/download.py rgb flow lists         # prepared frames and optical flow, and lists

After an interruption, run it again: it continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass
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
from utils import InputError, atomic_path, plural, printable, run_main, write_json

UCF = "https://www.crcv.ucf.edu/data/UCF101"
TSFUSION = "http://ftp.tugraz.at/pub/feichtenhofer/tsfusion/data"  # Feichtenhofer et al. 2016
CHUNK = 1 << 16  # bytes per read; a cut connection loses at most this many
RETRIES = 20  # consecutive failures without a new byte


@dataclass(frozen=True)
class Item:
    """Something to download: the archive's place, its number of parts, and how to use its files."""

    base: str
    archive: str
    parts: int  # 0: a single file; else .001, .002, ..., which are joined
    use: str


ITEMS = {
    "videos": Item(UCF, "UCF101.rar", 0, "next: data/extract_rgb.py and data/extract_flow.py {0}/UCF-101 OUT"),
    "lists": Item(UCF, "UCF101TrainTestSplits-RecognitionTask.zip", 0, "use them: --ucf-list {0}/ucfTrainTestlist"),
    "rgb": Item(TSFUSION, "ucf101_jpegs_256.zip", 3, "use them: --rgb-dir {0}/jpegs_256"),
    "flow": Item(TSFUSION, "ucf101_tvl1_flow.zip", 3, "use them: --flow-dir {0}/tvl1_flow"),
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", nargs="*", default=["videos", "lists"], metavar="WHAT",
                        help=f"any of {', '.join(ITEMS)}")
    parser.add_argument("--output", type=Path, default=Path("data"), metavar="DIR",
                        help="folder for the unpacked data; archives go to DIR/downloads")
    parser.add_argument("--base-url", metavar="URL", help="folder on another server that holds the archives "
                        f"(default: {UCF} for videos and lists, {TSFUSION} for rgb and flow)")
    parser.add_argument("--offline", action="store_true", help="ask no server: unpack what lies in DIR/downloads")
    parser.add_argument("--remove-archives", action="store_true", help="delete each archive once it is unpacked")
    parser.add_argument("--retry-wait", type=bounded(float, 0), default=1.0, metavar="S",
                        help="seconds before the first retry; doubled each time, a minute at most")
    args = parser.parse_args()
    if unknown := [name for name in args.what if name not in ITEMS]:
        raise InputError(f"{unknown[0]!r} is none of {', '.join(ITEMS)}")
    try:
        (args.output / "downloads").mkdir(parents=True, exist_ok=True)
        with FileLock(args.output / ".download.lock", timeout=0):  # ends with the process
            download(args)
    except Timeout:
        raise InputError(f"another download into {args.output} is running: wait for it or stop it") from None
    except OSError as error:
        raise InputError(f"cannot write {error.filename or args.output}: {error.strerror or error}; put that right "
                         "and run this again, it continues where it stopped") from error


def download(args: argparse.Namespace) -> None:
    """Fetch and unpack what is not done yet. Tools and free disk space are checked before the first byte."""
    todo, needed = [], 0
    for name in dict.fromkeys(args.what):
        note, archive = args.output / f".{name}.done", args.output / "downloads" / ITEMS[name].archive
        folders = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
        if folders and all((args.output / folder).exists() for folder in folders):
            print(f"{name}: done before, in {', '.join(folders)} (delete {note} to check its files again)")
            continue
        todo.append((name, note, archive))
        if name == "videos":
            check_rar_tool()
        if not args.offline and not archive.exists():
            missing = size_online(addresses(ITEMS[name], args.base_url), archive)
            needed += missing
            print(f"{name}: {tqdm.format_sizeof(missing, 'B')} to fetch")
    check_disk(2 * needed, args.output, "fetching and unpacking this")
    for name, note, archive in todo:
        if not args.offline and not archive.exists():
            fetch(addresses(ITEMS[name], args.base_url), archive, args.retry_wait)
        unpack(name, archive, args.output, note)
        if args.remove_archives:
            archive.unlink()


def check_disk(needed: float, folder: Path, task: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        need, have = (tqdm.format_sizeof(size, "B") for size in (needed, free))
        raise InputError(f"{task} needs {need} in {folder}, where only {have} are free: make room or choose another "
                         "--output")


# --- fetching ------------------------------------------------------------------------------------------


class Failure(Exception):
    """A temporary failure: a cut connection, a timeout or a busy server. Retrying may help."""


def addresses(item: Item, base_url: str | None) -> list[str]:
    base = f"{(base_url or item.base).rstrip('/')}/{item.archive}"
    return [f"{base}.{part:03d}" for part in range(1, item.parts + 1)] or [base]


def size_online(urls: list[str], target: Path) -> int:
    """Return how many bytes of these files are still to be fetched."""
    total = 0
    try:
        for url in urls:
            with ask(url) as response:
                total += whole_size(url, response)
    except Failure as failure:  # nothing was fetched yet, so there is nothing to continue
        raise InputError(f"{failure}: check the network and the address; or get {', '.join(urls)} elsewhere, put the "
                         f"bytes of all into {target}, and run this with --offline") from None
    return max(0, total - partial_size(target))


def ask(url: str, **headers: str) -> requests.Response:
    """Send a GET; return the response with its body unread. Raises Failure, or InputError if refused."""
    try:
        response = requests.get(url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=60)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        passing = (requests.ConnectionError, requests.Timeout)
        if isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError):
            raise Failure(f"cannot reach {url} ({short(error)})") from None
        raise InputError(f"{url} cannot be fetched ({short(error)}); give another folder with --base-url") from None
    status, is_page = response.status_code, response.headers.get("Content-Type", "").startswith("text/html")
    if status in (408, 429) or status >= 500:
        raise Failure(f"{url} answers HTTP {status}")
    if status not in (200, 206, 416) or is_page:
        response.close()
        what = "a web page" if status in (200, 206) else f"HTTP {status}"
        raise InputError(f"{url} answers with {what}, not the file: look for it in a browser, then give its new folder "
                         "with --base-url")
    return response


def short(error: object) -> str:
    return printable(" ".join(str(error).split()))[:200]


def whole_size(url: str, response: requests.Response) -> int:
    """The file's size in bytes. Raises InputError if the server does not send it."""
    text = response.headers.get("Content-Length", "")
    if response.status_code != 200:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(f"the server does not tell the size of {url}: fetch it by hand and use --offline")
    return int(text)


def partial_files(target: Path) -> tuple[Path, Path]:
    """Paths of an unfinished download and its note: each part's start and version (an ETag or a date)."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")


def partial_size(target: Path) -> int:
    part, note = partial_files(target)
    return part.stat().st_size if part.exists() and note.exists() else 0


def fetch(urls: list[str], target: Path, retry_wait: float) -> None:
    """Download `urls` and join them, in order, into `target`, which appears only when complete."""
    part, note = partial_files(target)
    failures, best = 0, partial_size(target)
    with Progress(desc=target.name, total=0, unit="B", unit_scale=True) as bar:
        while True:
            try:
                fetch_rest(urls, part, note, bar)
                break
            except Failure as failure:
                reached = partial_size(target)
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                if failures > RETRIES:
                    raise InputError(f"{failure}, {plural(failures, 'time')} in a row: check the connection and run "
                                     "this again, it continues where it stopped") from None
                pause = min(60.0, retry_wait * 2 ** (failures - 1))
                bar.say(f"{failure}; trying again in {pause:.0f} s")
                time.sleep(pause)
    with open(part, "ab") as file:
        os.fsync(file.fileno())
    part.replace(target)
    note.unlink()


def fetch_rest(urls: list[str], part: Path, note: Path, bar: tqdm) -> None:
    """Append the missing bytes to `part`. Raises Failure if the download ends early.

    Bytes of two versions of a file are never joined. A continued request sends If-Range with the strong ETag
    or date of the first one (RFC 9110, 13.1.5). If the server gave neither, the whole file is fetched again.
    """
    begun = json.loads(note.read_text(encoding="utf-8")) if note.exists() and part.exists() else []
    end = part.stat().st_size if begun else 0
    for number in range(max(0, len(begun) - 1), len(urls)):
        url, (begin, version) = urls[number], begun[number] if number < len(begun) else (end, "")
        have = end - begin if version else 0
        with ask(url, **({"Range": f"bytes={have}-", "If-Range": version} if have else {})) as response:
            size = whole_size(url, response)
            if response.status_code == 200:  # the first time, another version, or a server without ranges
                have, etag = 0, response.headers.get("ETag", "")
                usable = "" if etag.startswith("W/") else etag  # a weak ETag does not guarantee equal bytes
                begun[number:] = [(begin, usable or response.headers.get("Last-Modified", ""))]
                write_json(note, begun)
            elif response.status_code == 416 and have != size:  # equal: killed after the last byte
                note.unlink()
                raise Failure(f"{url}: the file has changed on the server")
            elif response.status_code == 206 and not response.headers["Content-Range"].startswith(f"bytes {have}-"):
                raise Failure(f"{url}: the server sent another range than was asked for")
            bar.reset(size)
            bar.update(have)
            with open(part, "ab") as file:
                file.truncate(begin + have)
                try:
                    for chunk in response.iter_content(CHUNK) if have < size else ():
                        file.write(chunk)
                        have += len(chunk)
                        bar.update(len(chunk))
                except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    raise Failure(f"{url}: the connection was cut ({short(error)})") from None
        if have != size:
            raise Failure(f"{url}: the connection was cut")
        end = begin + size


# --- unpacking ---------------------------------------------------------------------------------------

# Exceptions of zipfile and rarfile for an archive that is damaged, cut off, encrypted or of an unknown kind.
DAMAGE = (zipfile.BadZipFile, rarfile.Error, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
          struct.error, MemoryError)  # fmt: skip


def check_rar_tool() -> None:
    """Raise InputError if no program is installed with which rarfile can unpack."""
    try:
        rarfile.tool_setup()
    except rarfile.RarCannotExec:
        raise InputError("no program here unpacks .rar: install one, apt install unar (or libarchive-tools), "
                         "brew install unar, winget install 7zip.7zip") from None


def unpack(name: str, path: Path, output: Path, note: Path) -> None:
    """Unpack an item's archive `path` into `output`, then write `note` to mark it as done.

    All names and the free disk space are checked before the first byte is written. Intact files are kept, so
    a stopped run continues.
    """
    if not path.exists():
        raise InputError(f"{path} is not there: put it there (parts joined: cat {path.name}.* > {path.name}), or run "
                         "this without --offline")
    written = 0
    with open_archive(path) as archive:
        entries = {safe_path(entry, path): entry for entry in archive.infolist() if not entry.is_dir()}
        needed = sum(-(-e.file_size // 4096) * 4096 for place, e in entries.items() if not (output / place).exists())
        check_disk(needed, output, f"unpacking {path.name}")  # in blocks of 4096 bytes
        with Progress(total=len(entries), desc=f"unpack {path.name}", unit=" files") as bar:
            for place, entry in entries.items():
                if not is_intact(output / place, entry):
                    write_entry(archive, entry, output / place, path)
                    written += 1
                bar.update()
    folders = sorted({place.parts[0] for place in entries})
    with atomic_path(note) as temporary:
        temporary.write_text("\n".join(folders) + "\n", encoding="utf-8")
    print(f"{name}: {plural(len(entries), 'file')} in {', '.join(str(output / folder) for folder in folders)} "
          f"({written:,} written now); {ITEMS[name].use.format(output)}")


def open_archive(path: Path) -> Any:
    """Open a ZipFile or RarFile. Raises InputError if its index is damaged or single files can't be read."""
    try:
        if path.suffix != ".rar":
            return zipfile.ZipFile(path)
        archive = rarfile.RarFile(str(path), part_only=True, errors="strict")
        # rarfile would unpack all of a solid archive for each of its files.
        if archive.needs_password() or archive.is_solid():
            raise rarfile.Error("it needs a password, or is solid: unpack it with `unrar x` by hand")
        if not archive.infolist():
            raise rarfile.Error("it is empty")
        return archive
    except DAMAGE as error:
        raise InputError(f"{path} is no complete archive ({error}): delete it and run this again") from None


def safe_path(entry: Any, archive: Path) -> PurePosixPath:
    """Return the path below the target folder to which an entry is written.

    Raises InputError for a link or device, and for a name that could leave the target folder on any system.
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


def is_intact(path: Path, entry: Any) -> bool:
    """Whether `path` is a regular file with the entry's size and CRC-32."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != entry.file_size:
        return False
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found == entry.CRC


def write_entry(archive: Any, entry: Any, path: Path, source: Path) -> None:
    """Write one entry to a temporary file beside its target, check its size and CRC, and rename it.

    There is no fsync: for millions of files it would take hours. After a power cut, the next run's CRC check
    finds what was lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with archive.open(entry) as packed, open(temporary, "wb") as sink:
            shutil.copyfileobj(packed, sink, CHUNK)  # zipfile yields no more than the declared size
        if not is_intact(temporary, entry):
            raise ValueError("its size or checksum is wrong")
        os.replace(temporary, path)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # bz2 reports damage without errno
            raise
        raise InputError(f"{entry.filename} is damaged ({short(error)}): delete {source} and run this again") from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run_main(main)
