"""Unpack the archives data sets come in, multi-part zips and .rar: whole files, never outside the target."""

from __future__ import annotations

import bisect
import contextlib
import io
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import rarfile
from tqdm import tqdm

from common.progress import Progress
from utils import InputError, plural

CHUNK = 1 << 20  # bytes read or written at once
BLOCK = 4096  # bytes that file systems hand out at once: the least a small file takes
# What zipfile raises for an archive that is damaged, cut, encrypted (RuntimeError) or of an unknown kind.
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, MemoryError, EOFError, RuntimeError,
          ValueError, struct.error)


@dataclass(frozen=True)
class Unpacked:
    """What an archive put on disk: `files` in all, of which `written` just now, in top-level `folders`."""

    files: int
    written: int
    folders: list[str]


# --- safety --------------------------------------------------------------------------------------------


def safe_path(name: str, archive: str) -> PurePosixPath:
    """The path, relative to the target folder, that the entry `name` of `archive` may be written to.

    Raises InputError for a name that could leave the target on any system: absolute, with `..`, with a
    Windows drive or stream (colon), a backslash or a control character.
    """
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or not path.parts
        or ".." in path.parts
        or "\\" in name
        or ":" in name
        or not name.isprintable()
    ):
        raise InputError(f"{archive} holds the unsafe name {name!r}; nothing was unpacked: don't trust this file")
    return path


def refuse_link(name: str, archive: str) -> None:
    raise InputError(f"{archive} holds a link or device, {name!r}; nothing was unpacked: don't trust this file")


def check_disk(needed: int, folder: Path, task: str) -> None:
    """Raise InputError unless `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{task} needs {tqdm.format_sizeof(needed, 'B')} in {folder}, where only "
            f"{tqdm.format_sizeof(free, 'B')} are free: make room or choose another --output"
        )


def size_on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def has_size(path: Path, size: int) -> bool:
    """Whether `path` is a plain file (no link) of `size` bytes."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def is_intact(path: Path, size: int, crc: int | None) -> bool:
    """Whether `path` is a plain file of this size and CRC-32 (None: not known)."""
    if not has_size(path, size):
        return False
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return crc is None or found == crc


def progress_bar(title: str, total: int, shown: bool, unit: str = "B") -> Progress:
    """A bar with size, rate and time left; in a log file a line a minute."""
    return Progress(desc=title, total=total, unit=unit, unit_scale=True, disable=not shown)


# --- zip -----------------------------------------------------------------------------------------------


class PartsFile(io.RawIOBase):
    """Several files read as one, seekable: a multi-part zip opens without a joined copy on disk."""

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__()
        self.parts = list(parts)
        self.ends = list(accumulate(part.stat().st_size for part in self.parts))
        self.files = [open(part, "rb", buffering=0) for part in self.parts]  # noqa: SIM115 (see close)
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.ends[-1]}[whence]
        if target < 0:
            raise ValueError(f"negative seek position {target}")
        self.position = target
        return target

    def readinto(self, buffer) -> int:  # type: ignore[override]
        if self.position >= self.ends[-1]:
            return 0
        index = self.part_at(self.position)
        begin = self.ends[index - 1] if index else 0
        self.files[index].seek(self.position - begin)
        with memoryview(buffer) as view:
            count = self.files[index].readinto(view[: self.ends[index] - self.position])
        self.position += count
        return count

    def part_at(self, position: int) -> int:
        """Index of the part that holds the byte at `position`."""
        return min(bisect.bisect_right(self.ends, position), len(self.parts) - 1)

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


