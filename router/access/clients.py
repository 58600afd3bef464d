"""Clients and tenants: who they are, how they prove it, what they may use, and the file that says so.

[[client]]
id = "billing"
tenant = "acme"                       # clients of one tenant share quotas and cached prompts; absent: its id
token_sha256 = ["2c26b46b…"]          # `lora-router clients new` makes token and entry
cert = "dns:billing.svc.example"      # or: a name (SAN) in its certificate (router/access/certificates.py)
issuer = "https://login.example"      # or: a token of this [[issuer]] (router/access/issuers.py)
subject = "billing"                   # with this `sub`
roles = ["infer"]                     # infer, observe, admin; none if absent
adapters = ["medical", "legal-*"]     # what it may know of; none if absent, "*" is all
experiments = ["legal-*"]             # the same of experiments
requests_per_minute = 600             # quotas; absent: unbounded
tokens_per_minute = 60000
max_concurrent = 8
outcomes_per_second = 100
outcomes_per_day = 1000000
feedback = "texts"                    # the most that is kept of its feedback; absent: its tenant's
expires = 2027-01-01T00:00:00Z

[[tenant]]                            # only where its clients share quotas, or its share is not 1
id = "acme"
tokens_per_minute = 200000            # of all its clients together; the same quotas as above
share = 2.0                           # of the fair queue, against other tenants' (1)
feedback = "texts"                    # the most that is kept of its clients' feedback; labels if absent
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from router.access.certificates import rule_of
from router.access.issuers import Issuer, read_issuers
from router.errors import AlreadyExists, ConfigError, NotFound
from router.reread import problem_of, read_file
from router.types import EVERYTHING, KEEPINGS, Keeping, Visible, weaker

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_GLOB = re.compile(r"[a-z0-9._*-]{1,63}")
OURS = "lrk_"  # how our own tokens begin
_TOKEN = re.compile(r"lrk_([a-z0-9][a-z0-9-]{0,62})_[A-Za-z0-9_-]{43}")
_HEAD = re.compile(r"^[ \t]*\[\[[ \t]*\w+[ \t]*\]\]", re.MULTILINE)  # of a client, or of what is no client
NOBODYS = ("0" * 64,)  # compared with where there is no such client, so that this takes as long


class Role(Enum):
    """What a client may be trusted with; none contains another. Which role a method or route needs says its
    row of the policy table (`router/server/policy.py`)."""

    OPEN = "open"  # of a method, never of a client: anybody may call it
    INFER = "infer"
    OBSERVE = "observe"
    ADMIN = "admin"


GIVEN = frozenset({Role.INFER, Role.OBSERVE, Role.ADMIN})  # what clients can have


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client, or all clients of a tenant together, may use. 0 is no bound."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    outcomes_per_second: int = 0
    outcomes_per_day: int = 0

    @property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return any(getattr(self, bound.name) for bound in fields(Bounds))


@dataclass(frozen=True, slots=True)
class Tenant(Bounds):
    """What all clients of a tenant may use together."""

    id: str = ""
    share: float = 1.0  # of the fair queue, against other tenants'
    feedback: Keeping | None = None  # the most that is kept of its clients' feedback; None: each says it


@dataclass(frozen=True, slots=True)
class Client(Bounds):
    """One caller as the file has it. Without `expires` it does not. `cert` has its kind, as `dns:NAME`."""

    id: str
    token_sha256: tuple[str, ...] = ()
    cert: str = ""
    roles: frozenset[Role] = frozenset()
    adapters: Visible = Visible()
    expires: datetime | None = None
    tenant: str = ""  # clients of the same one share quotas, outcomes and cached prompts; its id if not said
    issuer: str = ""
    subject: str = ""
    experiments: Visible = Visible()
    share: float = 1.0  # its tenant's, of the fair queue
    group: Tenant = Tenant()  # what it shares with the tenant's other clients
    feedback: Keeping = "labels"  # the most that is kept of its feedback, unless its tenant says so
    metered: bool = field(init=False, default=False)  # it or its tenant has a bound

    def __post_init__(self) -> None:
        object.__setattr__(self, "metered", self.bounded or self.group.bounded)

    def expired(self, now: float) -> bool:
        """Whether its time is over at `now`, in seconds since 1970."""
        return self.expires is not None and now >= self.expires.timestamp()


ANYONE = Client("", roles=GIVEN, adapters=EVERYTHING, experiments=EVERYTHING, feedback="texts")
"""Every caller of a server without a clients file."""
LOCAL = Client("local", roles=GIVEN, adapters=EVERYTHING, experiments=EVERYTHING, feedback="texts")
"""Who may open the socket of the admin listener, and brings no token."""


def new_token(client: str) -> str:
    """`lrk_<id>_<secret>` with 256 random bits."""
    return f"lrk_{client}_{secrets.token_urlsafe(32)}"


def hash_of(token: str) -> str:
    """What the file keeps of a token. So many random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


