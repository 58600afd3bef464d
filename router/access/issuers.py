"""Issuers of JSON Web Tokens (OpenID Connect), as the clients file has them.

[[issuer]]
url = "https://login.example"         # the `iss` of its tokens, exactly
audience = "lora-router"              # one of the `aud` of its tokens
jwks = "https://login.example/keys"   # or an absolute path; absent: where its openid-configuration says
algorithms = ["RS256"]                # absent: RS256, ES256, EdDSA
leeway_seconds = 5                    # how far its clock and ours may differ; 0 if absent
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

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
MISSING = f"tokens of an issuer need the library PyJWT: {install_extra('jwt')}"


def _text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be a text")
    return value


def _jwks(value: str) -> str:
    if not value.isprintable() or not (value.startswith("/") or is_safe(value)):
        raise ValueError(f"must be an https URL or an absolute path, not {value!r}")
    return value


def _algorithm(value: str) -> str:
    if value not in ALGORITHMS:
        raise ValueError(f"must be one with public keys, {', '.join(ALGORITHMS)}, not {value!r}")
    return value


Text = Annotated[str, Field(strict=True), AfterValidator(_text)]


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs tokens that name clients."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    url: Text
    audience: Text
    jwks: Annotated[str, Field(strict=True), AfterValidator(_jwks)] = ""
    algorithms: Annotated[tuple[Annotated[str, AfterValidator(_algorithm)], ...], Field(min_length=1)] = USUAL
    leeway_seconds: Annotated[float, Field(strict=True, ge=0, le=300)] = 0.0

    def __post_init__(self) -> None:
        if not self.jwks and not is_safe(self.url):
            raise ValueError("needs jwks, since its keys are looked for at https URLs only")

    @property
    def file(self) -> Path | None:
        """Where its keys are, if not behind a URL."""
        return Path(self.jwks) if self.jwks.startswith("/") else None

    @property
    def source(self) -> tuple[str, str, tuple[str, ...]]:
        """What its keys depend on."""
        return self.url, self.jwks, self.algorithms


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
