"""The Open Inference Protocol of KServe and Triton, over gRPC, where the setting `kserve` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterServices, hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


@hookimpl
def register_services(register: RegisterServices, server: ServerApp) -> None:
    """GRPCInferenceService. Its messages have names that other packages' have, so they are imported here."""
    if not server.settings.kserve:
        return
    from router.extensions.kserve.service import ROWS, OpenInference
    from router.kserve.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

    service = OpenInference(
        server.interceptors, server.inference, server.registry, server.health, server.lifecycle
    )
    register(add_GRPCInferenceServiceServicer_to_server, service, ROWS)
