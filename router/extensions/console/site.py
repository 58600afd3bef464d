"""The console's frame: a page or an action is an HTTP route, and so a call like every other request.

A page module has `ENTRIES`: pages and actions. Each names the method of a service that it stands for, or has
a policy of its own; that decides about role, log, metrics and audit. What it shows or does beyond, it asks
the services for, in this process, as the client that calls. `PageCall` is the call of a browser, and
`PageReply` what it gets: pages, fragments of pages, data, redirections.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, unquote

from router.access.clients import Client, Role
from router.access.hosts import Hosts
from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, WrongContentType
from router.extensions.console.guard import HEADERS, Guard, Sessions
from router.extensions.console.rendering import Renderer
from router.extensions.console.request_log import RequestLog
from router.extensions.console.verdicts import Verdicts
from router.server.bodies import Decoder
from router.server.http import EVENTS, JSON, HttpCall, Reply, Route, route_name
from router.server.policy import ADMIN, Policy

if TYPE_CHECKING:
    from router.extensions.experiments.runtime import LiveExperiments
    from router.server.app import ServerApp


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
        raise InvalidRequest([FieldViolation("body", f"must have at most {MOST_FIELDS} entries")])
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
        """Whether htmx requests a part of a page."""
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
        """A page, a fragment or JSON, as the request wants it."""
        if self.scripted:
            error = {"status": status, "reason": reason, "message": message, "field": field}
            return JSON, json.dumps({"error": error}).encode()
        if self._instead and not self.fragment:
            return HTML, self._instead
        if self.fragment:
            header = "HX-Redirect" if status == 401 else "HX-Retarget"
            self._answer_headers |= {
                header: "/console" if status == 401 else "#notice",
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


ROOT = "/console"
TITLE = "console: what runs, and a place to try it"
NO_EXPERIMENTS = "experiments are off: set `experiments.enabled` to true"
SIGN_IN = Policy(Role.OPEN)
Values = Mapping[str, Any]


class SiteEntry:
    """Where an entry is, and what it stands for."""

    path: str
    method: str | Policy  # of a service, or a policy of its own
    verb: ClassVar[str]

    @property
    def route(self) -> str:
        """Its name in the policy table."""
        return route_name(self.verb, ROOT + self.path)

    @property
    def operation(self) -> str:
        """The method of a service that it stands for; '' for none."""
        return "" if isinstance(self.method, Policy) else self.method


@dataclass(frozen=True)
class Page(SiteEntry):
    """GET `path` below /console, which may have {parameters}: `gather` finds what `template` shows.

    `nav` is its name among the pages at the side; empty: it is not there. Without a template what `gather`
    gives is the Answer.
    """

    path: str
    method: str | Policy
    gather: Callable[[Visit], Awaitable[Any]]
    template: str = ""
    title: str = ""
    nav: str = ""
    verb: ClassVar[str] = "GET"


@dataclass(frozen=True)
class Action(SiteEntry):
    """POST `path` below /console: `act` does it and gives an Answer, mostly `redirect(...)`.

    A form has the field `csrf`; a script may send it as the header x-csrf-token instead.
    """

    path: str
    method: str | Policy
    act: Callable[[Visit], Awaitable[PageReply]]
    verb: ClassVar[str] = "POST"


@dataclass(frozen=True)
class SiteStream(SiteEntry):
    """POST `path` below /console, as an Action, whose answer are server-sent events: `run` writes them with
    `visit.call.write`, after `await visit.call.begin()`."""

    path: str
    method: str | Policy
    run: Callable[[Visit], Awaitable[None]]
    verb: ClassVar[str] = "POST"


Entry = Page | Action | SiteStream


class Visit:
    """One request to the console, inside its call."""

    def __init__(self, console: Console, call: PageCall, form: Form) -> None:
        self.console, self.call, self.form = console, call, form.fields

    @cached_property
    def query(self) -> Mapping[str, str]:
        """What stands behind `?`."""
        return self.call.query()

    @property
    def client(self) -> Client:
        """Who calls."""
        return self.call.client

    @property
    def csrf(self) -> str:
        """The secret of this client's forms."""
        return self.console.guard.secret(self.call.session)

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return self.call.path_parameter(name)

    def why_not(self, method: str | Policy) -> str:
        """Why this client may not call that method, or a page with that policy, in words; empty if it may."""
        name = "that page" if isinstance(method, Policy) else method
        return self.console.interceptors.why_not(self.console.policy(method), name)

    async def ask(self, method: str, message: Any) -> Any:
        """The answer of a service, as if the client had called it. Raises what the service raises, and
        PermissionDenied without the role."""
        endpoint = self.console.server.methods.get(method)
        if endpoint is None:
            raise FailedPrecondition(f"{method.removeprefix('/')} is not served here")
        self.console.interceptors.permit(endpoint.policy, method)
        return await endpoint.answer(message, self.call)

    def refused_with(self, page: Page, values: Values) -> None:
        """What is raised now is shown on that page, with what was typed, and not by one of its own."""
        self.call.refused_with(self.console.page(self, page, values).body)


