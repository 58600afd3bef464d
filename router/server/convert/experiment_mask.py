"""Edits by field mask: which fields of the old plan give way to the new ones."""

from __future__ import annotations

from collections.abc import Sequence

from router.experiments.model import Spec
from router.server.convert.experiments import PLANNED, plan_message
from router.server.convert.findings import Findings
from router.v1 import experiments_pb2 as pb

EVERYTHING = "*"


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


def merged(spec: Spec, message: pb.Experiment, paths: Sequence[str]) -> pb.Experiment:
    """The plan of `spec` with the fields in `paths` as in `message`; unset there means the default."""
    result, new = plan_message(spec), pb.Experiment()
    new.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name not in paths:
            new.ClearField(field.name)
    for name in paths:
        result.ClearField(name)
    result.MergeFrom(new)
    return result
