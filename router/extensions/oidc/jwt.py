"""JSON Web Tokens: whom one names, and whether that still holds.

A signature is checked once, when a call begins, on the event loop: with PyJWT's reading of the token that
takes about 0.1 ms. While the call runs, the token's end, its issuer and its key are compared, no more.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from router.access.issuers import Issuer
from router.errors import Unauthenticated
from router.extensions.oidc.jwks import Found, Key, Keys

_SHAPE = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
TIMES = ("exp", "nbf", "iat")
LAST = (
    1 << 53
)  # seconds since 1970 that a number may say: what is beyond, or infinite, cannot be reckoned with
REQUIRED = ["exp", "iss", "aud", "sub"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What a token has proved: its signature fits."""

    issuer: Issuer
    key: Key
    subject: str
    expires: float  # seconds since 1970, the leeway included


def is_jwt(token: str) -> bool:
    """Whether it has the shape of one; our own tokens have not."""
    return token.count(".") == 2


class Tokens:
    """Checks tokens of the issuers that the clients file names; lives on one event loop."""

    def __init__(self, fetch: Callable[[Issuer], Awaitable[Found]] | None = None) -> None:
        self._fetch = fetch
        self._issuers: Mapping[str, Issuer] = {}
        self._keys: dict[tuple[str, str, tuple[str, ...]], Keys] = {}

    @property
    def problem(self) -> str:
        """Why keys could not be fetched when that was last tried; empty if they were."""
        keys = (self._keys[issuer.source] for issuer in self._issuers.values())
        return "; ".join(one.problem for one in keys if one.problem)

    def follow(self, issuers: Mapping[str, Issuer]) -> None:
        """These are the issuers now. Keys are fetched where that is due."""
        self._issuers = issuers
        sources = {issuer.source: issuer for issuer in issuers.values()}
        for source in self._keys.keys() - sources.keys():
            self._keys.pop(source).close()
        for source, issuer in sources.items():
            if source not in self._keys:
                self._keys[source] = Keys(issuer, self._fetch)
            self._keys[source].look()

    async def proven(self, token: str) -> Proof:
        """Whom it names. Raises Unauthenticated; why is for the log."""
        header, claims = _unverified(token)
        name, algorithm, kid = claims.get("iss"), header.get("alg"), header.get("kid")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise _refused("of no issuer in the clients file")
        if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
            raise _refused(f"signed by {algorithm!r}", issuer)
        if not isinstance(kid, str):
            raise _refused("without the kid of a key", issuer)
        key = await self._keys[issuer.source].find(kid, algorithm)
        if key is None:
            raise _refused(f"signed with a key that is not the issuer's: {kid!r}", issuer)
        return _verified(token, issuer, key)

    def holds(self, proof: Proof, now: float) -> bool:
        """Whether it would be taken now, in seconds since 1970, too."""
        issuer = proof.issuer
        if now >= proof.expires or self._issuers.get(issuer.url) != issuer:
            return False
        return self._keys[issuer.source].trusts(proof.key)

    def close(self) -> None:
        """Fetch no more keys."""
        for keys in self._keys.values():
            keys.close()


def _verified(token: str, issuer: Issuer, key: Key) -> Proof:
    import jwt

    try:
        claims = jwt.decode(
            token,
            key=key.jwk,
            algorithms=[key.algorithm],
            audience=issuer.audience,
            issuer=issuer.url,
            leeway=issuer.leeway_seconds,
            options={"require": REQUIRED},
        )
    except jwt.PyJWTError as error:
        raise _refused(str(error), issuer) from None
    return Proof(issuer, key, claims["sub"], claims["exp"] + issuer.leeway_seconds)


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and claims of what nobody has checked yet, but that times are numbers: the library takes texts,
    too. What is read here only chooses the key."""
    parts = _SHAPE.fullmatch(token)
    if parts is None:
        raise _refused("not three parts of base64url")
    header, claims = _json(parts[1]), _json(parts[2])
    for name in TIMES:
        if name in claims and not _is_time(claims[name]):
            raise _refused(f"{name} is no time")
    return header, claims


def _json(part: str) -> Mapping[str, Any]:
    try:
        said = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _refused("not JSON in base64url")
    return said


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST


def _refused(why: str, issuer: Issuer | None = None) -> Unauthenticated:
    return Unauthenticated(f"token{f' of {issuer.url}' if issuer else ''}: {why}")
