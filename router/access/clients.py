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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from router.access.certificates import rule_of
from router.access.issuers import Issuer, check_library
from router.errors import AlreadyExists, ConfigError, NotFound
from router.reread import problem_of, read_file
from router.types import EVERYTHING, Keeping, Visible, weaker

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
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


def _id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError("must have 1 to 63 of a-z, 0-9 and -, the first no -")
    return value


def _role(value: Any) -> Role:
    known = {role.value: role for role in GIVEN}
    if isinstance(value, str) and value in known:
        return known[value]
    raise ValueError(f"unknown role {value!r}; there are {', '.join(sorted(known))}")


def _names(value: Any) -> Visible:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("must be a list of strings")
    if (odd := next((one for one in value if not _GLOB.fullmatch(one)), None)) is not None:
        raise ValueError(f"has names such as medical and legal-*, not {odd!r}")
    return Visible(tuple(value))


def _hash(value: str) -> str:
    if not _HASH.fullmatch(value):
        raise ValueError("must have 64 small hexadecimal digits: the hash, not the token")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        text = "is a date beyond the calendar, which has the years 1 to 9999 (UTC)"
        raise ValueError(f"{text}; leave it out for a client that does not expire") from None


Id = Annotated[str, AfterValidator(_id)]
Quota = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0.001, le=1000)]  # of the fair queue
Names = Annotated[Visible, InstanceOf(), BeforeValidator(_names)]
Roles = frozenset[Annotated[Role, BeforeValidator(_role)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client, or all clients of a tenant together, may use. 0 is no bound."""

    requests_per_minute: Quota = 0
    tokens_per_minute: Quota = 0
    max_concurrent: Quota = 0
    outcomes_per_second: Quota = 0
    outcomes_per_day: Quota = 0

    @property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return any(getattr(self, bound.name) for bound in fields(Bounds))


@dataclass(frozen=True, slots=True)
class Tenant(Bounds):
    """What all clients of a tenant may use together."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Id
    share: Share = 1.0  # of the fair queue, against other tenants'
    feedback: Keeping | None = None  # the most that is kept of its clients' feedback; None: each says it


@dataclass(frozen=True, slots=True)
class Client(Bounds):
    """One caller as the file has it. Without `expires` it does not. `cert` has its kind, as `dns:NAME`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Id
    token_sha256: tuple[Annotated[str, AfterValidator(_hash)], ...] = ()
    cert: Annotated[str, AfterValidator(rule_of)] = ""
    roles: Roles = frozenset()
    adapters: Names = Visible()
    expires: Annotated[AwareDatetime, Field(strict=True), AfterValidator(_utc)] | None = None
    tenant: Id = ""  # clients of the same one share quotas, outcomes and cached prompts; its id if not said
    issuer: Annotated[str, Field(min_length=1)] = ""
    subject: Annotated[str, Field(min_length=1)] = ""
    experiments: Names = Visible()
    share: Share = 1.0  # its tenant's, of the fair queue
    feedback: Keeping = "labels"  # the most that is kept of its feedback, unless its tenant says so
    group: InstanceOf[Tenant] = Tenant("")  # what it shares with the tenant's other clients

    metered: bool = field(init=False, default=False)  # it or its tenant has a bound

    def __post_init__(self) -> None:
        object.__setattr__(self, "metered", self.bounded or self.group.bounded)

    def expired(self, now: float) -> bool:
        """Whether its time is over at `now`, in seconds since 1970."""
        return self.expires is not None and now >= self.expires.timestamp()


ANYONE = Client("", roles=GIVEN, adapters=EVERYTHING, experiments=EVERYTHING, feedback="texts")
"""Every caller of a server without a clients file."""


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


@dataclass
class ClientsFile:
    """The file as it is written."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    client: Sequence[Client] = ()
    tenant: Sequence[Tenant] = ()
    issuer: Sequence[Issuer] = ()


def parse_clients(text: str) -> Clients:
    """Raises ConfigError, in one line, for whatever is wrong."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ConfigError(f"not valid TOML: {error}") from None
    try:
        found = TypeAdapter(ClientsFile).validate_python(document)
    except ValidationError as error:
        raise ConfigError(_told(error.errors()[0], document)) from None
    for key in ("id", "cert", "token_sha256"):
        _only_once("client", key, [getattr(client, key) for client in found.client])
    _only_once("tenant", "id", [tenant.id for tenant in found.tenant])
    _only_once("issuer", "url", [issuer.url for issuer in found.issuer])
    issuers = {issuer.url: issuer for issuer in found.issuer}
    if issuers:
        check_library(fetches=any(issuer.file is None for issuer in found.issuer))
    _check_proofs(found.client, issuers)
    clients = [replace(client, tenant=client.tenant or client.id) for client in found.client]
    written = document.get("client", ())
    _no_share_of_its_own({table["id"] for table in written if "share" in table}, clients, found.tenant)
    own = {table["id"] for table in written if "feedback" in table}
    return Clients(_grouped(clients, found.tenant, own), issuers, found.tenant)


def _told(error: ErrorDetails, document: Mapping[str, Any]) -> str:
    """What is wrong, in one line that names the entry and its key."""
    kind, *rest = error["loc"]
    of_kind = {"client": Client, "tenant": Tenant, "issuer": Issuer}
    if kind not in of_kind:
        return f"unknown key {kind!r}; clients stand under [[client]]"
    if not rest or (len(rest) == 1 and not isinstance(document[kind][rest[0]], dict)):
        return f"{kind}s stand under [[{kind}]]"
    place, *keys = rest
    name = document[kind][place].get("url" if kind == "issuer" else "id")
    where = f"{kind} {name!r}" if isinstance(name, str) else f"[[{kind}]] number {int(place) + 1}"
    key = str(keys[0]) if keys else ""
    if error["type"] == "missing":
        return f"{where}: needs {'an id' if key == 'id' else key}"
    if error["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(key, [one.name for one in fields(of_kind[str(kind)])], 1)
        return f"{where}: unknown key {key!r}" + (f"; {near[0]!r}?" if near else "")
    what = re.sub(r"^\w+ should", "must", error["msg"].removeprefix("Value error, "))
    return f"{where}: {key} {what}".replace("  ", " ")


def _check_proofs(clients: Iterable[Client], issuers: Mapping[str, Issuer]) -> None:
    seen: set[tuple[str, str]] = set()
    for client in clients:
        if not client.token_sha256 and not client.cert and not client.issuer and not client.subject:
            text = "needs token_sha256 or cert or issuer, or nobody can be it"
            raise ConfigError(f"client {client.id!r}: {text}")
        if bool(client.issuer) != bool(client.subject):
            raise ConfigError(f"client {client.id!r}: issuer and subject go together")
        if client.issuer and client.issuer not in issuers:
            raise ConfigError(f"client {client.id!r}: no [[issuer]] has the url {client.issuer!r}")
        if client.subject and (client.issuer, client.subject) in seen:
            raise ConfigError(f"two clients have the same subject: {client.subject!r}")
        seen.add((client.issuer, client.subject))


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


def _only_once(kind: str, key: str, values: Iterable[str | tuple[str, ...]]) -> None:
    each = [one for value in values for one in (value if isinstance(value, tuple) else (value,)) if one]
    twice = next((value for value, times in Counter(each).items() if times > 1), None)
    if twice is not None:
        raise ConfigError(f"two {kind}s have the same {key}: {twice!r}")


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
