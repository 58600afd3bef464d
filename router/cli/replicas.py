"""`lora-router replicas list|drain`: the engines of a server over several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags, output
from router.cli.connect import connected
from router.cli.output import print_json, print_table

if TYPE_CHECKING:
    from router.client import Replica

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `replicas list` names it.", show_default=False)]
COLUMNS = ["REPLICA", "STATE", "SINCE", "RUNNING", "WAITING", "ADAPTERS", "DEVICE", "NOTE"]


def list_(server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False) -> None:
    """List a server's replicas.

    \b
    Example:
      lora-router replicas list
    """
    with connected(server, timeout) as client:
        replicas = client.replicas.list()
    if json:
        print_json(replicas)
    else:
        print_table(COLUMNS, [_row(replica) for replica in replicas])


def drain(
    name: Name,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
) -> None:
    """Drain one replica: it finishes its requests and ends.

    It gets nothing new from any server, finishes what it has, and its process ends. What started it (a
    server, systemd, Kubernetes, Ray) starts it again.

    \b
    Example:
      lora-router replicas drain 10.0.0.7:50060
    """
    with connected(server, timeout) as client:
        client.replicas.drain(name)
    print(f"{name} drains; `lora-router replicas list` shows it")


def _row(replica: Replica) -> list[str]:

    counts = map(str, (replica.running, replica.waiting, replica.adapters))
    return [replica.name, replica.state, output.ago(replica.since), *counts, replica.device, replica.problem]
