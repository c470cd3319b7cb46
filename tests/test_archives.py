"""Archives: parts read as one, nothing outside the target, nothing half written. See data/archives.py."""

import io
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from data import archives
from utils import InputError

FILES = {f"jpegs_256/v_Biking_g01_c{c:02d}/frame{f:06d}.jpg": random.Random(100 * c + f).randbytes(500 + 37 * f)
         for c in range(1, 4) for f in range(1, 6)}


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


def split(path: Path, count: int) -> list[Path]:
    """Cut a file into `count` parts .001, .002, ... and delete it, as tsfusion's zips were."""
    content = path.read_bytes()
    path.unlink()
    size = -(-len(content) // count)
    parts = [path.with_name(f"{path.name}.{index + 1:03d}") for index in range(count)]
    for index, part in enumerate(parts):
        part.write_bytes(content[index * size : (index + 1) * size])
    return parts


def make_rar(files: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    """A RAR 4 archive of stored files, from its format description (technote.txt of RAR 4)."""
    def header(kind: int, flags: int, rest: bytes) -> bytes:
        body = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
        return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body

    blocks = [b"Rar!\x1a\x07\x00", header(0x73, 0, bytes(6))]
    for name, content in files.items():
        raw = name.replace("/", "\\").encode()  # the separator inside a .rar
        mode = (modes or {}).get(name, stat.S_IFREG | 0o644)
        fields = struct.pack("<IIBIIBBHI", len(content), len(content), 3, zlib.crc32(content), 0x5A218000, 20, 0x30,
                             len(raw), mode)
        blocks.append(header(0x74, 0x8000, fields + raw) + content)
    return b"".join([*blocks, header(0x7B, 0x4000, b"")])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parts_read_as_their_concatenation(tmp_path):
    draw = random.Random(1)
    pieces = [draw.randbytes(size) for size in (1000, 1, 0, 777, 3000)]
    paths = [tmp_path / f"x.{index:03d}" for index in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    whole = io.BytesIO(b"".join(pieces))
    with archives.PartsFile(paths) as raw, io.BufferedReader(raw, 64) as joined:
        for _ in range(500):
            offset, count = draw.randrange(5000), draw.randrange(2000)
            whole.seek(offset)
            joined.seek(offset)
            assert joined.read(count) == whole.read(count)
        assert joined.seek(-5, io.SEEK_END) == whole.seek(-5, io.SEEK_END)
        assert joined.read() == whole.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_zip_in_parts_is_unpacked_with_no_joined_copy(tmp_path, count, method):
    make_zip(tmp_path / "a.zip", FILES, method)
    parts = split(tmp_path / "a.zip", count)
    (tmp_path / "out").mkdir()
    result = archives.unpack_zip(parts, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == FILES
    assert (result.files, result.written, result.folders) == (len(FILES), len(FILES), ["jpegs_256"])
    assert sorted(tmp_path.iterdir()) == sorted([*parts, tmp_path / "out"])


def test_unpacking_again_restores_what_is_missing_or_differs_and_nothing_else(tmp_path):
    make_zip(tmp_path / "a.zip", FILES)
    archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)
    gone, wrong, longer, fine = (tmp_path / name for name in list(FILES)[:4])
    gone.unlink()
    wrong.write_bytes(bytes(len(FILES[list(FILES)[1]])))  # the right size, another CRC
    longer.write_bytes(longer.read_bytes() + b"x")
    os.utime(fine, (1, 1))
    (tmp_path / "jpegs_256" / "u.bin").write_bytes(b"a stray")
    (gone.parent / f".{gone.name}.part").write_bytes(b"left by a killed run")
    result = archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)
    assert result.written == 3
    assert fine.stat().st_mtime == 1
    found = contents(tmp_path)
    assert found.pop("jpegs_256/u.bin") == b"a stray"
    del found["a.zip"]
    assert found == FILES


def test_a_run_stopped_while_writing_leaves_whole_files_only(tmp_path, monkeypatch):
    make_zip(tmp_path / "a.zip", FILES)
    copy, calls = shutil.copyfileobj, []

    def stop_at_the_fourth(source, sink, size):
        calls.append(1)
        if len(calls) == 4:
            sink.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, sink, size)

    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.setattr(shutil, "copyfileobj", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        archives.unpack_zip([tmp_path / "a.zip"], target, progress=False)
    assert contents(target) == dict(list(FILES.items())[:3])
    assert archives.unpack_zip([tmp_path / "a.zip"], target, progress=False).written == len(FILES) - 3
    assert contents(target) == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "C:evil", "..\\evil", "a\\..\\evil",
                                  "//host/share/evil", "a/b\nc", "a/x:stream", ".."])
