"""The console's frame: a page or an action is a call of the chain, like every other request.

A page module has `ENTRIES`: pages and actions. Each names the method of the chain that it is, which decides
about role, log, metrics and audit; what it shows or does beyond, it asks the services for, in this process,
as the client that calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from router.access.clients import Client
from router.access.hosts import Hosts
from router.errors import FailedPrecondition
from router.server.call import Call, current_call, request_id_of, send_headers
from router.server.decoding import Decoder
from router.web.console.events import Events
from router.web.console.exchange import HTML, Answer, Form, PageExchange, count_form, parsed, redirect
from router.web.console.guard import Guard
from router.web.console.history import History
from router.web.console.rendering import Renderer
from router.web.console.sessions import Sessions
from router.web.exchange import Receive, Scope, Send, until_gone

if TYPE_CHECKING:
    from router.config import Settings
    from router.server.insight import Insight
    from router.server.layers import Chain

ROOT = "/console"
SIGN_IN = "/console.v1/SignIn"
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """GET `path` below /console, which may have {parameters}: `gather` finds what `template` shows.

    `nav` is its name among the pages at the side; empty: it is not there. Without a template what `gather`
    gives is the Answer.
    """

    path: str
    method: str
    gather: Callable[[Visit], Awaitable[Any]]
    template: str = ""
    title: str = ""
    nav: str = ""
    verb: ClassVar[str] = "GET"


@dataclass(frozen=True, slots=True)
class Action:
    """POST `path` below /console: `act` does it and gives an Answer, mostly `redirect(...)`.

    A form has the field `csrf`; a script may send it as the header x-csrf-token instead.
    """

    path: str
    method: str
    act: Callable[[Visit], Awaitable[Answer]]
    verb: ClassVar[str] = "POST"


@dataclass(frozen=True, slots=True)
class Stream:
    """POST `path` below /console, as an Action, whose answer are server-sent events: `run` writes them with
    `visit.send`, after `await visit.begin()`."""

    path: str
    method: str
    run: Callable[[Visit], Awaitable[None]]
    verb: ClassVar[str] = "POST"


Entry = Page | Action | Stream


class Visit:
    """One request to the console, inside its call of the chain."""

    def __init__(self, console: Console, exchange: PageExchange, form: Form) -> None:
        self.console, self.exchange, self.form = console, exchange, form.fields

    @cached_property
    def query(self) -> Mapping[str, str]:
        """What stands behind `?`."""
        return self.exchange.query()

    @property
    def client(self) -> Client:
        """Who calls."""
        return current_call().client

    @property
    def csrf(self) -> str:
        """The secret of this client's forms."""
        return self.console.guard.secret(self.exchange.session)

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return self.exchange.path_parameter(name)

    def why_not(self, method: str) -> str:
        """Why this client may not call that method here, in words; empty if it may."""
        return self.console.chain.why_not(method)

    async def ask(self, method: str, message: Any) -> Any:
        """The answer of a service, as if the client had called it. Raises what the service raises, and
        PermissionDenied without the role."""
        self.console.chain.permit(method)
        handler = self.console.methods.get(method)
        if handler is None:
            raise FailedPrecondition(f"{method.removeprefix('/')} is not served here")
        return await handler.unary_unary(message, self.exchange)

    def refused_with(self, page: Page, values: Values) -> None:
        """What is raised now is told by that page, with what was typed, and not by one of its own."""
        self.exchange.refused_with(self.console.page(self, page, values).body)

    async def begin(self) -> None:
        """The answer is events, from now on."""
        self.exchange.stream()
        await send_headers(self.exchange)

    async def send(self, event: bytes) -> None:
        """An event, or several."""
        await self.exchange.write(event)