class Clients:
    """All clients of a file, found by what proves them, the issuers of tokens, and what tenants share."""

    def __init__(
        self,
        clients: Iterable[Client] = (),
        issuers: Mapping[str, Issuer] | None = None,
        tenants: Iterable[Tenant] = (),
    ) -> None:
        self.all, self.tenants = tuple(clients), tuple(tenants)
        self.issuers = issuers or {}  # by URL
        self._by_subject = {(client.issuer, client.subject): client for client in self.all if client.subject}
        self._ids = {client.id: client for client in self.all}
        self._by_cert = {client.cert: client for client in self.all if client.cert}

    def by_token(self, token: str) -> Client | None:
        """Whose token it is, expired or not; None for nobody's. Takes about as long for any."""
        shape = _TOKEN.fullmatch(token)
        client = self._ids.get(shape[1]) if shape else None
        hashes = (client.token_sha256 if client else ()) or NOBODYS
        digest = hash_of(token) if shape else ""
        same = [hmac.compare_digest(digest, one) for one in hashes]
        return client if any(same) else None

    def by_subject(self, issuer: str, subject: str) -> Client | None:
        """Whom an issuer's token with this subject names."""
        return self._by_subject.get((issuer, subject))

    def by_id(self, name: str) -> Client | None:
        """The client of that id."""
        return self._ids.get(name)

    def by_names(self, names: Sequence[str]) -> Client | None:
        """Whose certificate has these names, each with its kind; None for nobody's, or where two clients have
        one each."""
        found = {client.id: client for name in names if (client := self._by_cert.get(name))}
        return next(iter(found.values())) if len(found) == 1 else None


