"""Download one large file over HTTP, resumed as often as it takes."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from data.archives import progress_bar
from utils import InputError, plural, write_json

CHUNK = 1 << 16  # bytes read from the network at once: what a killed run loses at most
GONE = (403, 404, 410)  # 403: what a bucket that may not be listed answers for a missing file
BY_HAND = "fetch it by hand into downloads/ inside --output and run this with --offline"
Result = TypeVar("Result")


class Transient(Exception):
    """A failure that trying again may cure: a cut connection, a time-out, a busy server."""

    def __init__(self, reason: object, wait: float = 0) -> None:
        super().__init__(str(reason))
        self.wait = wait  # seconds the server asked for


class Unreachable(Transient):
    """There is no way to the server: no network, or no server of that name."""


class Missing(InputError):
    """The server has no such file."""


@dataclass(frozen=True)
class Remote:
    """A file on a server: its size in bytes and what tells one version of it from another."""

    size: int
    etag: str
    modified: str

    def is_same(self, other: Remote) -> bool:
        """Whether two answers can be about the same bytes; what a server does not say is not compared."""
        return self.size == other.size and all(
            not a or not b or a == b for a, b in ((self.etag, other.etag), (self.modified, other.modified)))

    @property
    def validator(self) -> str:
        """What If-Range may carry: a strong ETag, else the date of the last change (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


@dataclass(frozen=True)
class Client:
    """How to talk to a server."""

    retries: int = 20  # failures in a row without a new byte before giving up
    retry_wait: float = 1.0  # seconds before the first retry, doubled each time, one minute at most
    timeout: float = 60.0  # seconds without a byte that count as a failure
    check_certificate: bool = True

    def open(self, url: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        """Send one request and return the response (200, 206 or 416). Raises Transient, Missing or InputError."""
        if not is_web_address(url):
            raise InputError(f"{url!r} is no http or https address: check --ucf-url and --base-url")
        context = ssl.create_default_context()
        if not self.check_certificate:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        headers = {"User-Agent": "two-stream", "Accept-Encoding": "identity"} | headers
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), WebRedirects)
            response = opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error  # type: ignore[return-value]  # an HTTPError is a response as well
            error.close()
            raise refusal(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"cannot verify the certificate of {url} ({reason.verify_message}): update this "
                                 "system's certificates or set SSL_CERT_FILE; --no-check-certificate goes on "
                                 "without knowing who answers") from error
            nowhere = isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) == errno.ENETUNREACH
            raise (Unreachable if nowhere else Transient)(words(reason)) from error
        except ValueError as error:  # of a Location that is no address
            raise bad_redirect(url, error) from error
        if response.headers.get_content_type() == "text/html":
            response.close()
            raise Missing(f"{url} answers with a web page, not the file: open it in a browser to see why")
        return response

    def patiently(self, attempt: Callable[[], Result], task: str, progress: Callable[[], int] = int) -> Result:
        """Call `attempt` until it raises no Transient, pausing ever longer between.

        Raises InputError after more than `retries` failures in a row in which `progress()` reached no new height.
        """
        failures, best = 0, progress()
        while True:
            try:
                return attempt()
            except Transient as failure:
                reached = progress()
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                if failures > self.retries:
                    raise InputError(f"{task} failed {plural(failures, 'time')} in a row (last: {failure}): check the "
                                     "connection and run this again, it continues where it stopped") from failure
                pause = max(failure.wait, min(60.0, self.retry_wait * 2 ** (failures - 1)))
                tqdm.write(f"{task}: {failure}; trying again in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)


class WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only to http and https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if not is_web_address(newurl):
            raise ValueError(f"{newurl} is no http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_web_address(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https") and url.isprintable() and " " not in url
    except ValueError:
        return False


def bad_redirect(url: str, reason: object) -> InputError:
    return InputError(f"{url} sends on to where no file can be ({words(reason)}): {BY_HAND}")


def words(error: object) -> str:
    """What went wrong, without the error's number; what a server says of it, fit for one line of a terminal."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in text.partition("\n")[0][:200])


def whole_number(text: str) -> int | None:
    """A number in a header; None for anything else, such as \u00b2, which str.isdigit takes for a digit."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The exception that an HTTP error status stands for."""
    if error.code in GONE:
        return Missing(f"{url} is not there (HTTP {error.code}): look for it in a browser; if it has moved, give its "
                       "new folder with --ucf-url or --base-url")
    if error.code in (408, 429) or (error.code >= 500 and error.code != 501):
        return Transient(f"HTTP {error.code}", min(600, whole_number(error.headers.get("Retry-After", "")) or 0))
    if 300 <= error.code < 400:  # in a circle
        return bad_redirect(url, error.reason)
    return InputError(f"{url} answers HTTP {error.code} {words(error.reason)}: {BY_HAND}")


def describe(url: str, response: http.client.HTTPResponse) -> Remote:
    """What a response tells of the whole file. Raises InputError if it does not tell the size."""
    text = response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    if (size := whole_number(text)) is None:
        raise InputError(f"the server does not tell the size of {url}: {BY_HAND}")
    return Remote(size, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))


