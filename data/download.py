"""Download UCF101: videos and official lists from UCF's site, prepared frames and flow from tsfusion's.

  python data/download.py                        # videos and lists
  python data/download.py rgb flow lists         # prepared frames and optical flow, and lists

After an interruption, run it again: it continues where it stopped. An archive that you put into DIR/downloads
yourself (parts joined into one) is not fetched.
"""

import lzma
import os
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import rarfile
import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser
from common.progress import Progress
from utils import InputError, plural, printable, run_main

UCF = "https://www.crcv.ucf.edu/data/UCF101"
TSFUSION = "http://ftp.tugraz.at/pub/feichtenhofer/tsfusion/data"  # Feichtenhofer et al. 2016
CHUNK = 1 << 16  # bytes per read; a cut connection loses at most this many
RETRIES = 20  # consecutive failures without a new byte
WAIT = 1.0  # seconds before the first retry; doubled each time, a minute at most

ITEMS = {  # what: (the archive's folder, its name, its number of parts .001, .002, ... or 0, how to use its files)
    "videos": (UCF, "UCF101.rar", 0, "next: data/extract_rgb.py and data/extract_flow.py {0}/UCF-101 OUT"),
    "lists": (UCF, "UCF101TrainTestSplits-RecognitionTask.zip", 0, "use them: --ucf-list {0}/ucfTrainTestlist"),
    "rgb": (TSFUSION, "ucf101_jpegs_256.zip", 3, "use them: --rgb-dir {0}/jpegs_256"),
    "flow": (TSFUSION, "ucf101_tvl1_flow.zip", 3, "use them: --flow-dir {0}/tvl1_flow"),
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", nargs="*", default=["videos", "lists"], metavar="WHAT",
                        help=f"any of {', '.join(ITEMS)}")
    parser.add_argument("--output", type=Path, default=Path("data"), metavar="DIR",
                        help="folder for the unpacked data; archives go to DIR/downloads")
    parser.add_argument("--base-url", metavar="URL", help="folder on another server that holds the archives "
                        f"(default: {UCF} for videos and lists, {TSFUSION} for rgb and flow)")
    args = parser.parse_args()
    if unknown := [name for name in args.what if name not in ITEMS]:
        raise InputError(f"{unknown[0]!r} is none of {', '.join(ITEMS)}")
    try:
        (args.output / "downloads").mkdir(parents=True, exist_ok=True)
        with FileLock(args.output / ".download.lock", timeout=0):  # ends with the process
            for name in dict.fromkeys(args.what):
                download(name, args.output, args.base_url)
    except Timeout:
        raise InputError(f"another download into {args.output} is running: wait for it or stop it") from None
    except OSError as error:
        raise InputError(f"cannot write {error.filename or args.output}: {error.strerror or error}; put that right "
                         "and run this again, it continues where it stopped") from error


def download(name: str, output: Path, base_url: str | None) -> None:
    """Fetch and unpack one of ITEMS, unless that is done."""
    base, filename, parts, use = ITEMS[name]
    archive, done = output / "downloads" / filename, output / f".{name}.done"
    if done.exists():
        print(f"{name}: done before (delete {done} to check its files again)")
        return
    if archive.suffix == ".rar":
        try:
            rarfile.tool_setup()
        except rarfile.RarCannotExec:
            raise InputError("no program here unpacks .rar: install one, apt install unar (or libarchive-tools), "
                             "brew install unar, winget install 7zip.7zip") from None
    if not archive.exists():
        names = [f"{filename}.{part:03d}" for part in range(1, parts + 1)] or [filename]
        for one in names:
            fetch(f"{(base_url or base).rstrip('/')}/{one}", archive.with_name(one))
        if parts:
            join([archive.with_name(one) for one in names], archive)
    files, written = unpack(archive, output)
    done.touch()
    print(f"{name}: {plural(files, 'file')} ({written:,} written now); {use.format(output)}")


