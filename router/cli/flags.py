"""Flags that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

if TYPE_CHECKING:
    from router.client.channel import Secured

R = TypeVar("R")

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

# Of every command that asks a server: `connecting` adds them.
Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="LORA_ROUTER_TOKEN",
        metavar="TOKEN",
        help="Says who calls; better in the environment than here.",
        show_default=False,
    ),
]
TlsCa = Annotated[
    str,
    typer.Option(
        "--tls-ca",
        envvar="LORA_ROUTER_TLS_CA",
        metavar="FILE",
        help="Speak TLS; the server's certificate comes from these (PEM), or `system`.",
        show_default=False,
    ),
]
ClientCert = Annotated[
    str,
    typer.Option(
        "--client-cert",
        envvar="LORA_ROUTER_CLIENT_CERT",
        metavar="FILE",
        help="Certificate to show the server (PEM).",
        show_default=False,
    ),
]
ClientKey = Annotated[
    str,
    typer.Option(
        "--client-key",
        envvar="LORA_ROUTER_CLIENT_KEY",
        metavar="FILE",
        help="Private key of --client-cert (PEM).",
        show_default=False,
    ),
]
SECURED = {"token": Token, "tls_ca": TlsCa, "client_cert": ClientCert, "client_key": ClientKey}
_secured: ContextVar[Mapping[str, str]] = ContextVar("lora_router_secured", default=MappingProxyType({}))


def secured() -> Secured:
    """What was said of TLS and of who calls, for `Client` and `AsyncClient`."""
    return cast("Secured", dict(_secured.get()))


def connecting(command: Callable[..., R]) -> Callable[..., R]:
    """A command that asks a server (it has --server) takes the options of TLS and tokens, too."""
    signature = inspect.signature(command, eval_str=True)
    if "server" not in signature.parameters:
        return command

    @functools.wraps(command)
    def run(**said: Any) -> R:
        _secured.set({name: value for name in SECURED if (value := said.pop(name))})
        return command(**said)

    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(n, kind, default="", annotation=a) for n, a in SECURED.items()]
    whole = [*signature.parameters.values(), *added]
    run.__signature__ = signature.replace(parameters=whole)  # type: ignore[attr-defined]
    return run
