"""JSON Web Tokens: whom one names, whether that still holds, and the public keys of its issuer.

A signature is checked once, when a call begins, on the event loop: with PyJWT's reading of the token that
takes about 0.1 ms. While the call runs, the token's end, its issuer and its key are compared, no more. Keys
are fetched beside the event loop, and kept while they cannot be fetched anew.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from router.access.hosts import is_local, is_safe
from router.access.issuers import ALGORITHMS, Issuer
from router.errors import Unauthenticated
from router.reread import Look, look, problem_of, read_file

if TYPE_CHECKING:
    import httpx2
    from jwt import PyJWK


log = logging.getLogger(__name__)
REFRESH_SECONDS = 3600.0
RETRY_SECONDS = 60.0  # after an attempt that failed
UNKNOWN_SECONDS = (
    5.0  # between attempts for unknown keys; an invented one delays a real one by no more than this
)
FETCH_SECONDS = 5.0  # for all requests together
MAX_BYTES = 1 << 20
MAX_KEYS = 100
RSA_BITS = range(2048, 8193)
PUBLIC = ("kty", "kid", "n", "e", "crv", "x", "y")  # of a JWK; nothing secret is wanted
CONFIGURATION = "/.well-known/openid-configuration"


class Unusable(Exception):
    """An issuer's keys could not be had; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, for one algorithm. Two with the same text are the same."""

    kid: str
    algorithm: str
    text: str
    jwk: PyJWK = field(compare=False, repr=False)


Found: TypeAlias = Mapping[tuple[str, str], Key]  # by kid and algorithm


