"""Plans, experiments and reports as messages and back, and edits by field mask.

`conversion` does it by the names of fields, for the server and for clients. The server names every bad field
of what it reads, in `Findings`; a client gives none: what a newer server says has the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from router.conversion import edited, fill, read
from router.errors import Findings
from router.extensions.experiments.model import (
    Accepted,
    Experiment,
    ExperimentPhase,
    Spec,
)
from router.extensions.experiments.report.model import Report
from router.v1 import experiments_pb2 as pb

PLANNED = tuple(field.name for field in fields(Spec))
"""Fields of the resource that an operator sets."""
EVERYTHING = "*"
STATUSES = {
    Accepted.COUNTED: pb.OUTCOME_STATUS_COUNTED,
    Accepted.DUPLICATE: pb.OUTCOME_STATUS_DUPLICATE,
    Accepted.LATE: pb.OUTCOME_STATUS_LATE,
    Accepted.UNKNOWN: pb.OUTCOME_STATUS_UNKNOWN,
}
"""What became of an outcome."""


def experiment_name(name: str) -> str:
    """NAME or a resource name, as a resource name."""
    return name if name.startswith("experiments/") else f"experiments/{name}"


def experiment_message(experiment: Experiment, warnings: Iterable[str] = ()) -> pb.Experiment:
    """The resource."""
    shown = replace(experiment, name=experiment.resource, phases=(), warnings=tuple(warnings))
    message = fill(plan_message(experiment.spec), shown)
    for phase in experiment.phases:
        fill(fill(message.phases.add(), phase), {"arms": phase.spec.arms, "enrolment": phase.spec.enrolment})
    return message


def experiment_of(message: pb.Experiment) -> Experiment:
    """The resource as a client has it, with its phases."""
    spec, name = plan_of(message), message.name.removeprefix("experiments/")
    phases = tuple(_phase_of(phase, spec) for phase in message.phases)
    return read(Experiment, message, name=name, spec=spec, phases=phases)


def _phase_of(message: pb.Experiment.Phase, spec: Spec) -> ExperimentPhase:
    """A phase; its plan is today's with the arms and the share of then."""
    then = edited(spec, message, ("arms", "enrolment"), Findings(), "")
    return read(ExperimentPhase, message, spec=replace(spec, **then))


def plan_message(spec: Spec) -> pb.Experiment:
    """A plan with every field set."""
    return fill(pb.Experiment(), spec)


def plan_of(message: pb.Experiment, found: Findings | None = None, within: str = "experiment.") -> Spec:
    """The plan; what is not set has the model's default, what cannot be read is noted in `found`.

    Raises InvalidRequest for a list that no plan is as long as.
    """
    return read(Spec, message, found, within)


def merged(
    spec: Spec, message: pb.Experiment, paths: Sequence[str], found: Findings, within: str = "experiment."
) -> Spec:
    """The plan with the fields in `paths` as in `message`; unset there means the default."""
    return replace(spec, **edited(spec, message, tuple(paths), found, within))


def update_request(
    name: str, etag: str, changes: Mapping[str, Any], new_phase: bool | None = None
) -> pb.UpdateExperimentRequest:
    """Only the fields of a `Spec` that are given. TypeError for one that a plan does not have."""
    if unknown := sorted(set(changes) - set(PLANNED)):
        raise TypeError(f"unknown field {unknown[0]!r} of a plan; fields are {', '.join(PLANNED)}")
    message = fill(pb.Experiment(name=experiment_name(name), etag=etag), changes)
    mask = FieldMask(paths=list(changes))
    return pb.UpdateExperimentRequest(experiment=message, update_mask=mask, new_phase=new_phase)


def checked_paths(paths: Sequence[str], found: Findings) -> tuple[str, ...]:
    """Fields that a mask names; what cannot be edited is noted."""
    if not paths:
        found.add("update_mask", "must name the fields to change, such as enrolment; * is the whole plan")
    if EVERYTHING in paths:
        if len(paths) > 1:
            found.add("update_mask", "* names all fields: leave the others out")
        return PLANNED
    known = pb.Experiment.DESCRIPTOR.fields_by_name
    for path in paths:
        whole = path.partition(".")[0]
        if path in PLANNED:
            continue
        if whole in PLANNED:
            found.add("update_mask", f"{path!r}: name the whole field, {whole}")
        elif whole in known:
            found.add("update_mask", f"{path!r} is set by the server")
        else:
            found.add("update_mask", f"{path!r} is no field of an experiment")
    return tuple(path for path in paths if path in PLANNED)


def report_message(report: Report, experiment: pb.Experiment) -> pb.GetReportResponse:
    """A report; `experiment` is its experiment as a message."""
    parts = {field.name: getattr(report, field.name) for field in fields(report)}
    message = fill(pb.GetReportResponse(), {**parts, "experiment": None})
    message.experiment.CopyFrom(experiment)
    return message


def report_of(message: pb.GetReportResponse) -> Report:
    """The report as the server made it."""
    return read(Report, message, experiment=experiment_of(message.experiment))
