"""Commands and a server: a client whose errors say what to do, the prompt, and answers in one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags, output
from router.cli.command import FAILED, MISUSED, CliError
from router.types import Decision, Override, Reason, Usage

if TYPE_CHECKING:
    from router.client import Client, ClientError
    from router.client.channel import Secured

ANY_ADDRESS = ("0.0.0.0", "[::]", "")  # noqa: S104 -- read here, never bound
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="The request; - reads it from stdin.", show_default=False),
]
Adapter = Annotated[
    str, typer.Option("--adapter", "-a", metavar="NAME[@VERSION]", help="Pin the adapter; base: none.")
]
Mix = Annotated[
    str,
    typer.Option(
        "--mix", metavar="NAME[@VERSION]=WEIGHT,...", help="Adapters that answer together, four at most."
    ),
]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="Replace the adapter's own system text.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is: no template.")]


@contextmanager
def connected(server: str, timeout: float) -> Iterator[Client]:
    """A client whose errors are explained."""
    from router.client import Client, ClientError

    target = target_of(server)
    with Client(target, timeout=timeout, **secured_for(target)) as client:
        try:
            yield client
        except ClientError as error:
            raise explain_call(error, target) from error


def secured_for(target: str) -> Secured:
    """What the environment says of TLS and of who calls. Raises CliError if it does not fit the target."""
    from router.client.channel import channel_credentials

    secured = flags.secured()
    try:
        channel_credentials(target, secured)
    except ValueError as error:
        text = str(error)
        for name, variable in flags.SECURED.items():
            text = text.replace(name, variable)
        raise CliError(text, MISUSED) from None
    return secured


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
        if "handshake" in error.message.lower() or "certificate" in error.message.lower():
            return CliError(
                f"no TLS with {target}: {error.message}; LORA_ROUTER_TLS_CA names who signs its certificate"
            )
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
        "CHANGED_ELSEWHERE": "`lora-router adapters list` shows what holds now",
        "TOKEN_MISSING": "LORA_ROUTER_TOKEN",
        "TOKEN_INVALID": "is it of this server, and not expired? `lora-router clients` keeps them",
        "QUOTA": "quotas are given in the server's clients file",
        "ROLE_MISSING": "roles are given in the server's clients file",
        "DEADLINE_EXCEEDED": "raise --timeout or lower --max-tokens",
    }
    hint = hints.get(error.reason) or hints.get(error.code)
    if error.code == "DEADLINE_EXCEEDED" and not error.reason:  # gRPC's own text differs from case to case
        return CliError(f"no whole answer within the timeout ({hint})")
    request = f" [request {error.request_id}]" if error.code == "INTERNAL" and error.request_id else ""
    return CliError(f"{error.message}{f' ({hint})' if hint else ''}{request}", FAILED)


def read_prompt(words: list[str] | None) -> str:
    """Words, or stdin, whole and uncut; bytes that are no UTF-8 are refused."""
    if words and words != ["-"]:
        return " ".join(words)
    if not words and sys.stdin.isatty():
        raise CliError('say what to ask: lora-router ask "...", or - to read it from stdin', MISUSED)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CliError(
            f"stdin is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}", MISUSED
        ) from None
    if not text.strip():
        raise CliError("stdin is empty: nothing to ask", MISUSED)
    return text


def read_mixture(text: str) -> dict[str, float]:
    """`medical=0.7,legal@1.2.0=0.3`: names and weights in that order."""
    parts: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, weight = part.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise CliError(f"--mix {part!r}: say NAME=WEIGHT for each adapter, as in medical=0.7", MISUSED)
        if name in parts:
            raise CliError(f"--mix names {name} twice: say it once, with all its weight", MISUSED)
        parts[name] = number
    return parts


def decision_line(decision: Decision) -> str:
    """`medical@1.2.0  confidence 0.93  by linear  (classified)`."""
    if decision.mixture:
        return f"{','.join(map(str, decision.mixture))}  ({decision.reason.value})"
    if decision.adapter is not None:
        parts = [str(decision.adapter)]
        if decision.classifier:
            parts += [f"confidence {decision.confidence:.2f}", f"by {decision.classifier}"]
        kept = f"kept from the turns before, {decision.reason.value}"
        reason = kept if decision.continuity == "kept" else decision.reason.value
        return "  ".join([*parts, f"({reason})"])
    if decision.note:
        return f"base  ({decision.note})"
    if decision.reason is Reason.ABSTAINED:
        best = f"best {decision.confidence:.2f}, " if decision.confidence else ""
        return f"base  (abstained: {best}needed {decision.threshold:.2f})"
    return f"base  ({decision.reason.value})"


def usage_line(usage: Usage, finish: str) -> str:
    """`stop  87 + 45 tokens (64 cached)  first after 120 ms  38.1 tokens/s`."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [finish, f"{usage.prompt_tokens} + {usage.completion_tokens} tokens{cached}"]
    if usage.time_to_first_token:
        parts.append(f"first after {output.duration(usage.time_to_first_token)}")
    decoding = usage.total_time - usage.time_to_first_token
    if usage.completion_tokens > 1 and decoding > 0:
        parts.append(f"{(usage.completion_tokens - 1) / decoding:.1f} tokens/s")
    return "  ".join(parts)


def override_line(override: Override) -> str:
    """`by 127.0.0.1 at 2026-11-25 14:02 UTC, "measured by hand"; the gate had said: no report.json`."""
    when = datetime.fromtimestamp(override.time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    reason = f', "{override.reason}"' if override.reason else ", no reason given"
    return f"by {override.by} at {when}{reason}; the gate had said: {override.finding}"
