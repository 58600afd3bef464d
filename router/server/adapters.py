"""AdapterService: the registry over gRPC, its messages, and pages of a list, for other services too."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from router.conversion import fill
from router.errors import AdapterNotFound, FieldViolation, Findings, InvalidRequest
from router.names import parse_adapter, parse_version
from router.ports import AdapterRegistry, Force
from router.server.call import Call
from router.types import AdapterEvent, AdapterInfo, AdapterRef
from router.v1 import adapters_pb2 as pb
from router.v1.adapters_pb2_grpc import AdapterServiceServicer

if TYPE_CHECKING:
    from router.plugins import PluginStatus

MAX_FILTER_BYTES, MAX_TOKEN_BYTES, MAX_REASON_BYTES = 64, 1024, 500
NOT_SHOWN = 'what is wrong is shown to clients with adapters = ["*"] alone'
DEFAULT_PAGE, MAX_PAGE = 50, 500  # entries
T = TypeVar("T")
Key: TypeAlias = tuple[str, str]  # name and version; of what has no version, ""


class AdapterService(AdapterServiceServicer):
    """No method takes a path."""

    def __init__(
        self, registry: AdapterRegistry, plugins: Callable[[], Sequence[PluginStatus]] = tuple
    ) -> None:
        self._registry, self._plugins = registry, plugins

    async def ListAdapters(self, request: pb.ListAdaptersRequest, call: Call) -> pb.ListAdaptersResponse:
        """A page of every version."""
        found = Findings()
        found.text("domain", request.domain, MAX_FILTER_BYTES)
        found.text("task", request.task, MAX_FILTER_BYTES)
        found.text("page_token", request.page_token, MAX_TOKEN_BYTES)
        found.check()
        visible, filters = call.client.adapters, (request.domain, request.task)
        after = AdapterRef(*_decode(request.page_token, filters)) if request.page_token else None
        infos = (
            info
            for info in self._registry.listed(after)
            if info.ref.name in visible
            and request.domain in ("", info.domain)
            and request.task in ("", info.task)
        )
        shown, token = cut(infos, name_and_version, request.page_size, filters)
        findings = self._findings(call)
        messages = [self._message(info, findings) for info in shown]
        return pb.ListAdaptersResponse(adapters=messages, next_page_token=token)

    async def ListPlugins(self, request: pb.ListPluginsRequest, call: Call) -> pb.ListPluginsResponse:
        """All of them, broken ones too."""
        everything = call.client.adapters.everything
        return pb.ListPluginsResponse(
            plugins=[plugin_message(plugin, everything) for plugin in self._plugins()]
        )

    async def GetAdapter(self, request: pb.GetAdapterRequest, call: Call) -> pb.GetAdapterResponse:
        """One version, quarantined ones too."""
        message = self._message(self._get(request.name, call), self._findings(call))
        return pb.GetAdapterResponse(adapter=message)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, call: Call) -> pb.LoadAdapterResponse:
        """Answers when it is in memory."""
        pinned = request.pinned if request.HasField("pinned") else None
        info = await self._registry.load(self._get(request.name, call).ref, pinned)
        return pb.LoadAdapterResponse(adapter=self._message(info))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, call: Call) -> pb.UnloadAdapterResponse:
        """Answers after the last lease is gone."""
        info, freed = await self._registry.unload(self._get(request.name, call).ref)
        return pb.UnloadAdapterResponse(adapter=self._message(info), freed_bytes=freed)

    async def SetDefaultVersion(
        self, request: pb.SetDefaultVersionRequest, call: Call
    ) -> pb.SetDefaultVersionResponse:
        """The new default and the one before."""
        found = Findings()
        found.text("reason", request.reason, MAX_REASON_BYTES)
        if request.reason and not request.force:
            found.add("reason", "is only recorded with force")
        found.check()
        force = Force(call.actor, request.reason) if request.force else None
        ref = parse_version(request.name)
        self._registry.get(ref.name, ref.version, call.client.adapters)
        info, previous = await self._registry.set_default(ref, request.etag, force)
        return pb.SetDefaultVersionResponse(
            adapter=self._message(info), previous=previous.resource if previous else ""
        )

    async def ResetDefaultVersion(
        self, request: pb.ResetDefaultVersionRequest, call: Call
    ) -> pb.ResetDefaultVersionResponse:
        """The default by the rule and the one before."""
        name, version = parse_adapter(request.name)
        if version:
            raise InvalidRequest([FieldViolation("name", "must be adapters/NAME, without a version")])
        self._registry.get(name, "", call.client.adapters)
        info, previous = await self._registry.reset_default(name)
        return pb.ResetDefaultVersionResponse(
            adapter=self._message(info), previous=previous.resource if previous else ""
        )

    async def WatchAdapters(self, request: pb.WatchAdaptersRequest, call: Call) -> None:
        """Events until the caller leaves or the server drains."""
        await call.begin()
        async with aclosing(cast(Any, self._registry.watch())) as events:
            async for event in events:
                if event.adapter.ref.name not in call.client.adapters:
                    continue
                await call.write(event_message(event, self._etag(event.adapter.ref)))

    def _get(self, resource: str, call: Call) -> AdapterInfo:
        return self._registry.get(*parse_adapter(resource), call.client.adapters)

    def _findings(self, call: Call) -> Mapping[str, Sequence[str]]:
        """What classifiers found out about adapters, for who may see all of them: it names others."""
        lines: dict[str, list[str]] = {}
        for plugin in self._plugins() if call.client.adapters.everything else ():
            for classifier in plugin.classifiers:
                for name, line in classifier.findings.items():
                    lines.setdefault(name, []).append(line)
        return lines

    def _message(
        self, info: AdapterInfo, findings: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> pb.Adapter:
        message = adapter_message(info, self._etag(info.ref))
        if info.routable:
            message.notes.extend(findings.get(info.ref.name, ()))
        return message

    def _etag(self, ref: AdapterRef) -> str:
        try:
            return self._registry.etag(ref)
        except AdapterNotFound:  # removed since; the event still tells of it
            return ""


# -- Messages: adapters, their lifecycle events, and plugins.


def adapter_message(info: AdapterInfo, etag: str) -> pb.Adapter:
    """One adapter version."""
    return fill(pb.Adapter(version=info.ref.version, etag=etag), info)


def plugin_message(plugin: PluginStatus, everything: bool) -> pb.Plugin:
    """One plugin. What is wrong with it may quote paths and adapters: only for who may see `everything`."""

    def shown(problem: str) -> str:
        return problem if everything or not problem else NOT_SHOWN

    path, warnings = PurePath(plugin.path).name, tuple(map(shown, plugin.warnings))
    said = replace(plugin, path=path, error=shown(plugin.error), warnings=warnings, classifiers=())
    message = fill(pb.Plugin(), said)
    for one in plugin.classifiers:
        fill(message.classifiers.add(problem=shown(one.fit_error or one.last_error)), one)
    return message


def event_message(event: AdapterEvent, etag: str) -> pb.WatchAdaptersResponse:
    """One lifecycle event."""
    message = pb.WatchAdaptersResponse(adapter=adapter_message(event.adapter, etag))
    return fill(message, {"kind": event.kind, "time": event.time})


# -- Pages of a list by an opaque token that is bound to the filters it was made with.


def page(
    entries: Iterable[T], key: Callable[[T], Key], size: int, token: str, filters: Sequence[str]
) -> tuple[list[T], str]:
    """The entries after `token`, and the token of the next page ('' on the last).

    Size 0 is 50, more than 500 is 500. Entries that come or go between pages shift nothing: a token keeps
    the key of the last that was shown. Lists of other things say in `filters` what they are.
    """
    rows = sorted(entries, key=lambda entry: place(key(entry)))
    if token:
        after = place(_decode(token, filters))
        rows = [entry for entry in rows if place(key(entry)) > after]
    return cut(rows, key, size, filters)


def cut(
    entries: Iterable[T], key: Callable[[T], Key], size: int, filters: Sequence[str]
) -> tuple[list[T], str]:
    """The first page of entries that are in order, and its token, as `page`; no more of them are made."""
    if size < 0:
        raise InvalidRequest([FieldViolation("page_size", "must be 0 or more")])
    most = min(size or DEFAULT_PAGE, MAX_PAGE)
    rows = list(islice(entries, most + 1))
    shown = rows[:most]
    return shown, _encode(key(shown[-1]), filters) if len(rows) > most else ""


def name_and_version(info: AdapterInfo) -> Key:
    """The key of an adapter."""
    return info.ref.name, info.ref.version


def place(key: Key) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """By name, then by version with numbers as numbers: 1.9 before 1.10."""
    name, version = key
    parts = re.findall(r"\d+|\D+", version)
    return name, tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def _scope(filters: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(filters)).encode()).hexdigest()[:16]


def _encode(key: Key, filters: Sequence[str]) -> str:
    raw = json.dumps([_scope(filters), *key])
    return base64.urlsafe_b64encode(raw.encode()).decode()


def _decode(token: str, filters: Sequence[str]) -> Key:
    try:
        scope, name, version = json.loads(base64.b64decode(token.encode(), b"-_", validate=True))
        valid = scope == _scope(filters) and isinstance(name, str) and isinstance(version, str)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        valid = False
    if not valid:
        text = "is not a token of this list under these filters; start again without one"
        raise InvalidRequest([FieldViolation("page_token", text)])
    return name, version
