"""The names that this server has over HTTP. A foreign page may have its own name point here (DNS rebinding):
then a browser takes what is here for that page's own, and lets it ask and read."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.addresses import is_loopback
from router.config import Settings
from router.web import openai

UNKNOWN = "this server is not known by the name it was asked for; add that name to `console_hosts`"


class Hosts:
    """`hosts` are names by which it is reached beside the address it listens at."""

    def __init__(self, listen: str, tls: bool, hosts: Sequence[str] = ()) -> None:
        bare = listen.rpartition(":")[0].strip("[]")
        self._tls, self.local = tls, is_loopback(bare)
        self._names = {"localhost", bare.lower(), *(host.lower() for host in hosts)}

    def know(self, host: str) -> bool:
        """Whether a header `Host` names this server. By TLS the certificate has told."""
        name = host_name(host)
        return self._tls or name in self._names or self._is_address(name)

    def _is_address(self, name: str) -> bool:
        """Nobody can have an address point elsewhere."""
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.local


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


def host_name(host: str) -> str:
    """Of a header `Host`, without its port; '' where it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
