"""AdapterService: the registry over gRPC."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import grpc

from router.errors import AdapterNotFound, FieldViolation, Findings, InvalidRequest
from router.names import parse_adapter, parse_version
from router.ports import AdapterRegistry, Force
from router.server.convert.adapters import adapter_message, caller, event_message
from router.server.interceptors.call import current_call
from router.server.paging import page
from router.types import AdapterInfo, AdapterRef
from router.v1 import adapters_pb2 as pb
from router.v1.adapters_pb2_grpc import AdapterServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]
MAX_FILTER_BYTES, MAX_TOKEN_BYTES, MAX_REASON_BYTES = 64, 1024, 500


class AdapterService(AdapterServiceServicer):
    """No method takes a path."""

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        """A page of every version."""
        found = Findings()
        found.text("domain", request.domain, MAX_FILTER_BYTES)
        found.text("task", request.task, MAX_FILTER_BYTES)
        found.text("page_token", request.page_token, MAX_TOKEN_BYTES)
        found.check()
        infos = (
            info
            for info in self._registry.list()
            if request.domain in ("", info.domain) and request.task in ("", info.task)
        )
        shown, token = page(infos, request.page_size, request.page_token, (request.domain, request.task))
        return pb.ListAdaptersResponse(adapters=map(self._message, shown), next_page_token=token)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """One version, quarantined ones too."""
        return pb.GetAdapterResponse(adapter=self._message(self._get(request.name)))

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:
        """Answers when it is in memory."""
        pinned = request.pinned if request.HasField("pinned") else None
        info = await self._registry.load(self._get(request.name).ref, pinned)
        return pb.LoadAdapterResponse(adapter=self._message(info))

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Context
    ) -> pb.UnloadAdapterResponse:
        """Answers after the last lease is gone."""
        info, freed = await self._registry.unload(self._get(request.name).ref)
        return pb.UnloadAdapterResponse(adapter=self._message(info), freed_bytes=freed)

    async def SetDefaultVersion(
        self, request: pb.SetDefaultVersionRequest, context: Context
    ) -> pb.SetDefaultVersionResponse:
        """The new default and the one before."""
        found = Findings()
        found.text("reason", request.reason, MAX_REASON_BYTES)
        if request.reason and not request.force:
            found.add("reason", "is only recorded with force")
        found.check()
        force = Force(caller(context.peer()), request.reason) if request.force else None
        info, previous = await self._registry.set_default(parse_version(request.name), request.etag, force)
        return pb.SetDefaultVersionResponse(
            adapter=self._message(info), previous=previous.resource if previous else ""
        )

    async def ResetDefaultVersion(
        self, request: pb.ResetDefaultVersionRequest, context: Context
    ) -> pb.ResetDefaultVersionResponse:
        """The default by the rule and the one before."""
        name, version = parse_adapter(request.name)
        if version:
            raise InvalidRequest([FieldViolation("name", "must be adapters/NAME, without a version")])
        info, previous = await self._registry.reset_default(name)
        return pb.ResetDefaultVersionResponse(
            adapter=self._message(info), previous=previous.resource if previous else ""
        )

    async def WatchAdapters(self, request: pb.WatchAdaptersRequest, context: Context) -> None:
        """Events until the caller leaves or the server drains."""
        await context.send_initial_metadata(current_call().headers)
        async with aclosing(cast(Any, self._registry.watch())) as events:
            async for event in events:
                await context.write(event_message(event, self._etag(event.adapter.ref)))

    def _get(self, resource: str) -> AdapterInfo:
        return self._registry.get(*parse_adapter(resource))

    def _message(self, info: AdapterInfo) -> pb.Adapter:
        return adapter_message(info, self._etag(info.ref))

    def _etag(self, ref: AdapterRef) -> str:
        try:
            return self._registry.etag(ref)
        except AdapterNotFound:  # removed since; the event still tells of it
            return ""
