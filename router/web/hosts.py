"""The API over HTTP answers under names of this server only."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.hosts import Hosts
from router.config import Settings
from router.web import openai

UNKNOWN = "this server is not known by the name it was asked for; add that name to `console_hosts`"


class KnownHosts:
    """An ASGI application that answers under names of this server only, where it serves this machine and asks
    nobody who they are: who may reach it then are the programs here, and not what a browser here loads. The
    console looks for itself, wherever it listens.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        tls = settings.tls_cert is not None
        self._hosts = Hosts(settings.http_listen, tls, settings.console_hosts)
        self._looks = self._hosts.local and settings.clients is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or 403."""
        app = self._app
        if scope["type"] == "http" and self._looks and not scope["path"].startswith("/console"):
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if not self._hosts.know(host.decode("latin-1")):
                app = JSONResponse(openai.error_json(403, "NOT_THIS_PAGE", UNKNOWN, ""), 403)
        await app(scope, receive, send)
