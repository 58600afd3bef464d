"""Flags that several commands share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from router.client.channel import Secured

Server = Annotated[
    str,
    typer.Option(
        "--server",
        "-s",
        envvar="LORA_ROUTER_SERVER",
        metavar="HOST:PORT",
        help="Server to ask; without it, the address that `serve` would listen on here.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Deadline of the call.")]

# What TLS and the server's check of callers need, by the names that `Client` has for it: variables, since a
# token on a command line is seen by every user of the machine.
SECURED = {
    "token": "LORA_ROUTER_TOKEN",
    "tls_ca": "LORA_ROUTER_TLS_CA",
    "client_cert": "LORA_ROUTER_CLIENT_CERT",
    "client_key": "LORA_ROUTER_CLIENT_KEY",
}


def secured() -> Secured:
    """What the environment says of TLS and of who calls, for `Client` and `AsyncClient`."""
    return cast("Secured", {name: said for name, key in SECURED.items() if (said := os.environ.get(key))})
