"""Object stores among the adapters folders: each is mirrored into a folder that the registry watches."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from router.errors import ConfigError
from router.hookspecs import RegisterCheck, RegisterSettings, hookimpl

if TYPE_CHECKING:
    from router import config
    from router.plugins.loader import SourceEntry
    from router.server.app import ServerApp
    from router.sources.mirror import Mirror
    from router.sources.store import Folders


class MirrorSettings(BaseModel):
    """The table [mirrors]."""

    model_config = ConfigDict(frozen=True)

    seconds: float = Field(5.0, gt=0, description="how often stores of adapters are listed")
    cache_mb: int = Field(
        8192, ge=0, description="files of stores that are kept by their digest beside what is mirrored"
    )
    wait_seconds: float = Field(
        300.0, ge=0, description="most time for which a start waits until all of a store was mirrored once"
    )


@dataclass(frozen=True, slots=True)
class MirrorState:
    """One store: seconds since it was last followed without a fault, folders here, folders refused."""

    store: str
    behind_seconds: float
    folders: int
    refused: int


class MirrorsCollector(Collector):
    """A line for each store among the adapters folders."""

    def __init__(self, states: Callable[[], Iterable[MirrorState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        behind = GaugeMetricFamily(
            "lora_router_mirror_behind_seconds",
            "Seconds for which a store of adapters has not been followed; 0 while it is.",
            labels=("store",),
        )
        folders = GaugeMetricFamily(
            "lora_router_mirror_adapters",
            "Adapter folders that were mirrored from a store.",
            labels=("store",),
        )
        refused = GaugeMetricFamily(
            "lora_router_mirror_refused",
            "Adapter folders of a store that are too large or not to be trusted.",
            labels=("store",),
        )
        for state in self._states():
            behind.add_metric((state.store,), state.behind_seconds)
            folders.add_metric((state.store,), state.folders)
            refused.add_metric((state.store,), state.refused)
        yield from (behind, folders, refused)


OPEN_SECONDS = 10.0  # a start waits so long for each store's first answer, which may say what is wrong


class Mirrors:
    """All of a server's. Nothing is fetched before `opened`, and none of it by the event loop."""

    def __init__(self, mirrors: Sequence[Mirror] = (), wait_seconds: float = 0.0) -> None:
        self._mirrors, self._wait_seconds = mirrors, wait_seconds
        self._bars = ExitStack()
        self._bar: Callable[[str, int, int], None] | None = None  # on a terminal, while a start waits

    @classmethod
    def of(
        cls, settings: config.Settings, own: MirrorSettings, sources: Mapping[str, SourceEntry]
    ) -> Mirrors:
        """`sources`: those of plugins by scheme. Raises ConfigError for a store that cannot be opened."""
        urls = [one for one in settings.adapters_dir if isinstance(one, str)]
        if not urls:
            return cls()
        from router.sources.fetching import Cache
        from router.sources.mirror import Mirror
        from router.sources.source import ANY

        def store(url: str) -> Folders:
            scheme = url.partition("://")[0]
            entry = sources.get(scheme) or sources.get(ANY)
            if entry is None or entry.store is None:
                known = ", ".join(sorted(name for name, one in sources.items() if one.store is not None))
                raise ConfigError(
                    f"adapters_dir: {scheme}:// is no store here; plugins have {known or 'none'}"
                )
            return entry.store(url)  # type: ignore[no-any-return]

        made = cls((), own.wait_seconds)
        cache = Cache(settings.mirror_folder() / "cache", own.cache_mb << 20)
        most = settings.host_memory_mb << 20
        made._mirrors = [
            Mirror(store(url), settings.mirror_folder(url), cache, own.seconds, most, made._show)
            for url in urls
        ]
        return made

    def _show(self, source: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar(source, done, total)

    async def opened(self) -> None:
        """Start; wait for the first answers. Raises what somebody has to mend."""
        from router.cli.output import fetching, is_plain

        if self._mirrors and not is_plain(sys.stderr):
            self._bar = self._bars.enter_context(fetching())
        for mirror in self._mirrors:
            mirror.start()
        await self._until(lambda mirror: mirror.looked, OPEN_SECONDS)
        for mirror in self._mirrors:
            if mirror.wrong is not None:
                raise mirror.wrong

    async def whole(self) -> None:
        """Wait until all that the stores have is here, or as much as is to be had for now."""
        await self._until(_may_begin, self._wait_seconds)
        self._bar = None
        self._bars.close()

    async def _until(self, done: Callable[[Mirror], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if all(map(done, self._mirrors)):
                return
            await asyncio.sleep(0.02)

    def flaws(self) -> list[str]:
        """What is wrong with them, and holds up no request."""
        return [flaw for mirror in self._mirrors if (flaw := mirror.flaw)]

    def states(self) -> Iterator[MirrorState]:
        """For a scraper."""
        for mirror in self._mirrors:
            status = mirror.status
            yield MirrorState(mirror.reference, mirror.behind_seconds, status.folders, status.refused)

    def close(self) -> None:
        """Stop them; blocks."""
        for mirror in self._mirrors:
            mirror.stop()
        for mirror in self._mirrors:
            mirror.close()
        self._bars.close()


def _may_begin(mirror: Mirror) -> bool:
    """What an earlier server mirrored is served while the store is away, or takes long to say so."""
    status = mirror.status
    return status.whole or bool(mirror.folders and (status.problem or not mirror.looked))


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[mirrors]`."""
    register(MirrorSettings)


class Plugin:
    """The mirrors of one server."""

    def __init__(self) -> None:
        self._mirrors = Mirrors()

    @hookimpl
    def register_checks(self, register: RegisterCheck) -> None:
        """What is wrong with them."""
        register(self._flaws)

    @hookimpl
    def on_startup(self, server: ServerApp, settings: MirrorSettings) -> None:
        """Find the plugin of each store. Raises ConfigError."""
        self._mirrors = Mirrors.of(server.settings, settings, server.plugins.sources())
        server.metrics.registry.register(MirrorsCollector(self._mirrors.states))

    @hookimpl
    async def on_load(self) -> None:
        """Fetch what the stores have, or as much as is to be had for now."""
        await self._mirrors.opened()
        await self._mirrors.whole()

    @hookimpl
    async def on_shutdown(self) -> None:
        """Fetch no more."""
        await asyncio.to_thread(self._mirrors.close)

    def _flaws(self) -> Sequence[str]:
        return self._mirrors.flaws()
