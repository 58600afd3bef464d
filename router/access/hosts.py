"""The names by which a listener for HTTP is reached, and the addresses that are this machine's own.

A foreign page may have its own name point here (DNS rebinding): then a browser takes what is here for that
page's own, and lets it ask and read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit


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


def host_name(host: str) -> str:
    """Of a header `Host`, without its port; '' where it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host, an IPv6 address without its brackets, stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def is_safe(url: str) -> bool:
    """Whether what comes from there is what its owner sent: https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is none raises
    except ValueError:
        return False
    if not host or parts.username is not None or not url.isascii() or not url.isprintable():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
