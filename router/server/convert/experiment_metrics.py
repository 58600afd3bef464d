"""Metrics of experiments: model and proto, both ways."""

from __future__ import annotations

from router.experiments.kind import Kind
from router.experiments.model import Aggregate, MetricSpec, Unanswered
from router.server.convert.findings import Findings
from router.v1 import experiments_pb2 as pb

Message = pb.Experiment.Metric
KINDS = {
    Message.KIND_PROPORTION: Kind.PROPORTION,
    Message.KIND_MEAN: Kind.MEAN,
    Message.KIND_RATIO: Kind.RATIO,
}
AGGREGATES = {
    Message.AGGREGATE_SUM: Aggregate.SUM,
    Message.AGGREGATE_MEAN: Aggregate.MEAN,
    Message.AGGREGATE_MAX: Aggregate.MAX,
    Message.AGGREGATE_LAST: Aggregate.LAST,
}
KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
AGGREGATE_NUMBERS = {aggregate: number for number, aggregate in AGGREGATES.items()}


def metric_of(message: Message, field: str, found: Findings) -> MetricSpec:
    """The metric; what is no value of an enum is noted and stands for another until then."""
    kind = KINDS.get(message.kind)
    if kind is None:
        found.add(f"{field}.kind", "must be KIND_PROPORTION, KIND_MEAN or KIND_RATIO")
        kind = Kind.MEAN
    if message.per and kind is not Kind.RATIO:
        found.add(f"{field}.per", "only a ratio has a denominator: clear it, or set KIND_RATIO")
    return MetricSpec(
        name=message.name,
        kind=kind,
        higher_is_better=not message.lower_is_better,
        aggregate=_aggregate(message, kind, field, found),
        per=message.per or "responses",
        missing=Unanswered.ZERO if message.missing_is_zero else Unanswered.EXCLUDED,
        covariate=message.covariate,
        margin=message.margin,
        relative=message.relative,
    )


def _aggregate(message: Message, kind: Kind, field: str, found: Findings) -> Aggregate:
    usual = Aggregate.MAX if kind is Kind.PROPORTION else Aggregate.SUM
    if message.aggregate == Message.AGGREGATE_UNSPECIFIED:
        return usual
    if message.aggregate not in AGGREGATES:
        found.add(f"{field}.aggregate", "is no aggregate that this server knows")
    return AGGREGATES.get(message.aggregate, usual)


def metric_message(metric: MetricSpec) -> Message:
    """The metric as proto."""
    return Message(
        name=metric.name,
        kind=KIND_NUMBERS[metric.kind],
        lower_is_better=not metric.higher_is_better,
        aggregate=AGGREGATE_NUMBERS[metric.aggregate],
        per=metric.per if metric.kind is Kind.RATIO else "",
        missing_is_zero=metric.missing is Unanswered.ZERO,
        covariate=metric.covariate,
        margin=metric.margin,
        relative=metric.relative,
    )
