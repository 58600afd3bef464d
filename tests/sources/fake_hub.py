"""A model hub on loopback that speaks the two endpoints that are asked, and lies as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPO = "org/some-lora"
TOKEN = "hf_averysecrettoken"
Answer = tuple[int, dict[str, str]]


@dataclass
class FakeHub:
    """What the hub has and how it behaves. All but `files` are lies and faults."""

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=lambda: {"main", "v1.0", COMMIT})
    needs: str = ""  # a token
    gated: bool = False
    busy: list[Answer] = field(default_factory=list)  # answered first, one each
    says: dict[str, Any] = field(default_factory=dict)  # of the listing, instead of what is so
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a file in the listing
    sends: dict[str, bytes] = field(default_factory=dict)  # instead of the file
    unsaid: set[str] = field(default_factory=set)  # files sent without their length
    leads: str = ""  # where files are redirected to
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path, headers
    url: str = ""

    def listing(self) -> bytes:
        siblings = [self.sibling(name, data) for name, data in self.files.items()]
        return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings} | self.says).encode()

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
        if name.endswith(".safetensors"):
            entry["blobId"] = "00" * 20  # of the pointer
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry | self.lists.get(name, {})

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for path, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Not on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.busy:
            status, headers = hub.busy.pop(0)
            self.answer(status, b"", headers)
        elif path.startswith("/cdn/"):
            self.file(path.removeprefix("/cdn/"))
        elif hub.needs and self.headers.get("authorization") != f"Bearer {hub.needs}":
            self.answer(
                401, b"", {"X-Error-Code": "GatedRepo"} if hub.gated else {"X-Error-Code": "RepoNotFound"}
            )
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.listing(path.rpartition("/revision/")[2])
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self.resolve(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def listing(self, revision: str) -> None:
        if revision in self.hub.revisions:
            self.answer(200, self.hub.listing())
        else:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

    def resolve(self, name: str) -> None:
        if name not in self.hub.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if name.endswith(".safetensors"):
            headers = {**self.known(name), "Location": f"{self.hub.leads}/cdn/{name}"}
            self.answer(302, b"", headers)
        else:
            self.file(name)

    def known(self, name: str) -> dict[str, str]:
        """What a hub says of a file before its bytes."""
        data = self.hub.files[name]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        size = str(len(data))
        return {"X-Repo-Commit": COMMIT, "X-Linked-Etag": etag, "ETag": etag, "X-Linked-Size": size}

    def file(self, name: str) -> None:
        whole = self.hub.sends.get(name, self.hub.files[name])
        self.answer(200, whole, self.known(name), name not in self.hub.unsaid)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        says: bool = True,
    ) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if says:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # anyone who heard enough hangs up
            self.wfile.write(b"" if self.command == "HEAD" else body)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub until the end of the block."""
    hub = FakeHub()
    handler = type("Bound", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
