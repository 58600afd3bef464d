"""What plugins add to a server: gRPC services, HTTP routes, authenticators and metrics.

The first that registers a method or route has it. All that one hook of a plugin registers is kept together,
or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import compile_path

from router.access.access import Access, Authenticator
from router.errors import ConfigError, FailedPrecondition
from router.server.grpc_adapter import GrpcServer, methods_of
from router.server.http import Route
from router.server.policy import ROWS, Policy, ServiceSpec, check_rows

if TYPE_CHECKING:
    from router.plugins import Hooks
    from router.plugins.runtime import RunningPlugin

CORE = "the server itself"
_PARAMETER = re.compile(r"\{[^}]*\}")


class Registered:
    """All of it. `services` are names of gRPC services, `rows` the policies of `routes`."""

    def __init__(self, server: GrpcServer, access: Access) -> None:
        self.server, self.access = server, access
        self.services: list[str] = []
        self.problems: dict[str, Callable[[], str]] = {}  # of services: why one cannot work for now
        self.routes: list[Route] = []
        self.rows: dict[str, Policy] = {}
        self.owners = dict.fromkeys((*server.endpoints, *ROWS), CORE)  # of methods and routes

    async def by(self, hooks: Hooks, hook: str) -> None:
        """Call that hook of all plugins: `register_service`, `register_http` or `register_authenticators`."""
        await hooks.register(hook, partial(Register, self, hook))


class Register:
    """The `register` of a hook of one plugin: checks at once, and keeps when the hook has returned."""

    def __init__(self, registered: Registered, hook: str, running: RunningPlugin) -> None:
        self._registered, self._hook, self._running = registered, hook, running
        self._plugin = running.plugin.name
        self._keys: list[str] = []
        self._keep: list[Callable[[], object]] = []

    def __call__(self, what: Any, rows: Mapping[str, Policy] = MappingProxyType({})) -> None:
        """Raises ConfigError for a method or route without a row, and for one that is taken; TypeError for
        what is not of the hook's kind; ValueError for a path that is none."""
        if self._hook == "register_service":
            self._service(what)
        elif self._hook == "register_http":
            self._routes(what, rows)
        else:
            self._authenticator(what)

    def commit(self) -> None:
        """Serve what was registered."""
        self._registered.owners |= dict.fromkeys(self._keys, f"plugin {self._plugin!r}")
        for keep in self._keep:
            keep()

    def _claim(self, name: str, rows: Mapping[str, Policy]) -> None:
        check_rows([name], rows)
        if not isinstance(row := rows[name], Policy):
            raise TypeError(f"the row of {name} is a {type(row).__name__}: write Policy(Role.INFER)")
        key = key_of(name)
        if (owner := self._registered.owners.get(key)) is not None:
            raise ConfigError(f"{name} of plugin {self._plugin!r} is refused: {owner} serves it")
        if key in self._keys:
            raise ConfigError(f"{name} is registered twice")
        self._keys.append(key)

    def _service(self, spec: ServiceSpec) -> None:
        if not isinstance(spec, ServiceSpec):
            raise TypeError(f"{spec!r} is no service: write router.serving.ServiceSpec(add, servicer, rows)")
        found = methods_of(spec.add, spec.servicer)
        for service, methods in found.items():
            for method in methods:
                self._claim(f"/{service}/{method}", spec.rows)
        self._keep.append(partial(self._registered.server.add_service, spec))
        self._keep.append(partial(self._registered.services.extend, found))
        if spec.problem is not None:
            asked = partial(self._problem, spec.problem)
            self._keep.append(partial(self._registered.problems.update, dict.fromkeys(found, asked)))

    def _problem(self, problem: Callable[[], str]) -> str:
        """What `problem` returns. A service whose plugin cannot say how it does is believed to work."""
        try:
            return problem()
        except Exception as error:
            self._failed(error)
            return ""

    def _routes(self, routes: Sequence[Route], rows: Mapping[str, Policy]) -> None:
        for route in routes:
            if not isinstance(route, Route):
                raise TypeError(f"{route!r} is no route: write router.server.http.Route(verb, path, answer)")
            if not route.path.startswith("/"):
                raise ValueError(f"the path {route.path!r} must begin with '/'")
            try:
                compile_path(route.path)
            except (AssertionError, ValueError) as error:
                raise ValueError(f"the path {route.path!r} is none: {error}") from None
            self._claim(route.name, rows)
        self._keep.append(partial(self._registered.routes.extend, routes))
        self._keep.append(partial(self._registered.rows.update, rows))

    def _authenticator(self, authenticator: Authenticator) -> None:
        if not isinstance(authenticator, Authenticator):
            raise TypeError(
                f"{authenticator!r} is no authenticator: write a subclass of "
                "router.access.access.Authenticator"
            )
        self._keep.append(partial(self._registered.access.add, authenticator, self._failed))

    def _failed(self, error: Exception) -> None:
        self._running.fault(self._hook, error)


def key_of(name: str) -> str:
    """A method or route, whatever its parameters are called.

    >>> key_of("GET /v1/models/{model}")
    'GET /v1/models/{}'
    """
    return _PARAMETER.sub("{}", name)


class Refusing:
    """A servicer of a service that is off: each of its methods raises FailedPrecondition with that text."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, method: str) -> Callable[[Any, Any], Awaitable[None]]:
        async def refuse(request: Any, call: Any) -> None:
            raise FailedPrecondition(self._why)

        return refuse


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
