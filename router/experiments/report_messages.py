"""Reports on the wire, both ways: nothing is lost on the way but the statistics behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from router.experiments.messages import experiment_of, timestamp, unix_seconds
from router.experiments.model import AuditEntry, NoInterval
from router.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    Length,
    MetricReport,
    Pairs,
    PipelineCheck,
    PlotPoint,
    Report,
    Ruling,
    SegmentReport,
    VerdictForecast,
)
from router.v1 import experiments_pb2 as pb

Out = pb.GetReportResponse


def report_message(report: Report, experiment: pb.Experiment) -> pb.GetReportResponse:
    """A report; `experiment` is its experiment as a message."""
    return Out(
        experiment=experiment,
        phase=report.phase,
        verdict=_ruling_message(report.verdict),
        arm=report.arm or "",
        arms=map(_arm_message, report.arms),
        checks=map(_check_message, report.checks),
        numbers=map(_numbers_message, report.numbers),
        audit=map(_audit_message, report.audit),
        points=map(_point_message, report.points),
        notes=report.notes,
        time=timestamp(report.time),
        forecast=_forecast_message(report.forecast) if report.forecast else None,
    )


def report_of(message: pb.GetReportResponse) -> Report:
    """The report as the server made it."""
    experiment = experiment_of(message.experiment)
    return Report(
        experiment=experiment,
        phase=message.phase,
        verdict=_ruling_of(message.verdict),
        arm=message.arm or None,
        arms=tuple(map(_arm_of, message.arms)),
        checks=tuple(PipelineCheck(c.name, c.failed, c.text) for c in message.checks),
        numbers=tuple(map(_numbers_of, message.numbers)),
        audit=tuple(_audit_of(experiment.name, entry) for entry in message.audit),
        points=tuple(map(_point_of, message.points)),
        notes=tuple(message.notes),
        time=unix_seconds(message.time),
        forecast=_forecast_of(message.forecast) if message.HasField("forecast") else None,
    )


def _forecast_message(found: VerdictForecast) -> pb.GetReportResponse.Forecast:
    return Out.Forecast(
        units_per_day=found.units_per_day,
        units=found.units,
        days=found.days,
        smallest_effect=found.smallest_effect,
        text=found.text,
    )


def _forecast_of(message: pb.GetReportResponse.Forecast) -> VerdictForecast:
    return VerdictForecast(
        message.units_per_day,
        message.units if message.HasField("units") else None,
        message.days if message.HasField("days") else None,
        message.smallest_effect if message.HasField("smallest_effect") else None,
        message.text,
    )


def _ruling_message(ruling: Ruling) -> pb.GetReportResponse.Verdict:
    return Out.Verdict(decision=ruling.decision, rule=ruling.rule, text=ruling.text)


def _ruling_of(message: pb.GetReportResponse.Verdict) -> Ruling:
    return Ruling(message.decision, message.rule, message.text)


def _arm_message(arm: ArmReport) -> pb.GetReportResponse.ArmReport:
    return Out.ArmReport(
        arm=arm.arm,
        verdict=_ruling_message(arm.verdict),
        blocked=_ruling_message(arm.blocked) if arm.blocked else None,
        primary=_measured_message(arm.primary) if arm.primary else None,
        adjusted_p=arm.adjusted_p,
        guardrails=map(_measured_message, arm.guardrails),
        pairs=_pairs_message(arm.pairs) if arm.pairs else None,
        everyone=_measured_message(arm.everyone) if arm.everyone else None,
        unadjusted=_measured_message(arm.unadjusted) if arm.unadjusted else None,
        secondary=map(_measured_message, arm.secondary),
        segments=map(_segment_message, arm.segments),
    )


def _arm_of(message: pb.GetReportResponse.ArmReport) -> ArmReport:
    return ArmReport(
        arm=message.arm,
        verdict=_ruling_of(message.verdict),
        primary=_measured_of(message.primary) if message.HasField("primary") else None,
        adjusted_p=message.adjusted_p,
        guardrails=tuple(map(_measured_of, message.guardrails)),
        blocked=_ruling_of(message.blocked) if message.HasField("blocked") else None,
        everyone=_measured_of(message.everyone) if message.HasField("everyone") else None,
        pairs=_pairs_of(message.pairs) if message.HasField("pairs") else None,
        unadjusted=_measured_of(message.unadjusted) if message.HasField("unadjusted") else None,
        secondary=tuple(map(_measured_of, message.secondary)),
        segments=tuple(map(_segment_of, message.segments)),
    )


def _segment_message(found: SegmentReport) -> pb.GetReportResponse.SegmentReport:
    return Out.SegmentReport(
        label=found.label,
        effects=(
            Out.SegmentEffect(value=value, comparison=_measured_message(measured))
            for value, measured in found.effects.items()
        ),
        p=found.p,
        differ=found.differ,
        text=found.text,
    )


def _segment_of(message: pb.GetReportResponse.SegmentReport) -> SegmentReport:
    effects = {effect.value: _measured_of(effect.comparison) for effect in message.effects}
    return SegmentReport(message.label, effects, message.p, message.differ, message.text)


def _measured_message(found: MetricReport) -> pb.GetReportResponse.Comparison:
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
        anytime=found.anytime,
        waiting=_waiting_message(found.waiting) if found.waiting else None,
        cap=found.cap,
        alpha=found.alpha,
    )


def _waiting_message(found: NoInterval) -> pb.GetReportResponse.Waiting:
    return Out.Waiting(rule=found.rule, text=found.text, units=found.units)


def _measured_of(message: pb.GetReportResponse.Comparison) -> MetricReport:
    relative = message.HasField("relative")
    return MetricReport(
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
        length=_length_of(message),
        anytime=message.anytime,
        waiting=_waiting_of(message.waiting) if message.HasField("waiting") else None,
        cap=message.cap if message.HasField("cap") else None,
        alpha=message.alpha,
    )


def _waiting_of(message: pb.GetReportResponse.Waiting) -> NoInterval:
    return NoInterval(message.rule, message.text, message.units if message.HasField("units") else None)


def _length_of(message: pb.GetReportResponse.Comparison) -> Length | None:
    if not message.HasField("length_adjusted"):
        return None
    return Length(
        message.length_adjusted,
        message.length_adjusted_half,
        message.control_length,
        message.treatment_length,
    )


def _pairs_message(pairs: Pairs) -> pb.GetReportResponse.Pairs:
    return Out.Pairs(
        wins=pairs.wins,
        losses=pairs.losses,
        ties=pairs.ties,
        share=pairs.share,
        low=pairs.low,
        high=pairs.high,
        p=pairs.p,
        units=pairs.units,
        anytime=pairs.anytime,
    )


def _pairs_of(message: pb.GetReportResponse.Pairs) -> Pairs:
    m = message
    return Pairs(m.wins, m.losses, m.ties, m.share, m.low, m.high, m.p, m.units, m.anytime)


def _check_message(check: PipelineCheck) -> pb.GetReportResponse.Check:
    return Out.Check(name=check.name, failed=check.failed, text=check.text)


def _numbers_message(found: ArmNumbers) -> pb.GetReportResponse.ArmNumbers:
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


def _numbers_of(message: pb.GetReportResponse.ArmNumbers) -> ArmNumbers:
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


def _point_message(point: PlotPoint) -> pb.GetReportResponse.Point:
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
        relative=point.relative,
        relative_low=point.relative_low,
        relative_high=point.relative_high,
    )


def _point_of(message: pb.GetReportResponse.Point) -> PlotPoint:
    m = message
    time, known = unix_seconds(m.time), m.HasField("relative")
    relative = (m.relative, m.relative_low, m.relative_high) if known else (None, None, None)
    return PlotPoint(
        time, m.arm, m.effect, m.low, m.high, m.units, m.share, m.share_low, m.share_high, *relative
    )


def _audit_message(entry: AuditEntry) -> pb.GetReportResponse.AuditEntry:
    detail = Struct()
    values: Mapping[str, Any] = entry.detail
    detail.update(values)
    return Out.AuditEntry(
        time=timestamp(entry.time),
        actor=entry.actor,
        act=entry.act,
        reason=entry.reason,
        detail=detail,
    )


def _audit_of(experiment: str, message: pb.GetReportResponse.AuditEntry) -> AuditEntry:
    return AuditEntry(
        experiment=experiment,
        time=unix_seconds(message.time),
        actor=message.actor,
        act=message.act,
        reason=message.reason,
        detail=MessageToDict(message.detail),
    )