def test_a_name_that_could_leave_the_target_refuses_the_whole_zip(tmp_path, name):
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    make_zip(tmp_path / "a.zip", {"good": b"good", name: b"evil"})
    before = contents(tmp_path)
    with pytest.raises(InputError, match="unsafe name"):
        archives.unpack_zip([tmp_path / "a.zip"], target, progress=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_link_or_device_refuses_the_whole_zip(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", b"good")
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(entry, "/etc")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="link or device"):
        archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)
    assert contents(tmp_path) == before


def test_an_entry_larger_than_it_declares_never_reaches_the_disk(tmp_path):
    content = make_zip(tmp_path / "a.zip", {"bomb": bytes(5 << 20)}, zipfile.ZIP_DEFLATED)
    lie = content.replace(struct.pack("<I", 5 << 20), struct.pack("<I", 10))
    assert lie != content
    (tmp_path / "a.zip").write_bytes(lie)
    with pytest.raises(InputError, match=r"bomb in a\.zip is damaged"):
        archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)
    assert list(contents(tmp_path)) == ["a.zip"]


def test_a_zip_that_declares_more_than_the_disk_holds_is_refused_first(tmp_path, monkeypatch):
    make_zip(tmp_path / "a.zip", {f"f{index}": b"x" for index in range(10)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10 * 4096 - 1))
    with pytest.raises(InputError, match=r"needs 41\.0kB in .* only 41\.0kB are free: make room"):
        archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)
    assert list(contents(tmp_path)) == ["a.zip"]
    (tmp_path / "f0").write_bytes(b"x")  # there already: nine blocks are enough
    assert archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False).written == 9


def test_damage_is_found_and_the_part_named(tmp_path):
    make_zip(tmp_path / "a.zip", FILES)
    parts = split(tmp_path / "a.zip", 3)
    content = bytearray(parts[1].read_bytes())
    offset = content.find(next(body for body in FILES.values() if body in content))
    content[offset + 5] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(InputError, match=rf"damaged .* delete {re.escape(str(parts[1]))} and run"):
        archives.unpack_zip(parts, tmp_path, progress=False)
    wanted = dict(FILES)
    assert all(wanted[name] == body for name, body in contents(tmp_path).items() if name in wanted)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_anywhere_in_a_compressed_entry_is_told_plainly(tmp_path, method):
    content, refused = b"some text that repeats, " * 40, 0
    good = make_zip(tmp_path / "a.zip", {"a/b.jpg": content}, method)
    (tmp_path / "out").mkdir()
    first = 30 + len("a/b.jpg")  # after the local header
    size = zipfile.ZipFile(tmp_path / "a.zip").infolist()[0].compress_size
    for place in range(first, first + size):
        bad = bytearray(good)
        bad[place] ^= 0xFF
        (tmp_path / "a.zip").write_bytes(bad)
        try:
            archives.unpack_zip([tmp_path / "a.zip"], tmp_path / "out", progress=False)
        except InputError as error:
            refused += 1
            assert "damaged" in str(error) and not contents(tmp_path / "out")
        else:  # a byte that says nothing, such as LZMA's version
            assert contents(tmp_path / "out") == {"a/b.jpg": content}
            (tmp_path / "out/a/b.jpg").unlink()
    assert refused > 0.8 * size