def read_clients(path: Path) -> Clients:
    """All of the file. Raises ConfigError, in one line, for whatever is wrong with it."""
    try:
        text = read_file(path, private=True).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise ConfigError(problem_of(error)) from None
    try:
        return parse_clients(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def parse_clients(text: str) -> Clients:
    """Raises ConfigError, in one line, for whatever is wrong."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ConfigError(f"not valid TOML: {error}") from None
    issuers = read_issuers(document.pop("issuer", []))
    tables, groups = (_tables(document, key) for key in ("client", "tenant"))
    if document:
        raise ConfigError(f"unknown key {next(iter(document))!r}; clients stand under [[client]]")
    clients = [_client(table, place) for place, table in enumerate(tables, 1)]
    tenants = [_tenant(table, place) for place, table in enumerate(groups, 1)]
    _only_once("client", "id", [client.id for client in clients])
    _only_once("client", "cert", [client.cert for client in clients if client.cert])
    _only_once("client", "token_sha256", [one for client in clients for one in client.token_sha256])
    _only_once("tenant", "id", [tenant.id for tenant in tenants])
    _no_share_of_its_own({str(table["id"]) for table in tables if "share" in table}, clients, tenants)
    _of_known_issuers(clients, issuers)
    own = {str(table["id"]) for table in tables if "feedback" in table}
    return Clients(_grouped(clients, tenants, own), issuers, tenants)


def _tables(document: dict[str, Any], key: str) -> list[Mapping[str, Any]]:
    """What stands under [[key]], taken out of the document."""
    tables = document.pop(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{key}s stand under [[{key}]]")
    return tables


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
    with _naming("client", table, place) as where:
        client = Client(**_read(table, FIELDS))
    if not client.token_sha256 and not client.cert and not client.issuer:
        raise ConfigError(f"{where}: needs token_sha256 or cert or issuer, or nobody can be it")
    return replace(client, tenant=client.tenant or client.id)


def _tenant(table: Mapping[str, Any], place: int) -> Tenant:
    with _naming("tenant", table, place):
        return Tenant(**_read(table, TENANT_FIELDS))


@contextmanager
def _naming(kind: str, table: Mapping[str, Any], place: int) -> Iterator[str]:
    """Errors of the block name the entry."""
    name = table.get("id")
    where = f"{kind} {name!r}" if isinstance(name, str) else f"[[{kind}]] number {place}"
    try:
        yield where
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _read(table: Mapping[str, Any], fields: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The values by key. Raises ValueError."""
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise ValueError(f"unknown key {key!r}" + (f"; {near[0]!r}?" if near else ""))
    if "id" not in table:
        raise ValueError("needs an id")
    return {key: fields[key](value) for key, value in table.items()}


def _no_share_of_its_own(said: set[str], clients: Sequence[Client], tenants: Sequence[Tenant]) -> None:
    """A share is a tenant's; a client may say it where it is the whole of one."""
    named, members = {tenant.id for tenant in tenants}, Counter(client.tenant for client in clients)
    for client in clients:
        alone = client.tenant == client.id and members[client.tenant] == 1 and client.tenant not in named
        if client.id in said and not alone:
            text = f"share is its tenant's; say it under [[tenant]], with the id {client.tenant!r}"
            raise ConfigError(f"client {client.id!r}: {text}")


def _grouped(clients: Iterable[Client], tenants: Iterable[Tenant], own: Collection[str]) -> Iterator[Client]:
    """Each with what it shares. `own` are the ids of clients that say themselves what is kept of their
    feedback; their tenant may say less."""
    by_id = {tenant.id: tenant for tenant in tenants}
    for client in clients:
        group = by_id.get(client.tenant) or Tenant(client.tenant, share=client.share)
        keeping = client.feedback
        if group.feedback is not None:
            keeping = weaker(keeping, group.feedback) if client.id in own else group.feedback
        yield replace(client, group=group, share=group.share, feedback=keeping)


def _only_once(kind: str, key: str, values: Sequence[str]) -> None:
    twice = next((value for value, times in Counter(values).items() if times > 1), None)
    if twice is not None:
        raise ConfigError(f"two {kind}s have the same {key}: {twice!r}")


# -- The keys of an entry, each with what reads it; a reader raises ValueError.


def _id(value: Any) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise ValueError("id must have 1 to 63 of a-z, 0-9 and -, the first no -")
    if value == LOCAL.id:
        raise ValueError(f"id {value!r} is who calls by the admin listener")
    return value


def _tenant_id(key: str, value: Any) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise ValueError(f"{key} must have 1 to 63 of a-z, 0-9 and -, the first no -")
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
    if not isinstance(value, str):
        raise ValueError("cert must be a name in a certificate (SAN), such as dns:billing.example")
    return rule_of(value)


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


def _globs(key: str, example: str, value: Any) -> Visible:
    globs = _strings(key, value)
    if (odd := next((one for one in globs if not _GLOB.fullmatch(one)), None)) is not None:
        raise ValueError(f"{key} has names such as {example}, not {odd!r}")
    return Visible(globs)


def _quota(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a quota must be a whole number of at least 1; leave it out for no bound")
    return value


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1000:
        raise ValueError("share must be a number from 0.001 to 1000; 1 if absent")
    return float(value)


def _keeping(key: str, value: Any) -> Keeping:
    if value not in KEEPINGS:
        raise ValueError(f"{key} must be {', '.join(KEEPINGS[:-1])} or {KEEPINGS[-1]}, not {value!r}")
    return KEEPINGS[KEEPINGS.index(value)]


def _expires(value: Any) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expires must be a time with a zone, such as 2027-01-01T00:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        text = "expires is a date beyond the calendar, which has the years 1 to 9999 (UTC)"
        raise ValueError(f"{text}; leave it out for a client that does not expire") from None


QUOTAS: Mapping[str, Callable[[Any], Any]] = {
    "requests_per_minute": _quota,
    "tokens_per_minute": _quota,
    "max_concurrent": _quota,
    "outcomes_per_second": _quota,
    "outcomes_per_day": _quota,
    "share": _share,
}
FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "id": _id,
    "tenant": partial(_tenant_id, "tenant"),
    "token_sha256": _hashes,
    "cert": _cert,
    "issuer": _issuer,
    "subject": _subject,
    "roles": _roles,
    "adapters": partial(_globs, "adapters", "medical and legal-*"),
    "experiments": partial(_globs, "experiments", "legal-tone and legal-*"),
    **QUOTAS,
    "feedback": partial(_keeping, "feedback"),
    "expires": _expires,
}
TENANT_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "id": partial(_tenant_id, "id"),
    **QUOTAS,
    "feedback": partial(_keeping, "feedback"),
}


