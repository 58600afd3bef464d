"""The clients file, the same at all edges: who edits it at one edits it everywhere.

An edge's own file is what it goes by, always: to take a client out of it works at once, whether the others
can be reached or not. Here a file that somebody has edited is given to the others, and what others gave is
written into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from router.access.clients import parse_clients, read_clients
from router.errors import ChangedElsewhere, SharedDown
from router.ports import SharedDocuments
from router.reread import problem_of

log = logging.getLogger(__name__)
KEY = "clients"
LOOK_SECONDS = 0.5
Write = Callable[[Path, str], None]  # whole or not at all


class ClientsFile:
    """Keeps `path` in step with the others'. `synced` remembers, across restarts, what both had last."""

    def __init__(self, path: Path, shared: SharedDocuments, synced: Path, write: Write) -> None:
        self._path, self._shared, self._synced, self._write = path, shared, synced, write
        self._sha256, self._revision = _read_synced(synced)
        self._task: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._joined = False
        self.problem = ""

    async def start(self) -> None:
        """Take over what is there, then look again and again."""
        self._shared.join(KEY, self._own, lambda _: self._join())
        await self._attempt()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="clients file")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def flaws(self) -> list[str]:
        """What is wrong, for a person."""
        return [self.problem] if self.problem else []

    def _join(self) -> None:
        self._joined = True
        self._due.set()

    def _own(self) -> Mapping[str, Any]:
        text = self._read()
        return {} if text is None else {KEY: {"text": text}}

    def _read(self) -> str | None:
        """None where it is not right: then nobody else gets it."""
        try:
            read_clients(self._path)
            return self._path.read_text(encoding="utf-8")
        except Exception:  # `Access` reads the same file, and reports it
            return None

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self.look()
        except (ChangedElsewhere, SharedDown) as error:  # the next look knows more
            log.debug("the clients file is not shared yet: %s", error.message)
        except Exception as error:
            self._tell(f"{self._path} is not what edges share: {problem_of(error)}")

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error(problem)
        self.problem = problem

    async def look(self) -> None:
        """Compare once. Raises OSError, ConfigError, ChangedElsewhere, SharedDown."""
        document = self._shared.get(KEY)
        text = await asyncio.to_thread(self._read)
        if not self._joined or document is None or text is None:
            return
        theirs, revision = str(document.get("text", "")), self._shared.revision(KEY)
        if text == theirs:
            await asyncio.to_thread(self._note, text, revision)
        elif _sha256(text) == self._sha256:
            await self._take(theirs, revision)
        elif revision == self._revision:
            await self._shared.put(KEY, {"text": text})
            log.info("the clients file was changed here; all edges go by it now")
            await asyncio.to_thread(self._note, text, self._shared.revision(KEY))
        else:
            await self._yield(text, theirs, revision)

    async def _take(self, theirs: str, revision: int) -> None:
        parse_clients(theirs)
        await asyncio.to_thread(self._write, self._path, theirs)
        log.info("the clients file is as another edge's now")
        await asyncio.to_thread(self._note, theirs, revision)

    async def _yield(self, text: str, theirs: str, revision: int) -> None:
        """Changed here, and elsewhere or never shared: theirs counts, and what was here is kept."""
        aside = self._path.with_name(f"{self._path.name}.{_sha256(text)[:8]}")
        parse_clients(theirs)
        await asyncio.to_thread(self._write, aside, text)
        await self._take(theirs, revision)
        log.error(
            "the clients file was another one here than what edges share, which counts; what was here is in "
            "%s: make its changes again",
            aside,
        )

    def _note(self, text: str, revision: int) -> None:
        sha256 = _sha256(text)
        if (sha256, revision) != (self._sha256, self._revision):
            self._sha256, self._revision = sha256, revision
            self._write(self._synced, json.dumps({"sha256": sha256, "revision": revision}))
        self._tell("")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_synced(path: Path) -> tuple[str, int]:
    try:
        found = json.loads(path.read_bytes())
        return str(found["sha256"]), int(found["revision"])
    except FileNotFoundError:
        return "", -1
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used (%s); the clients file is as never shared", path, error)
        return "", -1