def test_an_entry_without_a_name_refuses_the_whole_archive(tmp_path):
    named = make_zip(tmp_path / "a.zip", {"a/b.jpg": b"x", "!": b"y"})  # zipfile refuses to write an empty name
    unnamed = re.sub(rb"(PK\x03\x04.{22})\x01\x00(..)!", rb"\1\0\0\2", named, flags=re.DOTALL)
    unnamed = re.sub(rb"(PK\x01\x02.{24})\x01\x00(.{16})!", rb"\1\0\0\2", unnamed, flags=re.DOTALL)
    end = unnamed.index(b"PK\x05\x06")
    size, start = end - unnamed.index(b"PK\x01\x02"), unnamed.index(b"PK\x01\x02")
    unnamed = unnamed[: end + 12] + struct.pack("<II", size, start) + unnamed[end + 20 :]
    (tmp_path / "a.zip").write_bytes(unnamed)
    (tmp_path / "out").mkdir()
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["a/b.jpg", ""]
    with pytest.raises(InputError, match="unsafe name ''"):
        archives.unpack_zip([tmp_path / "a.zip"], tmp_path / "out", progress=False)
    (tmp_path / "a.rar").write_bytes(make_rar({"a/b.jpg": b"x", "": b"y"}))
    with pytest.raises(InputError, match="a.rar"):
        archives.unpack_rar(tmp_path / "a.rar", tmp_path / "out", progress=False)
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_a_plain_error(tmp_path, missing):
    make_zip(tmp_path / "a.zip", FILES)
    parts = split(tmp_path / "a.zip", 3)
    del parts[missing]
    with pytest.raises(InputError, match="a part is missing|is damaged"):
        archives.unpack_zip(parts, tmp_path, progress=False)


def test_a_zip_with_a_password_is_a_plain_error(tmp_path):
    content = bytearray(make_zip(tmp_path / "a.zip", {"secret": b"x"}))
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        archives.unpack_zip([tmp_path / "a.zip"], tmp_path, progress=False)


# ---- .rar

VIDEOS = {f"UCF-101/Biking/v_Biking_g01_c{c:02d}.avi": random.Random(c).randbytes(3000 + c) for c in range(1, 5)}


def missing(name: str) -> str:
    """Why a program cannot be tried here: Debian builds 7-Zip without RAR."""
    path = shutil.which(name)
    if not path:
        return f"{name} is not installed"
    if name.startswith("7z") and b"Rar" not in subprocess.run([path, "i"], capture_output=True, check=False).stdout:
        return f"this build of {name} knows no RAR"
    return ""


TOOLS = [pytest.param(name, marks=pytest.mark.skipif(bool(missing(name)), reason=missing(name) or "-"))
         for name in archives.RAR_TOOLS]


def use_only(tool, monkeypatch):
    monkeypatch.setattr(archives, "rar_tools", lambda: {tool: shutil.which(tool)})


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_unpacks_a_real_rar(tmp_path, monkeypatch, tool):
    use_only(tool, monkeypatch)
    archive = tmp_path / "UCF101.rar"
    archive.write_bytes(make_rar(VIDEOS))
    target = tmp_path / "out"
    (target / ".unpacking" / "1").mkdir(parents=True)
    (target / ".unpacking" / "1" / "half.avi").write_bytes(b"left by a killed run")
    (target / "mine.txt").write_bytes(b"a stray")
    result = archives.unpack_rar(archive, target, progress=False)
    assert (result.files, result.folders) == (len(VIDEOS), ["UCF-101"])
    assert contents(target) == VIDEOS | {"mine.txt": b"a stray"}
    assert not (target / ".unpacking").exists()

    monkeypatch.setattr(archives, "rar_tools", lambda: {})  # nothing is missing, so no tool is needed
    assert archives.unpack_rar(archive, target, progress=False).written == 0
    (target / next(iter(VIDEOS))).write_bytes(b"changed")
    use_only(tool, monkeypatch)
    archives.unpack_rar(archive, target, progress=False)
    assert contents(target) == VIDEOS | {"mine.txt": b"a stray"}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("harm", ["damage", "cut", "parent", "absolute", "link"])
