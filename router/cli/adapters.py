"""`lora-router adapters list|show|load|unload|default`: what a running server has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags, output
from router.cli.connect import connected, override_line
from router.cli.output import print_json, print_pairs, print_table

if TYPE_CHECKING:
    from router.client import Adapter
    from router.types import AdapterInfo


Name = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="The adapter; without a version, the default one.")
]
Pin = Annotated[
    bool | None, typer.Option("--pin/--unpin", help="Never evict it; without the flag the pin stays.")
]
Force = Annotated[bool, typer.Option("--force", help="Overrule the gate; that is recorded.")]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why the gate is overruled, for the record.")
]
Auto = Annotated[
    bool, typer.Option("--auto", help="Take back what was chosen for NAME: the highest version that passes.")
]
PAGE = 500  # adapters asked for at once
COLUMNS = ["NAME", "VERSION", "STATE", "DOMAIN", "TASK", "RANK", "SIZE", "IN USE", "LAST USED", "NOTE"]


def list_(server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False) -> None:
    """List the adapters of a server.

    Every version, quarantined ones with the reason; * marks the default version. A version that did not
    pass the gate is not routed to by itself, only asked by name; the note says why.

    \b
    Example:
      lora-router adapters list
    """
    with connected(server, timeout) as client:
        found = client.adapters.list(page_size=PAGE)
    if json:
        print_json(found)
    elif found:
        print_table(COLUMNS, [row(adapter) for adapter in found])
        if any(adapter.gate for adapter in found):
            print("\nwhat to do about a version that is not routed to: lora-router adapters show NAME")
    else:
        print("no adapters; copy a folder that PEFT saved into the adapters folder of the server")


def row(adapter: AdapterInfo) -> tuple[str, ...]:
    """One line of the table."""
    overruled = adapter.override is not None and adapter.routable
    marks = (
        ["built in"] * adapter.built_in
        + ["pinned"] * adapter.pinned
        + ["gate overruled"] * (overruled and "won experiments/" not in adapter.routing)
    )
    note = adapter.error or adapter.gate or "; ".join([*marks, *adapter.notes])
    return (
        adapter.ref.name,
        adapter.ref.version + (" *" if adapter.default else ""),
        adapter.state.value,
        adapter.domain,
        adapter.task,
        str(adapter.rank or ""),
        output.size(adapter.size_bytes) if adapter.size_bytes else "",
        str(adapter.leases or ""),
        output.ago(adapter.last_used),
        note,
    )


def show(
    name: Name, server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False
) -> None:
    """Show one adapter version.

    \b
    Example:
      lora-router adapters show medical@1.0.0 --json
    """
    with connected(server, timeout) as client:
        found = client.adapters.get(name)
    if json:
        print_json(found)
    else:
        print_pairs(_pairs(found))


def _pairs(adapter: Adapter) -> list[tuple[str, str]]:

    pairs = [
        ("name", adapter.ref.resource),
        ("state", adapter.state.value + (f": {adapter.error}" if adapter.error else "")),
        ("default", "yes" if adapter.default else "no"),
        ("routing", adapter.routing or ("routed to by itself" if adapter.routable else adapter.gate)),
        ("to do", adapter.gate_advice),
        ("overruled", override_line(adapter.override) if adapter.override else ""),
        ("pinned", "yes" if adapter.pinned else "no"),
        ("built in", "yes" if adapter.built_in else ""),
        ("description", adapter.description),
        ("domain", adapter.domain),
        ("task", adapter.task),
        ("base", adapter.base_model),
        ("rank", str(adapter.rank or "")),
        ("sites", ", ".join(adapter.target_modules)),
        ("acts from", _spelt(adapter.invocation_tokens)),
        ("size", output.size(adapter.size_bytes) if adapter.size_bytes else ""),
        ("digest", adapter.digest),
        ("in use", str(adapter.leases)),
        ("last used", output.ago(adapter.last_used)),
        *(("note", note) for note in adapter.notes),
    ]
    return [(key, value) for key, value in pairs if value]


def _spelt(invocation: Sequence[int]) -> str:
    return f"the tokens {', '.join(map(str, invocation))} on" if invocation else ""


def load(
    name: Name,
    pin: Pin = None,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Load an adapter and wait until it is ready.

    \b
    Example:
      lora-router adapters load medical --pin
    """
    with connected(server, timeout) as client:
        loaded = client.adapters.load(name, pinned=pin)
    if json:
        print_json(loaded)
    else:
        print(f"{loaded.ref} is {loaded.state.value}, {output.size(loaded.size_bytes)}")


def unload(
    name: Name, server: flags.Server = "", timeout: flags.Timeout = 120.0, json: flags.Json = False
) -> None:
    """Drop an adapter from memory.

    Waits until its last request ended.

    \b
    Example:
      lora-router adapters unload medical@1.0.0
    """
    with connected(server, timeout) as client:
        dropped = client.adapters.unload(name)
    if json:
        print_json(dropped)
    else:
        state = dropped.adapter.state.value
        print(f"{dropped.adapter.ref} is {state}, {output.size(dropped.freed_bytes)} freed")


def default(
    name: Name,
    force: Force = False,
    reason: Reason = "",
    auto: Auto = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Make a version the default one.

    Requests for NAME get it from then on, also after a restart. Rolling back is the same with the version
    before; what runs ends on the version it began with. A version that did not pass the gate needs --force,
    which is recorded and shown by `adapters show`, but not where it was the default before or the present
    one did not pass either; --auto takes choice and override back.

    \b
    Examples:
      lora-router adapters default medical@1.0.0
      lora-router adapters default medical@1.2.0 --force --reason "measured by hand, ticket 7"
      lora-router adapters default medical --auto
    """
    from router.cli.command import MISUSED, CliError

    if auto and (force or reason or "@" in name):
        raise CliError("--auto takes NAME alone: it takes back whatever version was chosen", MISUSED)
    with connected(server, timeout) as client:
        adapters = client.adapters
        change = (
            adapters.reset_default(name) if auto else adapters.set_default(name, force=force, reason=reason)
        )
    if json:
        print_json(change)
    else:
        before = f", before it was {change.previous}" if change.previous else ""
        rule = " by the rule" if auto else ""
        print(f"{change.adapter.ref} is the default{rule}{before}")
        if change.adapter.gate:
            print(f"{change.adapter.gate}; {change.adapter.gate_advice}".rstrip("; "))
