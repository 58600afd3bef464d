"""A report from its message."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict

from router.client.experiment_responses import to_experiment, to_time
from router.experiments.model import AuditEntry
from router.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    Check,
    Length,
    Measured,
    Pairs,
    Point,
    Report,
    Ruling,
)
from router.v1 import experiments_pb2 as pb

Out = pb.GetReportResponse


def to_report(message: pb.GetReportResponse) -> Report:
    """The report as the server made it."""
    experiment = to_experiment(message.experiment)
    return Report(
        experiment=experiment,
        phase=message.phase,
        verdict=_ruling(message.verdict),
        arm=message.arm or None,
        arms=tuple(map(_arm, message.arms)),
        checks=tuple(Check(c.name, c.failed, c.text) for c in message.checks),
        numbers=tuple(map(_numbers, message.numbers)),
        audit=tuple(_entry(experiment.name, entry) for entry in message.audit),
        points=tuple(map(_point, message.points)),
        notes=tuple(message.notes),
        time=to_time(message.time),
    )


def _ruling(message: pb.GetReportResponse.Verdict) -> Ruling:
    return Ruling(message.decision, message.rule, message.text)


def _arm(message: pb.GetReportResponse.ArmReport) -> ArmReport:
    return ArmReport(
        arm=message.arm,
        verdict=_ruling(message.verdict),
        primary=_measured(message.primary) if message.HasField("primary") else None,
        adjusted_p=message.adjusted_p,
        guardrails=tuple(map(_measured, message.guardrails)),
        blocked=_ruling(message.blocked) if message.HasField("blocked") else None,
        everyone=_measured(message.everyone) if message.HasField("everyone") else None,
        pairs=_pairs(message.pairs) if message.HasField("pairs") else None,
    )


def _measured(message: pb.GetReportResponse.Comparison) -> Measured:
    relative = message.HasField("relative")
    return Measured(
        metric=message.metric,
        units=(message.control_units, message.treatment_units),
        values=(message.control, message.treatment),
        effect=message.effect,
        low=message.low,
        high=message.high,
        p=message.p,
        method=message.method,
        higher_is_better=not message.lower_is_better,
        relative=message.relative if relative else None,
        relative_low=message.relative_low if relative else None,
        relative_high=message.relative_high if relative else None,
        state=message.state,
        margin=message.margin,
        margin_relative=message.margin_relative,
        length=_length(message),
    )


def _length(message: pb.GetReportResponse.Comparison) -> Length | None:
    if not message.HasField("length_adjusted"):
        return None
    return Length(
        message.length_adjusted,
        message.length_adjusted_half,
        message.control_length,
        message.treatment_length,
    )


def _pairs(message: pb.GetReportResponse.Pairs) -> Pairs:
    m = message
    return Pairs(m.wins, m.losses, m.ties, m.share, m.low, m.high, m.p)


def _numbers(message: pb.GetReportResponse.ArmNumbers) -> ArmNumbers:
    return ArmNumbers(
        arm=message.arm,
        units=message.units,
        matured=message.matured,
        degraded=message.degraded,
        responses=message.responses,
        expected=message.expected,
        weight=message.weight,
        answered=dict(message.answered),
        built_in=dict(message.built_in),
        triggered=message.triggered if message.HasField("triggered") else None,
    )


def _entry(experiment: str, message: pb.GetReportResponse.AuditEntry) -> AuditEntry:
    return AuditEntry(
        experiment=experiment,
        time=to_time(message.time),
        actor=message.actor,
        act=message.act,
        reason=message.reason,
        detail=MessageToDict(message.detail),
    )


def _point(message: pb.GetReportResponse.Point) -> Point:
    m = message
    time = to_time(m.time)
    return Point(time, m.arm, m.effect, m.low, m.high, m.units, m.share, m.share_low, m.share_high)
