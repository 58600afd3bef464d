"""Reports as messages, both ways: nothing is lost on the way but the statistics behind them.

A field has the same name in the dataclass and in its message, unless it stands below. So a new field of a
report is one line in `report/model.py` and one in the proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from router.experiments.messages import experiment_of, timestamp, unix_seconds
from router.experiments.model import AuditEntry, EarlyEnds, NoInterval
from router.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    MetricReport,
    MissingReport,
    Pairs,
    PipelineCheck,
    PlannedProgress,
    PlotPoint,
    Report,
    Ruling,
    SegmentReport,
    VerdictForecast,
)
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Out = pb.GetReportResponse
T = TypeVar("T")
COMPARED = ("units", "values", "higher_is_better", "length", "ranges")
"""Fields of a `MetricReport` that its message has in another form."""


def _same(value: DataclassInstance, without: Collection[str] = (), **others: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, for the constructor of its message; `others` are in another form."""
    left_out = {*without, *others}
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left_out} | others


def _read(kind: type[T], message: Any, **others: Any) -> T:
    """A dataclass from the fields of the same names; `others` are in another form, None stands for unset."""
    descriptors = message.DESCRIPTOR.fields_by_name
    found = dict(others)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in found:
            unset = descriptors[field.name].has_presence and not message.HasField(field.name)
            found[field.name] = None if unset else getattr(message, field.name)
    return kind(**found)


def report_message(report: Report, experiment: pb.Experiment) -> pb.GetReportResponse:
    """A report; `experiment` is its experiment as a message."""
    return Out(
        experiment=experiment,
        phase=report.phase,
        verdict=_ruling_message(report.verdict),
        arm=report.arm or "",
        arms=map(_arm_message, report.arms),
        checks=(Out.Check(**_same(check)) for check in report.checks),
        numbers=map(_numbers_message, report.numbers),
        audit=map(_audit_message, report.audit),
        points=(Out.Point(**_same(point, time=timestamp(point.time))) for point in report.points),
        notes=report.notes,
        time=timestamp(report.time),
        forecast=Out.Forecast(**_same(report.forecast)) if report.forecast else None,
        missing=(Out.Missing(**_same(one)) for one in report.missing),
        days=(Out.Days(arm=arm.arm, effects=_effect_messages(arm.days)) for arm in report.arms if arm.days),
        planned=Out.Planned(**_same(report.planned)) if report.planned else None,
    )


def report_of(message: pb.GetReportResponse) -> Report:
    """The report as the server made it."""
    experiment = experiment_of(message.experiment)
    days = {one.arm: _effects_of(one.effects) for one in message.days}
    return Report(
        experiment=experiment,
        phase=message.phase,
        verdict=_read(Ruling, message.verdict),
        arm=message.arm or None,
        arms=tuple(replace(_arm_of(arm), days=days.get(arm.arm, {})) for arm in message.arms),
        checks=tuple(_read(PipelineCheck, check) for check in message.checks),
        numbers=tuple(map(_numbers_of, message.numbers)),
        audit=tuple(_audit_of(experiment.name, entry) for entry in message.audit),
        points=tuple(_read(PlotPoint, point, time=unix_seconds(point.time)) for point in message.points),
        notes=tuple(message.notes),
        time=unix_seconds(message.time),
        forecast=_read(VerdictForecast, message.forecast) if message.HasField("forecast") else None,
        planned=_read(PlannedProgress, message.planned) if message.HasField("planned") else None,
        missing=tuple(_read(MissingReport, one) for one in message.missing),
    )


def _ruling_message(ruling: Ruling) -> pb.GetReportResponse.Verdict:
    return Out.Verdict(**_same(ruling))


def _numbers_message(numbers: ArmNumbers) -> pb.GetReportResponse.ArmNumbers:
    ended = (Out.EarlyEnds(**_same(ends)) for ends in numbers.ended)
    return Out.ArmNumbers(**_same(numbers, ended=ended))


