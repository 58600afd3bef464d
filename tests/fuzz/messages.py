"""Requests as messages: what the server makes of each before anything is asked of the engine or a store."""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.message import Message

from router.engine.fake import FakeEngine
from router.errors import Findings
from router.extensions.experiments.calls import Outcome, outcome_message
from router.extensions.experiments.messages import (
    checked_paths,
    merged,
    plan_message,
    plan_of,
)
from router.extensions.experiments.model import parse_experiment
from router.extensions.experiments.outcomes import Declared, outcome_of
from router.extensions.feedback.service import request_of as feedback_of
from router.names import parse_adapter, parse_version
from router.server.adapters import name_and_version, page
from router.server.bodies import decoder_of
from router.server.requests import RequestLimits, generate_request, route_request
from router.types import EVERYTHING
from router.v1 import adapters_pb2 as adapters_pb
from router.v1 import experiments_pb2 as experiments_pb
from router.v1 import feedback_pb2 as feedback_pb
from router.v1 import inference_pb2 as pb
from tests.extensions.experiments.plans import plan as good_plan
from tests.fakes import FakeRegistry, adapter

LIMITS = RequestLimits(1 << 20, 4096)
REQUESTS: tuple[type[Message], ...] = (
    *(pb.GenerateRequest, pb.StreamGenerateRequest, pb.RouteRequest, pb.CountTokensRequest),
    *(adapters_pb.ListAdaptersRequest, adapters_pb.GetAdapterRequest, adapters_pb.SetDefaultVersionRequest),
    feedback_pb.RecordFeedbackRequest,
)
PLANS: tuple[type[Message], ...] = (
    *(experiments_pb.CreateExperimentRequest, experiments_pb.UpdateExperimentRequest),
    experiments_pb.RecordOutcomesRequest,
)


def request(data: bytes) -> None:
    """Requests for answers and about adapters."""
    kind = REQUESTS[data[0] % len(REQUESTS)] if data else REQUESTS[0]
    message, _ = decoder_of(kind.FromString)(data[1:])
    if isinstance(message, pb.GenerateRequest | pb.StreamGenerateRequest):
        made = generate_request(message, "id", LIMITS)
        assert made.turns or made.raw_prompt
    elif isinstance(message, pb.RouteRequest | pb.CountTokensRequest):
        route_request(message, "id", LIMITS)
    elif isinstance(message, adapters_pb.ListAdaptersRequest):
        infos = (adapter("medical"), adapter("legal", "1.10"))
        page(infos, name_and_version, message.page_size, message.page_token, (message.domain, message.task))
    elif isinstance(message, feedback_pb.RecordFeedbackRequest):
        feedback_of(message, FakeRegistry(FakeEngine(), [adapter("medical")]), EVERYTHING)
    elif isinstance(message, adapters_pb.GetAdapterRequest):
        parse_adapter(message.name)
    else:
        parse_version(message.name)


def plan(data: bytes) -> None:
    """Plans of experiments, questions about them, outcomes."""
    kind = PLANS[data[0] % len(PLANS)] if data else PLANS[0]
    message, found = decoder_of(kind.FromString)(data[1:])[0], Findings()
    if isinstance(message, experiments_pb.CreateExperimentRequest):
        plan_of(message.experiment, found)
    elif isinstance(message, experiments_pb.UpdateExperimentRequest):
        parse_experiment(message.experiment.name)
        paths = checked_paths(message.update_mask.paths, found)
        merged(good_plan(), message.experiment, paths, found)
    else:
        for place, outcome in enumerate(message.outcomes):
            outcome_of(outcome, f"outcomes[{place}]", time.time(), Declared())
    found.check()


def good_requests() -> Sequence[bytes]:
    """One with most fields, and a few with a name."""
    whole = pb.GenerateRequest(
        input=pb.Input(text="hi"),
        sampling=pb.Sampling(max_tokens=4, temperature=0.5, stop=["x"], regex="a+", seed=1),
        routing=pb.Routing(adapter="adapters/medical", unit="u", explain=True),
        labels={"team": "a"},
    )
    chat = pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role=pb.ROLE_USER, text="hi")]))
    name = adapters_pb.GetAdapterRequest(name="adapters/medical")
    listed = adapters_pb.ListAdaptersRequest(page_size=1)
    better = {"should_have_been": "adapters/medical", "prompt": "hi"}
    corrected = feedback_pb.RecordFeedbackRequest(response_id="ab" * 16, **better)
    return [
        bytes([REQUESTS.index(type(one))]) + one.SerializeToString()
        for one in (whole, pb.RouteRequest(input=chat), name, listed, corrected)
    ]


def good_plans() -> Sequence[bytes]:
    """A plan, a change of it, outcomes."""
    made, named = plan_message(good_plan()), plan_message(good_plan())
    named.name = "experiments/trial"
    outcome = outcome_message(Outcome("solved", 1.0, response_id="r", time=1e9, key="k"))
    messages = (
        experiments_pb.CreateExperimentRequest(experiment_id="trial", experiment=made),
        experiments_pb.UpdateExperimentRequest(experiment=named, update_mask={"paths": ["enrolment"]}),
        experiments_pb.RecordOutcomesRequest(outcomes=[outcome]),
    )
    return [bytes([PLANS.index(type(one))]) + one.SerializeToString() for one in messages]
