"""Asked at every call: who is it, may they, and do they still; and whose an answer is, by its id."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from router.access.certificates import BadNames, names_in
from router.access.clients import ANYONE, OURS, Client, Clients, Role, read_clients
from router.errors import (
    PermissionDenied,
    RouterError,
    TokenMissing,
    Unauthenticated,
    Unavailable,
)
from router.reread import Reread

LOOK_SECONDS = 0.25  # so long a client that was taken out of the file goes on at most
SCHEME = "bearer "
AUTHENTICATOR_SECONDS = 10.0  # for one to say who calls
RANDOM, TAG = 32, 8  # hexadecimal digits of the id of an answer
_TAGGED = re.compile(rf"[0-9a-f]{{{RANDOM + TAG}}}")
_UNTAGGED = re.compile(rf"[0-9a-f]{{{RANDOM}}}")
MAX_HEADER = 8 << 10  # characters; ours have some 100, an issuer's may carry much


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings: its headers, those named `authorization`, and the client's certificate (PEM,
    verified by TLS).

    `Access.verified` adds `names`, from the certificate, and `identity`, from an authenticator.
    """

    authorization: Sequence[str] = ()
    certificate: bytes = b""
    names: Sequence[str] = ()  # each with its kind, `dns:NAME`
    headers: Iterable[tuple[str, str | bytes]] = ()  # all of the call's, their names in lower case
    identity: CallerIdentity | None = None

    def header(self, name: str) -> str:
        """The value of a header that the call has once; '' of any other."""
        found = [value for key, value in self.headers if key == name]
        return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


class CallerIdentity(Protocol):
    """Who calls, as an authenticator found."""

    def client(self, clients: Clients, now: float) -> Client | None:
        """The client of `clients`, the file as it is, that this is at `now` (seconds since 1970); None for
        nobody. Asked when a call begins, and while it runs four times a second at most."""


@dataclass(frozen=True, slots=True)
class Named:
    """The client with that id in the file of clients."""

    id: str

    def client(self, clients: Clients, now: float) -> Client | None:
        """As CallerIdentity."""
        return clients.by_id(self.id)


class Authenticator:
    """One way to prove who calls. Lives on the server's event loop."""

    async def authenticate(self, credentials: Credentials) -> CallerIdentity | None:
        """Who calls; None where these are not credentials that it knows. Raises Unauthenticated for wrong
        ones. Any other exception counts as None, and as a fault of the plugin; so does more than 10 s."""
        return None

    def follow(self, clients: Clients) -> None:
        """Called four times a second with the file of clients as it is; must not block."""

    @property
    def problem(self) -> str:
        """What is wrong with what it knows; shown under `degraded`."""
        return ""

    def close(self) -> None:
        """The server ends."""


@dataclass(eq=False, slots=True)
class _Running:
    """A call that goes on only while its client may make it."""

    credentials: Credentials
    role: Role
    method: str
    client: Client
    end: Callable[[RouterError], None]
    lasts: bool


