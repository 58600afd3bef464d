"""What `serve` says when it is ready: what runs, where, and lines to paste."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router import optional
from router.cli import units

if TYPE_CHECKING:
    from router.engine.base import BaseInfo
    from router.plugins import PluginStatus
    from router.ports import ServedExperiments
    from router.server.app import ServerApp
    from router.types import AdapterInfo

COLUMNS = ["ADAPTER", "VERSION", "STATE", "DOMAIN", "TASK", "RANK", "SIZE", "NOTE"]
QUESTION = "Which ICD-10-CM chapter does Beard ringworm belong to?"


def print_summary(app: ServerApp, plugins: Sequence[PluginStatus], calibration: str = "") -> None:
    """Base, adapters, plugins, addresses and three lines to paste."""
    from router import __version__
    from router.cli.output import print_pairs, print_table

    settings = app.settings
    adapters = app.registry.list()
    print(f"\nlora-router {__version__} is ready\n")
    print_pairs(
        [
            *base_lines(app.engine.info),
            ("adapters", f"{len(adapters)} in {_places(settings.adapters_dir)}"),
            ("plugins", f"{_names(plugins)} in {_places(settings.plugins_dir)}"),
            *(("plugin", f"{p.name} is broken: {p.error}") for p in plugins if p.error),
            ("calibration", calibration or "none: `lora-router route calibrate` makes one"),
            ("experiments", _experiments(app.experiments)),
            ("gRPC", app.address),
            ("metrics", f"http://{app.metrics_address}/metrics" if app.metrics_address else "off"),
        ]
    )
    if adapters:
        print()
        print_table(COLUMNS, [adapter_row(info) for info in adapters])
    print()
    for line in lines_to_paste(app.address, settings.adapters_dir):
        print(f"  {line}")
    print(flush=True)


def base_lines(info: BaseInfo) -> list[tuple[str, str]]:
    """The resident base and how it runs."""
    size = f", {units.size(info.size_bytes)}" if info.size_bytes else ""
    return [
        ("base", f"{info.name} ({info.architecture}{size}, context {info.context_length})"),
        ("device", f"{info.device}, {info.dtype}"),
        ("kernels", info.kernels),
    ]


def adapter_row(info: AdapterInfo) -> tuple[str, ...]:
    """One line of the table."""
    return (
        info.ref.name,
        info.ref.version + (" *" if info.default else ""),
        info.state.value,
        info.domain,
        info.task,
        str(info.rank or ""),
        units.size(info.size_bytes) if info.size_bytes else "",
        info.error or info.gate or "; ".join(info.notes),
    )


def _places(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder"


def _experiments(found: ServedExperiments | None) -> str:
    if found is not None:
        return found.summary
    return "off" if optional.has_experiments() else "not installed"


def _names(plugins: Sequence[PluginStatus]) -> str:
    classifiers = sorted((c.priority, c.name) for plugin in plugins for c in plugin.classifiers)
    return ", ".join(name for _, name in classifiers) or "no classifier"


def lines_to_paste(address: str, adapters: Sequence[Path]) -> list[str]:
    """Ask, ask with no .proto at hand, add an adapter."""
    from router.client.channel import DEFAULT_TARGET

    server = "" if address == DEFAULT_TARGET else f" --server {address}"
    body = shlex.quote('{"input":{"text":"Hello"}}')
    folder = shlex.quote(f"{adapters[0]}/" if adapters else "adapters/")
    method = "router.v1.InferenceService/StreamGenerate"
    return [
        f'lora-router ask{server} "{QUESTION}"',
        f"buf curl --protocol grpc --http2-prior-knowledge -d {body} http://{address}/{method}",
        f"cp -r my-adapter {folder}",
    ]