class Console:
    """What all pages share."""

    def __init__(
        self,
        chain: Chain,
        methods: Mapping[str, Any],
        settings: Settings,
        insight: Insight,
        address: str,
        entries: Sequence[Entry],
    ) -> None:
        self.chain, self.methods, self.settings, self.insight = chain, methods, settings, insight
        tls = settings.tls_cert is not None
        self.guard = Guard(Hosts(address, tls, settings.console_hosts))
        # Cookies know no ports: servers side by side on one machine would take each other's.
        self.cookie = f"lora_router_{address.rpartition(':')[2]}"
        self._nav = [entry for entry in entries if isinstance(entry, Page) and entry.nav]
        self._renderer = Renderer(ROOT)
        self.history, self.events, self.sessions = History(insight), Events(insight), Sessions()

    def page(self, visit: Visit, page: Page, values: Values) -> Answer:
        """The page, or the fragment of one."""
        shown = {"title": page.title, "nav": self._shown_nav(page.nav), "visit": visit, **values}
        return Answer(self._render(visit.exchange, page.template, shown).encode())

    def refusal(self, exchange: PageExchange, status: int, reason: str, message: str) -> str:
        """What is shown instead of a page."""
        values = {"status": status, "reason": reason, "message": message, "next": exchange.path}
        if exchange.fragment:
            return self._renderer.render("notice.html", values)
        template = "sign_in.html" if status == 401 else "refusal.html"
        # Whoever came for the first time has done nothing wrong.
        values |= {"title": "Sign in" if status == 401 else message, "missing": reason == "TOKEN_MISSING"}
        values |= {"nav": [] if status == 401 else self._shown_nav(""), "csrf": self.guard.secret("")}
        return self._render(exchange, template, values)

    def forgotten(self, exchange: PageExchange) -> str:
        """The header that takes the session out of the browser."""
        return self._kept(exchange, "") + "; Max-Age=0"

    def signed_in(self, exchange: PageExchange, token: str) -> str:
        """The header that keeps a new session in the browser until that is closed, for this console alone."""
        self.sessions.end(exchange.session)
        return self._kept(exchange, self.sessions.begin(token))

    def _kept(self, exchange: PageExchange, session: str) -> str:
        secure = "; Secure" if exchange.secure else ""
        return f"{self.cookie}={session}; Path={ROOT}; HttpOnly; SameSite=Strict{secure}"

    def _render(self, exchange: PageExchange, template: str, values: Values) -> str:
        theme = exchange.cookies.get("lora_router_theme", "")
        client = current_call().client
        common = {
            "theme": theme if theme in ("light", "dark") else "",
            "client": client,
            "signed_in": bool(exchange.signed_in and client.id),
            "csrf": self.guard.secret(exchange.session),
        }
        return self._renderer.render(template, common | dict(values))

    def _shown_nav(self, present: str) -> list[dict[str, Any]]:
        return [
            {
                "name": page.nav,
                "href": ROOT + page.path,
                "present": page.nav == present,
                "why_not": self.chain.why_not(page.method),
            }
            for page in self._nav
        ]


class Endpoint:
    """An ASGI application: one entry."""

    def __init__(self, console: Console, entry: Entry) -> None:
        self._console, self._entry = console, entry
        # As many as the layers take: of fewer they would see a part, and think that it is all.
        self._most = 0 if isinstance(entry, Page) else console.chain.most(entry.method)
        streams = isinstance(entry, Stream)
        # One that streams writes its answer itself; of the others the layers note it in the audit first.
        self._handler = SimpleNamespace(
            request_streaming=False,
            response_streaming=streams,
            request_deserializer=Decoder(count_form, parsed),
            response_serializer=lambda answer: answer,
            unary_unary=None if streams else self._answer,
            unary_stream=self._run if streams else None,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        form = not isinstance(self._entry, Page)
        exchange = PageExchange(scope, receive, send, self._most, self._console, form)
        call = Call(self._entry.method, request_id_of(exchange.invocation_metadata()))
        await until_gone(self._console.chain.serve(self._handler, call, exchange), exchange)
        await exchange.finish()

    async def _answer(self, form: Form, exchange: PageExchange) -> Answer:
        visit, entry = self._checked(form, exchange), self._entry
        if isinstance(entry, Action):
            return await entry.act(visit)
        if isinstance(entry, Page) and entry.template:
            return self._console.page(visit, entry, await entry.gather(visit))
        answer: Answer = await entry.gather(visit)  # type: ignore[union-attr]
        return answer

    async def _run(self, form: Form, exchange: PageExchange) -> None:
        if isinstance(self._entry, Stream):
            await self._entry.run(self._checked(form, exchange))

    def _checked(self, form: Form, exchange: PageExchange) -> Visit:
        """Raises Elsewhere for a form without the secret of this console's pages."""
        if not isinstance(self._entry, Page):
            said = exchange.header("x-csrf-token") or form.fields.get("csrf", "")
            self._console.guard.check_secret(said, exchange.session)
        return Visit(self._console, exchange, form)


__all__ = ["HTML", "ROOT", "SIGN_IN", "Action", "Answer", "Entry", "Page", "Stream", "Visit", "redirect"]
