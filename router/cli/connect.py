"""A client for the commands that talk to a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from router.cli.errors import FAILED, MISUSED, CliError

if TYPE_CHECKING:
    from router.client import Client, ClientError

ANY_ADDRESS = ("0.0.0.0", "[::]", "")  # noqa: S104 -- read here, never bound


def target_of(server: str) -> str:
    """HOST:PORT to call: as said, else where `serve` would listen with the settings found here."""
    if server:
        return server
    from router.cli.settings import load_settings

    host, _, port = load_settings().listen.rpartition(":")
    return f"127.0.0.1:{port}" if host in ANY_ADDRESS else f"{host}:{port}"


def explain_call(error: ClientError, target: str) -> CliError:
    """One line on what to do."""
    if error.unreachable:
        if "resolv" in error.message or "resolution" in error.message:
            return CliError(f"{target} cannot be resolved: no such host is known; --server takes HOST:PORT")
        if "failed to connect" not in error.message:
            return CliError(f"the connection to {target} broke; is the server still running?")
        start = "start one with `lora-router serve`, or name another with --server HOST:PORT"
        return CliError(f"no server answers at {target}: {start}")
    if error.violations:
        text = "; ".join(f"{v.field}: {v.description}" for v in error.violations)
        return CliError(text, MISUSED)
    hints = {
        "ADAPTER_NOT_FOUND": "see `lora-router adapters list`",
        "EXPERIMENT_NOT_FOUND": "see `lora-router experiments list`",
        "MODEL_LOADING": "the server is starting; try again in some seconds",
        "QUEUE_FULL": "try again later",
        "DRAINING": "the server is stopping",
        "DEADLINE_EXCEEDED": "raise --timeout or lower --max-tokens",
    }
    hint = hints.get(error.reason) or hints.get(error.code)
    if error.code == "DEADLINE_EXCEEDED" and not error.reason:  # gRPC's own text differs from case to case
        return CliError(f"no whole answer within the timeout ({hint})")
    request = f" [request {error.request_id}]" if error.code == "INTERNAL" and error.request_id else ""
    return CliError(f"{error.message}{f' ({hint})' if hint else ''}{request}", FAILED)


@contextmanager
def connected(server: str, timeout: float) -> Iterator[Client]:
    """A client whose errors are explained."""
    from router.client import Client, ClientError

    target = target_of(server)
    with Client(target, timeout=timeout) as client:
        try:
            yield client
        except ClientError as error:
            raise explain_call(error, target) from error