def unpack_zip(parts: Sequence[Path], target: Path, progress: bool = True) -> Unpacked:
    """Unpack a zip, whole or in `parts` (.001, .002, ... in order), into the folder `target`.

    All is checked before the first byte is written: names, links and devices, free disk for the sizes
    declared. An entry never yields more than its declared size, and its CRC is checked. A file already there
    with the right size and CRC is kept, so a run that was stopped continues; a file is written beside its
    place and renamed, so it is whole or absent. Files of other origin are left alone.
    The index takes about 0.7 kB of memory per entry (zipfile's, measured with 200,000 entries).
    Raises InputError; if the archive is damaged, it names the part to fetch again.
    """
    title = parts[0].name
    with PartsFile(parts) as joined, io.BufferedReader(joined, 1 << 16) as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise InputError(
                f"{title} ({plural(len(parts), 'file')}) is no complete zip ({error}): a part is missing or damaged, "
                f"compare the files in {parts[0].parent} with the server's"
            ) from error
        entries = zip_entries(archive, title, target)
        written, made, folders = 0, set(), set()
        with progress_bar(f"unpack {title}", sum(entry.file_size for entry in entries), progress) as bar:
            for entry in entries:
                relative = safe_path(entry.filename, title)
                path = target / relative
                folders.add(relative.parts[0])
                if not is_intact(path, entry.file_size, entry.CRC):
                    if path.parent not in made:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        made.add(path.parent)
                    try:
                        write_entry(archive, entry, path)
                    except DAMAGE as error:
                        names = parts_of(joined, entry)
                        raise InputError(
                            f"{entry.filename} in {title} is damaged ({error}): delete {names} and run this again"
                        ) from error
                    written += 1
                bar.update(entry.file_size)
    return Unpacked(len(entries), written, sorted(folders))


