"""Looks at the running experiments again and again, and stops what does harm by rule.

Rules rest on verdicts alone, never on an interval that the report shows beside them: which numbers may stop
an arm depends on the mode, and the report knows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from router.errors import ExperimentNotFound, StaleEtag, StoreDown
from router.experiments.assignment import never_repeats
from router.experiments.live.assigner import Assigner, Counts
from router.experiments.management.manager import opened, stopped
from router.experiments.model import RULE, ArmSpec, AuditEntry, Experiment, Lifecycle, Mode, Spec
from router.experiments.report.model import ArmReport, Report, Ruling
from router.experiments.store.port import Store

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
CLOSE_SECONDS = 2.0
HARM, INVALID = "stop for harm", "invalid"
Judge = Callable[[str], Report]


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be kept: the experiment as it shall be (None: as it is), and the audit entry."""

    experiment: Experiment | None
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at an experiment found, and what was done about it."""

    report: Report
    act: Act | None


class Guardian:
    """`judge` gives the report of an experiment's last phase and blocks; `refresh` takes over a change."""

    def __init__(
        self,
        store: Store,
        assigner: Assigner,
        counts: Counts,
        refresh: Callable[[], Awaitable[None]],
        judge: Judge,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store, self._assigner, self._counts, self._refresh = store, assigner, counts, refresh
        self._judge = judge
        self._look_seconds = look_seconds
        self.observers: list[Callable[[Report], None]] = []  # called with each report, in the look's thread
        self._looks: set[asyncio.Future[Look]] = set()
        self._resting = False

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._look_seconds)
            await self.look()

    async def rest(self) -> None:
        """No further look; wait for the one that its thread is at, for seconds at most."""
        if self._looks and not self._resting:
            await asyncio.wait(self._looks, timeout=CLOSE_SECONDS)
        self._resting = True

    async def look(self) -> None:
        """Look at every running experiment once. What fails for one is logged, and tried at the next look."""
        for one in self._assigner.snapshot.all():
            if self._resting:
                return
            try:
                await self._look_at(one.name)
            except (StaleEtag, ExperimentNotFound):
                log.info("experiment %s was changed meanwhile; it is looked at again", one.name)
            except StoreDown as error:
                log.debug("no look at experiments: %s", error.message)
                return
            except Exception:
                log.exception("experiment %s could not be judged", one.name)

    async def _look_at(self, name: str) -> None:
        look = asyncio.ensure_future(asyncio.to_thread(self._judge_and_act, name))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        found = await asyncio.shield(look)
        numbers, act = found.report.numbers, found.act
        if never_repeats(sum(n.responses for n in numbers), sum(n.units for n in numbers)):
            text = "hardly any unit comes again, as if units were request ids"
            self._assigner.suspect(name, text)
        if act is None:
            return
        self._counts.acts[name, act.entry.act] += 1
        log.warning("experiment %s: %s: %s", name, act.entry.act, act.entry.reason)
        if act.experiment is not None:
            await self._refresh()

    def _judge_and_act(self, name: str) -> Look:
        report = self._judge(name)
        act = act_on(report, time.time())
        if act is not None and act.experiment is not None:
            self._store.replace(act.experiment, act.entry)
        elif act is not None:
            self._store.audit(act.entry)
        seen = replace(report, audit=(*report.audit, act.entry)) if act else report
        for observer in self.observers:
            observer(seen)
        return Look(report, act)


def act_on(report: Report, now: float) -> Act | None:
    """Nothing, a hold, a stop, or an arm taken out in a new phase.

    An invalid experiment is held: nothing is stopped and nothing is believed until a person has looked. That
    is said once for a rule and phase. An arm that does harm is stopped; with it the experiment, if no other
    arm is left beside control. Control gets the arm's share. What a report of a holdout says is for people.
    """
    experiment = report.experiment
    if experiment.state is not Lifecycle.RUNNING or report.phase != len(experiment.phases):
        return None
    if report.verdict.decision == INVALID:
        return _hold_entry(report, now)
    if experiment.spec.mode is Mode.HOLDOUT:
        return None
    harmful = [arm for arm in report.arms if arm.verdict.decision == HARM]
    if not harmful:
        return None
    reason = "; ".join(f"{arm.arm}: {arm.verdict.rule}: {arm.verdict.text}" for arm in harmful)
    detail = {"phase": report.phase, "arms": [_arm_detail(arm) for arm in harmful]}
    left = _without(experiment.spec, {arm.arm for arm in harmful})
    if len(left.arms) > 1:
        after, act = opened(experiment, left, now, f"taken out: {reason}"), "take out"
    else:
        after, act = stopped(experiment, now, reason), "stop"
    return Act(after, AuditEntry(experiment.name, now, RULE, act, reason, detail))


def _hold_entry(report: Report, now: float) -> Act | None:
    ruling, phase = report.verdict, report.phase
    said = {(e.detail.get("rule"), e.detail.get("phase")) for e in report.audit if e.act == "hold"}
    if (ruling.rule, phase) in said:
        return None
    detail = {"phase": phase, "units": {n.arm: n.units for n in report.numbers}, **_ruling_detail(ruling)}
    return Act(None, AuditEntry(report.experiment.name, now, RULE, "hold", ruling.text, detail))


def _without(spec: Spec, harmful: set[str]) -> Spec:
    """The arms that are left; control has the shares of those that are not."""
    freed = sum(arm.weight for arm in spec.arms if arm.name in harmful)
    return replace(
        spec,
        arms=tuple(
            _heavier(arm, freed) if arm.name == spec.control else arm
            for arm in spec.arms
            if arm.name not in harmful
        ),
    )


def _heavier(arm: ArmSpec, by: float) -> ArmSpec:
    return replace(arm, weight=round(arm.weight + by, 12))


def _arm_detail(arm: ArmReport) -> dict[str, object]:
    measured = [arm.primary, *arm.guardrails] if arm.primary else [*arm.guardrails]
    metrics = [
        {
            "metric": m.metric,
            "units": list(m.units),
            "values": list(m.values),
            "effect": m.effect,
            "low": m.low,
            "high": m.high,
            "p": m.p,
            "state": m.state,
        }
        for m in measured
    ]
    return {"arm": arm.arm, **_ruling_detail(arm.verdict), "metrics": metrics}


def _ruling_detail(ruling: Ruling) -> dict[str, object]:
    return {"decision": ruling.decision, "rule": ruling.rule, "text": ruling.text}
