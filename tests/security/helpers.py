"""A clients file with one client for each role, and calls with a token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from router.access.clients import hash_of, new_token

ROLES = ("infer", "observe", "admin")


def write_clients(folder: Path, **roles: tuple[str, ...]) -> SimpleNamespace:
    """The `path` of a file with these clients (default: one a role); tokens by client."""
    said = roles or {role: (role,) for role in ROLES}
    tokens = {name: new_token(name) for name in said}
    path = folder / "clients.toml"
    path.write_text(
        "".join(
            f'[[client]]\nid = "{name}"\ntoken_sha256 = ["{hash_of(tokens[name])}"]\nroles = {list(given)}\n'
            for name, given in said.items()
        )
    )
    return SimpleNamespace(path=path, **tokens)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata with that token."""
    return (("authorization", f"Bearer {token}"),)
