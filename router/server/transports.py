"""Where a server is reached, and what it answers there: gRPC, HTTP, and the page of metrics and probes."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from grpc_health.v1 import health

from router.access.hosts import Hosts
from router.config import Settings
from router.server.absent import refuse_absent
from router.server.adapters import AdapterService
from router.server.grpc_adapter import GrpcServer
from router.server.http import application
from router.server.interceptors import Interceptors
from router.server.listen import add_reflection, bind, bind_sidecar, bind_socket, server_options
from router.server.listener import Listener
from router.server.metrics import Metrics
from router.server.policy import ROWS
from router.server.probes import listener, probes
from router.server.registration import Authenticators, Registered, Routes, Services
from router.server.tls import Tls
from router.v1.adapters_pb2_grpc import add_AdapterServiceServicer_to_server
from router.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

if TYPE_CHECKING:
    from router.server.app import ServerApp

log = logging.getLogger(__name__)
PROBE_SECONDS = 1.0  # for probes to end at shutdown


class Transports:
    """All addresses of a server; each is empty where the settings name none."""

    def __init__(
        self, settings: Settings, tls: Tls | None, interceptors: Interceptors, metrics: Metrics
    ) -> None:
        self._settings, self._tls, self._interceptors = settings, tls, interceptors
        self.grpc = GrpcServer(interceptors, server_options(settings))
        self._web = Listener(settings.http_listen, tls) if settings.http_listen else None
        shed = metrics.shed.labels("http").inc
        self._probes = listener(settings, shed) if settings.metrics_listen else None
        self.address = self.sidecar_address = self.metrics_address = self.http_address = ""

    def bind(self) -> None:
        """Take all addresses. Raises ConfigError for one that cannot be had."""
        settings = self._settings
        self.address = bind(self.grpc.main, settings.listen, self._tls)
        if settings.admin_listen:
            bind_socket(self.grpc.main, settings.admin_listen, "admin_listen")
        if settings.sidecar_listen:
            self.sidecar_address = bind_sidecar(self.grpc.with_sidecar(), settings.sidecar_listen)
        if self._probes is not None:
            self._probes.bind()
            self.metrics_address = self._probes.address
        if self._web is not None:
            self._web.bind()
            self.http_address = self._web.address

    async def open(self, server: ServerApp) -> None:
        """Answer with the services of the core and with what plugins register. Raises ConfigError."""
        hooks, registered = server.hooks, await self._services(server)
        if self._probes is not None:
            pages = (server.metrics, server.health, server.look)
            await self._probes.start(probes(self._interceptors, self._settings, self.metrics_address, *pages))
        if self._web is not None:
            await hooks.register("register_http", partial(Routes, registered))
            hosts = Hosts(self._settings.http_listen, self._tls is not None, self._settings.console_hosts)
            # Where clients have tokens, a page of another name has none; the console checks names itself.
            guarded = hosts if hosts.local and self._settings.clients is None else None
            site = application(self._interceptors, registered.routes, registered.rows, hosts=guarded)
            await self._web.start(site)
        await self.grpc.start()
        addresses = {"address": self.address, "http": self.http_address, "metrics": self.metrics_address}
        log.info("listening", extra={"fields": {name: at for name, at in addresses.items() if at}})

    async def _services(self, server: ServerApp) -> Registered:
        """Add all gRPC services; health and reflection name them."""
        hooks, known = server.hooks, server.health
        self.grpc.add_service(add_InferenceServiceServicer_to_server, server.inference, ROWS)
        adapters = AdapterService(server.registry, server.plugins.status)
        self.grpc.add_service(add_AdapterServiceServicer_to_server, adapters, ROWS)
        registered = Registered(self.grpc, server.access)
        await hooks.register("register_authenticators", partial(Authenticators, registered))
        await hooks.register("register_services", partial(Services, registered))
        refuse_absent(self.grpc, server.no_experiments)
        known.know(registered.services, registered.problems)
        await known.register(self.grpc)
        if self._settings.reflection:
            add_reflection((*known.names[1:], health.SERVICE_NAME), self.grpc)
        return registered

    async def stop(self, seconds: float) -> None:
        """Take no more requests; those that run have so long to end. Probes are still answered."""
        web = [self._web.stop(seconds)] if self._web is not None else []
        await asyncio.gather(self.grpc.stop(seconds), *web)

    async def stop_at_once(self) -> None:
        """End what runs."""
        if self._web is not None:
            self._web.end()
        await self.grpc.stop(0)

    async def close(self) -> None:
        """Answer no more probes."""
        if self._probes is not None:
            await self._probes.stop(PROBE_SECONDS)
