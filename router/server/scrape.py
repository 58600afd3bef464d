"""The Prometheus endpoint: GET /metrics over plain HTTP/1.1, in the server's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from router.errors import ConfigError
from router.server.listen import split_address

READ_SECONDS = 5.0


class ScrapeServer:
    """Answers scrapes; `prepare` is called on the event loop before each."""

    def __init__(self, registry: CollectorRegistry, prepare: Callable[[], None]) -> None:
        self._registry, self._prepare = registry, prepare
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self, listen: str) -> None:
        """Bind; raises ConfigError if the address cannot be had."""
        host, number = split_address(listen, "metrics_listen")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), number, limit=8192)
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
            return  # not a scraper, or one that left
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        if head.split(b" ", 2)[:2] != [b"GET", b"/metrics"]:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self._prepare()
        body = await asyncio.to_thread(generate_latest, self._registry)
        start = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}"
        return start.encode() + b"\r\nConnection: close\r\n\r\n" + body
