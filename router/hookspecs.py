"""Every hook that a plugin can implement. docs/hooks.md has when each is called and what an exception costs.

A plugin implements a hook by a function of the hook's name under `@hookimpl`, with any of the arguments that
the hook has here. Each hook but `register_settings` has the argument `settings`: the plugin's own table of
lora-router.toml, as an instance of the model that it registered, or None. A plugin that keeps something
between its hooks has them as methods of a class `Plugin`, of which an object is made for each server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from router.markers import NAME

if TYPE_CHECKING:
    from pathlib import Path

    import typer
    from prometheus_client import CollectorRegistry
    from pydantic import BaseModel

    from router.access.access import Authenticator
    from router.classifiers.contract import Classifier
    from router.config import Settings
    from router.engine.base import Engine
    from router.extensions.experiments.report.model import Report
    from router.ports import Server
    from router.server.http import Route
    from router.server.policy import Policy, ServiceSpec
    from router.sources.source import AdapterSource
    from router.types import Constraint, Request

hookspec = pluggy.HookspecMarker(NAME)


# -- settings and commands


class RegisterSettings(Protocol):
    """The callback given to `register_settings`."""

    def __call__(self, model: type[BaseModel]) -> None:
        """`model` has a default for every field that an operator may leave out. At most once a plugin."""


@hookspec
def register_settings(register: RegisterSettings) -> None:
    """Call `register(Model)`: a pydantic model of the table [NAME] of lora-router.toml.

    NAME is the plugin's: its file without `.py`, its folder, or its entry point. `serve --set NAME.KEY=VALUE`
    and LORA_ROUTER_NAME__KEY set a field KEY, too. The order of strength is flag, environment, file, default.
    Other hooks get an instance of the model as `settings`.
    """


@hookspec
def register_commands(app: typer.Typer, settings: Any) -> None:
    """Add commands to `app`: `@app.command()` becomes `lora-router COMMAND`. A group that exists is extended.

    `app` is a typer.Typer. Import what is heavy inside the command: all commands are registered for
    `lora-router --help`.
    """


# -- what decides


class RegisterClassifier(Protocol):
    """The callback given to `register_classifiers`."""

    def __call__(
        self,
        classifier: Classifier,
        *,
        priority: int = 100,
        timeout_ms: int = 10_000,
        required: bool = False,
        optional: bool = False,
    ) -> None:
        """Lower `priority` is asked earlier; votes that take over `timeout_ms` of processor time are lost.

        `optional`: off unless the setting `load_plugins` names the plugin.
        """


@hookspec
def register_classifiers(register: RegisterClassifier, settings: Any) -> None:
    """Call `register(MyClassifier(), priority=100, timeout_ms=10_000)` for each classifier."""


# -- what answers, and where adapters come from

MakeEngine = Callable[["Settings"], "Engine"]
FindBase = Callable[["Settings"], "Path | None"]
MakeSource = Callable[[str, str], "AdapterSource"]


class RegisterEngine(Protocol):
    """The callback given to `register_engines`."""

    def __call__(self, name: str, make: MakeEngine, base: FindBase | None = None) -> None:
        """`make(settings)` returns a `router.engine.base.Engine` that is not started; `settings` are the
        server's.

        `base(settings)` fetches the base model and returns its folder, or None where there is none; it runs
        before `make` and raises ConfigError for what an operator has to mend.
        """


@hookspec
def register_engines(register: RegisterEngine, settings: Any) -> None:
    """Call `register("echo", make_echo)`: `serve --set engine=echo` runs `make_echo(settings)`."""


class RegisterSource(Protocol):
    """The callback given to `register_adapter_sources`."""

    def __call__(self, scheme: str, source: MakeSource) -> None:
        """`source(text, subfolder)` returns a source for a text such as SCHEME:PATH. A subclass of
        `router.sources.FolderSource` may be `source` itself; `router.sources.source.Source` is the whole
        protocol. `subfolder` is what `adapters add --subfolder` says, or "".

        The scheme `*` is every SCHEME:// that no other plugin has.
        """


@hookspec
def register_adapter_sources(register: RegisterSource, settings: Any) -> None:
    """Call `register("hub", HubSource)`: `lora-router adapters add hub:NAME` then asks it."""


MakeConstraint = Callable[[str], "Constraint"]


class RegisterTemplate(Protocol):
    """The callback given to `register_constraint_templates`."""

    def __call__(self, name: str, make: MakeConstraint) -> None:
        """`make(prompt)` returns the `router.types.Constraint` of one answer, or raises
        `router.engine.constrained.templates.NoSource`. `prompt` is the last user turn, or a raw prompt.
        It runs on the event loop or in a thread, and must take no more than milliseconds.
        """


@hookspec
def register_constraint_templates(register: RegisterTemplate, settings: Any) -> None:
    """Call `register("sql", sql)`: `from_prompt = "sql"` of an adapter or a request then holds the answer to
    what `sql(prompt)` returns.
    """


# -- who calls, and what is served. `server` has what an implementation needs: `server.settings`, `.registry`,
# -- `.inference`, `.experiments`, `.health` and more. A function that is not `async` runs in a thread.


class RegisterService(Protocol):
    """The callback given to `register_service`."""

    def __call__(self, spec: ServiceSpec) -> None:
        """`spec` is a `router.serving.ServiceSpec`; INFER, GENERATE, OBSERVE and ADMIN of `router.serving`
        are ready-made rows. Raises ConfigError for a method without a row, and for one that is served
        already.
        """


@hookspec
def register_service(register: RegisterService, server: Server, settings: Any) -> Awaitable[None] | None:
    """Call `register(ServiceSpec(add_EchoServicer_to_server, Echo(), ROWS))` for each gRPC service; may be
    `async`.

    Health and reflection name it, too.
    """


class RegisterHttp(Protocol):
    """The callback given to `register_http`."""

    def __call__(self, routes: Sequence[Route], rows: Mapping[str, Policy]) -> None:
        """`routes` are `router.serving.Route`; `rows` has the `router.serving.Policy` of each, by
        `VERB /PATH`.

        Raises ConfigError for a route without a row, and for one that is served already.
        """


@hookspec
def register_http(register: RegisterHttp, server: Server, settings: Any) -> Awaitable[None] | None:
    """Call `register([Route("GET", "/hello", hello)], {"GET /hello": Policy(Role.INFER)})`; may be `async`.

    Called where the setting `http_listen` has an address.
    """


class RegisterAuthenticator(Protocol):
    """The callback given to `register_authenticators`."""

    def __call__(self, authenticator: Authenticator) -> None:
        """`authenticator` says who makes a call; see `router.serving.Authenticator`."""


@hookspec
def register_authenticators(
    register: RegisterAuthenticator, server: Server, settings: Any
) -> Awaitable[None] | None:
    """Call `register(MyAuthenticator())` for each way to prove who calls; may be `async`.

    They are asked where the server has a file of clients (setting `clients`).
    """


# -- what an operator sees

Check = Callable[[], "str | Iterable[str] | None"]


@hookspec
def register_metrics(registry: CollectorRegistry, settings: Any) -> None:
    """Register prometheus_client collectors in `registry`, the plugin's own; /metrics shows them, too."""


