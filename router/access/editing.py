"""The clients file as text: an entry added, or taken out, and everything else as somebody wrote it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise

from router.access.clients import parse_clients
from router.errors import AlreadyExists, ConfigError, NotFound

_HEAD = re.compile(r"^[ \t]*\[\[[ \t]*\w+[ \t]*\]\]", re.MULTILINE)  # of a client, or of what is no client


def entry(
    name: str,
    token_sha256: str = "",
    cert: str = "",
    roles: Iterable[str] = (),
    adapters: Iterable[str] = (),
    expires: datetime | None = None,
    tenant: str = "",
    experiments: Iterable[str] = (),
    corrections: str = "",
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
    if corrections:
        lines.append(f"corrections = {_quoted(corrections)}")
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
