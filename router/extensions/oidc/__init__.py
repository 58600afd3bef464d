"""Callers by JSON Web Tokens of the issuers in the clients file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from router.access.access import Authenticator, CallerIdentity, Credentials, bearer
from router.access.clients import Client, Clients
from router.access.issuers import Issuer
from router.extensions.oidc.jwt import Found, Proof, Tokens, is_jwt
from router.hookspecs import RegisterAuthenticator
from router.markers import hookimpl


@hookimpl
def register_authenticators(register: RegisterAuthenticator) -> None:
    """Tokens."""
    register(JwtAuthenticator())


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
