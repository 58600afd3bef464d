"""The console's frame: a page or an action is an HTTP route, and so a call like every other request.

A page module has `ENTRIES`: pages and actions. Each names the method of a service that it stands for, or has
a policy of its own; that decides about role, log, metrics and audit. What it shows or does beyond, it asks
the services for, in this process, as the client that calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from router.access.clients import Client, Role
from router.access.hosts import Hosts
from router.errors import FailedPrecondition
from router.extensions.console.events import Events
from router.extensions.console.exchange import HTML, Form, PageCall, PageReply, count_form, parsed, redirect
from router.extensions.console.guard import Guard
from router.extensions.console.history import SampleHistory
from router.extensions.console.rendering import Renderer
from router.extensions.console.sessions import Sessions
from router.server.bodies import Decoder
from router.server.call import Endpoint
from router.server.http import Route, route_name
from router.server.policy import ROWS, Policy

if TYPE_CHECKING:
    from router.config import Settings
    from router.extensions.console.context import ConsoleContext
    from router.server.inference import InferenceService
    from router.server.interceptors import Interceptors

ROOT = "/console"
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
    def policy(self) -> Policy:
        """Its row of the policy table."""
        return self.method if isinstance(self.method, Policy) else ROWS[self.method]

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
        if isinstance(method, Policy):
            return self.console.interceptors.why_not(method, "that page")
        return self.console.interceptors.why_not(ROWS[method], method)

    async def ask(self, method: str, message: Any) -> Any:
        """The answer of a service, as if the client had called it. Raises what the service raises, and
        PermissionDenied without the role."""
        endpoint = self.console.endpoints.get(method)
        if endpoint is None:
            raise FailedPrecondition(f"{method.removeprefix('/')} is not served here")
        self.console.interceptors.permit(endpoint.policy, method)
        return await endpoint.answer(message, self.call)

    def refused_with(self, page: Page, values: Values) -> None:
        """What is raised now is told by that page, with what was typed, and not by one of its own."""
        self.call.refused_with(self.console.page(self, page, values).body)


class Console:
    """What all pages share."""

    def __init__(
        self,
        interceptors: Interceptors,
        endpoints: Mapping[str, Endpoint],
        inference: InferenceService,
        settings: Settings,
        context: ConsoleContext,
        address: str,
        entries: Sequence[Entry],
    ) -> None:
        self.interceptors, self.endpoints, self.inference = interceptors, endpoints, inference
        self.settings, self.context = settings, context
        tls = settings.tls_cert is not None
        self.guard = Guard(Hosts(address, tls, settings.console_hosts))
        # Cookies know no ports: servers side by side on one machine would take each other's.
        self.cookie = f"lora_router_{address.rpartition(':')[2]}"
        self._nav = [entry for entry in entries if isinstance(entry, Page) and entry.nav]
        self._renderer = Renderer(ROOT)
        self.history, self.events, self.sessions = SampleHistory(context), Events(context), Sessions()

    def page(self, visit: Visit, page: Page, values: Values) -> PageReply:
        """The page, or the fragment of one."""
        shown = {"title": page.title, "nav": self._shown_nav(page.nav), "visit": visit, **values}
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

    def _shown_nav(self, present: str) -> list[dict[str, Any]]:
        return [
            {
                "name": page.nav,
                "href": ROOT + page.path,
                "present": page.nav == present,
                "why_not": self.interceptors.why_not(page.policy, page.operation or page.route),
            }
            for page in self._nav
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
        said = call.header("x-csrf-token") or fields.fields.get("csrf", "")
        console.guard.check_secret(said, call.session)
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
    )


__all__ = [
    "HTML",
    "ROOT",
    "SIGN_IN",
    "Action",
    "Entry",
    "Page",
    "PageReply",
    "SiteStream",
    "Visit",
    "redirect",
]
