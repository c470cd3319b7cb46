"""Datasets from a server that cuts, changes and refuses, and archives that are damaged or hostile."""

import json
import os
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

import pytest
from scripts import ROOT

FILES = {f"jpegs_256/v_Biking_g01_c{c:02d}/frame{f:06d}.jpg": random.Random(100 * c + f).randbytes(500 + 37 * f)
         for c in range(1, 4) for f in range(1, 6)}
VIDEOS = {f"UCF-101/Biking/v_Biking_g01_c{c:02d}.avi": random.Random(c).randbytes(3000 + c) for c in range(1, 5)}
LISTS, RGB = "UCF101TrainTestSplits-RecognitionTask.zip", "ucf101_jpegs_256.zip"


def make_zip(files: dict[str, bytes], folder: Path, method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return (folder / "made.zip").read_bytes()


def in_parts(content: bytes, name: str = RGB) -> dict[str, bytes]:
    """The three parts of an archive, as tsfusion's are."""
    size = -(-len(content) // 3)
    return {f"{name}.{part + 1:03d}": content[part * size : (part + 1) * size] for part in range(3)}


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
        content, etag = server.files[name], server.etags.get(name, f'"{name}-1"')
        asked = self.headers.get("Range") if server.ranges else None
        if self.headers.get("If-Range", etag) != etag:
            asked = None
        begin = 0
        if asked:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if begin >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            begin += server.shift  # another range than was asked for
        headers = {"Content-Length": len(content) - begin, "ETag": etag, "Content-Type": server.content_type}
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.answer(206 if asked else 200, headers)
        is_lookup = not server.looked_up.get(name)  # the first request only asks for the size
        server.looked_up[name] = True
        stop = min(len(content), begin + server.cuts.pop(0)) if server.cuts and not is_lookup else len(content)
        try:
            for place in range(begin, stop, server.step):
                self.wfile.write(content[place : min(place + server.step, stop)])
                time.sleep(server.pause)
        except OSError:
            pass  # the client is gone
        server.sent.append((name, begin))

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
    server.files, server.etags, server.looked_up, server.cuts, server.refusals, server.sent = {}, {}, {}, [], [], []
    server.ranges, server.shift, server.step, server.pause = True, 0, 1 << 18, 0.0
    server.content_type, server.url = "application/octet-stream", f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(run, tmp_path):
    def get(*words, code=0, **options):
        return run("data/download.py", *words, "--retry-wait", 0, "--output", tmp_path / "out", code=code, timeout=60,
                   **options)

    return get


# --- fetching ------------------------------------------------------------------------------------------


def test_parts_and_lists_end_to_end(server, get, tmp_path):
    server.files = in_parts(make_zip(FILES, tmp_path))
    server.files[LISTS] = make_zip({"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}, tmp_path, zipfile.ZIP_DEFLATED)
    server.cuts = [2000, 0, 1000]
    done = get("rgb", "lists", "--base-url", server.url)
    wanted = FILES | {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}
    assert contents(tmp_path / "out") == wanted
    assert sorted(path.name for path in (tmp_path / "out/downloads").iterdir()) == [LISTS, RGB]
    assert "the connection was cut" in done.stderr
    assert "--rgb-dir" in done.stdout and "--ucf-list" in done.stdout

    server.sent.clear()
    assert "done before, in jpegs_256" in get("rgb", "lists", "--base-url", server.url).stdout
    assert server.sent == []

    gone, wrong = (tmp_path / "out" / name for name in list(FILES)[:2])
    gone.unlink()
    wrong.write_bytes(bytes(wrong.stat().st_size))  # the right size, another CRC
    (tmp_path / "out/.rgb.done").unlink()
    assert "(2 written now)" in get("rgb", "--offline").stdout
    assert contents(tmp_path / "out") == wanted


def test_videos_end_to_end(server, get, tmp_path):
    server.files = {"UCF101.rar": make_rar(VIDEOS)}
    environment = {"PATH": os.environ["PATH"]}
    done = get("videos", "--base-url", server.url, "--remove-archives", code=None, **environment)
    if "no program here unpacks .rar" in done.stderr:
        pytest.skip("no program for .rar is installed")
    assert done.returncode == 0 and contents(tmp_path / "out") == VIDEOS, done.stderr
    assert list((tmp_path / "out/downloads").iterdir()) == []


def test_videos_are_not_fetched_without_a_program_to_unpack_them(server, get, tmp_path):
    done = get("videos", "--base-url", server.url, code=2, PATH=str(tmp_path))
    assert "apt install" in done.stderr and server.sent == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on_where_it_was_and_two_at_once_are_refused(server, get, tmp_path):
    large = random.Random(0).randbytes(2_000_000)
    server.files = in_parts(make_zip(FILES | {"jpegs_256/large": large}, tmp_path))
    server.step, server.pause = 1 << 16, 0.02
    words = ["rgb", "--base-url", server.url, "--output", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, str(ROOT / "data/download.py"), *map(str, words)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part, first = tmp_path / f"out/downloads/{RGB}.part", len(server.files[f"{RGB}.001"])
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > first) and time.monotonic() < deadline:
        time.sleep(0.01)
    server.pause = 0.5
    second = get("rgb", "--base-url", server.url, code=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "another download into" in second.stderr
    have = part.stat().st_size - first
    assert have > 0
    server.sent.clear()
    server.pause = 0
    get("rgb", "--base-url", server.url)
    sent = [(name, begin) for name, begin in server.sent if begin]
    assert sent == [(f"{RGB}.002", have)] or have >= first  # within the second of three parts
    assert contents(tmp_path / "out") == FILES | {"jpegs_256/large": large}


@pytest.mark.parametrize("etag", ['"2"', 'W/"2"'])
def test_two_versions_of_a_file_are_never_joined(server, get, tmp_path, etag):
    """A part of another version lies there: the file is begun again, and is the new one whole."""
    first = make_zip({"a/b": bytes(range(256)) * 40, "a/c": b""}, tmp_path)
    second = make_zip({"a/b": bytes(range(255, -1, -1)) * 40, "a/c": b""}, tmp_path)
    server.files[LISTS], server.etags[LISTS] = second, etag
    downloads = tmp_path / "out/downloads"
    downloads.mkdir(parents=True)
    (downloads / f"{LISTS}.part").write_bytes(first[:5000])
    (downloads / f"{LISTS}.part.json").write_text(json.dumps([[0, etag.replace("2", "1")]]))
    get("lists", "--base-url", server.url)
    assert (downloads / LISTS).read_bytes() == second


def test_ranges_that_are_ignored_wrong_or_past_the_end(server, get, tmp_path):
    content = make_zip({"a/b": random.Random(0).randbytes(300_000)}, tmp_path)
    archive, done = tmp_path / "out/downloads" / LISTS, tmp_path / "out/.lists.done"
    server.files[LISTS], server.ranges, server.cuts = content, False, [200_000, 100_000]
    get("lists", "--base-url", server.url)
    assert archive.read_bytes() == content
    server.ranges = True
    for have in (content, content + b"more"):  # killed before the rename; another file's
        archive.with_name(f"{LISTS}.part").write_bytes(have)
        archive.with_name(f"{LISTS}.part.json").write_text(json.dumps([[0, f'"{LISTS}-1"']]))
        archive.unlink()
        done.unlink()
        get("lists", "--base-url", server.url)
        assert archive.read_bytes() == content
    archive.unlink()
    done.unlink()
    server.looked_up.clear()
    server.cuts, server.shift = [100_000], 7
    assert "another range" in get("lists", "--base-url", server.url, code=2).stderr


def test_busy_servers_are_tried_again_and_refusals_are_not(server, get, tmp_path):
    server.files[LISTS] = make_zip({"a/b": b"x"}, tmp_path)
    server.looked_up[LISTS] = True
    server.cuts = [len(server.files[LISTS]), 0, 0, 0]
    get("lists", "--base-url", server.url)
    server.refusals = [401] * 9
    (tmp_path / "out/.lists.done").unlink()
    (tmp_path / "out/downloads" / LISTS).unlink()
    assert "answers with HTTP 401" in get("lists", "--base-url", server.url, code=2).stderr
    assert len(server.refusals) == 8


def test_plain_errors(server, get, tmp_path):
    assert "'frames' is none of videos, lists, rgb, flow" in get("frames", code=2).stderr
    nowhere = get("rgb", "--base-url", f"{server.url}/nowhere", code=2)
    assert f"/nowhere/{RGB}.001 answers with HTTP 404" in nowhere.stderr
    assert "is not there: put it there" in get("rgb", "--offline", code=2).stderr
    server.files[LISTS], server.content_type = b"<html>Gone fishing</html>", "text/html; charset=utf-8"
    assert "answers with a web page" in get("lists", "--base-url", server.url, code=2).stderr
    for url in ("http://127.0.0.1:9", "file:///etc", "http://[::1", "host"):
        assert url in get("lists", "--base-url", url, code=2).stderr
    assert contents(tmp_path / "out") == {}


def head(status, *headers):
    lines = [f"HTTP/1.1 {status}".encode(), *(h if isinstance(h, bytes) else h.encode() for h in headers)]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


ODD = [
    head("302 Found", "Location: http://[::1", "Content-Length: 0"),
    head("302 Found", f"Location: /{LISTS}", "Content-Length: 0"),  # in a circle
    head("302 Found", "Location: ftp://127.0.0.1/x.zip", "Content-Length: 0"),
    head("200 OK", b"Content-Length: \xb2"),
    head("206 Partial Content", "Content-Range: bytes x-y/\u00b2".encode("latin-1")),
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
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    errors = [line for line in get("lists", "--base-url", url, code=2).stderr.splitlines() if "error: " in line]
    assert len(errors) == 1 and len(errors[0]) < 700 and errors[0].isprintable()
    assert not list((tmp_path / "out").rglob("*.zip"))


# --- unpacking -----------------------------------------------------------------------------------------


@pytest.fixture
def unpack(get, tmp_path):
    """Unpack these bytes as the lists' zip or the videos' rar, without a server."""
    (tmp_path / "out/downloads").mkdir(parents=True)

    def unpack(content, name=LISTS, code=0):
        (tmp_path / "out/downloads" / name).write_bytes(content)
        return get("videos" if name.endswith(".rar") else "lists", "--offline", code=code)

    return unpack


@pytest.mark.parametrize("name", ["a/../../evil", "/evil", "C:evil", "..\\evil", "a/b\nc"])
def test_a_name_that_could_leave_the_target_refuses_the_whole_zip(unpack, tmp_path, name):
    assert "unsafe name" in unpack(make_zip({"good": b"good", name: b"evil"}, tmp_path), code=2).stderr
    assert contents(tmp_path / "out") == {} and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_a_link_or_device_refuses_the_whole_zip(unpack, tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", b"good")
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(entry, "/etc")
    assert "link or device" in unpack((tmp_path / "a.zip").read_bytes(), code=2).stderr
    assert contents(tmp_path / "out") == {}


def test_an_entry_larger_than_it_declares_never_reaches_the_disk(unpack, tmp_path):
    content = make_zip({"bomb": bytes(5 << 20)}, tmp_path, zipfile.ZIP_DEFLATED)
    lie = content.replace(struct.pack("<I", 5 << 20), struct.pack("<I", 10))
    assert lie != content
    assert "bomb is damaged" in unpack(lie, code=2).stderr
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
def test_damage_in_an_entry_is_one_line(unpack, tmp_path, method):
    good = make_zip({"a/b.jpg": b"some text that repeats, " * 40}, tmp_path, method)
    size = zipfile.ZipFile(tmp_path / "made.zip").infolist()[0].compress_size
    first = 30 + len("a/b.jpg")  # after the local header
    bad = bytearray(good)
    bad[first + size // 2] ^= 0xFF
    assert "is damaged" in unpack(bad, code=2).stderr
    assert contents(tmp_path / "out") == {}


def test_archives_that_are_none_cut_locked_or_in_missing_parts(unpack, get, tmp_path):
    good = make_zip({"secret": b"x"}, tmp_path)
    locked = bytearray(good)
    locked[6] |= 1
    locked[good.find(b"PK\x01\x02") + 8] |= 1
    none = "no complete archive"
    for content, words in ((b"<html>", none), (good[:-30], none), (locked, "encrypted")):
        assert words in unpack(content, code=2).stderr
    assert f"cat {RGB}.* > {RGB}" in get("rgb", "--offline", code=2).stderr


@pytest.mark.parametrize("harm", ["damage", "cut", "empty", "parent", "link"])
def test_a_bad_rar_is_refused(unpack, tmp_path, harm):
    good = make_rar(VIDEOS)
    content, words = {
        "damage": (good.replace(VIDEOS["UCF-101/Biking/v_Biking_g01_c01.avi"][:9], b"something"), "is damaged"),
        "cut": (good[:30], "no complete archive"),
        "empty": (b"", "no complete archive"),
        "parent": (make_rar(VIDEOS | {"a/../../b": b"evil"}), "unsafe name"),
        "link": (make_rar({"link": b"/etc"}, stat.S_IFLNK | 0o777), "link or device"),
    }[harm]
    done = unpack(content, "UCF101.rar", code=2)
    if "no program here unpacks .rar" in done.stderr:
        pytest.skip("no program for .rar is installed")
    assert words in done.stderr
    assert contents(tmp_path / "out") == {}
