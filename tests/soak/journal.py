"""What was true when: written by anyone who changes adapters and clients, read by all who check answers.

Times are those of the machine's monotonic clock, which its processes share. A change is written before it is
made, and again when the server has confirmed it: in between, old and new are both right.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.types import Visible

KEPT_SECONDS = 300.0  # what is over for so long is forgotten: no call lasts so long
IN_FORCE_SECONDS = 2.0  # a change of the clients file is in force after so long, on a busy machine too


@dataclass(slots=True)
class Content:
    """The files that a version had from `begun` on; `over` when calls that begin later get others."""

    name: str
    version: str
    digest: str
    generation: int
    weights: str
    begun: float
    over: float = math.inf

    def may_answer(self, start: float, end: float) -> bool:
        """Whether a call from `start` to `end` may have been answered from these files."""
        return self.begun <= end and start <= self.over


@dataclass(frozen=True, slots=True)
class Entry:
    """A client as the file had it from `begun` on."""

    id: str
    tenant: str
    token: str
    adapters: Visible
    begun: float


@dataclass
class Journal:
    """One file of JSON lines; `read` takes in what came since."""

    path: Path
    contents: dict[tuple[str, str], dict[str, Content]] = field(default_factory=dict)
    clients: dict[str, list[Entry]] = field(default_factory=dict)
    _at: int = 0

    def begin(self, name: str, version: str, digest: str, generation: int, weights: str) -> None:
        """These files are about to be a version's."""
        self._write(
            "content", name=name, version=version, digest=digest, generation=generation, weights=weights
        )

    def confirm(self, name: str, version: str, digest: str) -> None:
        """The server has said that it serves these files: calls that begin from now on get no others."""
        self._write("serves", name=name, version=version, digest=digest)

    def client(self, id_: str, tenant: str, token: str, adapters: Iterable[str]) -> None:
        """A client is about to be in the file like this."""
        self._write("client", id=id_, tenant=tenant, token=token, adapters=list(adapters))

    def read(self) -> None:
        """Take in whole lines that were added; costs one stat where there are none."""
        if os.stat(self.path).st_size == self._at:
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def current(self, name: str, version: str) -> Content:
        """The files that were written last."""
        return max(self.contents[name, version].values(), key=lambda content: content.begun)

    def entry(self, id_: str) -> Entry:
        """The client as it is now."""
        return self.clients[id_][-1]

    def may_see(self, id_: str, name: str, start: float, end: float) -> bool:
        """Whether a client may have known of an adapter at any time of a call."""
        entries = self.clients[id_]
        until = [entry.begun + IN_FORCE_SECONDS for entry in entries[1:]] + [math.inf]
        return any(
            name in entry.adapters and entry.begun <= end and start <= over
            for entry, over in zip(entries, until, strict=True)
        )

    def _write(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "kind": kind, **fields}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def _take(self, line: dict[str, Any]) -> None:
        at, kind = line.pop("at"), line.pop("kind")
        if kind == "client":
            entries = self.clients.setdefault(line["id"], [])
            adapters = Visible(tuple(line["adapters"]))
            entries.append(Entry(line["id"], line["tenant"], line["token"], adapters, at))
            while len(entries) > 1 and entries[1].begun < at - KEPT_SECONDS:
                del entries[0]
            return
        contents = self.contents.setdefault((line["name"], line["version"]), {})
        if kind == "content":
            contents[line["digest"]] = Content(**line, begun=at)
            return
        for digest, content in list(contents.items()):
            if digest != line["digest"] and content.begun <= contents[line["digest"]].begun:
                content.over = min(content.over, at)
            if content.over < at - KEPT_SECONDS:
                del contents[digest]
