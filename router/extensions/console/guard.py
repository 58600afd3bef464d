"""What keeps other pages of the browser out: headers, hosts, origins, and a secret in every form."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from router.access.hosts import Hosts
from router.errors import PermissionDenied
from router.server.http import UNKNOWN_HOST

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    # With no-referrer browsers would say `Origin: null` of this page's own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}
MINE = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed, or a bookmark


class Elsewhere(PermissionDenied):
    """The request is not one of a page that this server gave."""

    reason = "NOT_THIS_PAGE"


class Guard:
    """Tells this console's own requests from those that other pages make a browser send."""

    def __init__(self, hosts: Hosts) -> None:
        self._secret, self._hosts = secrets.token_bytes(32), hosts

    def check_host(self, host: str) -> None:
        """Raises Elsewhere for a name that is not this server's."""
        if not self._hosts.know(host):
            raise Elsewhere(UNKNOWN_HOST)

    def check_sender(self, host: str, origin: str, site: str) -> None:
        """Raises Elsewhere for a form of another page; the browser says its `origin` and `site`."""
        if site and site not in MINE:
            raise Elsewhere("the form was sent by a page of another site")
        if origin and urlsplit(origin).netloc.lower() != host.lower():
            raise Elsewhere("the form was sent by a page of another origin")

    def check_secret(self, said: str, session: str) -> None:
        """Raises Elsewhere for a form without the secret that `secret` gave to this console's pages."""
        if not hmac.compare_digest(said.encode(), self.secret(session).encode()):
            raise Elsewhere("the form is not of this page, or of before the server started: load it again")

    def secret(self, session: str) -> str:
        """What every form of that session's pages has; the session's id cannot be computed from it."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()
