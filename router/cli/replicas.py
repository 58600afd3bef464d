"""`lora-router replicas list|drain|ray`: the engines of a server over several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags, output, serve
from router.cli.connect import connected
from router.cli.output import print_json, print_table
from router.cli.settings import ConfigFile, Sets

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


def ray(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Ray's head.", show_default=False)],
    config: ConfigFile = None,
    set_: Sets = None,
    insecure_listen: serve.Insecure = False,
) -> None:
    """Start a replica on every node of a Ray cluster, one for each GPU.

    They listen on port 50060 and up of their nodes, and are started again when they end. Settings and the
    secret (LORA_ROUTER_REPLICA_SECRET) are those of `lora-router replica`.

    \b
    Example:
      lora-router replicas ray 10.0.0.5:6379
    """
    from router.cli.fleet import replica_settings
    from router.cli.replica import check_reach
    from router.cli.settings import load_settings, parse_sets
    from router.errors import ConfigError
    from router.replicas.ray import connect, launch

    settings = load_settings(parse_sets(set_ or []), config)
    tls = {name: getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
    secret = settings.replica_secret.get_secret_value() if settings.replica_secret else ""
    update = {"listen": f"{address.rpartition(':')[0]}:0", "metrics_listen": ""}
    check_reach(settings.model_copy(update=update), insecure_listen, False)
    own = replica_settings(settings, alone=True) | tls
    found = launch(connect(address), settings.engine, own, secret, gpu=settings.device != "cpu")
    for replica, problem in found.items():
        print(f"{replica}: {problem}" if problem else f"{replica} runs")
    if all(found.values()):
        raise ConfigError("no replica runs")
    print(f"use them with `lora-router serve --set replica_addresses={','.join(found)}`")


def _row(replica: Replica) -> list[str]:

    counts = map(str, (replica.running, replica.waiting, replica.adapters))
    return [replica.name, replica.state, output.ago(replica.since), *counts, replica.device, replica.problem]
