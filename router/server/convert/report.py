"""Reports to proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from router.experiments.model import AuditEntry
from router.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    Check,
    Measured,
    Pairs,
    Point,
    Report,
    Ruling,
)
from router.server.convert.adapters import timestamp
from router.v1 import experiments_pb2 as pb

Out = pb.GetReportResponse


def report_message(report: Report, experiment: pb.Experiment) -> pb.GetReportResponse:
    """A report; `experiment` is its experiment as a message."""
    return Out(
        experiment=experiment,
        phase=report.phase,
        verdict=_verdict(report.verdict),
        arm=report.arm or "",
        arms=map(_arm, report.arms),
        checks=map(_check, report.checks),
        numbers=map(_numbers, report.numbers),
        audit=map(audit_message, report.audit),
        points=map(_point, report.points),
        notes=report.notes,
        time=timestamp(report.time),
    )


def _verdict(ruling: Ruling) -> pb.GetReportResponse.Verdict:
    return Out.Verdict(decision=ruling.decision, rule=ruling.rule, text=ruling.text)


def _arm(arm: ArmReport) -> pb.GetReportResponse.ArmReport:
    return Out.ArmReport(
        arm=arm.arm,
        verdict=_verdict(arm.verdict),
        blocked=_verdict(arm.blocked) if arm.blocked else None,
        primary=_comparison(arm.primary) if arm.primary else None,
        adjusted_p=arm.adjusted_p,
        guardrails=map(_comparison, arm.guardrails),
        pairs=_pairs(arm.pairs) if arm.pairs else None,
        everyone=_comparison(arm.everyone) if arm.everyone else None,
    )


def _comparison(found: Measured) -> pb.GetReportResponse.Comparison:
    length = found.length
    return Out.Comparison(
        metric=found.metric,
        control=found.values[0],
        treatment=found.values[1],
        effect=found.effect,
        low=found.low,
        high=found.high,
        p=found.p,
        control_units=found.units[0],
        treatment_units=found.units[1],
        method=found.method,
        state=found.state,
        length_adjusted=length.adjusted if length else None,
        length_adjusted_half=length.half if length else None,
        relative=found.relative,
        relative_low=found.relative_low,
        relative_high=found.relative_high,
        margin=found.margin,
        margin_relative=found.margin_relative,
        lower_is_better=not found.higher_is_better,
        control_length=length.control if length else None,
        treatment_length=length.treatment if length else None,
    )


def _pairs(pairs: Pairs) -> pb.GetReportResponse.Pairs:
    return Out.Pairs(
        wins=pairs.wins,
        losses=pairs.losses,
        ties=pairs.ties,
        share=pairs.share,
        low=pairs.low,
        high=pairs.high,
        p=pairs.p,
    )


def _check(check: Check) -> pb.GetReportResponse.Check:
    return Out.Check(name=check.name, failed=check.failed, text=check.text)


def _numbers(found: ArmNumbers) -> pb.GetReportResponse.ArmNumbers:
    return Out.ArmNumbers(
        arm=found.arm,
        units=found.units,
        matured=found.matured,
        degraded=found.degraded,
        responses=found.responses,
        expected=found.expected,
        answered=found.answered,
        built_in=found.built_in,
        weight=found.weight,
        triggered=found.triggered,
    )


def _point(point: Point) -> pb.GetReportResponse.Point:
    return Out.Point(
        time=timestamp(point.time),
        arm=point.arm,
        effect=point.effect,
        low=point.low,
        high=point.high,
        units=point.units,
        share=point.share,
        share_low=point.share_low,
        share_high=point.share_high,
    )


def audit_message(entry: AuditEntry) -> pb.GetReportResponse.AuditEntry:
    """An act on an experiment."""
    return Out.AuditEntry(
        time=timestamp(entry.time),
        actor=entry.actor,
        act=entry.act,
        reason=entry.reason,
        detail=_struct(entry.detail),
    )


def _struct(values: Mapping[str, Any]) -> Struct:
    made = Struct()
    made.update(values)
    return made
