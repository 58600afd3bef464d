"""What `serve` prints when it is ready: what runs, where, and lines to paste."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from router.built_in import built_in_folders
from router.cli import output
from router.cli.adapters import COLUMNS, row
from router.cli.output import print_pairs, print_table
from router.config import Settings
from router.engine.base import BaseInfo

if TYPE_CHECKING:
    from router.plugins import PluginStatus
    from router.server.app import ServerApp
    from router.types import AdapterProfile

MOST_SHOWN = 50  # adapters; the event loop waits while they are printed
NO_CHAT_TEMPLATE = (
    "the base has no chat template: system text and turns are joined by empty lines and continued, not "
    "answered; an instruct model has one, or an adapter is trained on the form that [prompt] of its "
    "adapter.toml says"
)
MOST_OF_QUESTION = 120  # characters of an adapter's example that the summary suggests to ask


def print_summary(app: ServerApp, plugins: Sequence[PluginStatus], calibration: str = "") -> None:
    """Base, adapters, plugins, addresses and three lines to paste."""
    from router import __version__
    from router.feedback.recorder import FeedbackRecorder

    settings, feedback = app.settings, app.part(FeedbackRecorder)
    adapters, shown = app.registry.count(), list(islice(app.registry.listed(), MOST_SHOWN))
    print(f"\nlora-router {__version__} is ready\n")
    print_pairs(
        [
            *base_lines(app.engine.info),
            *([("replicas", _replicas_line(settings))] if settings.replica_bounds[0] else []),
            (
                "adapters",
                f"{adapters} in {_folders_line(settings.adapters_dir)}{_trust_line(settings)}",
            ),
            ("plugins", f"{_classifiers_line(plugins)} in {_folders_line(settings.plugins_dir)}"),
            *(("plugin", f"{p.name} is broken: {p.error}") for p in plugins if p.error),
            ("calibration", calibration or "none: `lora-router route calibrate` makes one"),
            ("experiments", _experiments_line(app)),
            ("feedback", feedback.answers.keeping if feedback is not None else "off"),
            ("gRPC", app.address),
            ("access", _access_line(settings)),
            *_web_lines(app),
            ("metrics", f"http://{app.metrics_address}/metrics" if app.metrics_address else "off"),
            *([("OTLP", app.tracing.endpoint)] if app.tracing is not None else []),
        ]
    )
    if shown:
        print()
        print_table(COLUMNS, [row(info) for info in shown])
    if adapters > len(shown):
        print(f"and {adapters - len(shown)} more: `lora-router adapters list` shows all")
    print()
    for line in lines_to_paste(app.address, settings, question_of(app.registry.profiles())):
        print(f"  {line}")
    print(flush=True)


def base_lines(info: BaseInfo) -> list[tuple[str, str]]:
    """The resident base and how it runs."""
    size = f", {output.size(info.size_bytes)}" if info.size_bytes else ""
    return [
        ("base", f"{info.name} ({info.architecture}{size}, context {info.context_length})"),
        ("device", f"{info.device}, {info.precision}"),
        ("kernels", info.kernels),
        *([("cannot", info.inabilities)] if info.inabilities else []),
        *([] if info.chat_template else [("warning", NO_CHAT_TEMPLATE)]),
    ]


def question_of(profiles: Sequence[AdapterProfile]) -> str:
    """A question that an adapter here knows: its first example of one short line."""
    examples = (example for profile in profiles for example in profile.examples)
    short = (text for text in examples if len(text) <= MOST_OF_QUESTION and text.isprintable())
    return next(short, "Hello")


def lines_to_paste(address: str, settings: Settings, question: str) -> list[str]:
    """Ask, ask with no .proto at hand, add an adapter."""
    from router.client.channel import DEFAULT_TARGET

    tls, token = settings.tls_cert is not None, settings.clients is not None
    server = "" if address == DEFAULT_TARGET else f" --server {address}"
    known = ("LORA_ROUTER_TLS_CA=CA.pem " if tls else "") + ("LORA_ROUTER_TOKEN=TOKEN " if token else "")
    how = "--cacert CA.pem" if tls else "--http2-prior-knowledge"
    if token:  # one whose client has the roles infer and observe: reflection needs the second
        how += ' -H "authorization: Bearer TOKEN" --reflect-header "authorization: Bearer TOKEN"'
    body = shlex.quote('{"input":{"text":"Hello"}}')
    url = f"{'https' if tls else 'http'}://{address}/router.v1.InferenceService/StreamGenerate"
    return [
        f"{known}lora-router ask{server} {shlex.quote(question)}",
        f"buf curl --protocol grpc {how} -d {body} {url}",
        how_to_add(settings),
    ]


def how_to_add(settings: Settings) -> str:
    """A line to paste that puts an adapter where this server looks."""
    if settings.adapters_dir in ((), built_in_folders("adapters")):  # no place for a user's
        return "mkdir adapters && cp -r my-adapter adapters/  # and start again"
    return f"cp -r my-adapter {shlex.quote(f'{settings.adapters_dir[0]}/')}"


def _web_lines(app: ServerApp) -> list[tuple[str, str]]:
    if not app.http_address:
        return [("HTTP", f"off: {app.http_problem}")] if app.http_problem else []
    url = f"{'https' if app.settings.tls_cert else 'http'}://{app.http_address}"
    console = [("console", f"{url}/console")] if "/console" in app.paths else []
    return [("HTTP", f"{url}/v1"), *console]


def _replicas_line(settings: Settings) -> str:
    if settings.replica_addresses:
        return f"at {', '.join(settings.replica_addresses)}"
    return f"{settings.replicas} on this machine"


def _access_line(settings: Settings) -> str:
    who = f"clients of {settings.clients}" if settings.clients else "everybody may do everything"
    mutual = ", certificates of clients checked" if settings.tls_client_ca else ""
    return f"{who}; {'TLS' if settings.tls_cert else 'plain text'}{mutual}"


def _folders_line(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder"


def _trust_line(settings: Settings) -> str:
    asked = ["signed"] if settings.require_signed else []
    asked += [f"listed in {settings.adapters_lock}"] if settings.adapters_lock else []
    return f"; only those {' and '.join(asked)} are served" if asked else ""


def _classifiers_line(plugins: Sequence[PluginStatus]) -> str:
    classifiers = sorted((c.priority, c.name) for plugin in plugins for c in plugin.classifiers)
    return ", ".join(name for _, name in classifiers) or "no classifier"


def _experiments_line(app: ServerApp) -> str:
    return app.pipeline.experiments.summary if app.pipeline.experiments is not None else "off"