def look_up(client: Client, url: str) -> Remote:
    """Ask a server for a file's size and version. Raises Transient, Missing or InputError."""
    try:
        with client.open(url, "HEAD") as response:
            return describe(url, response)
    except Missing:
        raise
    except InputError:  # a server that knows no HEAD, or tells no size then
        with client.open(url, Range="bytes=0-0") as response:
            return describe(url, response)


def partial_files(target: Path) -> tuple[Path, Path]:
    """Where an unfinished download of `target` lies, and the note of which version it is."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")


def kept_bytes(target: Path, remote: Remote) -> int:
    """How many bytes of `target` a former run left to continue from: 0 if they are of another version."""
    part, note = partial_files(target)
    try:
        former = Remote(**json.loads(note.read_text(encoding="utf-8")))
        size = part.stat().st_size
    except (OSError, ValueError, TypeError):
        return 0
    return size if former.is_same(remote) and size <= remote.size else 0


def fetch(client: Client, url: str, target: Path, progress: bool = True) -> None:
    """Download `url` to `target`, continuing a former run's `target.part` if the file on the server is the same.

    `target` appears when it is complete. Bytes of two versions of a file are never joined: size, ETag and
    Last-Modified of every answer are compared, and a changed file is begun afresh.
    Raises InputError when the server says no, or after too many failures in a row.
    """
    part, note = partial_files(target)
    with progress_bar(target.name, 0, progress) as bar:
        def attempt() -> None:
            remote = look_up(client, url)
            have = kept_bytes(target, remote)
            if not have:
                part.unlink(missing_ok=True)
                write_json(note, asdict(remote))
            restart(bar, have, remote.size)
            fetch_rest(client, url, part, remote, have, bar)

        client.patiently(attempt, target.name, lambda: part.stat().st_size if part.exists() else 0)
    with open(part, "ab") as file:
        os.fsync(file.fileno())
    part.replace(target)
    note.unlink()


def restart(bar: tqdm, begin: int, total: int) -> None:
    """Set a bar to `begin`, bytes of a former attempt that don't count in the rate."""
    bar.initial = 0
    bar.reset(total)
    bar.n = bar.initial = begin
    bar.refresh()


def fetch_rest(client: Client, url: str, part: Path, remote: Remote, have: int, bar: tqdm) -> None:
    """Append to `part`, `have` bytes long, what it lacks of `remote`. Raises Transient if that ends too soon."""
    if have == remote.size and part.exists():
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and remote.validator:
        headers["If-Range"] = remote.validator
    with client.open(url, **headers) as response:
        if response.status == 416 or not describe(url, response).is_same(remote):
            raise Transient("the file has changed on the server")
        begin = 0  # a server that ignores the range sends the whole file
        if response.status == 206:
            span = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if span != str(have):
                raise Transient("the server sent another range than was asked for")
            begin = have
        if begin != have:
            restart(bar, begin, remote.size)
        with open(part, "ab", buffering=0) as file:
            file.truncate(begin)
            while begin < remote.size:
                try:
                    chunk = response.read(min(CHUNK, remote.size - begin))
                except (OSError, http.client.HTTPException) as error:
                    raise Transient(words(error)) from error
                if not chunk:
                    raise Transient("the connection was cut")
                file.write(chunk)
                begin += len(chunk)
                bar.update(len(chunk))
