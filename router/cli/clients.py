"""`lora-router clients new|list|revoke`: the file of those who may call a server."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from router.cli import flags
from router.cli.command import time_of
from router.cli.output import print_json, print_table
from router.errors import ConfigError

DEFAULT_FILE = Path("clients.toml")
Name = Annotated[str, typer.Argument(metavar="ID", help="The client: a-z, 0-9 and -.")]
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", metavar="ROLE", help="infer, observe or admin; repeatable. None without it."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME", help="What it may know of: a name, legal-*, * for all; repeatable."
    ),
]
Experiments = Annotated[
    list[str] | None,
    typer.Option(
        "--experiment", metavar="NAME", help="Experiments it may know of, in the same way; none without it."
    ),
]
Tenant = Annotated[
    str, typer.Option("--tenant", metavar="ID", help="Whom it belongs to, with others; itself without it.")
]
Cert = Annotated[
    str,
    typer.Option(
        "--cert",
        metavar="NAME",
        help="Known by this name in its certificate, as dns:NAME or uri:URI; no token.",
    ),
]
Expires = Annotated[
    str,
    typer.Option(
        "--expires", metavar="TIME", help="When it ends, such as 2027-01-01 (UTC). Never without it."
    ),
]
COLUMNS = ["ID", "TENANT", "ROLES", "ADAPTERS", "EXPERIMENTS", "KNOWN BY", "EXPIRES"]


def new(
    name: Name,
    role: Roles = None,
    adapter: Adapters = None,
    experiment: Experiments = None,
    tenant: Tenant = "",
    cert: Cert = "",
    expires: Expires = "",
) -> None:
    """Add a client, and print its token.

    The token is shown this once; the file keeps its hash. A server that runs takes the client at once. The
    file is that of the setting `clients`, else ./clients.toml. Quotas, and what is kept of feedback, are
    written there by hand.

    \b
    Examples:
      lora-router clients new billing --role infer --adapter "*"
      lora-router clients new tests --tenant acme --role admin --adapter "acme-*" --experiment "acme-*"
      lora-router clients new grafana --role observe --cert grafana.svc.example --expires 2027-01-01
    """
    from router.access.clients import added, entry, hash_of, new_token

    path = clients_file()
    token = "" if cert else new_token(name)
    lines = entry(
        name,
        hash_of(token) if token else "",
        cert,
        role or (),
        adapter or (),
        time_of(expires, "--expires") if expires else None,
        tenant,
        experiment or (),
    )
    write(path, added(_text(path), lines))
    print(f"{name} is in {path}", file=sys.stderr)
    if token:
        print(token)


def list_(json: flags.Json = False) -> None:
    """List the clients. Exit code 2 and one line for a file that a server would not take.

    \b
    Example:
      lora-router clients list
    """
    from router.access.clients import read_clients

    found = read_clients(clients_file()).all
    now = time.time()
    rows = [
        {
            "id": client.id,
            "tenant": client.tenant,
            "roles": sorted(role.value for role in client.roles),
            "adapters": list(client.adapters.globs),
            "experiments": list(client.experiments.globs),
            "feedback": client.feedback,
            "tokens": len(client.token_sha256),
            "cert": client.cert,
            "issuer": client.issuer,
            "subject": client.subject,
            "expires": client.expires.isoformat() if client.expires else "",
            "expired": client.expired(now),
        }
        for client in found
    ]
    if json:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [_row(row) for row in rows])
    else:
        print("no clients; `lora-router clients new ID --role infer --adapter '*'` adds one")


def revoke(name: Name) -> None:
    """Remove a client.

    A server that runs refuses it within a second, and ends its calls.

    \b
    Example:
      lora-router clients revoke billing
    """
    from router.access.clients import removed

    path = clients_file()
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    write(path, removed(_text(path), name))
    print(f"{name} is no longer in {path}")


def clients_file() -> Path:
    """The file of the setting `clients`, else ./clients.toml."""
    from router.cli.settings import load_settings

    return load_settings().clients or DEFAULT_FILE


def write(path: Path, text: str) -> None:
    """Replace the file as a whole, for its owner alone to read; it is on the disk when this returns."""
    from router.registry.state import write_atomically

    target = path.resolve()  # a link stays one
    before = target.stat() if target.exists() else None
    write_atomically(target, text.encode())
    if before is not None and before.st_uid != os.geteuid():
        os.chown(target, before.st_uid, before.st_gid)  # root edits what a server of another user reads


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _row(row: dict[str, Any]) -> list[str]:
    known = [_number(row["tokens"], "token")] if row["tokens"] else []
    known += [f"certificate {row['cert']}"] if row["cert"] else []
    known += [f"{row['subject']} of {row['issuer']}"] if row["subject"] else []
    expires = f"{row['expires']}{' (expired)' if row['expired'] else ''}"
    lists = (", ".join(row[key]) for key in ("roles", "adapters", "experiments"))
    return [row["id"], row["tenant"], *lists, ", ".join(known), expires]
