"""One file from a server that cuts, changes and refuses. See data/fetch.py."""

import json
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
from file_server import CONTENT

from data.fetch import Client, Missing, fetch, partial_files
from tests.test_archives import contents
from utils import InputError


def get(server, target, retries=3):
    fetch(Client(retries=retries, retry_wait=0.0, timeout=5), f"{server.url}/file", target, progress=False)


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
