"""Issuers of JSON Web Tokens (OpenID Connect), as the clients file has them.

[[issuer]]
url = "https://login.example"         # the `iss` of its tokens, exactly
audience = "lora-router"              # one of the `aud` of its tokens
jwks = "https://login.example/keys"   # or an absolute path; absent: where its openid-configuration says
algorithms = ["RS256"]                # absent: RS256, ES256, EdDSA
leeway_seconds = 5                    # how far its clock and ours may differ; 0 if absent
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from router.access.hosts import is_safe
from router.errors import ConfigError, install_extra

# What keys each takes: type and curve. With a shared secret anyone who can check a token could make one.
ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **{f"{kind}{size}": ("RSA", "") for kind in ("RS", "PS") for size in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
USUAL = ("RS256", "ES256", "EdDSA")
MAX_LEEWAY_SECONDS = 300
MISSING = f"tokens of an issuer need the library PyJWT: {install_extra('jwt')}"


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs tokens that name clients."""

    url: str
    audience: str
    jwks: str = ""
    algorithms: tuple[str, ...] = USUAL
    leeway_seconds: float = 0.0

    @property
    def file(self) -> Path | None:
        """Where its keys are, if not behind a URL."""
        return Path(self.jwks) if self.jwks.startswith("/") else None

    @property
    def source(self) -> tuple[str, str, tuple[str, ...]]:
        """What its keys depend on."""
        return self.url, self.jwks, self.algorithms


def read_issuers(tables: Any) -> dict[str, Issuer]:
    """By URL, from what stands under [[issuer]]. Raises ConfigError for whatever is wrong, in one line."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("issuers stand under [[issuer]]")
    found: dict[str, Issuer] = {}
    for place, table in enumerate(tables, 1):
        issuer = _issuer(table, place)
        if issuer.url in found:
            raise ConfigError(f"two issuers have the same url: {issuer.url!r}")
        found[issuer.url] = issuer
    if found:
        check_library(fetches=any(issuer.file is None for issuer in found.values()))
    return found


def check_library(fetches: bool = False) -> None:
    """Raises ConfigError where tokens cannot be checked, or keys not be fetched by HTTP."""
    try:
        from jwt.algorithms import has_crypto
    except ImportError as error:
        raise ConfigError(MISSING) from error
    if not has_crypto:
        raise ConfigError(MISSING)
    if fetches and find_spec("httpx2") is None:
        raise ConfigError(f"keys of an issuer are fetched by the package httpx2: {install_extra('jwt')}")


def _issuer(table: Mapping[str, Any], place: int) -> Issuer:
    name = table.get("url")
    where = f"issuer {name!r}" if isinstance(name, str) else f"[[issuer]] number {place}"
    for key in table:
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, 1)
            raise ConfigError(f"{where}: unknown key {key!r}" + (f"; {near[0]!r}?" if near else ""))
    if missing := [key for key in ("url", "audience") if key not in table]:
        raise ConfigError(f"{where}: needs {' and '.join(missing)}")
    try:
        issuer = Issuer(**{key: FIELDS[key](value) for key, value in table.items()})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not issuer.jwks and not is_safe(issuer.url):
        raise ConfigError(f"{where}: needs jwks, since its keys are looked for at https URLs only")
    return issuer


# -- The keys of an issuer, each with what reads it; a reader raises ValueError.


def _text(key: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"{key} must be a text")
        return value

    return read


def _jwks(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not (value.startswith("/") or is_safe(value)):
        raise ValueError(f"jwks must be an https URL or an absolute path, not {value!r}")
    return value


def _algorithms(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("algorithms must be a list of at least one")
    if (
        odd := next((one for one in value if not isinstance(one, str) or one not in ALGORITHMS), None)
    ) is not None:
        raise ValueError(f"algorithms are those with public keys, {', '.join(ALGORITHMS)}, not {odd!r}")
    return tuple(value)


def _leeway(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_LEEWAY_SECONDS:
        raise ValueError(f"leeway_seconds must be from 0 to {MAX_LEEWAY_SECONDS}")
    return float(value)


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "url": _text("url"),
    "audience": _text("audience"),
    "jwks": _jwks,
    "algorithms": _algorithms,
    "leeway_seconds": _leeway,
}
