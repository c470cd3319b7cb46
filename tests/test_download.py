"""Datasets from a server that cuts, changes and refuses, and archives that are damaged or hostile."""

import random
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import rarfile
from scripts import ROOT

from data import download
from utils import InputError

FILES = {f"jpegs_256/v_Biking_g01_c{c:02d}/frame{f:06d}.jpg": random.Random(100 * c + f).randbytes(500 + 37 * f)
         for c in range(1, 4) for f in range(1, 6)}
VIDEOS = {f"UCF-101/Biking/v_Biking_g01_c{c:02d}.avi": random.Random(c).randbytes(3000 + c) for c in range(1, 5)}
LISTS, RGB = "UCF101TrainTestSplits-RecognitionTask.zip", "ucf101_jpegs_256.zip"


def make_zip(files: dict[Any, bytes], folder: Path, method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return (folder / "made.zip").read_bytes()


def make_rar(files: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> bytes:
    """A RAR 4 archive of stored files, from its format description (technote.txt of RAR 4)."""
    def header(kind: int, flags: int, rest: bytes) -> bytes:
        body = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
        return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body

    blocks = [b"Rar!\x1a\x07\x00", header(0x73, 0, bytes(6))]
    for name, content in files.items():
        raw = name.replace("/", "\\").encode()  # the separator inside a .rar
        fields = struct.pack("<IIBIIBBHI", len(content), len(content), 3, zlib.crc32(content), 0x5A218000, 20, 0x30,
                             len(raw), mode)
        blocks.append(header(0x74, 0x8000, fields + raw) + content)
    return b"".join([*blocks, header(0x7B, 0x4000, b"")])


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for archives and notes."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith((".", "downloads/"))}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        if server.refusals:
            return self.answer(server.refusals.pop(0))
        if name not in server.files:
            return self.answer(404)
        content = server.files[name]
        asked = self.headers.get("Range") if server.ranges else None
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if asked and begin >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Length": len(content) - begin, "Content-Type": server.content_type}
        self.answer(206 if asked else 200, headers)
        stop = min(len(content), begin + server.cuts.pop(0)) if server.cuts else len(content)
        server.sent.append((name, begin))
        try:
            for place in range(begin, stop, server.step):
                self.wfile.write(content[place : min(place + server.step, stop)])
                time.sleep(server.pause)
        except OSError:
            pass  # the client is gone

    def answer(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {"Content-Length": 0}).items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """Serves `files`. `cuts`: the bytes after which it cuts each next answer; `refusals`: the next statuses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.cuts, server.refusals, server.sent = {}, [], [], []
    server.ranges, server.step, server.pause = True, 1 << 18, 0.0
    server.content_type, server.url = "application/octet-stream", f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(monkeypatch, capsys, tmp_path):
    """get(WHAT, URL of a server) -> what the command prints. Raises its InputError."""
    monkeypatch.setattr(download, "WAIT", 0)

    def get(what, url=None):
        words = [what, "--output", str(tmp_path / "out"), *(["--base-url", url] if url else [])]
        monkeypatch.setattr(sys, "argv", ["download.py", *words])
        download.main()
        return "".join(capsys.readouterr())

    return get


def refused(get, *arguments) -> str:
    """The one line, safe to print, that refuses this."""
    with pytest.raises(InputError) as error:
        get(*arguments)
    assert str(error.value).isprintable()
    return str(error.value)


# --- fetching ------------------------------------------------------------------------------------------


def test_parts_end_to_end(server, get, tmp_path):
    content = make_zip(FILES, tmp_path)
    ends = [0, 3000, 6000, len(content)]
    server.files = {f"{RGB}.{part:03d}": content[ends[part - 1] : ends[part]] for part in (1, 2, 3)}
    server.cuts = [2000, 0, 1000]
    done = get("rgb", server.url)
    assert contents(tmp_path / "out") == FILES
    assert [path.name for path in (tmp_path / "out/downloads").iterdir()] == [RGB]
    assert done.count("trying again") == 3 and "--rgb-dir" in done

    server.sent.clear()
    assert "done before" in get("rgb", server.url)
    gone, wrong = (tmp_path / "out" / name for name in list(FILES)[:2])
    gone.unlink()
    wrong.write_bytes(bytes(wrong.stat().st_size))  # the right size, another CRC
    (tmp_path / "out/.rgb.done").unlink()
    assert "(2 written now)" in get("rgb", server.url)
    assert contents(tmp_path / "out") == FILES and server.sent == []


def test_videos_end_to_end_and_not_without_a_program_to_unpack_them(server, get, tmp_path, monkeypatch):
    server.files = {"UCF101.rar": make_rar(VIDEOS)}

    def absent():
        raise rarfile.RarCannotExec

    with monkeypatch.context() as without:
        without.setattr(rarfile, "tool_setup", absent)
        assert "apt install" in refused(get, "videos", server.url) and server.sent == []
    needs_rar()
    get("videos", server.url)
    assert contents(tmp_path / "out") == VIDEOS


def needs_rar() -> None:
    try:
        rarfile.tool_setup()
    except rarfile.RarCannotExec:
        pytest.skip("no program for .rar is installed")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on_where_it_was_and_two_at_once_are_refused(server, get, tmp_path):
    content = make_zip(FILES | {"jpegs_256/large": random.Random(0).randbytes(2_000_000)}, tmp_path)
    server.files, server.step, server.pause = {LISTS: content}, 1 << 16, 0.05
    words = ["lists", "--base-url", server.url, "--output", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, str(ROOT / "data/download.py"), *map(str, words)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / f"out/downloads/{LISTS}.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "another download into" in refused(get, "lists", server.url)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(content)
    server.sent.clear()
    server.pause = 0
    get("lists", server.url)
    assert server.sent == [(LISTS, have)]
    assert (tmp_path / "out/downloads" / LISTS).read_bytes() == content


def test_ranges_that_are_ignored_past_the_end_or_of_another_version(server, get, tmp_path):
    content = make_zip({"a/b": random.Random(0).randbytes(300_000)}, tmp_path)
    archive, done = tmp_path / "out/downloads" / LISTS, tmp_path / "out/.lists.done"
    server.files[LISTS], server.ranges, server.cuts = content, False, [200_000, 100_000]
    get("lists", server.url)
    assert archive.read_bytes() == content
    server.ranges = True
    for have in (content, content + b"more"):  # killed before the rename; another file's
        archive.with_name(f"{LISTS}.part").write_bytes(have)
        archive.unlink()
        done.unlink()
        get("lists", server.url)
        assert archive.read_bytes() == content
    archive.with_name(f"{LISTS}.part").write_bytes(content[:100] + bytes(200_000))  # another version's
    archive.unlink()
    done.unlink()
    (tmp_path / "out/a/b").unlink()
    told = refused(get, "lists", server.url)
    assert "a/b is damaged (Bad CRC-32" in told and f"delete {archive}" in told
    assert contents(tmp_path / "out") == {}


def test_a_busy_server_is_tried_again_and_one_that_never_answers_is_not(server, get, tmp_path):
    server.files[LISTS], server.cuts = make_zip({"a/b": b"x"}, tmp_path), [20]
    (tmp_path / "out/downloads").mkdir(parents=True)
    (tmp_path / f"out/downloads/{LISTS}.part").write_bytes(server.files[LISTS][:10])
    server.refusals = [503, 429]
    assert get("lists", server.url).count("trying again") == 3
    server.refusals = [503] * 9
    assert "503 Server Error" in refused(get, "rgb", server.url)
    assert len(server.refusals) == 8
    (tmp_path / f"out/downloads/{RGB}.001.part").write_bytes(b"begun")
    server.refusals = [404] * 9
    assert "404" in refused(get, "rgb", server.url)
    assert len(server.refusals) == 8


def test_plain_errors(server, get, tmp_path):
    assert "'frames' is none of videos, lists, rgb, flow" in refused(get, "frames")
    assert f"/nowhere/{RGB}.001 cannot be fetched (404" in refused(get, "rgb", f"{server.url}/nowhere")
    server.files[LISTS], server.content_type = b"<html>Gone fishing</html>", "text/html; charset=utf-8"
    assert "answers with a web page" in refused(get, "lists", server.url)
    for url in ("http://127.0.0.1:9", "file:///etc", "http://[::1", "host"):
        assert url in refused(get, "lists", url)
    assert contents(tmp_path / "out") == {}


def head(status, *headers):
    lines = [f"HTTP/1.1 {status}".encode(), *(h if isinstance(h, bytes) else h.encode() for h in headers)]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


ODD = [
    head("302 Found", "Location: http://[::1", "Content-Length: 0"),
    head("302 Found", f"Location: /{LISTS}", "Content-Length: 0"),  # in a circle
    head("302 Found", "Location: ftp://127.0.0.1/x.zip", "Content-Length: 0"),
    head("200 OK", b"Content-Length: \xb2"),
    head("206 Partial Content"),
    b"HTTP/1.1 \xff\xfe\x00 what\r\n\r\n",
    b"",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    b"HTTP/1.1 401 No\x1b[31m\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", ODD)
def test_an_odd_answer_is_one_printable_line(get, tmp_path, answer):
    listening = socket.create_server(("127.0.0.1", 0))

    def talk():
        while True:
            connection = listening.accept()[0]
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    threading.Thread(target=talk, daemon=True).start()
    assert len(refused(get, "lists", f"http://127.0.0.1:{listening.getsockname()[1]}")) < 700
    assert not list((tmp_path / "out").rglob("*.zip"))


# --- unpacking -----------------------------------------------------------------------------------------


@pytest.fixture
def refusal(get, tmp_path):
    """refusal(bytes of the lists' zip or of the videos' rar) -> why they are not unpacked."""
    (tmp_path / "out/downloads").mkdir(parents=True)

    def refusal(content, name=LISTS):
        (tmp_path / "out/downloads" / name).write_bytes(content)
        told = refused(get, "videos" if name.endswith(".rar") else "lists")
        assert contents(tmp_path / "out") == {} and not list(tmp_path.rglob("*evil*"))
        return told

    return refusal


def test_an_unsafe_entry_refuses_the_whole_zip(refusal, tmp_path):
    """Names that could leave the target on any system, a link and a pipe."""
    for name in ("a/../../evil", "/evil", "C:evil", "..\\evil", "a/b\nc"):
        assert "unsafe name" in refusal(make_zip({"good": b"good", name: b"evil"}, tmp_path))
    for kind in (stat.S_IFLNK, stat.S_IFIFO):
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        assert "holds a link, a device" in refusal(make_zip({"good": b"good", entry: b"/etc"}, tmp_path))


def test_damaged_archives_are_one_line(refusal, tmp_path):
    """Cut, locked, of nothing, with a changed byte, and an entry larger than it declares."""
    content = make_zip({"bomb": bytes(5 << 20)}, tmp_path, zipfile.ZIP_DEFLATED)
    lie = content.replace(struct.pack("<I", 5 << 20), struct.pack("<I", 10))
    assert lie != content and "bomb is damaged" in refusal(lie)
    good = make_zip({"secret": b"x"}, tmp_path)
    locked = bytearray(good)
    locked[6] |= 1
    locked[good.find(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(locked)
    for content in (b"<html>", good[:-30], make_zip({}, tmp_path)):
        assert "no complete archive" in refusal(content)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2):
        bad = bytearray(make_zip({"a/b.jpg": b"some text that repeats, " * 40}, tmp_path, method))
        size = zipfile.ZipFile(tmp_path / "made.zip").infolist()[0].compress_size
        bad[30 + len("a/b.jpg") + size // 2] ^= 0xFF  # after the local header
        assert "is damaged" in refusal(bad)


def test_a_bad_rar_is_refused(refusal):
    needs_rar()
    good = make_rar(VIDEOS)
    for content, words in (
        (good.replace(VIDEOS["UCF-101/Biking/v_Biking_g01_c01.avi"][:9], b"something"), "is damaged"),
        (good[:30], "no complete archive"),
        (b"", "no complete archive"),
        (make_rar(VIDEOS | {"a/../../b": b"evil"}), "unsafe name"),
        (make_rar({"link": b"/etc"}, stat.S_IFLNK | 0o777), "a link"),
    ):
        assert words in refusal(content, "UCF101.rar")