class Access:
    """Lives on one event loop. Without a file everybody may do everything.

    Raises ConfigError for a file that is not there or wrong.
    """

    def __init__(self, clients: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._file = Reread([clients], lambda: read_clients(clients)) if clients is not None else None
        self._clients = self._file.value() if self._file is not None else Clients()
        self._now = now
        self._running: set[_Running] = set()
        self._authenticators: list[tuple[Authenticator, Callable[[Exception], None]]] = []

    def add(self, authenticator: Authenticator, failed: Callable[[Exception], None]) -> None:
        """Ask that one, too, after those that are there; `failed` is called with what it raises."""
        self._authenticators.append((authenticator, failed))

    @property
    def problem(self) -> str:
        """Why the file as it is now is not in force; empty if it is."""
        return self._file.problem if self._file is not None else ""

    @property
    def keys_problem(self) -> str:
        """What authenticators say is wrong, such as that the keys of an issuer could not be fetched."""
        found = []
        for authenticator, failed in self._authenticators:
            try:
                found.append(authenticator.problem)
            except Exception as error:
                failed(error)
        return "; ".join(filter(None, found))

    @property
    def flaws(self) -> list[str]:
        """What is wrong with the file, and with what authenticators know."""
        stale = f"the clients file cannot be used, those from before hold: {self.problem}"
        return [*([stale] if self.problem else []), *([self.keys_problem] if self.keys_problem else [])]

    async def verified(self, credentials: Credentials, role: Role) -> Credentials:
        """The same with what is read once a call: who authenticators say it is, or the names in a
        certificate.

        Waits, seconds at most, for an authenticator. Raises Unauthenticated.
        """
        if self._file is None or role is Role.OPEN:
            return credentials
        token = bearer(credentials.authorization)
        if token.startswith(OURS):
            return credentials
        if (identity := await self._identity(credentials)) is not None:
            return replace(credentials, identity=identity)
        if credentials.authorization:
            return credentials
        try:
            if credentials.certificate:
                return replace(credentials, names=names_in(credentials.certificate))
        except BadNames as error:
            raise Unauthenticated(str(error)) from None
        return credentials

    async def _identity(self, credentials: Credentials) -> CallerIdentity | None:
        """Who calls, by the first authenticator that knows. What one raises lets nobody in."""
        for authenticator, failed in self._authenticators:
            try:
                async with asyncio.timeout(AUTHENTICATOR_SECONDS):
                    found = await authenticator.authenticate(credentials)
            except RouterError:
                raise
            except Exception as error:
                failed(error)
            else:
                if found is not None:
                    return found
        return None

    def client(self, credentials: Credentials, role: Role) -> Client:
        """The client that calls a method which needs `role`; anybody for one that is open.

        Raises TokenMissing, Unauthenticated.
        """
        return ANYONE if role is Role.OPEN else self._identified(credentials)

    def check(self, client: Client, role: Role, method: str) -> None:
        """Raise PermissionDenied unless the client may call `method`, which needs the role."""
        if role is not Role.OPEN and role not in client.roles:
            name = method.removeprefix("/")
            raise PermissionDenied(f"{name} needs the role {role.value}", role=role.value)

    @contextmanager
    def holding(
        self,
        credentials: Credentials,
        role: Role,
        method: str,
        client: Client,
        end: Callable[[RouterError], None],
        lasts: bool = False,
    ) -> Iterator[None]:
        """The block of a call; `end` is called soon after the file has changed what its client is: with what
        `client` or `check` raises, or with Unavailable where the call may be made again. One that `lasts` has
        no end of its own, so its quotas may change meanwhile, too."""
        if self._file is None or role is Role.OPEN:
            yield
            return
        running = _Running(credentials, role, method, client, end, lasts)
        self._running.add(running)
        try:
            yield
        finally:
            self._running.discard(running)

    async def follow(self) -> None:
        """Look at the file again and again, and end what may not go on."""
        try:
            while True:
                self.look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for authenticator, _ in self._authenticators:
                authenticator.close()

    def look(self) -> None:
        """Read the file if it has changed, fetch keys where that is due, and end the calls of who may no
        longer make them."""
        if self._file is None:
            return
        self._clients = self._file.value()
        for authenticator, failed in self._authenticators:
            try:
                authenticator.follow(self._clients)
            except Exception as error:
                failed(error)
        for running in tuple(self._running):
            try:
                now = self.client(running.credentials, running.role)
                self.check(now, running.role, running.method)
            except (Unauthenticated, PermissionDenied) as error:
                running.end(error)
            else:
                if granted(now, running.lasts) != granted(running.client, running.lasts):
                    text = "what this client may know of or use was changed while the call ran"
                    running.end(Unavailable(text))

    def _identified(self, credentials: Credentials) -> Client:
        """A token decides if there is one, else the certificate. What is wrong with it is not told."""
        if self._file is None:
            return ANYONE
        if credentials.identity is not None:
            client = credentials.identity.client(self._clients, self._now())
        elif credentials.authorization:
            client = self._clients.by_token(bearer(credentials.authorization))
        elif credentials.names:
            client = self._clients.by_names(credentials.names)
        else:
            text = "no token was sent; send one as `authorization: Bearer TOKEN`, or a client certificate"
            raise TokenMissing(text)
        if client is None or client.expired(self._now()):
            who = f"{client.id} has expired" if client else "nobody's"
            raise Unauthenticated(f"token or certificate: {who}")
        return client


def granted(client: Client, lasts: bool) -> tuple[object, ...]:
    """What a running call goes on with for as long as it stays the same."""
    quotas = (client.outcomes_per_second, client.outcomes_per_day, client.group)
    return client.adapters, client.experiments, client.tenant, quotas if lasts else ()


def bearer(headers: Sequence[str]) -> str:
    """The token of the one authorization header; '' if it is none, or there are several."""
    if len(headers) != 1 or len(headers[0]) > MAX_HEADER or not headers[0].isascii():
        return ""
    scheme, token = headers[0][: len(SCHEME)], headers[0][len(SCHEME) :]
    return token if scheme.lower() == SCHEME else ""


# -- Ids of answers. Where clients authenticate, an id shows the tenant of its answer, without a list.
# An id is 128 random bits, which nobody can guess, and two are never the same. One of a tenant's has 32 bits
# more, a digest of the random ones and the tenant. Anyone who changes those has an id that no answer has.


def new_response_id(tenant: str = "") -> str:
    """A new id for an answer to a client of that tenant; '' where clients do not authenticate."""
    drawn = secrets.token_hex(RANDOM // 2)
    return drawn + _tag(drawn, tenant) if tenant else drawn


def may_be_of(response_id: str, tenant: str) -> bool:
    """Whether it can be the id of an answer to that tenant: one without a tag, as servers without a clients
    file make them, can be anybody's. Who is nobody's tenant may name any."""
    if not tenant or not _TAGGED.fullmatch(response_id):
        return True
    return hmac.compare_digest(_tag(response_id[:RANDOM], tenant), response_id[RANDOM:])


def is_response_id(text: str, tenant: str) -> bool:
    """Whether an answer to that tenant can have this id, though nothing is known of it."""
    form = _TAGGED if tenant else _UNTAGGED
    return bool(form.fullmatch(text)) and may_be_of(text, tenant)


def _tag(drawn: str, tenant: str) -> str:
    return hashlib.sha256(f"{drawn}:{tenant}".encode()).hexdigest()[:TAG]
