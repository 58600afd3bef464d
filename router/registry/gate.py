"""The gate: which versions may answer requests that name no adapter.

A version passes by its report. By default the first version of a name passes without one if it has routing
examples: its author wants it to be routed to, and no version that serves is replaced. A version that would
replace it needs a report, an experiment that it won, or an operator who overrules the gate.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from router.engine.base import BaseInfo
from router.errors import GateNotPassed
from router.names import version_key
from router.paired import ALPHA, difference
from router.ports import Force
from router.registry.folders import FoundFolder, unchanged, weights_sha256
from router.registry.format.folder import MANIFEST, REPORT, WEIGHTS, FolderError
from router.registry.format.manifest import ReportCard
from router.registry.format.untrusted import show
from router.registry.record import NO_GATE, UNJUDGED, GateVerdict, ReportJudgement, Standing, VersionRecord
from router.registry.state import DefaultChoices, Hashed, Workers, yield_if_long
from router.types import AdapterRef, Override

# replacements: the first version of a name needs no report, a version that replaces one that serves does;
# strict: every version needs one; off: no version does.
GateMode: TypeAlias = Literal["replacements", "strict", "off"]


def judge(report: ReportCard | str | None, weights: str, base: BaseInfo) -> ReportJudgement:
    """The rule. `report` is what was read, or why it cannot be used, or None where there is none."""
    if report is None:
        return ReportJudgement(Standing.FAILED, f"no {REPORT}", again=True, weights=weights)
    if isinstance(report, str):
        return ReportJudgement(Standing.FAILED, f"{REPORT}: {report}", again=True, weights=weights)
    finding, again = _not_about(report, weights, base), True
    if not finding:
        finding, again = _not_enough(report), False
    if finding:
        return ReportJudgement(Standing.FAILED, finding, again, weights, report)
    if not weights:
        finding = f"its weights have not been compared with its {REPORT} yet"
        return ReportJudgement(Standing.PENDING, finding, report=report)
    return ReportJudgement(Standing.PASSED, weights=weights, report=report)


def _not_about(report: ReportCard, weights: str, base: BaseInfo) -> str:
    """Why it is not about these weights on this base."""
    if report.base_digest != base.digest:
        theirs, ours = report.base_digest[:12], base.digest[:12]
        return (
            f"{REPORT} was measured on another base: {show(report.base_model)} with digest "
            f"{show(theirs)}, here is {base.name} with {ours}"
        )
    if weights and report.weights_sha256 != weights:
        return (
            f"{REPORT} is about other weights: sha256 {report.weights_sha256[:12]}, these have {weights[:12]}"
        )
    return ""


def _not_enough(report: ReportCard) -> str:
    """Why what it measured is not enough."""
    if report.gain.low <= 0:
        return f"its gain over the base, {report.gain}, does not exclude zero"
    if report.worse:
        more = f" and {len(report.worse) - 1} more" if len(report.worse) > 1 else ""
        return f"it is worse than the base beyond the margin: {report.worse[0]}{more}"
    return ""


@lru_cache(maxsize=256)
def fallen_behind(report: ReportCard, other: ReportCard) -> str:
    """Why a version is surely worse than another one by the same metric on the same test data; else "".

    Where both reports have the score of each row, the paired test decides, one-sided at 5 %: of equal
    versions it finds one worse in at most 5 of 100 comparisons. Otherwise the intervals must not overlap. The
    result is kept, since each look at the folders asks again.
    """
    if (report.metric, report.data_sha256) != (other.metric, other.data_sha256):
        return ""
    if report.rows and len(report.rows) == len(other.rows):
        gap = difference(report.rows, other.rows, range(len(report.rows)))
        if gap.mean < 0 and gap.p / 2 <= ALPHA:
            return (
                f"by {-100 * gap.mean:.1f} points on the same {gap.rows} rows ({gap.worse} worse, "
                f"{gap.better} better, p = {gap.p / 2:.2g})"
            )
        return ""
    return "with intervals that lie apart" if report.score.high < other.score.low else ""


# -- the rule for all versions of a name


log = logging.getLogger(__name__)

EXPERIMENTS = "experiments/"  # begins the resource name of an experiment
WAY_BACK = "the rule for going back"  # in place of who, where no force was needed


class Gate:
    """Used on the event loop only; nothing here reads a disk."""

    def __init__(self, base: Callable[[], BaseInfo], choices: DefaultChoices, mode: GateMode) -> None:
        self._base, self._choices, self._mode = base, choices, mode
        self._reports: dict[Path, ReportCard | str | None] = {}
        self._firsts: dict[str, str] = {}  # by name, the version that passes as the first one

    @property
    def on(self) -> bool:
        """Whether any version has to pass."""
        return self._mode != "off"

    def reported(self, reports: Mapping[Path, ReportCard | str | None]) -> None:
        """These reports were read; None stands for a folder without one."""
        self._reports.update(reports)

    def forget(self, folder: Path) -> None:
        """The folder is gone."""
        self._reports.pop(folder, None)

    def name_gone(self, name: str) -> None:
        """No version of that name is left."""
        self._firsts.pop(name, None)

    def settle(self, records: Collection[VersionRecord]) -> list[VersionRecord]:
        """Judge all versions of one name again; gives those of which the gate says something else now."""
        changed = []
        for record, verdict in self._verdicts(records).items():
            before = record.verdict
            if verdict != before:
                record.ruled(verdict)
                changed.append(record)
                if self.on and (before.standing, before.finding) != (verdict.standing, verdict.finding):
                    _log_verdict(record)
        return changed

    def _verdicts(self, records: Collection[VersionRecord]) -> dict[VersionRecord, GateVerdict]:
        if not self.on:
            return dict.fromkeys(records, NO_GATE)
        judgements: dict[VersionRecord, ReportJudgement] = {}
        best: VersionRecord | None = None
        usable = [r for r in records if r.usable]
        for record in sorted(usable, key=lambda r: version_key(r.ref.version)):
            judgement = self._judge(record)
            record.judged(judgement)
            if judgement.standing is Standing.PASSED:
                if best is not None and (finding := _behind(record, best)):
                    judgement = replace(judgement, standing=Standing.FAILED, finding=finding)
                else:
                    best = record
            judgements[record] = judgement
        verdicts = {record: self._verdict(record, judgement) for record, judgement in judgements.items()}
        if self._mode == "replacements":
            self._let_the_first_pass(judgements, verdicts)
        return verdicts

    def _let_the_first_pass(
        self, judgements: Mapping[VersionRecord, ReportJudgement], verdicts: dict[VersionRecord, GateVerdict]
    ) -> None:
        """Let one version pass without a report where no other one may be routed to. Others that would
        replace it, or that have no examples, get what they lack as finding and advice. `judgements` are in
        the order of versions.
        """
        able = [record for record, judgement in judgements.items() if _may_be_first(record, judgement)]
        first = self._first(able, verdicts)
        for record, verdict in verdicts.items():
            if record is first:
                reason = f"it is the first version of this adapter, and has {_examples(record)}"
                verdicts[record] = replace(
                    verdict, standing=Standing.PASSED, open=True, reason=reason, finding="", advice=""
                )
            elif not verdict.open and first is not None and judgements[record].again:
                replaced = f"it would replace {first.ref.version}, which is routed to, without proof"
                verdicts[record] = replace(verdict, finding=f"{replaced}: {verdict.finding}")
            elif not verdict.open and record not in able and judgements[record].again:
                finding = "its adapter.toml has no [routing] examples"
                advice = (
                    f"write 6 to 12 requests for it as [routing] examples into {_folder(record)}/{MANIFEST}"
                )
                seen = record.serving
                if seen is not None and seen.manifest.routing.keywords:  # else a report does not help it
                    advice += f", or {verdict.advice}"
                verdicts[record] = replace(verdict, finding=finding, advice=advice)

    def _first(
        self, able: Sequence[VersionRecord], verdicts: Mapping[VersionRecord, GateVerdict]
    ) -> VersionRecord | None:
        """The version that passes as the first one; the same as before while it is there."""
        name = next((record.ref.name for record in verdicts), "")
        known = self._firsts.get(name) or self._choices.first(name)
        first = next((record for record in able if record.ref.version == known), None)
        others = [
            verdict for verdict in verdicts.values() if verdict.open or verdict.standing is Standing.PENDING
        ]
        if first is None and able and not others:
            first = able[0]
        if first is None:
            return None
        self._firsts[name] = first.ref.version
        if len(verdicts) > 1:  # a restart could take another one for the first
            self._choices.note_first(name, first.ref.version)
        return first

    def _judge(self, record: VersionRecord) -> ReportJudgement:
        held, weights = record.judgement, record.weights_sha256
        if held is not None and weights and held.weights == weights and record.awaits_files:
            return held  # the report on disk is about the files on disk, which do not serve yet
        folder = record.found.place.folder
        if folder not in self._reports:
            return ReportJudgement(Standing.PENDING, UNJUDGED.finding)
        return judge(self._reports[folder], weights, self._base())

    def _verdict(self, record: VersionRecord, judgement: ReportJudgement) -> GateVerdict:
        weights = record.weights_sha256
        override = self._override(record.ref, weights)
        if judgement.standing is Standing.PASSED:
            gain = (
                f"its report shows a gain over the base of {judgement.report.gain}"
                if judgement.report
                else ""
            )
            return GateVerdict(Standing.PASSED, open=True, reason=gain, override=override)
        only_weights_missing = judgement.standing is Standing.PENDING and judgement.report is not None
        covers = override is not None and weights in ("", override.weights_sha256)
        overruled = covers and bool(weights)
        finding = judgement.finding
        if override is not None and not covers:
            finding += "; it was overruled for other weights"
        return GateVerdict(
            judgement.standing,
            open=overruled,
            reason=_overruled(override) if overruled and override is not None else "",
            finding=finding,
            advice="" if overruled else _advice(record, judgement),
            override=override,
            needs_weights=not weights and (covers or only_weights_missing),
        )

    def _override(self, ref: AdapterRef, weights: str) -> Override | None:
        """The override of a version; one made before its weights were read is about the first ones read."""
        override = self._choices.override(ref.name)
        if override is None or override.version != ref.version:
            return None
        if not override.weights_sha256 and weights:
            override = self._choices.bind(ref.name, weights)
        return override

    def overruling(
        self, record: VersionRecord, force: Force | None, serving: VersionRecord | None
    ) -> Override | None:
        """The override to record when `record` is made the default in place of `serving`: none if it passed,
        else as `force` says; going back needs no force. With the mode `strict` a won experiment is no force.

        Raises GateNotPassed if it needs force and there is none.
        """
        verdict = record.verdict
        if verdict.standing is Standing.PASSED:
            return None
        if force is not None and force.won and self._mode == "strict":
            force = None
        if force is None:  # open: as it is already
            return verdict.override if verdict.open else self._going_back(record, serving)
        weights = record.weights_sha256
        return Override(record.ref.version, force.by, time.time(), force.reason, verdict.finding, weights)

    def _going_back(self, record: VersionRecord, serving: VersionRecord | None) -> Override | None:
        """A way back is never harder than the way forward was: to a version that was the default before, on
        these weights, and is then routed to if it was; or from one that did not pass either, to none that is
        routed to.
        """
        ref, weights, finding = record.ref, record.weights_sha256, record.verdict.finding
        before = self._choices.served(ref.name, ref.version)
        if before is not None and weights in ("", before.weights_sha256):  # "" until they are read
            reason, weights = "it was the default before", before.weights_sha256
        elif serving is not None and serving.verdict.standing is Standing.FAILED:
            reason = f"{serving.ref.version}, the default until then, did not pass either"
        else:
            advice = f"; {record.verdict.advice}" if record.verdict.advice else ""
            raise GateNotPassed(
                f"adapter {ref} did not pass the gate: {finding}{advice}",
                resource=ref.resource,
                finding=finding,
            )
        entry = Override(ref.version, WAY_BACK, time.time(), reason, finding, weights)
        if before is not None and before.routed and before.weights_sha256 == weights:
            return entry
        self._choices.went_back(ref.name, entry)
        return None


def _may_be_first(record: VersionRecord, judgement: ReportJudgement) -> bool:
    """Whether it has routing examples, and no report about these weights speaks against it."""
    seen = record.serving
    if seen is None or not seen.manifest.routing.examples:
        return False
    return judgement.standing is Standing.FAILED and judgement.again


def _examples(record: VersionRecord) -> str:
    seen = record.serving
    count = len(seen.manifest.routing.examples) if seen is not None else 0
    return f"{count} routing example{'s' if count != 1 else ''}"


def _overruled(override: Override) -> str:
    if override.by.startswith(EXPERIMENTS):
        return f"it won {override.by}"
    return f"{override.by} overruled the gate"


def _behind(record: VersionRecord, best: VersionRecord) -> str:
    mine, theirs = (r.judgement.report if r.judgement else None for r in (record, best))
    if mine is None or theirs is None or not (how := fallen_behind(mine, theirs)):
        return ""
    return (
        f"its {mine.metric}, {mine.score}, is below that of {best.ref.version} on the same test data, "
        f"{theirs.score}, {how}"
    )


def _advice(record: VersionRecord, judgement: ReportJudgement) -> str:
    overrule = f"overrule with `lora-router adapters default {record.ref} --force`"
    if judgement.standing is Standing.PENDING:
        return "that is under way; look again in a moment"
    if not judgement.again:
        return overrule
    run, rows = f"run `lora-router adapters evaluate {_folder(record)}", "--data FILE --metric METRIC"
    if any(file[0] == MANIFEST for file in record.found.stamp.files):
        return f"{run}`, with `{rows}` if it has no recipe, or {overrule}"
    return f"{run} {rows}` on rows of your own, or {overrule}"


def _folder(record: VersionRecord) -> Path:
    """Its folder as one would type it beside the adapters folder."""
    place, root = record.found.place.folder, record.found.root
    return root.name / place.relative_to(root) if place.is_relative_to(root) else Path(place.name)


def _log_verdict(record: VersionRecord) -> None:
    verdict = record.verdict
    if verdict.standing is Standing.FAILED:
        log.info("adapter %s is not routed to by itself: %s", record.ref, verdict.finding)
    elif verdict.standing is Standing.PASSED:
        log.info("adapter %s passes the gate: %s", record.ref, verdict.reason)


MOST_AT_ONCE = 64  # weights files hashed in one visit to a worker thread
HASH_SECONDS = 0.1  # of one visit, after the first file


class WeightHasher:
    """Reads weights for their sha256 only, one version after another in a task of its own: a report counts
    before the adapter is ever loaded.
    """

    def __init__(self, workers: Workers, hashed: Hashed) -> None:
        self._workers, self._hashed = workers, hashed
        self._due: OrderedDict[VersionRecord, None] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def request(self, record: VersionRecord) -> None:
        """Read its weights soon. One that was not examined yet is asked for again when it was."""
        if record.live is not None or record.quarantined:  # a load hashes by itself
            return
        if record.inspection is None or not record.inspection.rank:
            return
        self._due[record] = None
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def settled(self, timeout: float) -> bool:
        """Wait until nothing is due; False if that takes longer than `timeout` seconds."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Stop."""
        self._due.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        began = time.monotonic()
        while self._due:
            unknown: list[tuple[VersionRecord, FoundFolder]] = []
            while self._due and len(unknown) < MOST_AT_ONCE:
                record, _ = self._due.popitem(last=False)
                if record.removed or record.weights_sha256:
                    continue
                if (known := self._hashed.get(weights_key(record.found))) is None:
                    unknown.append((record, record.found))
                else:
                    record.weights_read(record.found, known)
                began = await yield_if_long(began)
            await self._hash(unknown)

    async def _hash(self, unknown: Sequence[tuple[VersionRecord, FoundFolder]]) -> None:
        """As many as there is time for; the others are due again."""
        read = await self._workers.run(_hashes, [(record.ref, found) for record, found in unknown])
        for record, _ in unknown[len(read) :]:
            self._due[record] = None
        known = [(record, found, sha) for (record, found), sha in zip(unknown, read, strict=False) if sha]
        await self._workers.in_order(self._hashed.note, {weights_key(found): sha for _, found, sha in known})
        began = time.monotonic()
        for record, found, sha in known:
            if not record.removed:
                record.weights_read(found, sha)
            began = await yield_if_long(began)


def _hashes(unknown: Sequence[tuple[AdapterRef, FoundFolder]]) -> list[str]:
    """The sha256 of the weights of the first few, one at least; '' for what cannot be read, or changed."""
    end = time.monotonic() + HASH_SECONDS
    read: list[str] = []
    for ref, found in unknown:
        if read and time.monotonic() >= end:
            break
        try:
            sha = weights_sha256(found.place.folder)
            read.append(sha if unchanged(found) else "")
        except FolderError as error:
            log.info("the weights of adapter %s are not compared with its report: %s", ref, error)
            read.append("")
    return read


def weights_key(found: FoundFolder) -> str:
    """Names a weights file as it looks now: another one, or the same after a write, has another key."""
    weights = [file for file in found.stamp.files if file[0].rpartition("/")[2] == WEIGHTS]
    return hashlib.sha256(os.fsencode(f"{found.place.folder} {weights}")).hexdigest()[:32]
