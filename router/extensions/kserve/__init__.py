"""The Open Inference Protocol of KServe and Triton, over gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterService, RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


class KServeSettings(BaseModel):
    """The table [kserve]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(
        False, description="serve the Open Inference Protocol (KServe, Triton) at the gRPC address, too"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[kserve]`."""
    register(KServeSettings)


@hookimpl
def register_service(register: RegisterService, server: ServerApp, settings: KServeSettings) -> None:
    """GRPCInferenceService. Its messages have names that other packages' have, so they are imported here."""
    if not settings.enabled:
        return
    from router.extensions.kserve.service import ROWS, OpenInference
    from router.kserve.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
    from router.server.policy import ServiceSpec

    service = OpenInference(
        server.interceptors, server.inference, server.registry, server.health, server.lifecycle
    )
    register(ServiceSpec(add_GRPCInferenceServiceServicer_to_server, service, ROWS))