class Console:
    """What all pages share."""

    def __init__(self, server: ServerApp, entries: Sequence[Entry]) -> None:
        self.server, self.settings, self.interceptors = server, server.settings, server.interceptors
        self.started = time.time()
        experiments = server.pipeline.experiments
        self.no_experiments = "" if experiments is not None else NO_EXPERIMENTS
        self.live: LiveExperiments | None = None  # experiments whose guardian is in this process
        if experiments is not None:
            from router.extensions.experiments.runtime import LiveExperiments

            self.live = (
                server.pipeline.experiments
                if isinstance(server.pipeline.experiments, LiveExperiments)
                else None
            )
        address, settings = server.http_address, server.settings
        self.guard = Guard(Hosts(address, settings.tls_cert is not None, settings.http_hosts))
        # Cookies know no ports: servers side by side on one machine would take each other's.
        self.cookie = f"lora_router_{address.rpartition(':')[2]}"
        self._nav = [entry for entry in entries if isinstance(entry, Page) and entry.nav]
        self._renderer = Renderer(ROOT)
        self.requests, self.sessions = RequestLog(), Sessions()
        self.verdicts = Verdicts(self.live)
        server.metrics.ended.append(self.requests.ended)

    def policy(self, method: str | Policy) -> Policy:
        """The row of a method, ADMIN for one that is not served here; or the policy itself."""
        if isinstance(method, Policy):
            return method
        endpoint = self.server.methods.get(method)
        return endpoint.policy if endpoint is not None else ADMIN

    def page(self, visit: Visit, page: Page, values: Values) -> PageReply:
        """The page, or the fragment of one."""
        shown = {
            "title": page.title,
            "nav": self._shown_nav(page.nav or self._section(visit.call.path)),
            "visit": visit,
            **values,
        }
        return PageReply(self._render(visit.call, page.template, shown).encode())

    def refusal(self, call: PageCall, status: int, reason: str, message: str) -> str:
        """What is shown instead of a page."""
        values = {"status": status, "reason": reason, "message": message, "next": call.path}
        if call.fragment:
            return self._renderer.render("notice.html", values)
        template = "sign_in.html" if status == 401 else "refusal.html"
        # Anyone who came for the first time has done nothing wrong.
        values |= {"title": "Sign in" if status == 401 else message, "missing": reason == "TOKEN_MISSING"}
        values |= {"nav": [] if status == 401 else self._shown_nav(""), "csrf": self.guard.secret("")}
        return self._render(call, template, values)

    def forgotten(self, call: PageCall) -> str:
        """The header that takes the session out of the browser."""
        return self._kept(call, "") + "; Max-Age=0"

    def signed_in(self, call: PageCall, token: str) -> str:
        """The header that keeps a new session in the browser until that is closed, for this console alone."""
        self.sessions.end(call.session)
        return self._kept(call, self.sessions.begin(token))

    def _kept(self, call: PageCall, session: str) -> str:
        secure = "; Secure" if call.secure else ""
        return f"{self.cookie}={session}; Path={ROOT}; HttpOnly; SameSite=Strict{secure}"

    def _render(self, call: PageCall, template: str, values: Values) -> str:
        theme = call.cookies.get("lora_router_theme", "")
        client = call.client
        common = {
            "theme": theme if theme in ("light", "dark") else "",
            "client": client,
            "signed_in": bool(call.signed_in and client.id),
            "csrf": self.guard.secret(call.session),
        }
        return self._renderer.render(template, common | dict(values))

    def _section(self, path: str) -> str:
        """The page at the side that a page without a place there belongs to, by its path."""
        return next((one.nav for one in self._nav if one.path and path.startswith(f"{ROOT}{one.path}/")), "")

    def _shown_nav(self, present: str) -> list[dict[str, Any]]:
        """The pages that the client may open."""
        return [
            {
                "name": page.nav,
                "href": ROOT + page.path,
                "present": page.nav == present,
            }
            for page in self._nav
            if not self.interceptors.why_not(self.policy(page.method), page.operation or page.route)
        ]


def route_of(console: Console, entry: Entry) -> Route:
    """The HTTP route that an entry is."""

    async def answer(form: Form | None, call: PageCall) -> PageReply | None:
        """Raises Elsewhere for what no page of this console sent."""
        if isinstance(entry, Page):
            call.check()
            visit = Visit(console, call, Form({}))
            gathered = await entry.gather(visit)
            return console.page(visit, entry, gathered) if entry.template else gathered
        fields = form or Form({})
        secret = call.header("x-csrf-token") or fields.fields.get("csrf", "")
        console.guard.check_secret(secret, call.session)
        visit = Visit(console, call, fields)
        if isinstance(entry, Action):
            return await entry.act(visit)
        await entry.run(visit)
        return None

    form = not isinstance(entry, Page)
    return Route(
        entry.verb,
        ROOT + entry.path,
        answer,
        Decoder(count_form, parsed) if form else None,
        call=partial(PageCall, console, form),
        operation=entry.operation,
        title=TITLE if isinstance(entry, Page) and not entry.path else "",
        guarded=True,
    )
