"""What protects the console in a browser: sessions, and checks that keep other pages of the browser out.

A signed-in browser has a random id, and never the token. Other pages are kept out by headers, hosts, origins,
and a secret in every form.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
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

    def check_secret(self, sent: str, session: str) -> None:
        """Raises Elsewhere for a form without the secret that `secret` gave to this console's pages."""
        if not hmac.compare_digest(sent.encode(), self.secret(session).encode()):
            raise Elsewhere("the form is not of this page, or of before the server started: load it again")

    def secret(self, session: str) -> str:
        """What every form of that session's pages has; the session's id cannot be computed from it."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()


IDLE_SECONDS = 3600.0  # from the last request until a session ends
LONGEST_SECONDS = 12 * 3600.0
MOST = 1000  # beyond, the one that was unused the longest ends
MOST_OF_TOKEN = 20  # so that one client cannot end the sessions of others


@dataclass(slots=True)
class _Session:
    token: str
    began: float
    used: float


class Sessions:
    """The token that each browser signed in with; every call checks it anew. Lives on one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: dict[str, _Session] = {}  # by id, the one that was unused the longest first

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, token: str) -> str:
        """A new session; gives its id, 256 random bits."""
        self._drop_ended()
        same = [one for one, session in self._sessions.items() if session.token == token]
        if len(same) >= MOST_OF_TOKEN:
            del self._sessions[same[0]]
        elif len(self._sessions) >= MOST:
            del self._sessions[next(iter(self._sessions))]
        made, now = secrets.token_urlsafe(32), self._now()
        self._sessions[made] = _Session(token, now, now)
        return made

    def token(self, session_id: str) -> str:
        """The token of a session, which is used now; empty for one that has ended or never was."""
        session = self._sessions.pop(session_id, None)
        if session is None or self._has_ended(session):
            return ""
        session.used = self._now()
        self._sessions[session_id] = session
        return session.token

    def end(self, session_id: str) -> None:
        """The browser signs out."""
        self._sessions.pop(session_id, None)

    def _has_ended(self, session: _Session) -> bool:
        now = self._now()
        return now - session.used >= IDLE_SECONDS or now - session.began >= LONGEST_SECONDS

    def _drop_ended(self) -> None:
        self._sessions = {one: found for one, found in self._sessions.items() if not self._has_ended(found)}
