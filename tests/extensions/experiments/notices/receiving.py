"""A webhook's receiver: a real HTTP server that answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUERY, HOOK = "token=hush", "/hook?token=hush"
HANG, FLOOD, OK = 1, 2, 200


class Receiver(ThreadingHTTPServer):
    """Answers as told: a status, HANG or FLOOD each; then the last one again."""

    def say(self, *statuses: int) -> None:
        self.answers, self.got = [*statuses, *statuses[-1:] * 9], []


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.got.append((self.path, dict(self.headers), body))
        status = self.server.answers.pop(0)
        if status == HANG:
            return self.server.closed.wait(20)
        self.send_response(OK if status == FLOOD else status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        while status == FLOOD and not self.server.closed.is_set():
            self.wfile.write(b"x" * 65536)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """One on a free port, `url` being where it takes notices."""
    with Receiver(("127.0.0.1", 0), Answer) as server:
        server.url, server.closed = f"http://127.0.0.1:{server.server_port}{HOOK}", threading.Event()
        server.handle_error = lambda *_: None  # who closes early is expected
        server.say(OK)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.closed.set()
        server.shutdown()
