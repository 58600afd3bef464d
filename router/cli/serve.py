"""`lora-router serve`: the flags, and the checks that come before anything heavy."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.setting_flags import WithSettings
from router.cli.settings import ConfigFile, Sets
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Settings

Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-listen",
        envvar="LORA_ROUTER_INSECURE_LISTEN",
        help="Allow addresses that other machines reach, though not everything there is checked.",
    ),
]
InsecureMetrics = Annotated[
    bool,
    typer.Option(
        "--insecure-metrics",
        envvar="LORA_ROUTER_INSECURE_METRICS",
        help="Allow it for --metrics-listen alone; callers' addresses still need TLS and --clients.",
    ),
]


class ServeCommand(WithSettings):
    """With the settings that people type."""

    settings = (
        *("listen", "http_listen", "metrics_listen", "clients", "tls_cert", "tls_key"),
        *("adapters_dir", "plugins_dir", "bare", "model", "quantize", "device"),
    )


def serve(
    context: typer.Context,
    config: ConfigFile = None,
    set_: Sets = None,
    insecure_listen: Insecure = False,
    insecure_metrics: InsecureMetrics = False,
) -> None:
    """Serve the base with the adapters here.

    Adapter folders and plugin files are picked up while it runs.

    A flag is stronger than LORA_ROUTER_* in the environment, that than lora-router.toml. Requests that run at
    SIGTERM are finished; a second signal stops at once. Settings without a flag: --set KEY=VALUE, and
    `lora-router config show` for the list.

    \b
    Examples:
      lora-router serve
      lora-router serve --listen 127.0.0.1:6000 --adapters-dir ./adapters --set slots=64
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it tells of each replica that ends, as the log does
    settings = settings_of(context.obj, set_ or [], config)
    check_reach(settings, insecure_listen, insecure_metrics)
    # Each collection would look at all that was imported, and that stays. `compose.keep` enables them again.
    gc.disable()
    try:
        from router.cli.compose import serve_until_stopped

        raise typer.Exit(serve_until_stopped(settings))
    finally:
        gc.enable()


def settings_of(said: Mapping[str, Any], sets: list[str], config: Path | None) -> Settings:
    """Of flags, of what --set gives, of the environment and the file."""
    from router.cli.settings import load_settings, parse_sets

    return with_folders(load_settings(parse_sets(sets) | dict(said), config))


def with_folders(settings: Settings) -> Settings:
    """The same with the folders that are really watched."""
    from router.cli.settings import adapter_folders, folders

    return settings.model_copy(
        update={
            "adapters_dir": adapter_folders(settings),
            "plugins_dir": folders(settings.plugins_dir, "plugins", settings.bare),
        }
    )


def check_reach(settings: Settings, insecure: bool, insecure_metrics: bool = False) -> None:
    """Refuse addresses that other machines reach, unless that was asked for, and those that are none.

    `insecure` allows all of them, `insecure_metrics` that of metrics and probes only.
    """
    from router.client.channel import is_loopback
    from router.server.listen import split_address

    split_address(settings.listen, "listen")
    if settings.http_listen:
        split_address(settings.http_listen, "http_listen")
    if insecure:
        return
    for listen in filter(None, (settings.listen, settings.http_listen)):
        if is_loopback(listen) or (settings.tls_cert and settings.clients):
            continue
        without = "TLS" if settings.clients else "a clients file" if settings.tls_cert else "TLS and clients"
        raise ConfigError(
            f"{listen} can be reached from other machines and there is no protection without "
            f"{without}: give --tls-cert, --tls-key and --clients, listen on 127.0.0.1, or say "
            "--insecure-listen if the network is yours"
        )
    check_metrics_reach(settings, insecure_metrics)


def check_metrics_reach(settings: Settings, insecure: bool) -> None:
    """The same of the address of metrics and probes."""
    from router.client.channel import is_loopback

    if settings.metrics_listen and not insecure and not is_loopback(settings.metrics_listen):
        raise ConfigError(
            f"metrics at {settings.metrics_listen} can be read from other machines, without any check: "
            "choose 127.0.0.1 with --metrics-listen, or say --insecure-metrics if the network is yours"
        )
