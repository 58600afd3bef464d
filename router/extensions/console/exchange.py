"""A call of a browser, and what it gets: pages, fragments of pages, data, redirections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from router.errors import FieldViolation, InvalidRequest, WrongContentType
from router.extensions.console.guard import HEADERS
from router.server.bodies import too_many
from router.server.http import EVENTS, JSON, HttpCall, Reply

if TYPE_CHECKING:
    from router.extensions.console.site import Console

HTML = "text/html; charset=utf-8"
FORM = "application/x-www-form-urlencoded"
MOST_FIELDS, MOST_ESCAPES = 200, 1 << 18  # of a form; to decode so many takes 70 ms


@dataclass(frozen=True, slots=True)
class PageReply(Reply):
    """What a handler gives back."""

    content_type: str = HTML


def redirect(path: str, **headers: str) -> PageReply:
    """Go there, with GET."""
    return PageReply(status=303, headers={"location": path, **headers})


def data(value: Any) -> PageReply:
    """JSON."""
    return PageReply(json.dumps(value, allow_nan=False).encode(), JSON)


@dataclass(frozen=True, slots=True)
class Form:
    """What a form says. `name` is what the call is about, for the audit."""

    fields: Mapping[str, str]
    name: str = ""


def count_form(body: bytes) -> int:
    """Fields of a form, and of its escaped characters a part, since each is an object for a moment.

    Raises InvalidRequest for more than MOST_FIELDS or MOST_ESCAPES of them.
    """
    fields, escapes = body.count(b"&") + 1, body.count(b"%")
    if fields > MOST_FIELDS:
        raise too_many("body", MOST_FIELDS)
    if escapes > MOST_ESCAPES:
        raise InvalidRequest(
            [FieldViolation("body", f"must have at most {MOST_ESCAPES} escaped characters, send less text")]
        )
    return fields + escapes // 4


def parsed(body: bytes) -> Form:
    """Of the bytes of a form; none of a request without one. Raises InvalidRequest."""
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise InvalidRequest([FieldViolation("body", "must be the fields of a form")]) from None
    fields = dict(pairs)
    return Form(fields, fields.get("name", ""))


class PageCall(HttpCall):
    """A call whose answers are for a browser. The token of its session counts as if it were sent as
    `authorization`."""

    def __init__(self, console: Console, form: bool, *parts: Any) -> None:
        super().__init__(*parts)
        self._console, self._form = console, form
        self._instead = b""
        self.cookies = cookies_of(self.header("cookie"))
        self.session = self.cookies.get(console.cookie, "")  # an id that the browser sent
        token = console.sessions.token(self.session)
        self.signed_in = bool(token)
        if token and not self.header("authorization"):
            self.metadata = (*self.metadata, ("authorization", f"Bearer {token}"))

    def check(self) -> None:
        """Raises Elsewhere for what no page of this console sent, and WrongContentType for a body that is not
        a form, before anything of it is read."""
        guard, host = self._console.guard, self.header("host")
        guard.check_host(host)
        if self._form:
            if self.content_type != FORM:
                raise WrongContentType(FORM)
            guard.check_sender(host, self.header("origin"), self.header("sec-fetch-site"))

    @property
    def secure(self) -> bool:
        """Whether the browser came by TLS, to this server or to a proxy in front: by what the proxy or the
        browser says. A false claim only takes the cookie from the client that makes it."""
        claimed = self.header("x-forwarded-proto").partition(",")[0].strip().lower() == "https"
        own = str(self.scope.get("scheme")) == "https"
        return own or claimed or self.header("origin").lower().startswith("https://")

    @property
    def fragment(self) -> bool:
        """A part of a page is asked for, by htmx."""
        return self.header("hx-request") == "true"

    @property
    def scripted(self) -> bool:
        """A script of a page asks, for data."""
        return self.header("accept") in (JSON, EVENTS)

    def refused_with(self, page: bytes) -> None:
        """Shown where an error ends this, in place of the page that says it."""
        self._instead = page

    def query(self) -> dict[str, str]:
        """What stands behind `?`; of what has no form, nothing."""
        raw = self.scope.get("query_string", b"")
        try:
            return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS))
        except ValueError:
            return {}

    def refusal(self, status: int, reason: str, message: str, field: str) -> tuple[str, bytes]:
        """A page, a fragment or JSON, as what was asked for."""
        if self.scripted:
            said = {"status": status, "reason": reason, "message": message, "field": field}
            return JSON, json.dumps({"error": said}).encode()
        if self._instead and not self.fragment:
            return HTML, self._instead
        if self.fragment:
            asked = "HX-Redirect" if status == 401 else "HX-Retarget"
            self._answer_headers |= {
                asked: "/console" if status == 401 else "#notice",
                "HX-Reswap": "innerHTML",
            }
        return HTML, self._console.refusal(self, status, reason, message).encode()

    async def _start(self, status: int, content_type: str, more: Mapping[str, str]) -> None:
        self._answer_headers |= HEADERS
        if status == 401 and self.session:
            self._console.sessions.end(self.session)
            self._answer_headers["set-cookie"] = self._console.forgotten(self)
        await super()._start(status, content_type, more)


def cookies_of(header: str) -> dict[str, str]:
    """By name; what other pages of the same host keep may have any form."""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: unquote(value) for name, _, value in pairs}
