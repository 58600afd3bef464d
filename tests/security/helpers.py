"""The policy of every method, a clients file with one client for each role, and calls with a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from router.access.clients import hash_of, new_token
from router.extensions.experiments.service import ROWS as EXPERIMENTS
from router.extensions.feedback.service import ROWS as FEEDBACK
from router.extensions.replicas.service import ROWS as FLEET
from router.server.policy import ROWS as CORE

ROWS = {**CORE, **EXPERIMENTS, **FEEDBACK, **FLEET}  # the methods of every server
ROLES = ("infer", "observe", "admin")


def write_clients(
    folder: Path,
    adapters: Sequence[str] = ("*",),
    more: str = "",
    experiments: Sequence[str] = ("*",),
    **roles: tuple[str, ...],
) -> SimpleNamespace:
    """The `path` of a file with these clients (default: one a role); tokens by client.

    `more` are further lines of each.
    """
    said = roles or {role: (role,) for role in ROLES}
    tokens = {name: new_token(name) for name in said}
    path = folder / "clients.toml"
    path.write_text(
        "".join(
            f'[[client]]\nid = "{name}"\ntoken_sha256 = ["{hash_of(tokens[name])}"]\n'
            f"roles = {list(given)}\nadapters = {list(adapters)}\nexperiments = {list(experiments)}\n{more}\n"
            for name, given in said.items()
        )
    )
    return SimpleNamespace(path=path, **tokens)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata with that token."""
    return (("authorization", f"Bearer {token}"),)
