"""Object stores among the adapters folders: each is mirrored into a folder that the registry watches."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from router.errors import ConfigError
from router.extensions.mirrors.metrics import MirrorState

if TYPE_CHECKING:
    from router import config
    from router.extensions.mirrors.settings import MirrorSettings
    from router.plugins.loader import SourceEntry
    from router.sources.mirror import Mirror
    from router.sources.store import Folders

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