# -- The file as text: an entry added, or taken out, and everything else as somebody wrote it.


def entry(
    name: str,
    token_sha256: str = "",
    cert: str = "",
    roles: Iterable[str] = (),
    adapters: Iterable[str] = (),
    expires: datetime | None = None,
    tenant: str = "",
    experiments: Iterable[str] = (),
) -> str:
    """The lines of one client."""
    lines = ["[[client]]", f"id = {_quoted(name)}"]
    if tenant:
        lines.append(f"tenant = {_quoted(tenant)}")
    if token_sha256:
        lines.append(f'token_sha256 = ["{token_sha256}"]')
    if cert:
        lines.append(f"cert = {_quoted(cert)}")
    lines.append(f"roles = [{', '.join(map(_quoted, roles))}]")
    lines.append(f"adapters = [{', '.join(map(_quoted, adapters))}]")
    if seen := ", ".join(map(_quoted, experiments)):
        lines.append(f"experiments = [{seen}]")
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    return "\n".join(lines) + "\n"


def added(text: str, lines: str) -> str:
    """With an entry at the end. Raises AlreadyExists, and ConfigError for a wrong entry or a wrong file."""
    known = {client.id for client in parse_clients(text).all}
    for client in parse_clients(lines).all:
        if client.id in known:
            raise AlreadyExists(f"there is a client {client.id!r} already; revoke it first")
    whole = f"{text.rstrip()}\n\n{lines}" if text.strip() else lines
    parse_clients(whole)
    return whole


def removed(text: str, name: str) -> str:
    """Without that client. Raises NotFound, and ConfigError where its lines cannot be told from others."""
    found = parse_clients(text)
    before = [client.id for client in found.all]
    if name not in before:
        raise NotFound("client", name)
    starts = [found.start() for found in _HEAD.finditer(text)]
    pieces = [text[a:b] for a, b in pairwise([*starts, len(text)])]
    left = text[: starts[0]] if starts else text
    left += "".join(piece for piece in pieces if not _is(piece, name))
    try:
        rest = parse_clients(left)
    except ConfigError:
        rest = found
    if [client.id for client in rest.all] != [one for one in before if one != name] or (
        rest.tenants != found.tenants
    ):
        raise ConfigError(f"cannot tell the lines of {name!r} from others: take them out by hand")
    return left


def _is(piece: str, name: str) -> bool:
    try:
        (table,) = tomllib.loads(piece)["client"]
    except (tomllib.TOMLDecodeError, ValueError, KeyError):
        return False
    return bool(table.get("id") == name)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    if not text.isprintable():
        raise ConfigError(f"not printable: {text!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
