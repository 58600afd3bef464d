"""Sessions of signed-in browsers, in the server's memory: a browser has a random id, and never the token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

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