class Keys:
    """Of one issuer; lives on one event loop.

    They are fetched at the first look, every hour, when their file changes, a minute after an attempt that
    failed, and, every five seconds at most, for a key that is not known. What was known stays in force until
    a fetch succeeds.
    """

    def __init__(
        self,
        issuer: Issuer,
        fetch: Callable[[Issuer], Awaitable[Found]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer, self._fetch, self._now = issuer, fetch or fetched, now
        self._found: Found = {}
        self._tried: float | None = None
        self._seen: Look | None = None
        self._fetching: asyncio.Task[None] | None = None
        self.problem = ""

    def trusts(self, key: Key) -> bool:
        """Whether it is still among the issuer's."""
        return self._found.get((key.kid, key.algorithm)) == key

    async def find(self, kid: str, algorithm: str) -> Key | None:
        """The key of that name. Waits for a fetch that runs, or that an unknown key begins."""
        if (key := self._found.get((kid, algorithm))) is not None:
            return key
        self.look(wanted=True)
        if self._fetching is not None:
            await asyncio.wait({self._fetching})  # a caller that leaves does not end the fetch
        return self._found.get((kid, algorithm))

    def look(self, wanted: bool = False) -> None:
        """Begin to fetch where that is due; `wanted`: a call needs a key that is not known."""
        if self._fetching is not None and not self._fetching.done():
            return
        seen = look(self._issuer.file) if self._issuer.file is not None else None
        if seen == self._seen and not self._due(wanted):
            return
        self._seen, self._tried = seen, self._now()
        self._fetching = asyncio.get_running_loop().create_task(self._again(), name="keys of an issuer")

    def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()

    def _due(self, wanted: bool) -> bool:
        pause = UNKNOWN_SECONDS if wanted else RETRY_SECONDS if self.problem else REFRESH_SECONDS
        return self._tried is None or self._now() - self._tried >= pause

    async def _again(self) -> None:
        of = {"issuer": self._issuer.url}
        try:
            found = await self._fetch(self._issuer)
        except Exception as error:
            self.problem = str(error) or type(error).__name__
            log.error(
                "keys could not be fetched; those from before stay in force",
                exc_info=None if isinstance(error, Unusable) else error,
                extra={"fields": {**of, "problem": self.problem}},
            )
        else:
            self._found, self.problem = found, ""
            log.info("keys fetched", extra={"fields": {**of, "keys": len(found)}})


async def fetched(issuer: Issuer) -> Found:
    """The keys as they are now at their file or URL. Raises Unusable."""
    path = issuer.file
    data = await _downloaded(issuer) if path is None else await asyncio.to_thread(_read, path)
    return await asyncio.to_thread(keys_in, data, issuer.algorithms)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_BYTES, private=True)
    except OSError as error:
        raise Unusable(problem_of(error)) from None


async def _downloaded(issuer: Issuer) -> bytes:
    import httpx2

    try:
        async with asyncio.timeout(FETCH_SECONDS):
            where = issuer.jwks or await _place(issuer)
            return await _body(where)
    except TimeoutError:
        raise Unusable(f"no answer within {FETCH_SECONDS:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise Unusable(f"{type(error).__name__}: {error}".rstrip(": ")) from None


async def _place(issuer: Issuer) -> str:
    """Where the issuer says that its keys are."""
    url = issuer.url.rstrip("/") + CONFIGURATION
    document = _object(await _body(url), url)
    if document.get("issuer") != issuer.url:
        raise Unusable(f"{url} is of another issuer: {document.get('issuer')!r}")
    place = document.get("jwks_uri")
    if not isinstance(place, str) or not is_safe(place):
        raise Unusable(f"{url} has no https URL as jwks_uri")
    return place


async def _body(url: str) -> bytes:
    """Redirects are not followed: keys come from the address of the operator or the issuer."""
    data = bytearray()
    client = await asyncio.to_thread(_client, url)
    async with client, client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer:
        if answer.status_code != 200:
            raise Unusable(f"{url} answered {answer.status_code}")
        async for part in answer.aiter_raw():
            data += part
            if len(data) > MAX_BYTES:
                raise Unusable(f"{url} has more than {MAX_BYTES} bytes")
    return bytes(data)


def _client(url: str) -> httpx2.AsyncClient:
    """Reads the certificates of this machine, which takes too long for an event loop."""
    import httpx2

    return httpx2.AsyncClient(
        verify=httpx2.create_ssl_context(), trust_env=not is_local(url), timeout=FETCH_SECONDS
    )  # a proxy from the environment is never used for the own machine


def keys_in(data: bytes, algorithms: Sequence[str]) -> Found:
    """Those of a JWK set that check signatures by these algorithms; others are left out. Raises Unusable."""
    listed = _object(data, "the JWK set").get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise Unusable(f"the JWK set has no list `keys`, or more than {MAX_KEYS}")
    found: dict[tuple[str, str], Key] = {}
    for jwk in listed:
        for key in _keys_of(jwk, algorithms):
            found.setdefault((key.kid, key.algorithm), key)
    if not found:
        raise Unusable(f"the JWK set has no key with a kid for {', '.join(algorithms)}")
    return found


def _keys_of(jwk: Any, algorithms: Sequence[str]) -> Iterator[Key]:
    """One key for each algorithm that it fits."""
    from jwt import PyJWK, PyJWTError

    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str) or not _checks(jwk):
        return
    public = {name: jwk[name] for name in PUBLIC if name in jwk}
    kind = (public.get("kty"), public.get("crv", ""))
    for algorithm in algorithms:
        if ALGORITHMS[algorithm] != kind or jwk.get("alg", algorithm) != algorithm:
            continue
        try:
            key = PyJWK(public, algorithm)
        except PyJWTError:
            continue
        if kind[0] != "RSA" or key.key.key_size in RSA_BITS:
            yield Key(jwk["kid"], algorithm, json.dumps(public, sort_keys=True), key)


def _checks(jwk: Mapping[str, Any]) -> bool:
    """Whether the issuer means it for checking signatures."""
    operations = jwk.get("key_ops", ["verify"])
    return jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unusable(f"{what} is no JSON object")
    return document


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
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _refused("not JSON in base64url")
    return value


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST


def _refused(why: str, issuer: Issuer | None = None) -> Unauthenticated:
    return Unauthenticated(f"token{f' of {issuer.url}' if issuer else ''}: {why}")
