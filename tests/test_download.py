"""Downloads from a server that cuts, changes and refuses. See data/download.py and data/fetch.py."""

import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import download
from data.fetch import Client, Missing, fetch, partial_files
from tests.test_archives import FILES, VIDEOS, contents, make_rar, make_zip, split
from utils import InputError

ROOT = Path(__file__).resolve().parents[1]
CONTENT = random.Random(0).randbytes(3_000_000)


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server = self.server
        name = self.path.lstrip("/")
        asked = self.headers.get("Range") if server.ranges else None
        content = server.files.get(name)
        if not with_body and not server.knows_head:
            return self.refuse(501)
        if with_body and server.refusals:
            return self.refuse(server.refusals.pop(0))
        if content is None:
            return self.refuse(404)
        etag = server.etags.get(name, f'"{name}-1"')
        if self.headers.get("If-Range", etag) != etag:
            asked = None
        begin, end = 0, len(content)
        if asked:
            asked = server.wrong_ranges.pop(0) if server.wrong_ranges else asked
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            begin, end = int(first), min(end, int(last or end) + 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Type", server.content_type)
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if not with_body:
            return None
        is_measure = asked and asked.endswith("-8388607")
        stop = end if is_measure or not server.cuts else min(end, begin + server.cuts.pop(0))
        sent = begin
        try:
            while sent < stop:
                step = content[sent : min(stop, sent + server.step)]
                self.wfile.write(step)
                sent += len(step)
                time.sleep(0 if is_measure else server.pause)
        except OSError:
            pass  # the client is gone
        if not is_measure:
            server.sent.append((name, begin, sent))
        if server.after_get:
            server.after_get(server)
        return None

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """Serves `files`. `cuts` are the bytes after which it cuts each next answer, `refusals` the next statuses."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.etags, self.cuts, self.refusals, self.wrong_ranges, self.sent = {}, {}, [], [], [], []
        self.ranges = self.knows_head = True
        self.content_type, self.step, self.pause, self.after_get = "application/octet-stream", 1 << 18, 0.0, None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def get(server, target, retries=3):
    fetch(Client(retries=retries, retry_wait=0.0, timeout=5), f"{server.url}/file", target, progress=False)


def run_script(*words, **kwargs):
    return subprocess.run([sys.executable, str(ROOT / "data" / "download.py"), "--retry-wait", "0", *map(str, words)],
                          capture_output=True, text=True, check=False, timeout=60, **kwargs)


# ---- one file


def test_cuts_are_continued_where_they_happened(server, tmp_path):
    server.files["file"] = CONTENT
    server.cuts = [1_000_000, 10, 500_000, 0, 0]  # two without a byte: still fewer than the retries allowed
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    begins = [begin for _, begin, _ in server.sent]
    assert begins == [0, 1_000_000, 1_000_010, 1_500_010, 1_500_010, 1_500_010]
    assert list(contents(tmp_path)) == ["file"]


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    server.files["file"], server.ranges = CONTENT, False
    server.cuts = [2_000_000, 1_000_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [begin for _, begin, _ in server.sent] == [0, 0, 0]


def test_another_range_than_was_asked_for_is_not_taken(server, tmp_path):
    server.files["file"], server.cuts = CONTENT, [1_000_000]
    server.wrong_ranges = ["bytes=500000-", "bytes=1000001-"]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_it_gives_up_after_failures_without_progress_and_later_goes_on(server, tmp_path):
    server.files["file"] = CONTENT
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(InputError, match=r"failed 3 times in a row .last: the connection was cut.*run this again"):
        get(server, tmp_path / "file", retries=2)
    assert not (tmp_path / "file").exists()
    server.cuts, server.sent = [], []
    get(server, tmp_path / "file")
    assert server.sent == [("file", 1000, len(CONTENT))]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(server, tmp_path):
    server.files["file"], server.ranges = CONTENT, False
    server.cuts = [1000] * 50
    with pytest.raises(InputError, match="failed 4 times in a row"):
        get(server, tmp_path / "file")


@pytest.mark.parametrize("etag", ['"2"', 'W/"2"'])
@pytest.mark.parametrize("is_same_size", [True, False])
def test_two_versions_of_a_file_are_never_joined(server, tmp_path, etag, is_same_size):
    server.files["file"], server.etags["file"] = CONTENT, etag.replace("2", "1")
    server.cuts = [1_000_000, 0]
    with pytest.raises(InputError):
        get(server, tmp_path / "file", retries=0)
    changed = bytes(reversed(CONTENT)) if is_same_size else CONTENT[::2]
    server.files["file"], server.etags["file"], server.cuts = changed, etag, []
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == changed


def test_a_file_that_changes_while_it_is_fetched_is_begun_afresh(server, tmp_path):
    changed = bytes(reversed(CONTENT))

    def change(server):
        server.files["file"], server.etags["file"], server.after_get = changed, '"2"', None

    server.files["file"], server.after_get, server.cuts = CONTENT, change, [1_000_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == changed


def test_a_partial_file_of_unknown_origin_is_not_continued(server, tmp_path):
    server.files["file"] = CONTENT
    part, note = partial_files(tmp_path / "file")
    for content in (None, "not JSON", "[]", json.dumps({"size": len(CONTENT)})):
        part.write_bytes(b"x" * 1000)
        if content is not None:
            note.write_text(content)
        get(server, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_more_bytes(server, tmp_path):
    """A run killed between the last byte and the rename."""
    server.files["file"] = CONTENT
    server.cuts = [1_000_000]
    with pytest.raises(InputError):
        get(server, tmp_path / "file", retries=0)
    partial_files(tmp_path / "file")[0].write_bytes(CONTENT)
    server.sent.clear()
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == []


def test_busy_servers_are_tried_again_and_refusals_are_not(server, tmp_path):
    server.files["file"] = CONTENT
    server.refusals = [503, 429, 500]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    server.refusals = [401] * 9
    with pytest.raises(InputError, match=r"/file answers HTTP 401 .*--offline"):
        get(server, tmp_path / "other")
    assert len(server.refusals) == 8


def test_a_server_without_head_works(server, tmp_path):
    server.files["file"], server.knows_head = CONTENT, False
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_empty_file_is_fetched(server, tmp_path):
    server.files["file"] = b""
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_missing_file_and_a_web_page_in_its_place_are_plain_errors(server, tmp_path):
    with pytest.raises(Missing, match=rf"{server.url}/file is not there \(HTTP 404\).*--base-url"):
        get(server, tmp_path / "file")
    server.files["file"], server.content_type = b"<html>Gone fishing</html>", "text/html; charset=utf-8"
    with pytest.raises(Missing, match="answers with a web page"):
        get(server, tmp_path / "file")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("url", ["http://[::1", "file:///etc/hostname",
                                 "ftp://host/x", "host/x", "http://host/a b", "/etc/hostname"])
def test_only_http_addresses_are_opened(tmp_path, url):
    with pytest.raises(InputError, match="is no http or https address"):
        fetch(Client(retries=0), url, tmp_path / "file", progress=False)


def raw_server(answer: bytes) -> str:
    """Address of a server that gives every connection these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection = listener.accept()[0]
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n", "sends on to where no file can be"),
     (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/file\r\n\r\n", "ftp://127.0.0.1/file is no http or https"),
     (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n", "sends on to where no file can be"),
     (b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n", "sends on to .* infinite loop"),
     (b"HTTP/1.1 302 Found\r\n\r\n", "sends on to where no file can be"),
     ("HTTP/1.1 200 OK\r\nContent-Length: ²\r\n\r\nabc".encode("latin-1"), "does not tell the size"),
     (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc", "does not tell the size"),
     (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc", "does not tell the size"),
     ("HTTP/1.1 503 Busy\r\nRetry-After: ²\r\nContent-Length: 0\r\n\r\n".encode("latin-1"), "HTTP 503"),
     (b"HTTP/1.1 401 No\x1b[31m\r\nContent-Length: 0\r\n\r\n", "answers HTTP 401 No "),
     (b"\x1b[31mgarbage " + b"x" * 60_000 + b"\r\n\r\n", "failed 2 times in a row"),
     (b"", "failed 2 times in a row")])
def test_what_no_server_should_say_is_one_line(tmp_path, capsys, answer, message):
    with pytest.raises(InputError, match=message) as caught:
        fetch(Client(retries=1, retry_wait=0.0, timeout=5), raw_server(answer) + "/file", tmp_path / "file", False)
    for text in (str(caught.value), capsys.readouterr().err.removesuffix("\n")):
        assert (text.isprintable() or not text) and len(text) < 600


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the certificate, is not installed")
def test_an_unknown_certificate_is_refused_unless_told_otherwise(server, tmp_path, capfd):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout",
                    tmp_path / "key", "-out", tmp_path / "certificate"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files["file"] = CONTENT
    url = server.url.replace("http:", "https:")
    with pytest.raises(InputError, match=r"cannot verify the certificate.*--no-check-certificate"):
        fetch(Client(retry_wait=0.0), f"{url}/file", tmp_path / "file", progress=False)
    fetch(Client(check_certificate=False), f"{url}/file", tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT


# ---- the script


@pytest.fixture
def mirror(server, tmp_path):
    """tsfusion's archives in small, in 3 parts each, and UCF's, with the official lists of one class."""
    make = tmp_path / "make"
    make.mkdir()
    for name, top in (("ucf101_jpegs_256.zip", "jpegs_256"), ("ucf101_tvl1_flow.zip", "tvl1_flow/u")):
        make_zip(make / name, {path.replace("jpegs_256", top): content for path, content in FILES.items()})
        for part in split(make / name, 3):
            server.files[part.name] = part.read_bytes()
    server.files["UCF101TrainTestSplits-RecognitionTask.zip"] = make_zip(
        make / "lists.zip", {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}, zipfile.ZIP_DEFLATED)
    server.files["UCF101.rar"] = make_rar(VIDEOS)
    return server


def test_rgb_flow_and_lists_end_to_end(mirror, tmp_path):
    out = tmp_path / "out"
    mirror.cuts = [3000, 0, 1000]
    words = ["rgb", "flow", "lists", "--base-url", mirror.url + "/", "--ucf-url", mirror.url, "--output", out]
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    wanted = {name.replace("jpegs_256", top): content for name, content in FILES.items()
              for top in ("jpegs_256", "tvl1_flow/u")} | {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}
    found = contents(out)
    assert {name: found[name] for name in found if not name.startswith((".", "downloads/"))} == wanted
    assert sorted(path.name for path in (out / "downloads").iterdir()) == sorted(
        name for name in mirror.files if name != "UCF101.rar")  # no joined copy, nothing partial
    before, _, after = done.stdout.partition("rgb: 15 files")
    assert re.search(r"rgb +ucf101_jpegs_256\.zip: 3 parts, [\d.]+kB, of which [\d.]+kB to fetch; unpacked", before)
    assert re.search(r"free.*\n(.*\n)*  disk +about ", before)
    assert "--rgb-dir" in after and "--flow-dir" in after and "--ucf-list" in after
    assert "the connection was cut; trying again" in done.stderr
    assert "Traceback" not in done.stderr

    mirror.sent.clear()
    again = run_script(*words)  # finished: no byte is fetched
    assert again.returncode == 0 and "done before: 15 files in jpegs_256" in again.stdout
    assert mirror.sent == []

    gone, wrong = (out / name for name in list(FILES)[:2])
    gone.unlink()
    wrong.write_bytes(bytes(wrong.stat().st_size))
    repaired = run_script(*words, "--again")
    assert "rgb: 15 files" in repaired.stdout and "(2 written now)" in repaired.stdout
    assert mirror.sent == []
    assert {name: content for name, content in contents(out).items() if name[0] != "."} == {
        name: content for name, content in found.items() if name[0] != "."}


def test_videos_end_to_end(mirror, tmp_path):
    if not any(shutil.which(name) for name in ("unrar", "unar", "bsdtar")):
        pytest.skip("none of unrar, unar and bsdtar is installed")
    out = tmp_path / "out"
    done = run_script("--ucf-url", mirror.url, "--output", out, "--remove-archives")  # videos and lists by default
    assert done.returncode == 0, done.stderr
    found = {name: content for name, content in contents(out).items() if not name.startswith(".")}
    assert found == VIDEOS | {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}
    mirror.sent.clear()
    assert "done before" in run_script("--ucf-url", mirror.url, "--output", out).stdout
    assert mirror.sent == []
    shutil.rmtree(out / "UCF-101")  # what was noted as done is gone: it is fetched again
    assert run_script("videos", "--ucf-url", mirror.url, "--output", out).returncode == 0
    assert set(VIDEOS) < set(contents(out))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on_where_it_was(mirror, tmp_path):
    make_zip(tmp_path / "ucf101_jpegs_256.zip", FILES | {"jpegs_256/large": CONTENT})
    mirror.files |= {part.name: part.read_bytes() for part in split(tmp_path / "ucf101_jpegs_256.zip", 3)}
    mirror.step, mirror.pause = 1 << 16, 0.2
    out = tmp_path / "out"
    words = ["rgb", "--base-url", mirror.url, "--output", out]
    process = subprocess.Popen([sys.executable, str(ROOT / "data" / "download.py"), *map(str, words)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = out / "downloads" / "ucf101_jpegs_256.zip.001.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    second = run_script(*words)  # while the first is at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.returncode == 2 and "another download into" in second.stderr
    have = part.stat().st_size
    assert 0 < have < len(mirror.files["ucf101_jpegs_256.zip.001"])
    mirror.sent.clear()
    mirror.pause = 0
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    assert [begin for name, begin, sent in mirror.sent if name.endswith(".001") and sent > begin][-1] == have
    assert {name: (out / name).read_bytes() for name in FILES} == FILES


def test_offline_takes_what_is_there(mirror, tmp_path):
    out = tmp_path / "out"
    downloads = out / "downloads"
    downloads.mkdir(parents=True)
    run = ["rgb", "--offline", "--output", out]
    assert "put it there" in run_script(*run).stderr
    for number in (1, 3):
        name = f"ucf101_jpegs_256.zip.{number:03d}"
        (downloads / name).write_bytes(mirror.files[name])
    missing = run_script(*run)
    assert missing.returncode == 2 and "ucf101_jpegs_256.zip.002 is missing" in missing.stderr
    (downloads / "ucf101_jpegs_256.zip.002").write_bytes(mirror.files["ucf101_jpegs_256.zip.002"])
    for stray in ("ucf101_jpegs_256.zip.001.part", "ucf101_jpegs_256.zip.bak", "ucf101_jpegs_256.zip.1"):
        (downloads / stray).write_bytes(b"stray")
    assert run_script(*run).returncode == 0
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert mirror.sent == []


def test_a_mirror_with_the_zip_in_one_piece(server, tmp_path):
    server.files["ucf101_jpegs_256.zip"] = make_zip(tmp_path / "a.zip", FILES)
    assert run_script("rgb", "--base-url", server.url, "--output", tmp_path / "out").returncode == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES


def test_plain_errors(mirror, tmp_path):
    out = tmp_path / "out"

    def error(*words):
        done = run_script(*words, "--output", out)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith("error: ") or "download.py: error" in lines[-1]
        return lines[-1]

    assert "rgb needs --base-url" in error("rgb")
    assert re.search(r"/nowhere/ucf101_jpegs_256\.zip\.001 is not there \(HTTP 404\)",
                     error("rgb", "--base-url", f"{mirror.url}/nowhere"))
    assert "'frames' is none of videos, lists, rgb, flow" in error("frames")
    assert "check the connection" in error("lists", "--ucf-url", "http://127.0.0.1:9")
    (out / "downloads").mkdir(parents=True)
    (out / "downloads" / "UCF101TrainTestSplits-RecognitionTask.zip").write_bytes(b"somebody's")
    assert "has 10 bytes" in error("lists", "--ucf-url", mirror.url)
    assert contents(out / "downloads") == {"UCF101TrainTestSplits-RecognitionTask.zip": b"somebody's"}
    mirror.files["ucf101_tvl1_flow.zip.002"] = mirror.files["ucf101_tvl1_flow.zip.002"][::-1]
    assert re.search(r"is damaged .*delete .*flow\.zip\.00\d", error("flow", "--base-url", mirror.url))
    assert not (out / "tvl1_flow" / "u" / list(FILES)[-1]).exists()


def test_a_machine_without_a_network_is_told_so_at_once(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(sys, "argv", ["download.py", "--dry-run", "--output", str(tmp_path)])
    with pytest.raises(InputError, match=r"cannot reach http.*/UCF101\.rar \(Name or service not known\): .*--offline"):
        download.main()
    assert capsys.readouterr().err == ""  # no word of trying again


def test_it_says_what_it_takes_and_refuses_a_disk_that_is_too_small(mirror, tmp_path, monkeypatch, capsys):
    words = ["download.py", "rgb", "--base-url", mirror.url, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*words, "--dry-run"])
    download.main()
    size = sum(len(content) for name, content in mirror.files.items() if "jpegs" in name)
    peak = capsys.readouterr().out
    said = re.search(r"disk +about ([\d.]+)kB more at most", peak)
    assert float(said[1]) * 1000 == pytest.approx(size * 2.3, rel=0.01)  # archive and its files, 1.3 times as large
    assert mirror.sent == [] and list(contents(tmp_path / "out")) == [".download.lock"]

    monkeypatch.setattr(sys, "argv", words)
    usage = shutil.disk_usage(tmp_path)._replace(free=size * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"getting rgb needs .* only .* are free: make room"):
        download.main()
    assert mirror.sent == [] and list(contents(tmp_path / "out")) == [".download.lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size * 9))
    download.main()
    assert (tmp_path / "out" / next(iter(FILES))).exists()


def test_videos_are_not_fetched_without_a_program_to_unpack_them(mirror, tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "PROGRAMFILES": str(tmp_path)}
    done = run_script("--ucf-url", mirror.url, "--output", tmp_path / "out", env=environment)
    assert done.returncode == 2 and "apt install" in done.stderr
    assert mirror.sent == []


def test_help_shows_every_default():
    text = run_script("-h").stdout
    assert "default: videos lists" in text and "(default: data)" in text and "(default: 1.0)" in text
