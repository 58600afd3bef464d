"""Clients: who they are, how they prove it, and the file that says so.

[[client]]
id = "billing"
tenant = "acme"                       # clients of one tenant share quotas and cached prompts; absent: its id
token_sha256 = ["2c26b46b…"]          # `lora-router clients new` makes token and entry
cert = "billing.svc.example"          # or: a name (SAN) in its certificate
issuer = "https://login.example"      # or: a token of this [[issuer]] (router/access/issuers.py)
subject = "billing"                   # with this `sub`
roles = ["infer"]                     # infer, observe, admin; none if absent
adapters = ["medical", "legal-*"]     # what it may know of; none if absent, "*" is all
requests_per_minute = 600             # quotas; absent: unbounded
tokens_per_minute = 60000
max_concurrent = 8
expires = 2027-01-01T00:00:00Z
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.access.issuers import Issuer, read_issuers
from router.access.roles import GIVEN, Role
from router.errors import ConfigError
from router.types import EVERYTHING, Visible

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_GLOB = re.compile(r"[a-z0-9._*-]{1,63}")
_TOKEN = re.compile(r"lrk_([a-z0-9][a-z0-9-]{0,62})_[A-Za-z0-9_-]{43}")
NOBODYS = ("0" * 64,)  # compared with where there is no such client, so that this takes as long


@dataclass(frozen=True, slots=True)
class Client:
    """One caller as the file has it. Without `expires` it does not."""

    id: str
    token_sha256: tuple[str, ...] = ()
    cert: str = ""
    roles: frozenset[Role] = frozenset()
    adapters: Visible = Visible()
    requests_per_minute: int = 0  # 0: no bound, here and below
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    expires: datetime | None = None
    tenant: str = ""  # clients of the same one share quotas, outcomes and cached prompts; its id if not said
    issuer: str = ""
    subject: str = ""

    def expired(self, now: float) -> bool:
        """Whether its time is over at `now`, in seconds since 1970."""
        return self.expires is not None and now >= self.expires.timestamp()


ANYONE = Client("", roles=GIVEN, adapters=EVERYTHING)  # every caller of a server without a clients file
LOCAL = Client(
    "local", roles=GIVEN, adapters=EVERYTHING
)  # who may open the socket of the admin listener, and brings no token


def new_token(client: str) -> str:
    """`lrk_<id>_<secret>` with 256 random bits."""
    return f"lrk_{client}_{secrets.token_urlsafe(32)}"


def hash_of(token: str) -> str:
    """What the file keeps of a token. So many random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


class Clients:
    """All clients of a file, found by token or certificate, and the issuers of tokens."""

    def __init__(self, clients: Iterable[Client] = (), issuers: Mapping[str, Issuer] | None = None) -> None:
        self.all = tuple(clients)
        self.issuers = issuers or {}  # by URL
        self._by_subject = {(client.issuer, client.subject): client for client in self.all if client.subject}
        self._by_id = {client.id: client for client in self.all}
        self._by_cert = {client.cert: client for client in self.all if client.cert}

    def by_token(self, token: str) -> Client | None:
        """Whose token it is, expired or not; None for nobody's. Takes about as long for any."""
        shape = _TOKEN.fullmatch(token)
        client = self._by_id.get(shape[1]) if shape else None
        hashes = (client.token_sha256 if client else ()) or NOBODYS
        digest = hash_of(token) if shape else ""
        same = [hmac.compare_digest(digest, one) for one in hashes]
        return client if any(same) else None

    def by_subject(self, issuer: str, subject: str) -> Client | None:
        """Whom an issuer's token with this subject names."""
        return self._by_subject.get((issuer, subject))

    def by_names(self, names: Sequence[str]) -> Client | None:
        """Whose certificate has these names; None for nobody's, or where two clients have one each."""
        found = {client.id: client for name in names if (client := self._by_cert.get(name))}
        return next(iter(found.values())) if len(found) == 1 else None


