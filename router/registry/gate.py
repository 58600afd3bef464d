"""The gate: which versions may answer requests that name no adapter.

A version passes by its report. By default the first version of a name passes without one if it has routing
examples: its author wants it to be routed to, and no version that serves is replaced. A version that would
replace it needs a report, an experiment that it won, or an operator who overrules the gate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from router.engine.base import BaseInfo, Engine
from router.errors import GateNotPassed
from router.names import version_key
from router.paired import ALPHA, difference
from router.ports import Force
from router.registry.choices import DefaultChoices
from router.registry.format.folder import MANIFEST, REPORT
from router.registry.format.manifest import ReportCard
from router.registry.format.untrusted import show
from router.registry.version import NO_GATE, AdapterVersion, GateVerdict, Judgement
from router.types import Override

# replacements: the first version of a name needs no report, a version that replaces one that serves does;
# strict: every version needs one; off: no version does.
GateMode: TypeAlias = Literal["replacements", "strict", "off"]


def judge(report: ReportCard | str | None, weights: str, base: BaseInfo) -> Judgement:
    """The rule. `report` is what was read, or why it cannot be used, or None where there is none."""
    if report is None:
        return Judgement(f"no {REPORT}", again=True, weights=weights)
    if isinstance(report, str):
        return Judgement(f"{REPORT}: {report}", again=True, weights=weights)
    if finding := _not_about(report, weights, base):
        return Judgement(finding, again=True, weights=weights, report=report)
    return Judgement(_not_enough(report), weights=weights, report=report)


def _not_about(report: ReportCard, weights: str, base: BaseInfo) -> str:
    """Why it is not about these weights on this base."""
    if report.base_digest != base.digest:
        theirs, ours = report.base_digest[:12], base.digest[:12]
        return (
            f"{REPORT} was measured on another base: {show(report.base_model)} with digest "
            f"{show(theirs)}, here is {base.name} with {ours}"
        )
    if report.weights_sha256 != weights:
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

    def __init__(self, engine: Engine, choices: DefaultChoices, mode: GateMode) -> None:
        self._engine, self._choices, self._mode = engine, choices, mode
        self._firsts: dict[str, str] = {}  # by name, the version that passes as the first one

    @property
    def on(self) -> bool:
        """Whether any version has to pass."""
        return self._mode != "off"

    def name_gone(self, name: str) -> None:
        """No version of that name is left."""
        self._firsts.pop(name, None)

    def settle(self, name: str, versions: Collection[AdapterVersion]) -> list[AdapterVersion]:
        """Judge all versions of a name again; gives those of which the gate says something else now."""
        changed = []
        for version, verdict in self._verdicts(name, versions).items():
            before = version.verdict
            if verdict != before:
                version.ruled(verdict)
                changed.append(version)
                if self.on and (before.passed, before.finding) != (verdict.passed, verdict.finding):
                    _log_verdict(version)
        return changed

    def _verdicts(self, name: str, versions: Collection[AdapterVersion]) -> dict[AdapterVersion, GateVerdict]:
        if not self.on:
            return dict.fromkeys(versions, NO_GATE)
        judgements: dict[AdapterVersion, Judgement] = {}
        best: AdapterVersion | None = None
        for version in sorted((v for v in versions if v.usable), key=lambda v: version_key(v.ref.version)):
            judgement = self._judge(version)
            version.judged(judgement)
            if judgement.passed:
                if best is not None and (finding := _behind(version, best)):
                    judgement = replace(judgement, finding=finding)
                else:
                    best = version
            judgements[version] = judgement
        verdicts = {version: self._verdict(version, judgement) for version, judgement in judgements.items()}
        if self._mode == "replacements":
            self._let_the_first_pass(name, judgements, verdicts)
        return verdicts

    def _judge(self, version: AdapterVersion) -> Judgement:
        held, weights = version.judgement, version.weights_sha256
        if held is not None and weights and held.weights == weights and version.awaits_files:
            return held  # the report on disk is about the files on disk, which do not serve yet
        return judge(version.report, weights, self._engine.info)

    def _let_the_first_pass(
        self,
        name: str,
        judgements: Mapping[AdapterVersion, Judgement],
        verdicts: dict[AdapterVersion, GateVerdict],
    ) -> None:
        """Let one version pass without a report where no other one may be routed to. Others that would
        replace it, or that have no examples, get what they lack as finding and advice. `judgements` are in
        the order of versions.
        """
        able = [version for version, judgement in judgements.items() if _may_be_first(version, judgement)]
        first = self._first(name, able, verdicts)
        for version, verdict in verdicts.items():
            if version is first:
                reason = f"it is the first version of this adapter, and has {_examples(version)}"
                verdicts[version] = GateVerdict(True, open=True, reason=reason, override=verdict.override)
            elif not verdict.open and first is not None and judgements[version].again:
                replaced = f"it would replace {first.ref.version}, which is routed to, without proof"
                verdicts[version] = replace(verdict, finding=f"{replaced}: {verdict.finding}")
            elif not verdict.open and version not in able and judgements[version].again:
                finding = "its adapter.toml has no [routing] examples"
                advice = (
                    f"write 6 to 12 requests for it as [routing] examples into {_folder(version)}/{MANIFEST}"
                )
                seen = version.serving
                if seen is not None and seen.manifest.routing.keywords:  # else a report does not help it
                    advice += f", or {verdict.advice}"
                verdicts[version] = replace(verdict, finding=finding, advice=advice)

    def _first(
        self, name: str, able: Sequence[AdapterVersion], verdicts: Mapping[AdapterVersion, GateVerdict]
    ) -> AdapterVersion | None:
        """The version that passes as the first one; the same as before while it is there."""
        known = self._firsts.get(name) or self._choices.get(name).first
        first = next((version for version in able if version.ref.version == known), None)
        if first is None and able and not any(verdict.open for verdict in verdicts.values()):
            first = able[0]
        if first is None:
            return None
        self._firsts[name] = first.ref.version
        if len(verdicts) > 1:  # a restart could take another one for the first
            self._choices.note_first(name, first.ref.version)
        return first

    def _verdict(self, version: AdapterVersion, judgement: Judgement) -> GateVerdict:
        override = self._choices.get(version.ref.name).override
        if override is not None and override.version != version.ref.version:
            override = None
        if judgement.passed:
            gain = (
                f"its report shows a gain over the base of {judgement.report.gain}"
                if judgement.report
                else ""
            )
            return GateVerdict(True, open=True, reason=gain, override=override)
        finding = judgement.finding
        if override is None:
            return GateVerdict(False, finding=finding, advice=_advice(version, judgement))
        if version.weights_sha256 != override.weights_sha256:
            finding += "; it was overruled for other weights"
            return GateVerdict(False, finding=finding, advice=_advice(version, judgement), override=override)
        return GateVerdict(False, open=True, reason=_overruled(override), finding=finding, override=override)

    def overruling(
        self, version: AdapterVersion, force: Force | None, serving: AdapterVersion | None
    ) -> Override | None:
        """The override to record when `version` is made the default in place of `serving`: none if it passed,
        else as `force` says; going back needs no force. With the mode `strict` a won experiment is no force.

        Raises GateNotPassed if it needs force and there is none.
        """
        verdict = version.verdict
        if verdict.passed:
            return None
        if force is not None and force.won and self._mode == "strict":
            force = None
        if force is None:  # open: as it is already
            return verdict.override if verdict.open else self._going_back(version, serving)
        weights = version.weights_sha256
        return Override(version.ref.version, force.by, time.time(), force.reason, verdict.finding, weights)

    def _going_back(self, version: AdapterVersion, serving: AdapterVersion | None) -> Override | None:
        """A way back is never harder than the way forward was: to a version that was the default before, on
        these weights, and is then routed to if it was; or from one that did not pass either, to none that is
        routed to.
        """
        ref, weights, finding = version.ref, version.weights_sha256, version.verdict.finding
        before = self._choices.get(ref.name).served.get(ref.version)
        if before is not None and weights == before.weights_sha256:
            reason = "it was the default before"
        elif serving is not None and not serving.verdict.passed:
            before, reason = None, f"{serving.ref.version}, the default until then, did not pass either"
        else:
            advice = f"; {version.verdict.advice}" if version.verdict.advice else ""
            raise GateNotPassed(
                f"adapter {ref} did not pass the gate: {finding}{advice}",
                resource=ref.resource,
                finding=finding,
            )
        entry = Override(ref.version, WAY_BACK, time.time(), reason, finding, weights)
        if before is not None and before.routed:
            return entry
        self._choices.went_back(entry)
        return None


def _may_be_first(version: AdapterVersion, judgement: Judgement) -> bool:
    """Whether it has routing examples, and no report about these weights speaks against it."""
    seen = version.serving
    if seen is None or not seen.manifest.routing.examples:
        return False
    return not judgement.passed and judgement.again


def _examples(version: AdapterVersion) -> str:
    seen = version.serving
    count = len(seen.manifest.routing.examples) if seen is not None else 0
    return f"{count} routing example{'s' if count != 1 else ''}"


def _overruled(override: Override) -> str:
    if override.by.startswith(EXPERIMENTS):
        return f"it won {override.by}"
    return f"{override.by} overruled the gate"


def _behind(version: AdapterVersion, best: AdapterVersion) -> str:
    mine, theirs = (r.judgement.report if r.judgement else None for r in (version, best))
    if mine is None or theirs is None or not (how := fallen_behind(mine, theirs)):
        return ""
    return (
        f"its {mine.metric}, {mine.score}, is below that of {best.ref.version} on the same test data, "
        f"{theirs.score}, {how}"
    )


def _advice(version: AdapterVersion, judgement: Judgement) -> str:
    overrule = f"overrule with `lora-router adapters default {version.ref} --force`"
    if not judgement.again:
        return overrule
    return (
        f"run `lora-router adapters evaluate {_folder(version)}` (`lora-router adapters new "
        f"{version.ref.name} --data FILE` makes a recipe where it has none), or {overrule}"
    )


def _folder(version: AdapterVersion) -> Path:
    """Its folder as one would type it beside the adapters folder."""
    place, root = version.found.place.folder, version.found.root
    return root.name / place.relative_to(root) if place.is_relative_to(root) else Path(place.name)


def _log_verdict(version: AdapterVersion) -> None:
    verdict = version.verdict
    if verdict.passed:
        log.info("adapter %s passes the gate: %s", version.ref, verdict.reason)
    else:
        log.info("adapter %s is not routed to by itself: %s", version.ref, verdict.finding)