def zip_entries(archive: zipfile.ZipFile, title: str, target: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip in the order of their bytes, so that a disk is read front to back.

    Raises InputError for an unsafe name, a link or device, or more data than the disk of `target` can take.
    """
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]  # is_dir() fails on ""
    entries.sort(key=lambda entry: entry.header_offset)
    needed = 0
    for entry in entries:
        path = target / safe_path(entry.filename, title)
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):  # Unix mode; 0 from other systems
            refuse_link(entry.filename, title)
        if not has_size(path, entry.file_size):
            needed += size_on_disk(entry.file_size)
    check_disk(needed, target, f"unpacking {title}")
    return entries


def write_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Write one entry to `path` atomically.

    Without fsync, which would take hours for millions of small files: what a power cut takes is found by the
    CRC check of the next run.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with archive.open(entry) as source, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)
        if not has_size(temporary, entry.file_size):
            raise zipfile.BadZipFile(f"shorter than the {entry.file_size} bytes declared")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # bz2's word for damage
            raise zipfile.BadZipFile(str(error)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def parts_of(joined: PartsFile, entry: zipfile.ZipInfo) -> str:
    """Names of the part files that an entry lies in."""
    first = joined.part_at(entry.header_offset)
    last = joined.part_at(entry.header_offset + entry.compress_size)
    return " and ".join(str(part) for part in joined.parts[first : last + 1])


# --- rar -----------------------------------------------------------------------------------------------

# How each program unpacks a .rar, best first; {archive} and {folder} are filled in.
RAR_TOOLS = {
    "unrar": ["x", "-y", "-p-", "{archive}", "{folder}/"],
    "7zz": ["x", "-y", "-bd", "-o{folder}", "{archive}"],
    "7z": ["x", "-y", "-bd", "-o{folder}", "{archive}"],
    "unar": ["-q", "-f", "-D", "-nr", "-o", "{folder}", "{archive}"],
    "bsdtar": ["-x", "--no-same-owner", "--no-same-permissions", "-f", "{archive}", "-C", "{folder}"],
}
if sys.platform == "win32":
    RAR_TOOLS["tar"] = RAR_TOOLS["bsdtar"]  # Windows' own tar is bsdtar
# Debian's and Homebrew's 7-Zip come without RAR.
INSTALL = "apt install unar (or libarchive-tools), brew install unar, winget install 7zip.7zip"


class ToolError(Exception):
    """A program did not unpack an archive; another one may."""


def rar_tools() -> dict[str, str]:
    """The programs for .rar installed here, {name: path}. Raises InputError with what to install if none is."""
    # 7-Zip and WinRAR do not add the folders they install to to Windows' PATH.
    home = os.environ.get("PROGRAMFILES")
    folders = [os.path.join(home, name) for name in ("7-Zip", "WinRAR")] if home else []
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    tools = {name: found for name in RAR_TOOLS if (found := shutil.which(name, path=path))}
    if not tools:
        raise InputError(f"no program here unpacks .rar (looked for {', '.join(RAR_TOOLS)}): install one, {INSTALL}")
    return tools


def unpack_rar(archive: Path, target: Path, progress: bool = True) -> Unpacked:
    """Unpack a .rar into the folder `target` with the first installed program that can.

    Names, links and sizes are read from the archive's headers and checked before anything is written. The
    program writes into a temporary folder inside `target`. There every file is checked for size and CRC, since
    bsdtar lets damaged files pass, and then moved by one rename. Files already there and intact are kept;
    files of other origin are left alone.
    Raises InputError if the archive is unsafe, damaged, too large for the disk, or no program can read it.
    """
    entries = rar_entries(archive)
    folders = sorted({path.parts[0] for path in entries})
    if all(is_intact(target / path, entry.file_size, entry.CRC) for path, entry in entries.items()):
        return Unpacked(len(entries), 0, folders)
    needed = sum(size_on_disk(entry.file_size) for entry in entries.values())
    check_disk(needed, target, f"unpacking {archive.name}")
    failures = []
    for name, program in rar_tools().items():
        with scratch_folder(target) as folder:
            try:
                run_rar_tool(name, program, archive, folder, len(entries), progress)
                check_unpacked(folder, entries, archive.name)
            except ToolError as failure:
                failures.append(f"{name}: {failure}")
                continue
            for path in entries:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / path, target / path)
            return Unpacked(len(entries), len(entries), folders)
    raise InputError(
        f"cannot unpack {archive} ({'; '.join(failures)}): if it is damaged, delete it and run this again; if it "
        f"needs another program, {INSTALL}"
    )


def rar_entries(archive: Path) -> dict[PurePosixPath, rarfile.RarInfo]:
    """The files in a .rar by path. Raises InputError if it is damaged, encrypted or unsafe."""
    try:
        with rarfile.RarFile(str(archive), part_only=True, errors="strict") as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            is_locked = opened.needs_password()
    except (rarfile.Error, struct.error) as error:
        raise InputError(f"{archive} is no complete .rar ({error}): delete it and run this again") from error
    if is_locked or not entries:
        raise InputError(f"{archive} {'needs a password' if is_locked else 'is empty'}: delete it and run this again")
    for entry in entries:
        if not entry.is_file() or getattr(entry, "file_redir", None):
            refuse_link(entry.filename, archive.name)
    return {safe_path(entry.filename, archive.name): entry for entry in entries}


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """An empty folder inside `target`; it and what a killed run left of its kind are deleted afterwards."""
    scratch = target / ".unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    folder = scratch / str(os.getpid())  # a program that outlived a killed run writes under another name
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_rar_tool(name: str, program: str, archive: Path, folder: Path, files: int, progress: bool) -> None:
    """Let a program unpack `archive`, of so many `files`, into `folder`. Raises ToolError with its own words."""
    words = [word.format(archive=archive.resolve(), folder=folder.resolve()) for word in RAR_TOOLS[name]]
    logs = [folder.with_name("errors"), folder.with_name("output")]
    with (
        open(logs[0], "wb") as errors,
        open(logs[1], "wb") as output,
        progress_bar(f"unpack {archive.name}", files, progress, " files") as bar,
    ):
        process = subprocess.Popen([program, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                bar.update(sum(len(found) for _, _, found in os.walk(folder)) - bar.n)
        finally:
            process.kill()  # after Ctrl-C; does nothing to a process that has ended
            process.wait()
    if process.returncode:
        lines = [line.strip() for log in logs for line in reversed(os.fsdecode(log.read_bytes()).splitlines())]
        raise ToolError(next(filter(None, lines), f"exit code {process.returncode}"))


def check_unpacked(folder: Path, entries: dict[PurePosixPath, rarfile.RarInfo], title: str) -> None:
    """Raise InputError if `folder` holds a link or device, ToolError if an entry is not there as declared."""
    for parent, subfolders, files in os.walk(folder):
        for name in subfolders + files:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                refuse_link(str(path.relative_to(folder)), title)
    for relative, entry in entries.items():
        if not is_intact(folder / relative, entry.file_size, entry.CRC):
            raise ToolError(f"{relative} came out damaged")
