"""GET over plain HTTP/1.1 in the server's own event loop: a few pages for scrapers and probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from router.errors import ConfigError
from router.server.listen import split_address

READ_SECONDS = 5.0  # for the head of a request
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


class HttpServer:
    """Serves `pages`, by path; what a page raises ends that connection alone, in the loop's handler."""

    def __init__(self, pages: Mapping[str, Callable[[], Awaitable[Page]]]) -> None:
        self._pages = dict(pages)
        self._server: asyncio.Server | None = None
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

    async def stop(self) -> None:
        """Close the socket."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # neither scraper nor probe, or one that left
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if (page := self._pages.get(path)) is None:
            return NOT_FOUND.message(method != "HEAD")
        if method not in METHODS:
            return NOT_ALLOWED.message(True)
        return (await page()).message(method == "GET")
