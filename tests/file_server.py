"""A server of files that cuts, changes and refuses, for the tests of downloads."""

import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
