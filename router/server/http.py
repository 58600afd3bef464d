"""GET over plain HTTP/1.1 in the server's own event loop: a few pages for scrapers and probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType

from router.access.hosts import Hosts
from router.errors import ConfigError
from router.server.listen import split_address

SECONDS = 5.0  # for a request and its answer
MOST_CONNECTIONS = 256
MAX_HEAD = 8192  # bytes
METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str
    status: HTTPStatus = HTTPStatus.OK

    def message(self, with_body: bool) -> bytes:
        """As it goes over the wire; the connection ends with it."""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


NOT_FOUND = Page(b"not found\n", "text/plain; charset=utf-8", HTTPStatus.NOT_FOUND)
NOT_ALLOWED = Page(b"GET only\n", "text/plain; charset=utf-8", HTTPStatus.METHOD_NOT_ALLOWED)
UNKNOWN_HOST = Page(
    b"this server is not known by that Host: use localhost or an address, or add it to console_hosts\n",
    "text/plain; charset=utf-8",
    HTTPStatus.FORBIDDEN,
)


class HttpServer:
    """Serves `pages`, by path; what a page raises ends that connection alone, in the loop's handler.

    A page that is being made is for all who ask for it meanwhile. Beyond MOST_CONNECTIONS the oldest ends:
    whoever reads or writes slowly makes room for the next probe. `shed` hears of each. `forms` are other
    forms of pages, by path and the content type that a request has to accept. On a loopback address, pages
    that a browser there loads must not read these: it answers under its own names and `hosts` only.
    """

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Awaitable[Page]]],
        shed: Callable[[], None] = lambda: None,
        forms: Mapping[tuple[str, str], Callable[[], Awaitable[Page]]] = MappingProxyType({}),
        hosts: Sequence[str] = (),
    ) -> None:
        self._pages, self._shed = {(path, ""): page for path, page in pages.items()} | dict(forms), shed
        self._making: dict[tuple[str, str], asyncio.Future[Page]] = {}
        self._connections: dict[asyncio.Timeout, None] = {}  # the oldest first
        self._server: asyncio.Server | None = None
        self._names = hosts
        self._hosts: Hosts | None = None  # where names are checked
        self.address = ""

    async def start(self, listen: str) -> None:
        """Bind; raises ConfigError if the address cannot be had."""
        host, number = split_address(listen, "metrics_listen")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), number, limit=MAX_HEAD)
        except OSError as error:
            text = f"cannot listen on {listen} for metrics ({error.strerror}); choose another address"
            raise ConfigError(f"{text} with --metrics-listen, or '' for none") from error
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"
        hosts = Hosts(listen, tls=False, hosts=self._names)
        self._hosts = hosts if hosts.local else None

    async def stop(self) -> None:
        """Close the socket."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        timeout = asyncio.timeout(SECONDS)
        try:
            async with timeout:
                self._come(timeout)
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                writer.close()
                await writer.wait_closed()  # all of it is sent
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # neither scraper nor probe, or one that left
        finally:
            self._connections.pop(timeout, None)
            writer.transport.abort()

    def _come(self, timeout: asyncio.Timeout) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            if not oldest.expired():
                oldest.reschedule(0)
            self._shed()
        self._connections[timeout] = None

    async def _answer(self, head: bytes) -> bytes:
        if self._hosts is not None and not all(map(self._hosts.know, values_of(b"host", head))):
            return UNKNOWN_HOST.message(True)
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if (path, "") not in self._pages:
            return NOT_FOUND.message(method != "HEAD")
        if method not in METHODS:
            return NOT_ALLOWED.message(True)
        accepted = accepted_by(head)
        forms = (form for of, form in self._pages if of == path and form and form in accepted)
        return (await self._page((path, next(forms, "")))).message(method == "GET")

    async def _page(self, key: tuple[str, str]) -> Page:
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.ensure_future(self._pages[key]())
            making.add_done_callback(lambda _: self._making.pop(key))
        return await asyncio.shield(making)  # whoever leaves takes it from nobody


def values_of(name: bytes, head: bytes) -> list[str]:
    """The values of a header, which may come several times."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return [value.strip().decode("latin-1") for key, _, value in lines if key.strip().lower() == name]


def accepted_by(head: bytes) -> set[str]:
    """The content types that a request names as those it takes."""
    parts = (part for value in values_of(b"accept", head) for part in value.split(","))
    return {part.partition(";")[0].strip().lower() for part in parts}