def test_no_tool_lets_a_bad_rar_pass(tmp_path, monkeypatch, tool, harm):
    use_only(tool, monkeypatch)
    content = make_rar(VIDEOS)
    if harm == "damage":
        content = content.replace(VIDEOS["UCF-101/Biking/v_Biking_g01_c03.avi"][:9], b"something")
    elif harm == "cut":
        content = content[:-2000]
    elif harm == "parent":
        content = make_rar(VIDEOS | {"../evil.avi": b"evil"})
    elif harm == "absolute":
        content = make_rar(VIDEOS | {"/tmp/evil-two-stream.avi": b"evil"})
    else:
        content = make_rar(VIDEOS | {"link": b"/etc"}, {"link": stat.S_IFLNK | 0o777})
    archive = tmp_path / "UCF101.rar"
    archive.write_bytes(content)
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    with pytest.raises(InputError):
        archives.unpack_rar(archive, target, progress=False)
    assert list(contents(tmp_path)) == ["UCF101.rar"]
    assert not Path("/tmp/evil-two-stream.avi").exists()


def test_without_a_tool_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PROGRAMFILES", raising=False)
    (tmp_path / "UCF101.rar").write_bytes(make_rar(VIDEOS))
    with pytest.raises(InputError, match=r"unrar, 7zz, 7z, unar, bsdtar.* apt install .* brew .* winget"):
        archives.unpack_rar(tmp_path / "UCF101.rar", tmp_path)


@pytest.mark.parametrize("harm", ["bomb", "cut", "no rar", "empty", "link", "parent"])
def test_a_bad_rar_is_refused_before_any_tool_runs(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(archives, "rar_tools", lambda: pytest.fail("a tool was about to run"))
    if harm == "bomb":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 4 * 4096 - 1))
    content, message = {
        "bomb": (make_rar(VIDEOS), "16.4kB are free"),
        "cut": (make_rar(VIDEOS)[:30], r"no complete \.rar|is empty"),
        "no rar": (b"<html>", r"no complete \.rar"),
        "empty": (b"", r"no complete \.rar"),
        "link": (make_rar(VIDEOS | {"link": b"/etc"}, {"link": stat.S_IFLNK | 0o777}), "link or device, 'link'"),
        "parent": (make_rar(VIDEOS | {"a/../../b": b"evil"}), "unsafe name 'a/../../b'"),
    }[harm]
    archive = tmp_path / "UCF101.rar"
    archive.write_bytes(content)
    with pytest.raises(InputError, match=message):
        archives.unpack_rar(archive, tmp_path, progress=False)
    assert list(contents(tmp_path)) == ["UCF101.rar"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in tools are shell scripts")
def test_the_next_tool_takes_over_when_one_cannot(tmp_path, monkeypatch):
    """Debian's 7z without its rar module cannot unpack; another tool leaves a file out; a third one works."""
    (tmp_path / "UCF101.rar").write_bytes(make_rar({"UCF-101/a.avi": b"video", "UCF-101/b.avi": b"other"}))
    programs = tmp_path / "bin"
    programs.mkdir()
    half = 'mkdir -p "$1/UCF-101"; printf video > "$1/UCF-101/a.avi"'
    scripts = {
        "7z": 'echo "ERROR: Unsupported Method : a.avi"; echo; exit 2',
        "unar": f"shift 5; {half}",
        "bsdtar": f'shift 6; {half}; printf other > "$1/UCF-101/b.avi"; ln -s /etc "$1/link"',
        "unrar": f'shift 4; {half}; printf other > "$1/UCF-101/b.avi"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def unpack_with(*names):
        monkeypatch.setattr(archives, "rar_tools", lambda: {name: str(programs / name) for name in names})
        target = tmp_path / "out"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            archives.unpack_rar(tmp_path / "UCF101.rar", target, progress=False)
        finally:
            found = contents(target)
        return found

    assert unpack_with("7z", "unar", "unrar") == {"UCF-101/a.avi": b"video", "UCF-101/b.avi": b"other"}
    with pytest.raises(InputError, match=r"7z: ERROR: Unsupported Method.*unar: UCF-101/b\.avi came out damaged.*apt"):
        unpack_with("7z", "unar")
    with pytest.raises(InputError, match="link"):
        unpack_with("bsdtar")
    assert list((tmp_path / "out").iterdir()) == []
