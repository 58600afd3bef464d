"""Who calls, as others prove it: JSON Web Tokens of the issuers in the clients file, and the header of a
sidecar in front of `sidecar_listen` (docs/security.md)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from router.access.access import Authenticator, CallerIdentity, Credentials, bearer
from router.access.clients import Client, Clients
from router.access.issuers import Issuer
from router.errors import Unauthenticated
from router.extensions.oidc.jwt import Found, Proof, Tokens, is_jwt
from router.hookspecs import RegisterAuthenticator
from router.markers import hookimpl

HEADER = "x-forwarded-client-cert"
NAMES = ("uri", "dns")  # as kinds of names in router/access/certificates.py
# After a closing quote nothing but the next pair may come, so a quote that a client left open ahead of the
# proxy's element cannot swallow a part of it.
_PAIR = re.compile(r""" *([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;]*))([,;]|\Z)""")
_ESCAPED = re.compile(r"\\(.)")


def forwarded_names(headers: Sequence[str]) -> tuple[str, ...]:
    """The names (SANs) of the last element, which the nearest proxy wrote, with their kinds, as `dns:NAME`.

    The header is as Envoy writes it: one element for each proxy on the way, by commas, the nearest last; in
    it pairs of key and value, by semicolons. A value may stand in double quotes; in these a backslash takes
    what follows as it is.

    Raises ValueError for a malformed header, and for several headers: any of them may be the proxy's.
    """
    if len(headers) != 1 or not headers[0].isascii() or not headers[0].isprintable():
        raise ValueError(f"{len(headers)} headers, or odd characters")
    header, names = headers[0], list[str]()
    at, before = 0, ","
    while before:
        pair = _PAIR.match(header, at)
        if pair is None:
            raise ValueError(f"no pair of key and value at character {at}")
        if before == ",":
            names.clear()
        if (kind := pair[1].lower()) in NAMES and (value := _value(pair)):
            names.append(f"{kind}:{value}")
        at, before = pair.end(), pair[4]
    return tuple(names)


def _value(pair: re.Match[str]) -> str:
    return _ESCAPED.sub(r"\1", pair[2]) if pair[2] is not None else pair[3]


@hookimpl
def register_authenticators(register: RegisterAuthenticator) -> None:
    """Tokens, then the sidecar's header."""
    register(JwtAuthenticator())
    register(SidecarAuthenticator())


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """Whom a token names, for as long as it holds."""

    tokens: Tokens
    proof: Proof

    def client(self, clients: Clients, now: float) -> Client | None:
        """As CallerIdentity."""
        if not self.tokens.holds(self.proof, now):
            return None
        return clients.by_subject(self.proof.issuer.url, self.proof.subject)


class JwtAuthenticator(Authenticator):
    """Tokens of the issuers that the clients file names. `fetch` gets their keys, for tests."""

    def __init__(self, fetch: Callable[[Issuer], Awaitable[Found]] | None = None) -> None:
        self.tokens = Tokens(fetch)

    async def authenticate(self, credentials: Credentials) -> CallerIdentity | None:
        """Waits, seconds at most, while an issuer's keys are fetched."""
        token = bearer(credentials.authorization)
        return TokenSubject(self.tokens, await self.tokens.proven(token)) if is_jwt(token) else None

    def follow(self, clients: Clients) -> None:
        """Fetch keys where that is due."""
        self.tokens.follow(clients.issuers)

    @property
    def problem(self) -> str:
        """Why keys could not be fetched."""
        why = self.tokens.problem
        return why and f"the keys of an issuer cannot be used, those from before hold: {why}"

    def close(self) -> None:
        """Fetch no more keys."""
        self.tokens.close()


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The names in a certificate that a sidecar has checked, each with its kind, `dns:NAME`."""

    names: Sequence[str]

    def client(self, clients: Clients, now: float) -> Client | None:
        """As CallerIdentity."""
        return clients.by_names(self.names)


class SidecarAuthenticator(Authenticator):
    """`x-forwarded-client-cert` of calls that came by the sidecar's address, and have no token."""

    async def authenticate(self, credentials: Credentials) -> CallerIdentity | None:
        """Raises Unauthenticated for a header that is none."""
        if not credentials.sidecar or credentials.authorization:
            return None
        headers = [value for name, value in credentials.headers if name == HEADER and isinstance(value, str)]
        if not headers:
            return None
        try:
            names = forwarded_names(headers)
        except ValueError as error:
            raise Unauthenticated(f"{HEADER}: {error}") from None
        return Forwarded(names) if names else None
