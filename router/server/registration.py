"""What plugins add to a server: gRPC services, HTTP routes, authenticators and metrics.

A service that no plugin adds is there, too: its methods refuse, and say how to get it.

The first that registers a method or route has it. All that one hook of a plugin registers is kept together,
or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import compile_path

from router.access.access import Access, Authenticator
from router.config import Settings
from router.errors import NO_EXPERIMENTS, ConfigError, FailedPrecondition
from router.server.grpc_adapter import GrpcServer, methods_of
from router.server.http import CONSOLE, Route
from router.server.policy import ROWS, Policy, check_rows
from router.v1 import (
    experiments_pb2,
    experiments_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
)

if TYPE_CHECKING:
    from router.plugins import Hooks
    from router.plugins.runtime import RunningPlugin

CORE = "the server itself"
OF_PLUGINS = (  # whose rows are the server's
    "/router.v1.FleetService/",
    "/router.v1.ExperimentService/",
    "/router.v1.FeedbackService/",
)
NO_FLEET = (
    "this server has one engine, in its own process: start it with `serve --set replicas=N` to have replicas"
)
NO_FEEDBACK = "this server has no built-in plugin feedback, so it keeps none"
PARTS = {
    "experiments": "experiments",
    "shared_state": "sharing",
    "corrections": "corrections",
    "feedback": "feedback",
}  # settings, and the built-in plugins that they are for
T = TypeVar("T")
_PARAMETER = re.compile(r"\{[^}]*\}")


class Registered:
    """All of it. `services` are names of gRPC services, `rows` the policies of `routes`."""

    def __init__(self, server: GrpcServer, access: Access) -> None:
        self.server, self.access = server, access
        self.services: list[str] = []
        self.problems: dict[str, Callable[[], str]] = {}  # of services: why one cannot work for now
        self.routes: list[Route] = []
        self.rows: dict[str, Policy] = {}
        core = (name for name in ROWS if not name.startswith(OF_PLUGINS))
        self.owners = dict.fromkeys((*server.endpoints, *core), CORE)  # of methods and routes


class Register:
    """The `register` of a hook of one plugin: checks at once, and keeps when the hook has returned."""

    def __init__(self, registered: Registered, running: RunningPlugin) -> None:
        self._registered, self._running, self._plugin = registered, running, running.plugin.name
        self._keys: list[str] = []
        self._keep: list[Callable[[], object]] = []

    def commit(self) -> None:
        """Serve what was registered."""
        self._registered.owners |= dict.fromkeys(self._keys, f"plugin {self._plugin!r}")
        for keep in self._keep:
            keep()

    def _claim(self, name: str, rows: Mapping[str, Policy]) -> None:
        """Raises ConfigError for a method or route without a row, and for one that is taken."""
        check_rows([name], rows)
        if not isinstance(row := rows[name], Policy):
            raise TypeError(f"the row of {name} is a {type(row).__name__}: write Policy(Role.INFER)")
        key = key_of(name)
        if (owner := self._registered.owners.get(key)) is not None:
            raise ConfigError(f"{name} of plugin {self._plugin!r} is refused: {owner} serves it")
        if key in self._keys:
            raise ConfigError(f"{name} is registered twice")
        self._keys.append(key)


class Services(Register):
    """The `register` of `register_services`."""

    def __call__(
        self,
        add: Callable[[Any, Any], None],
        servicer: Any,
        rows: Mapping[str, Policy],
        problem: Callable[[], str] | None = None,
    ) -> None:
        """As `GrpcServer.add_service`; `problem` as the hook says. Raises ConfigError."""
        found = methods_of(add, servicer)
        for service, methods in found.items():
            for method in methods:
                self._claim(f"/{service}/{method}", rows)
        self._keep.append(partial(self._registered.server.add_service, add, servicer, rows))
        self._keep.append(partial(self._registered.services.extend, found))
        if problem is not None:
            asked = partial(self._problem, problem)
            self._keep.append(partial(self._registered.problems.update, dict.fromkeys(found, asked)))

    def _problem(self, problem: Callable[[], str]) -> str:
        """What `problem` returns. A service whose plugin cannot say how it does is believed to work."""
        try:
            return problem()
        except Exception as error:
            self._running.fault("register_services", error)
            return ""


class Routes(Register):
    """The `register` of `register_http`."""

    def __call__(self, routes: Sequence[Route], rows: Mapping[str, Policy]) -> None:
        """Raises ConfigError, TypeError for what is no route, and ValueError for a path that is none."""
        for route in routes:
            if not isinstance(route, Route):
                raise TypeError(f"{route!r} is no route: write router.server.http.Route(verb, path, answer)")
            theirs = route.path.startswith(CONSOLE) and self._running.plugin.source != "built-in"
            if not route.path.startswith("/") or theirs:
                raise ValueError(f"the path {route.path!r} must begin with '/', and not with {CONSOLE!r}")
            try:
                compile_path(route.path)
            except (AssertionError, ValueError) as error:
                raise ValueError(f"the path {route.path!r} is none: {error}") from None
            self._claim(route.name, rows)
        self._keep.append(partial(self._registered.routes.extend, routes))
        self._keep.append(partial(self._registered.rows.update, rows))


class Authenticators(Register):
    """The `register` of `register_authenticators`."""

    def __call__(self, authenticator: Authenticator) -> None:
        """Raises TypeError for what is none."""
        if not isinstance(authenticator, Authenticator):
            raise TypeError(
                f"{authenticator!r} is no authenticator: write a subclass of "
                "router.access.access.Authenticator"
            )
        self._keep.append(partial(self._registered.access.add, authenticator, self._failed))

    def _failed(self, error: Exception) -> None:
        self._running.fault("register_authenticators", error)


def key_of(name: str) -> str:
    """A method or route, whatever its parameters are called.

    >>> key_of("GET /v1/models/{model}")
    'GET /v1/models/{}'
    """
    return _PARAMETER.sub("{}", name)


# -- Services that no plugin has added: every method refuses, and says how to get it.


def absent(kind: type[T], service: Any, why: str) -> T:
    """A servicer of that kind whose methods, those of the `service` descriptor, raise FailedPrecondition."""

    async def refuse(self: Any, request: Any, context: Any) -> None:
        raise FailedPrecondition(why)

    methods = {method.name: refuse for method in service.methods}
    made: T = type(f"Absent{kind.__name__}", (kind,), methods)()
    return made


def refuse_absent(server: GrpcServer, no_experiments: str) -> None:
    """Add the services of `OF_PLUGINS`, which refuse, where no plugin has added them."""
    services = (
        (fleet_pb2, fleet_pb2_grpc, "FleetService", NO_FLEET),
        (experiments_pb2, experiments_pb2_grpc, "ExperimentService", no_experiments),
        (feedback_pb2, feedback_pb2_grpc, "FeedbackService", NO_FEEDBACK),
    )
    served = {method.split("/")[1] for method in server.endpoints}
    for messages, generated, name, why in services:
        service = messages.DESCRIPTOR.services_by_name[name]
        if service.full_name not in served:
            add = getattr(generated, f"add_{name}Servicer_to_server")
            server.add_service(add, absent(getattr(generated, f"{name}Servicer"), service, why), ROWS)


def check_parts(settings: Settings, plugins: Collection[str]) -> None:
    """Raises ConfigError for a setting that asks for a built-in plugin whose folder was taken away."""
    for name, plugin in PARTS.items():
        asked = getattr(settings, name) not in ("", None, Settings.model_fields[name].default)
        if asked and plugin not in plugins:
            why = NO_EXPERIMENTS if plugin == "experiments" else f"there is no built-in plugin {plugin}"
            raise ConfigError(f"{why}, and the setting `{name}` asks for it")


# -- Metrics of plugins.


class PluginsCollector(Collector):
    """A plugin whose own metrics cannot be read is left out; the fault is shown as one of its hooks."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def describe(self) -> list[Metric]:
        """Nothing: which metrics there are depends on the plugins."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        faults = CounterMetricFamily(
            "lora_router_plugin_faults", "Calls of a plugin's hook that failed.", labels=("plugin", "hook")
        )
        dropped = CounterMetricFamily(
            "lora_router_plugin_records_dropped",
            "Records that a plugin did not get, since too many waited.",
            labels=("plugin",),
        )
        seen: set[str] = set()
        for running in self._hooks.running():
            if running.loaded.metrics is not None and not running.failed:
                try:
                    own = [one for one in running.loaded.metrics.collect() if one.name not in seen]
                except Exception as error:
                    running.fault("register_metrics", error)
                else:
                    seen.update(one.name for one in own)
                    yield from own
            for hook, fault in tuple(running.faults.items()):
                faults.add_metric((running.plugin.name, hook), fault.count)
            if running.observer is not None:
                dropped.add_metric((running.plugin.name,), running.observer.dropped)
        yield from (faults, dropped)