def read_clients(path: Path) -> Clients:
    """All of the file. Raises ConfigError, in one line, for whatever is wrong with it."""
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(f"{path}: every user of this machine may write it; chmod 600")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        return parse_clients(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def parse_clients(text: str) -> Clients:
    """Raises ConfigError, in one line, for whatever is wrong."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}") from None
    issuers = read_issuers(document.pop("issuer", []))
    tables = document.pop("client", [])
    if document:
        raise ConfigError(f"unknown key {next(iter(document))!r}; clients stand under [[client]]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("clients stand under [[client]]")
    clients = [_client(table, place) for place, table in enumerate(tables, 1)]
    _only_once("id", [client.id for client in clients])
    _only_once("cert", [client.cert for client in clients if client.cert])
    _only_once("token_sha256", [one for client in clients for one in client.token_sha256])
    _of_known_issuers(clients, issuers)
    return Clients(clients, issuers)


def _of_known_issuers(clients: Sequence[Client], issuers: Mapping[str, Issuer]) -> None:
    seen: set[tuple[str, str]] = set()
    for client in clients:
        if bool(client.issuer) != bool(client.subject):
            raise ConfigError(f"client {client.id!r}: issuer and subject go together")
        if client.issuer and client.issuer not in issuers:
            raise ConfigError(f"client {client.id!r}: no [[issuer]] has the url {client.issuer!r}")
        if client.subject and (client.issuer, client.subject) in seen:
            raise ConfigError(f"two clients have the same subject: {client.subject!r}")
        seen.add((client.issuer, client.subject))


def _client(table: Mapping[str, Any], place: int) -> Client:
    name = table.get("id")
    where = f"client {name!r}" if isinstance(name, str) else f"[[client]] number {place}"
    for key in table:
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, 1)
            raise ConfigError(f"{where}: unknown key {key!r}" + (f"; {near[0]!r}?" if near else ""))
    if "id" not in table:
        raise ConfigError(f"{where}: needs an id")
    try:
        client = Client(**{key: FIELDS[key](value) for key, value in table.items()})
        client = replace(client, tenant=client.tenant or client.id)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not client.token_sha256 and not client.cert and not client.issuer:
        raise ConfigError(f"{where}: needs token_sha256 or cert or issuer, or nobody can be it")
    return client


def _only_once(key: str, values: Sequence[str]) -> None:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise ConfigError(f"two clients have the same {key}: {twice!r}")


# -- The keys of a client, each with what reads it; a reader raises ValueError.


def _id(value: Any) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise ValueError("id must have 1 to 63 of a-z, 0-9 and -, the first no -")
    if value == LOCAL.id:
        raise ValueError(f"id {value!r} is who calls by the admin listener")
    return value


def _tenant(value: Any) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise ValueError("tenant must have 1 to 63 of a-z, 0-9 and -, the first no -")
    return value


def _strings(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{key} must be a list of strings")
    return tuple(value)


def _hashes(value: Any) -> tuple[str, ...]:
    hashes = _strings("token_sha256", value)
    if not all(_HASH.fullmatch(one) for one in hashes):
        raise ValueError("token_sha256 must have 64 small hexadecimal digits each: the hash, not the token")
    return hashes


def _cert(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("cert must be a name in a certificate (SAN)")
    return value


def _issuer(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("issuer must be the url of an [[issuer]]")
    return value


def _subject(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("subject must be what the issuer's tokens have as sub")
    return value


def _roles(value: Any) -> frozenset[Role]:
    known = {role.value: role for role in GIVEN}
    unknown = next((one for one in _strings("roles", value) if one not in known), None)
    if unknown is not None:
        raise ValueError(f"unknown role {unknown!r}; there are {', '.join(sorted(known))}")
    return frozenset(known[one] for one in value)


def _adapters(value: Any) -> Visible:
    globs = _strings("adapters", value)
    if (odd := next((one for one in globs if not _GLOB.fullmatch(one)), None)) is not None:
        raise ValueError(f"adapters has names such as medical and legal-*, not {odd!r}")
    return Visible(globs)


def _quota(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a quota must be a whole number of at least 1; leave it out for no bound")
    return value


def _expires(value: Any) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expires must be a time with a zone, such as 2027-01-01T00:00:00Z")
    return value.astimezone(UTC)


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "id": _id,
    "tenant": _tenant,
    "token_sha256": _hashes,
    "cert": _cert,
    "issuer": _issuer,
    "subject": _subject,
    "roles": _roles,
    "adapters": _adapters,
    "requests_per_minute": _quota,
    "tokens_per_minute": _quota,
    "max_concurrent": _quota,
    "expires": _expires,
}