def _arm_message(arm: ArmReport) -> pb.GetReportResponse.ArmReport:
    return Out.ArmReport(
        arm=arm.arm,
        verdict=_ruling_message(arm.verdict),
        blocked=_ruling_message(arm.blocked) if arm.blocked else None,
        primary=_metric_message(arm.primary) if arm.primary else None,
        adjusted_p=arm.adjusted_p,
        guardrails=map(_metric_message, arm.guardrails),
        pairs=Out.Pairs(**_same(arm.pairs)) if arm.pairs else None,
        unadjusted=_metric_message(arm.unadjusted) if arm.unadjusted else None,
        secondary=map(_metric_message, arm.secondary),
        segments=map(_segment_message, arm.segments),
        early=map(_metric_message, arm.early),
    )


def _arm_of(message: pb.GetReportResponse.ArmReport) -> ArmReport:
    return ArmReport(
        arm=message.arm,
        verdict=_read(Ruling, message.verdict),
        primary=_metric_of(message.primary) if message.HasField("primary") else None,
        adjusted_p=message.adjusted_p,
        guardrails=tuple(map(_metric_of, message.guardrails)),
        blocked=_read(Ruling, message.blocked) if message.HasField("blocked") else None,
        pairs=_read(Pairs, message.pairs) if message.HasField("pairs") else None,
        unadjusted=_metric_of(message.unadjusted) if message.HasField("unadjusted") else None,
        secondary=tuple(map(_metric_of, message.secondary)),
        segments=tuple(map(_segment_of, message.segments)),
        early=tuple(map(_metric_of, message.early)),
    )


def _segment_message(found: SegmentReport) -> pb.GetReportResponse.SegmentReport:
    return Out.SegmentReport(**_same(found, effects=_effect_messages(found.effects)))


def _effect_messages(
    effects: Mapping[str, MetricReport],
) -> Iterator[pb.GetReportResponse.SegmentEffect]:
    for value, measured in effects.items():
        yield Out.SegmentEffect(value=value, comparison=_metric_message(measured))


def _effects_of(messages: Iterable[pb.GetReportResponse.SegmentEffect]) -> dict[str, MetricReport]:
    return {effect.value: _metric_of(effect.comparison) for effect in messages}


def _segment_of(message: pb.GetReportResponse.SegmentReport) -> SegmentReport:
    return _read(SegmentReport, message, effects=_effects_of(message.effects))


def _metric_message(found: MetricReport) -> pb.GetReportResponse.Comparison:
    return Out.Comparison(
        **_same(found, COMPARED, waiting=Out.Waiting(**_same(found.waiting)) if found.waiting else None),
        control=found.values[0],
        treatment=found.values[1],
        control_units=found.units[0],
        treatment_units=found.units[1],
        lower_is_better=not found.higher_is_better,
    )


def _metric_of(message: pb.GetReportResponse.Comparison) -> MetricReport:
    return _read(
        MetricReport,
        message,
        units=(message.control_units, message.treatment_units),
        values=(message.control, message.treatment),
        higher_is_better=not message.lower_is_better,
        waiting=_read(NoInterval, message.waiting) if message.HasField("waiting") else None,
    )


def _numbers_of(message: pb.GetReportResponse.ArmNumbers) -> ArmNumbers:
    return _read(
        ArmNumbers,
        message,
        answered=dict(message.answered),
        built_in=dict(message.built_in),
        ended=tuple(_read(EarlyEnds, ends) for ends in message.ended),
    )


def _audit_message(entry: AuditEntry) -> pb.GetReportResponse.AuditEntry:
    detail = Struct()
    values: Mapping[str, Any] = entry.detail
    detail.update(values)
    time = timestamp(entry.time)
    return Out.AuditEntry(**_same(entry, ("experiment",), time=time, detail=detail))


def _audit_of(experiment: str, message: pb.GetReportResponse.AuditEntry) -> AuditEntry:
    detail, time = MessageToDict(message.detail), unix_seconds(message.time)
    return _read(AuditEntry, message, experiment=experiment, time=time, detail=detail)
