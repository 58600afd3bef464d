"""Making the table of versions agree with the folders on disk, one look after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from router.errors import AdapterRejected
from router.registry.folders import (
    Examined,
    FoundFolder,
    Settling,
    examine,
    weights_key,
    weights_sha256,
)
from router.registry.format.artifact import FolderRules
from router.registry.format.folder import FolderError
from router.registry.residency import Residency
from router.registry.state import PersistentCache, Workers
from router.registry.table import Table
from router.registry.version import AdapterVersion
from router.types import AdapterRef

log = logging.getLogger(__name__)

BATCH = 64  # folders examined before the table is changed: the event loop has its turns in between
RETRY_SECONDS = 10.0  # a folder that could not be read at all


class Reconciler:
    """Scans the folders, examines those that no longer change, and brings the table up to date."""

    def __init__(
        self,
        settling: Settling,
        rules: FolderRules,
        workers: Workers,
        table: Table,
        residency: Residency,
        hashes: PersistentCache,
    ) -> None:
        self._settling, self.rules, self._workers = settling, rules, workers
        self._table, self._residency, self._hashes = table, residency, hashes
        self._claims: dict[Path, Examined] = {}  # in the order in which folders came
        self._folders: dict[AdapterRef, list[Path]] = {}  # that claim to be this version
        self._unreadable: Mapping[Path, str] = {}
        self._again: dict[Path, float] = {}
        self._taken: set[AdapterVersion] = set()  # their folder holds another version
        self._number = 0
        self.scan_seconds = 0.0  # what the last scan cost

    async def look(self, dirty: Collection[Path] = (), every_file: bool = True) -> bool:
        """Look once; whether another look is needed soon."""
        self._number += 1
        now = time.monotonic()
        for path in [p for p, due in self._again.items() if due <= now]:
            del self._again[path]
            self._settling.again(path)
        due, gone, unreadable = await self._workers.in_order(self._settling.look, dirty, every_file)
        self.scan_seconds = time.monotonic() - now
        self._log_unreadable(unreadable)
        seen: list[Examined] = []
        for at in range(0, len(due), BATCH):
            seen = await self._workers.in_order(self._examine, due[at : at + BATCH])
            if len(due) > BATCH:
                self._change((), seen)
        self._change(gone, seen)
        return bool(self._settling.awaited())

    def _examine(self, due: Sequence[FoundFolder]) -> list[Examined]:
        """What is known of folders now: not of those that changed again or may still be written."""
        seen: list[Examined] = []
        for found in due:
            examined = examine(self.rules, found)
            if examined is None:
                continue
            if examined.problem and self._settling.is_fresh(found, time.monotonic()):
                continue
            compared = self._table.compares_weights(examined.ref, bool(found.report))
            if compared and not examined.problem:
                sha = self.hashed(found)
                if not sha:
                    continue
                examined = replace(examined, weights_sha256=sha)
            self._settling.done(found)
            seen.append(examined)
        return seen

    def hashed(self, found: FoundFolder) -> str:
        """The sha256 of a folder's weights; '' where they cannot be read, or changed. Blocks."""
        key = weights_key(found)
        if not (sha := self._hashes.get(key)):
            try:
                sha = weights_sha256(found.place.folder)
            except FolderError as error:
                log.info("the weights in %s cannot be read: %s", found.place.folder, error)
                return ""
            if not found.unchanged():
                return ""
            self._hashes.note(key, sha)
        return sha

    # -- the table

    def _change(self, gone: Sequence[Path], seen: Sequence[Examined]) -> None:
        touched = dict.fromkeys(ref for ref in map(self._drop, gone) if ref is not None)
        for one in seen:
            touched.update(dict.fromkeys(self._put(one)))
        for ref in touched:
            self._apply(ref)
        for name in dict.fromkeys(ref.name for ref in touched):
            self._table.settle(name)

    def _drop(self, folder: Path) -> AdapterRef | None:
        """A folder is gone; gives the version that it stood for."""
        claim = self._claims.pop(folder, None)
        if claim is None:
            return None
        self._unclaim(claim)
        return claim.ref

    def _unclaim(self, claim: Examined) -> None:
        self._folders[claim.ref].remove(claim.found.place.folder)
        if not self._folders[claim.ref]:
            del self._folders[claim.ref]

    def _put(self, seen: Examined) -> list[AdapterRef]:
        """Take note of a folder; gives the versions it stands for and stood for.

        A folder that turned bad stands for what it stood for: bad files cannot say who they are.
        """
        folder = seen.found.place.folder
        if seen.passing:
            self._again[folder] = time.monotonic() + RETRY_SECONDS
        before = self._claims.get(folder)
        if before is not None and seen.problem:
            seen = replace(seen, ref=before.ref, inspection=before.inspection)
        self._claims[folder] = seen
        if before is None or before.ref != seen.ref:
            self._folders.setdefault(seen.ref, []).append(folder)
        if before is None or before.ref == seen.ref:
            return [seen.ref]
        self._unclaim(before)
        self._taken = {v for v in self._taken if v.successor is not None and not v.removed}
        if (version := self._table.at(before.ref)) is not None:
            self._taken.add(version)
            version.folder_taken(by=seen.ref)
        for version in self._taken:
            if version.successor == before.ref:
                version.folder_taken(by=seen.ref)
        return [seen.ref, before.ref]

    def _apply(self, ref: AdapterRef) -> None:
        """Make a version agree with its folder: the first one that claims to be it and has no problem."""
        claims = sorted((self._claims[f] for f in self._folders.get(ref, ())), key=lambda c: bool(c.problem))
        version = self._table.at(ref)
        if claims:
            first, rivals = claims[0], _rivals(claims)
            if first.problem and (version is None or first.problem not in version.error):
                log.warning("files of adapter %s are refused: %s", ref, first.problem)
            if version is None:
                version = AdapterVersion(first, self._table.changed, self._number)
                self._table.add(version)
            version.files_examined(first, rivals)
        elif version is not None and version.successor is not None and version.live is not None:
            version.superseded()
        elif version is not None:
            log.info("adapter %s is gone from disk, or another folder overrides it", ref)
            self.remove(version)

    def remove(self, version: AdapterVersion) -> None:
        """Gone from disk: no new lease, dropped after the last one."""
        live = self._table.remove(version)
        if live is not None:
            self._residency.detach(live.resident, version)

    async def read_weights(self, version: AdapterVersion) -> None:
        """Hash the weights of a version. Raises AdapterRejected if they cannot be read."""
        found = version.found
        sha = await self._workers.in_order(self.hashed, found)
        if not sha:
            raise AdapterRejected(
                f"the weights of adapter {version.ref} cannot be read, or are being changed"
            )
        version.weights_read(found, sha)

    def _log_unreadable(self, unreadable: Mapping[Path, str]) -> None:
        for path, reason in unreadable.items():
            if self._unreadable.get(path) != reason:
                log.warning(
                    "adapters folder %s cannot be read (%s); its adapters stay as they are", path, reason
                )
        self._unreadable = unreadable


def _rivals(claims: Sequence[Examined]) -> str:
    """What is wrong with the other folders that claim to be the version of the first one."""
    first, *others = claims
    if not others:
        return ""
    names = ", ".join(repr(one.found.place.folder.name) for one in others)
    return (
        f"folder {names} claims {first.ref}, which folder {first.found.place.folder.name!r} holds, and is "
        "ignored; remove one of them, or give one another name or version"
    )
