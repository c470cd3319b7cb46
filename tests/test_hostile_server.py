"""Servers that answer what no server should: each ends in one line and exit code 2, and nothing is kept."""

import socket
import threading

import pytest


def serve(answers):
    """A server on a free port that gives each connection `answers(request line)`'s bytes; returns its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def talk():
        while True:
            connection, _ = listening.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (piece := connection.recv(4096)):
                    request += piece
                connection.sendall(answers(request.split(b"\r\n")[0]))

    threading.Thread(target=talk, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def head(status, *headers):
    lines = [f"HTTP/1.1 {status}".encode(), *(h if isinstance(h, bytes) else h.encode() for h in headers)]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


ODD = {
    "an address that is none": head("302 Found", "Location: http://[::1", "Content-Length: 0"),
    "a port that is none": head("302 Found", "Location: http://127.0.0.1:99999/x", "Content-Length: 0"),
    "no address": head("302 Found", "Content-Length: 0"),
    "a redirect to itself": head("302 Found", "Location: /lists/UCF101TrainTestSplits-RecognitionTask.zip"),
    "a redirect to ftp": head("302 Found", "Location: ftp://127.0.0.1/x.zip", "Content-Length: 0"),
    "a redirect to a file": head("302 Found", "Location: file:///etc/passwd", "Content-Length: 0"),
    "a size of a superscript": head("200 OK", b"Content-Length: \xb2"),
    "a size below zero": head("200 OK", "Content-Length: -5"),
    "a size of five thousand digits": head("200 OK", "Content-Length: " + "9" * 5000),
    "a range that is none": head("206 Partial Content", "Content-Range: bytes x-y/\u00b2".encode("latin-1")),
    "a status that is none": b"HTTP/1.1 \xff\xfe\x00 what\r\n\r\n",
    "no HTTP at all": b"220 ready\r\n" * 3,
    "nothing": b"",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    "a busy server's odd wait": head("503 Busy", "Retry-After: \u00b2".encode("latin-1"), "Content-Length: 0"),
}


def test_only_http_and_https_are_followed(run, tmp_path):
    asked = []
    other = socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            connection, address = other.accept()
            asked.append(address)
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    for scheme in ("ftp", "gopher"):
        redirect = head("302 Found", f"Location: {scheme}://127.0.0.1:{other.getsockname()[1]}/", "Content-Length: 0")
        url = serve(lambda _, redirect=redirect: redirect)
        flags = ("--output", tmp_path, "--ucf-url", url)
        error = run("data/download.py", "lists", *flags, code=2, timeout=60).stderr
        assert f"{scheme}://" in error and url in error
    assert not asked


@pytest.mark.parametrize("what", ODD)
def test_an_odd_answer_is_one_line(run, tmp_path, what):
    url = serve(lambda _: ODD[what])
    flags = ("--output", tmp_path, "--ucf-url", url, "--retry-wait", 0)
    process = run("data/download.py", "lists", *flags, code=2, timeout=60)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and url in errors[0] and len(errors[0]) < 600
    assert "root:" not in process.stdout + process.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".zip"]


def test_a_redirect_leads_to_the_file(run, tmp_path):
    """Redirects over http are followed, so that the tests above refuse what is odd and not what is common."""
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("classInd.txt", "trainlist01.txt", "testlist01.txt"):
            archive.writestr(f"ucfTrainTestlist/{name}", "1 Archery\n")
    content = packed.getvalue()

    def answer(request):
        if b"/elsewhere" not in request:
            return head("301 Moved", "Location: /elsewhere", "Content-Length: 0")
        body = b"" if request.startswith(b"HEAD") else content
        return head("200 OK", f"Content-Length: {len(content)}", "Content-Type: application/zip") + body

    run("data/download.py", "lists", "--output", tmp_path, "--ucf-url", serve(answer), timeout=60)
    assert (tmp_path / "ucfTrainTestlist/classInd.txt").read_text() == "1 Archery\n"