def fetch(url: str, target: Path) -> None:
    """Download `url` to `target`, which appears only when complete. Continues an unfinished download.

    A file that changed on the server meanwhile is found damaged by its checksums when it is unpacked.
    """
    part = target.with_name(f"{target.name}.part")
    failures, best = 0, -1  # -1: not even one answer
    with Progress(desc=target.name, total=0, unit="B", unit_scale=True) as bar:
        while not target.exists():
            try:
                fetch_rest(url, part, bar)
                part.replace(target)
            except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
                reached = part.stat().st_size if part.exists() else -1
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                problem = f"{url} cannot be fetched ({printable(' '.join(str(error).split()))[:200]})"
                # 4xx: the server has no such file, or keeps it; 408 and 429 ask to come back.
                code = getattr(getattr(error, "response", None), "status_code", 0)
                refused = 400 <= code < 500 and code not in (408, 429)
                if best < 0 or refused or failures > RETRIES:
                    raise InputError(f"{problem}: check the connection and run this again; or give another folder "
                                     f"with --base-url, or put {target} there yourself") from None
                pause = min(60.0, WAIT * 2 ** (failures - 1))
                bar.write(f"{problem}; trying again in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)


def fetch_rest(url: str, part: Path, bar: tqdm) -> None:
    """Append the missing bytes of `url` to `part`. Raises an error of requests if the download ends early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        if response.status_code == 416 and have:  # no byte follows: these are of another file, or of a whole one
            part.unlink()
            return fetch_rest(url, part, bar)
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise InputError(f"{url} answers with a web page, not the file: look for it in a browser, then give its "
                             "new folder with --base-url")
        length = response.headers.get("Content-Length", "")
        if not (length.isdecimal() and len(length) < 19):
            raise requests.RequestException("the server does not tell its size")
        have = have if response.status_code == 206 else 0
        size = have + int(length)
        if 2 * size - have > (free := shutil.disk_usage(part.parent).free):
            need, rest = (tqdm.format_sizeof(number, "B") for number in (2 * size - have, free))
            raise InputError(f"fetching and unpacking {part.stem} needs {need} in {part.parent}, where {rest} are "
                             "free: make room or choose another --output")
        bar.reset(size)
        bar.update(have)
        with open(part, "ab") as file:
            file.truncate(have)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size != size:
        raise requests.ConnectionError("the connection was cut")


def join(parts: list[Path], target: Path) -> None:
    """Write the parts of an archive, one after the other, to `target`, and delete them."""
    whole = target.with_name(f"{target.name}.part")
    with open(whole, "wb") as file:
        for part in parts:
            with open(part, "rb") as opened:
                shutil.copyfileobj(opened, file, CHUNK)
    whole.replace(target)
    for part in parts:
        part.unlink()


# Exceptions of zipfile and rarfile for an archive that is damaged, cut off, encrypted or of an unknown kind.
DAMAGE = (zipfile.BadZipFile, rarfile.Error, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
          struct.error, MemoryError)  # fmt: skip


def unpack(path: Path, output: Path) -> tuple[int, int]:
    """Unpack an archive into `output`. Returns how many files it holds, and how many were not there yet.

    All names are checked before the first byte is written. Intact files are kept, so a stopped run continues.
    """
    written = 0
    try:
        rar = path.suffix == ".rar"
        archive: Any = rarfile.RarFile(str(path), part_only=True, errors="strict") if rar else zipfile.ZipFile(path)
        entries = {safe_path(entry, path): entry for entry in archive.infolist() if not entry.is_dir()}
        if not entries:
            raise ValueError("it is empty")
    except DAMAGE as error:
        raise InputError(f"{path} is no complete archive ({error}): delete it and run this again") from None
    with archive, Progress(total=len(entries), desc=f"unpack {path.name}", unit=" files") as bar:
        for place, entry in entries.items():
            if not is_intact(output / place, entry):
                write_entry(archive, entry, output / place, path)
                written += 1
            bar.update()
    return len(entries), written


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
        raise InputError(f"{archive} holds a link, a device or an unsafe name, {name!r}; nothing was unpacked: don't "
                         "trust this file")
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
    """Write one entry to a temporary file beside its target, and rename it if its CRC is right.

    There is no fsync: for millions of files it would take hours. After a power cut, the next run's CRC check
    finds what was lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with archive.open(entry) as packed, open(temporary, "wb") as sink:
            shutil.copyfileobj(packed, sink, CHUNK)  # at its end, the CRC is checked
        os.replace(temporary, path)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # bz2 reports damage without errno
            raise
        raise InputError(f"{entry.filename} is damaged ({error}): delete {source} and run this again") from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run_main(main)
