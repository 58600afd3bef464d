"""`lora-router replicas list|resize|replace|drain`: the engines of a server over several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Replacement, Replica

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Replicas, as `replicas list` names them.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="All that serve now.")]
Bounds = Annotated[str, typer.Argument(metavar="N|LEAST..MOST", help="So many, or as many as load asks.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `replicas list` names it.", show_default=False)]
COLUMNS = ["REPLICA", "STATE", "SINCE", "RUNNING", "WAITING", "ADAPTERS", "DEVICE", "NOTE"]
DONE, FAILED = "done", "failed"


def list_(server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False) -> None:
    """List a server's replicas.

    \b
    Example:
      lora-router replicas list
    """
    from router.cli.connect import connected
    from router.cli.output import print_json, print_table

    with connected(server, timeout) as client:
        fleet = client.replicas.list()
    if json:
        print_json(fleet)
        return
    print_table(COLUMNS, [_row(replica) for replica in fleet.replicas])
    print(f"\n{_how_many(fleet.least, fleet.most)}")


def resize(
    bounds: Bounds, server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False
) -> None:
    """Say how many replicas there may be.

    Between two bounds their number follows the load; one number fixes it. It holds until the server ends: the
    setting `replicas` says what it begins with. Replicas start and drain afterwards, see `replicas list`.

    \b
    Examples:
      lora-router replicas resize 2..8
      lora-router replicas resize 4
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.cli.output import print_json
    from router.config import bounds_of

    try:
        least, most = bounds_of(bounds)
    except ValueError as error:
        raise CliError(f"{bounds!r}: {error}", MISUSED) from None
    with connected(server, timeout) as client:
        least, most = client.replicas.resize(least, most)
    if json:
        print_json({"least": least, "most": most})
    else:
        print(f"{_how_many(least, most)} from now on")


def replace(
    names: Names = None, all_: All = False, server: flags.Server = "", json: flags.Json = False
) -> None:
    """Replace replicas by new ones, without losing a request.

    One after the other: a new one starts, gets the adapters of the old one, and that one ends when its last
    request has. If a new one does not come up, the old one stays, none that waited is tried, and the exit
    code is 1. It takes room for one replica more. Ctrl-C leaves the command; what was begun goes on.

    \b
    Examples:
      lora-router replicas replace 0
      lora-router replicas replace --all
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.cli.output import one_line, print_json

    if all_ == bool(names):
        raise CliError("say which replicas, or --all", MISUSED)
    last: dict[str, Replacement] = {}
    with connected(server, 30.0) as client:
        for step in client.replicas.replace(tuple(names or ())):
            last[step.old] = step
            if not json:
                print(one_line(_step_line(step)), flush=True)
    if json:
        print_json(list(last.values()))
    if failed := [step.old for step in last.values() if step.step == FAILED]:
        raise CliError(f"not replaced: {', '.join(failed)}; `lora-router replicas list` shows who is there")
    if not json:
        print(f"{len(last)} replaced")


def drain(
    name: Name,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
) -> None:
    """Have one replica end when it has finished.

    It gets nothing new from any server, finishes what it has, and its process ends. What started it (a
    server, systemd, Kubernetes, Ray) starts it again.

    \b
    Example:
      lora-router replicas drain 10.0.0.7:50060
    """
    from router.cli.connect import connected

    with connected(server, timeout) as client:
        client.replicas.drain(name)
    print(f"{name} drains; `lora-router replicas list` shows it")


def _step_line(step: Replacement) -> str:
    new = f" -> {step.new}" if step.new else ""
    return f"{step.old}{new}: {step.step}{f', {step.problem}' if step.problem else ''}"


def _row(replica: Replica) -> list[str]:
    from router.cli import output

    counts = map(str, (replica.running, replica.waiting, replica.adapters))
    return [replica.name, replica.state, output.ago(replica.since), *counts, replica.device, replica.problem]


def _how_many(least: int, most: int) -> str:
    if least == most:
        return f"{least} replica{'' if least == 1 else 's'}"
    return f"{least} to {most} replicas, as load asks"
