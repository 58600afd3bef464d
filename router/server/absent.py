"""Services of what a server does not have: every method refuses, and says how to get it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from router.config import Settings
from router.errors import NO_EXPERIMENTS, ConfigError, FailedPrecondition
from router.server.grpc_adapter import GrpcServer
from router.server.policy import ROWS
from router.v1 import experiments_pb2, experiments_pb2_grpc, fleet_pb2, fleet_pb2_grpc

T = TypeVar("T")
NO_FLEET = (
    "this server has one engine, in its own process: start it with `serve --replicas N` to have replicas"
)


def absent(kind: type[T], service: Any, why: str) -> T:
    """A servicer of that kind whose methods, those of the `service` descriptor, raise FailedPrecondition."""

    async def refuse(self: Any, request: Any, context: Any) -> None:
        raise FailedPrecondition(why)

    methods = {method.name: refuse for method in service.methods}
    made: T = type(f"Absent{kind.__name__}", (kind,), methods)()
    return made


def refuse_absent(server: GrpcServer, no_experiments: str) -> None:
    """Add FleetService and ExperimentService, which refuse, where no plugin has added them."""
    services = (
        (fleet_pb2, fleet_pb2_grpc, "FleetService", NO_FLEET),
        (experiments_pb2, experiments_pb2_grpc, "ExperimentService", no_experiments),
    )
    served = {method.split("/")[1] for method in server.endpoints}
    for messages, generated, name, why in services:
        service = messages.DESCRIPTOR.services_by_name[name]
        if service.full_name not in served:
            add = getattr(generated, f"add_{name}Servicer_to_server")
            server.add_service(add, absent(getattr(generated, f"{name}Servicer"), service, why), ROWS)


PARTS = {
    "experiments": "experiments",
    "shared_state": "sharing",
    "corrections": "corrections",
}  # settings, and the built-in plugins that they are for


def check_parts(settings: Settings, plugins: Collection[str]) -> None:
    """Raises ConfigError for a setting that asks for a built-in plugin whose folder was taken away."""
    for name, plugin in PARTS.items():
        asked = getattr(settings, name) not in ("", None, Settings.model_fields[name].default)
        if asked and plugin not in plugins:
            why = NO_EXPERIMENTS if plugin == "experiments" else f"there is no built-in plugin {plugin}"
            raise ConfigError(f"{why}, and the setting `{name}` asks for it")
