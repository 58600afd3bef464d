"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