class RegisterCheck(Protocol):
    """The callback given to `register_checks`."""

    def __call__(self, check: Check) -> None:
        """`check()` runs in a thread every second; what it returns is shown under `degraded`."""


@hookspec
def register_checks(register: RegisterCheck, settings: Any) -> None:
    """Call `register(check)` for each reason for which the server may be degraded."""


# -- the server's life


@hookspec
def on_startup(server: Server, settings: Any) -> Awaitable[None] | None:
    """Called before the server listens and loads the base, at most 30 s long; may be `async`.

    `server.settings`, `.engine`, `.registry`, `.metrics` and `.state_dir` are there. It may set what the
    server is to use: `server.pipeline.experiments` (`router.ports.Experiments`: who decides on arms),
    `server.tracing` (`router.server.call.Tracing`). A function that is not `async` runs in a thread.
    """


@hookspec
def on_load(server: Server, settings: Any) -> Awaitable[None] | None:
    """Called as `on_startup`, while the base is loaded; adapters are read when all plugins have returned."""


@hookspec
def on_loaded(server: Server, settings: Any) -> Awaitable[None] | None:
    """Called as `on_startup`, when base, adapters and classifiers are loaded and no request is let in yet."""


@hookspec
def on_ready(server: Server, settings: Any) -> Awaitable[None] | None:
    """Called as `on_startup`, when the server takes requests at `server.address`."""


@hookspec
def on_shutdown(server: Server, settings: Any) -> Awaitable[None] | None:
    """Called after the last request, in reverse order of `on_startup`; all get 2.5 s; may be `async`."""


# -- requests


@hookspec
def rewrite_request(request: Request, settings: Any) -> Request | Awaitable[Request | None] | None:
    """Return another request to be routed and answered instead, or None to leave it; may be `async`.

    `dataclasses.replace(request, turns=...)` changes `turns`, `raw_prompt`, `sampling`, `routing` or
    `labels`; other changes are undone. Plugins are asked one after the other, each with what the one before
    returned. A `router.errors.RouterError` refuses the request with its code; anything else is a failure:
    see `HookLimits`, whose values `@hookimpl(timeout_ms=10_000, required=False)` sets. A function that is not
    `async` runs in a thread.
    """


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One routing decision for a request that is to be answered. Times in seconds."""

    time: float  # unix
    request_id: str  # the id of the answer, too
    tenant: str
    labels: tuple[tuple[str, str], ...]
    text: str  # what the user asks
    adapter: str  # name; `base` or `mixture` without an adapter
    version: str
    reason: Literal["explicit", "hint", "classified", "abstained", "fallback"]
    classifier: str
    confidence: float
    seconds: float  # that routing took
    experiment: str
    arm: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {**asdict(self), "labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer that ended. Times in seconds, from the submission to the engine on."""

    time: float  # unix, of its end
    request_id: str
    tenant: str
    labels: tuple[tuple[str, str], ...]
    adapter: str  # that answered: name; `base` or `mixture` without an adapter
    version: str
    text: str  # of the answer, as far as it came
    finish: str  # stop, length, ...; empty where `error` or `cancelled` says why it ended
    error: str  # reason, as PROMPT_TOO_LONG
    cancelled: bool  # by the caller
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_seconds: float
    first_token_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {**asdict(self), "labels": dict(self.labels)}


@hookspec
def on_decision(record: DecisionRecord, settings: Any) -> None:
    """Called for each decision on a request that is to be answered, in a thread of the plugin, in order. The
    request is as `rewrite_request` left it.

    It cannot slow a request: at most 1,000 records of a plugin wait, further ones are dropped and counted in
    lora_router_plugin_records_dropped_total.
    """


@hookspec
def on_answer(record: AnswerRecord, settings: Any) -> None:
    """Called for each answer when it has ended, in the same thread as `on_decision`."""


@hookspec
def on_report(report: Report, server: Server, settings: Any) -> None:
    """Called in the same thread with the report of each look at a running experiment.

    `report` is a `Report` of `router.extensions.experiments.report.model`: its `verdict`, `arms`, `checks`,
    and `audit`, what was done so far. Every server that has the experiment's database looks.
    """
