"""One answer to an enrolled unit: its exposure, and the outcomes that need no client."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from functools import lru_cache

from router.experiments.live.assigner import Assignment
from router.experiments.live.counts import Counts
from router.experiments.live.recorder import Recorder
from router.experiments.live.watch import End, Served
from router.experiments.model import Exposure, Outcome
from router.experiments.names import SERVER_KEYS
from router.types import FinishReason, SamplingParams


class Trial:
    """A watcher. Nothing is kept of an answer that never began: nobody was shown anything."""

    def __init__(
        self, recorder: Recorder, served: Served, assignment: Assignment, digests: tuple[str, str]
    ) -> None:
        self._recorder, self._served, self._assignment = recorder, served, assignment
        self._base, self._router = digests
        self._began = False

    def began(self) -> None:
        """The arm, or what stands in for it, has begun to answer."""
        self._began = True
        served, assignment = self._served, self._assignment
        arm = (assignment.running.name, assignment.arm.name)
        _count(self._recorder.counts, arm, served.degraded)
        self._recorder.expose(
            Exposure(
                experiment=assignment.running.name,
                phase=assignment.running.phase,
                unit=assignment.unit,
                arm=assignment.arm.name,
                time=time.time(),
                response_id=served.request.request_id,
                propensity=assignment.propensity,
                adapter_digest=self._digest(),
                base_digest=self._base,
                router_digest=self._router,
                sampling=sampling_json(served.params),
                degraded=served.degraded,
            )
        )

    def _digest(self) -> str:
        """Of the arm's adapter; what stands in for it is not what is tested."""
        decision = self._served.decision
        return decision.digest if decision.adapter and not self._served.degraded else ""

    def ended(self, end: End) -> None:
        """Keep the built-in outcomes."""
        if self._began:
            self._recorder.observe(built_in(self._served.request.request_id, end, time.time()))


def _count(counts: Counts, arm: tuple[str, str], degraded: str) -> None:
    counts.exposures[arm] += 1
    if degraded:
        counts.degraded[arm] += 1


def built_in(response_id: str, end: End, now: float) -> tuple[Outcome, ...]:
    """`model.BUILT_IN` of one response. An answer that broke off counts with what was given until then."""
    usage = end.usage
    values: dict[str, float] = {
        "total_time": usage.total_time,
        "completion_tokens": usage.completion_tokens,
        "length_stop": end.reason is FinishReason.LENGTH,
        "error": bool(end.error),
        "cancelled": end.cancelled,
    }
    if usage.completion_tokens:
        values["time_to_first_token"] = usage.time_to_first_token
    return tuple(
        Outcome(f"{SERVER_KEYS}{metric}:{response_id}", metric, float(value), now, response_id=response_id)
        for metric, value in values.items()
    )


@lru_cache(maxsize=256)
def sampling_json(params: SamplingParams) -> str:
    """Sampling as JSON, keys in order; what is off is left out."""
    said = {f.name: value for f in fields(params) if (value := getattr(params, f.name)) not in (None, (), 0)}
    return json.dumps(said, sort_keys=True)
