"""Experiments of the scripted server: kept in a dict, with a report that is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import grpc

from router.extensions.experiments.messages import report_message
from router.v1 import experiments_pb2 as pb
from router.v1 import experiments_pb2_grpc
from tests.client.scripted import Scripted, ScriptedAdapters, error_info, refuse, serving
from tests.extensions.experiments.report.sums import REPORT

State = pb.Experiment


@dataclass
class ScriptedExperiments(experiments_pb2_grpc.ExperimentServiceServicer):
    """Remembers requests and outcomes. Outcomes of the response `nobody` are refused; values above 1 are
    invalid in a batch."""

    requests: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)
    outcomes: list = field(default_factory=list)
    report: object = REPORT
    planned: object = None

    def _get(self, name, context):
        if name not in self.kept:
            info = error_info("EXPERIMENT_NOT_FOUND", resource=name)
            refuse(context, grpc.StatusCode.NOT_FOUND, f"experiment {name!r} not found", info)
        return self.kept[name]

    def CreateExperiment(self, request, context):
        self.requests.append(request)
        made = pb.Experiment()
        made.CopyFrom(request.experiment)
        made.name, made.state, made.etag = f"experiments/{request.experiment_id}", State.STATE_DRAFT, "e1"
        made.create_time.FromSeconds(1_000_000)
        self.kept[made.name] = made
        return pb.CreateExperimentResponse(experiment=made)

    def GetExperiment(self, request, context):
        self.requests.append(request)
        return pb.GetExperimentResponse(experiment=self._get(request.name, context))

    def ListExperiments(self, request, context):
        self.requests.append(request)
        start = int(request.page_token or 0)
        found = [self.kept[name] for name in sorted(self.kept)]
        following = str(start + 2) if start + 2 < len(found) else ""
        page = found[start : start + 2]
        return pb.ListExperimentsResponse(experiments=page, next_page_token=following)

    def UpdateExperiment(self, request, context):
        self.requests.append(request)
        kept = self._get(request.experiment.name, context)
        for path in request.update_mask.paths:
            kept.ClearField(path)
            part = pb.Experiment()
            request.update_mask.__class__(paths=[path]).MergeMessage(request.experiment, part)
            kept.MergeFrom(part)
        return pb.UpdateExperimentResponse(experiment=kept)

    def StartExperiment(self, request, context):
        self.requests.append(request)
        kept = self._get(request.name, context)
        kept.state = State.STATE_RUNNING
        if not kept.phases:
            phase = kept.phases.add(number=1, enrolment_salt="a", variant_salt="b", enrolment=1.0)
            phase.start_time.FromSeconds(1_000_000)
            phase.arms.extend(kept.arms)
        return pb.StartExperimentResponse(experiment=kept)

    def StopExperiment(self, request, context):
        self.requests.append(request)
        kept = self._get(request.name, context)
        kept.state, kept.stop_reason = State.STATE_STOPPED, request.reason
        return pb.StopExperimentResponse(experiment=kept)

    def PromoteArm(self, request, context):
        self.requests.append(request)
        kept = self._get(request.name, context)
        kept.promoted = request.arm or "new"
        return pb.PromoteArmResponse(
            experiment=kept,
            default_version="adapters/medical/versions/1.1.0",
            previous_version="adapters/medical/versions/1.0.0",
        )

    def RollBackPromotion(self, request, context):
        self.requests.append(request)
        kept = self._get(request.name, context)
        return pb.RollBackPromotionResponse(
            experiment=kept, default_version="adapters/medical/versions/1.0.0"
        )

    def DeleteExperiment(self, request, context):
        self.requests.append(request)
        self._get(request.name, context)
        del self.kept[request.name]
        return pb.DeleteExperimentResponse()

    def GetReport(self, request, context):
        self.requests.append(request)
        return report_message(self.report, self._get(request.name, context))

    def RecordOutcome(self, request, context):
        self.outcomes.append(request.outcome)
        if request.outcome.response_id == "nobody":
            refuse(context, grpc.StatusCode.NOT_FOUND, "no response 'nobody'", error_info("NOT_FOUND"))
        return pb.RecordOutcomeResponse(status=pb.OUTCOME_STATUS_COUNTED, warning=_warning(request.outcome))

    def RecordOutcomes(self, request_iterator, context):
        for request in request_iterator:
            self.outcomes.extend(request.outcomes)
            bad = [o.value > 1 for o in request.outcomes]
            statuses = [pb.OUTCOME_STATUS_INVALID if b else pb.OUTCOME_STATUS_COUNTED for b in bad]
            errors = ["value: must be 0 or 1"] * sum(bad)
            yield pb.RecordOutcomesResponse(
                sequence=request.sequence,
                statuses=statuses,
                errors=errors,
                warnings=set(filter(None, map(_warning, request.outcomes))),
            )


def _warning(outcome):
    return "no plan has it" if outcome.metric == "unplanned" else ""


@contextmanager
def scripted_server() -> Iterator[SimpleNamespace]:
    """A server with scripted answers: `.target`, `.inference`, `.adapters`, `.experiments`."""
    inference, adapters, experiments = Scripted(), ScriptedAdapters(), ScriptedExperiments()
    with serving(inference, adapters, experiments) as target:
        yield SimpleNamespace(target=target, inference=inference, adapters=adapters, experiments=experiments)
