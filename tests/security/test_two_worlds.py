"""Every method answers a client the same, byte for byte, whether or not there is anything of another tenant:
names that it asks for, lists that it reads, mistakes that it makes.

Each case is asked of a server with both tenants' things and of one with the client's own alone. That the
cases can see a difference at all is shown by a client that may know of everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from router.access.access import new_response_id
from router.access.clients import Role
from router.extensions.experiments.messages import plan_message
from router.v1 import adapters_pb2, feedback_pb2, fleet_pb2, inference_pb2
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.plans import holdout_plan, plan
from tests.extensions.experiments.service.lab import create
from tests.security.helpers import ROWS
from tests.security.worlds import answered, legal_plan, vars_of, world
from tests.server.helpers import Connect, Start, ask, details, stream

pytestmark = pytest.mark.slow
Call = Callable[[SimpleNamespace, Any], Any]  # of the server and metadata
OTHERS = ("legal-tone", "acme-hidden", "ghost", "acme-ghost")
NOISE = {
    *("request_id", "response_id", "etag", "create_time", "update_time", "start_time", "stop_time", "time"),
    *("usage", "route_latency", "latency", "last_used", "leases", "enrolment_salt", "variant_salt"),
}


def legal(**routing: Any) -> dict[str, Any]:
    return {"routing": {"adapter": "adapters/legal", **routing}}


def pinned(version: str) -> dict[str, Any]:
    return {"routing": {"adapter": f"adapters/legal/versions/{version}"}}


def mixed(*names: str) -> dict[str, Any]:
    """The client's own adapter and others."""
    parts = ({"adapter": f"adapters/{name}", "weight": 0.5} for name in ("medical", *names))
    return {"routing": {"mixture": parts}}


def read(**fields: Any) -> dict[str, Any]:
    return {"input": inference_pb2.Input(text="a legal question"), **fields}


def outcome(**subject: Any) -> pb.Outcome:
    return pb.Outcome(metric="solved", value=subject.pop("value", 1.0), idempotency_key="k", **subject)


def of_unit(name: str) -> dict[str, Any]:
    return {"unit": {"experiment": f"experiments/{name}", "unit": "anna"}}


def batch(*outcomes: pb.Outcome) -> pb.RecordOutcomesRequest:
    return pb.RecordOutcomesRequest(sequence=1, outcomes=outcomes)


def named(method: str, request: Callable[[str], Any]) -> list[Call]:
    """One case for each name of another's, or of nobody's, experiment."""
    return [
        lambda at, m, name=name: getattr(at.experiments, method)(  # type: ignore[misc]
            request(f"experiments/{name}"), metadata=m
        )
        for name in OTHERS
    ]


def adapters(method: str, kind: Any, name: str = "adapters/legal", **fields: Any) -> list[Call]:
    return [lambda at, m: getattr(at.adapters, method)(kind(name=name, **fields), metadata=m)]


def rated(response_id: str, **fields: Any) -> feedback_pb2.RecordFeedbackRequest:
    return feedback_pb2.RecordFeedbackRequest(
        response_id=response_id, verdict=feedback_pb2.FEEDBACK_VERDICT_GOOD, **fields
    )


def edited(name: str, **fields: Any) -> Call:
    message = plan_message(plan(**fields))
    message.name = f"experiments/{name}"
    request = pb.UpdateExperimentRequest(experiment=message, update_mask={"paths": ["route", "arms", "mode"]})
    return lambda at, m: at.experiments.UpdateExperiment(request, metadata=m)


def created(name: str, **fields: Any) -> Call:
    return lambda at, m: at.experiments.CreateExperiment(create(name, **fields), metadata=m)


def watched(at: SimpleNamespace, m: Any) -> Any:
    return first_of(at.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest(), metadata=m), 2)


async def first_of(call: Any, number: int) -> list[Any]:
    events = aiter(call)
    found = [await anext(events) for _ in range(number)]
    call.cancel()
    return found


CASES: dict[str, list[Call]] = {
    "InferenceService/Generate": [
        lambda at, m: at.inference.Generate(ask("hi", **legal()), metadata=m),
        lambda at, m: at.inference.Generate(ask("hi", **pinned("2.0.0")), metadata=m),
        lambda at, m: at.inference.Generate(ask("a legal question", routing={"unit": "u"}), metadata=m),
        lambda at, m: at.inference.Generate(ask("a legal question", routing={"explain": True}), metadata=m),
        lambda at, m: at.inference.Generate(ask("hi", **mixed("legal")), metadata=m),
        lambda at, m: at.inference.Generate(ask("hi", **mixed("legal/versions/2.1.0", "legal")), metadata=m),
    ],
    "InferenceService/StreamGenerate": [
        lambda at, m: at.inference.StreamGenerate(stream("hi", **legal()), metadata=m),
        lambda at, m: at.inference.StreamGenerate(stream("a legal question"), metadata=m),
        lambda at, m: at.inference.StreamGenerate(stream("hi", **mixed("legal")), metadata=m),
    ],
    "InferenceService/Route": [
        lambda at, m: at.inference.Route(inference_pb2.RouteRequest(**read(**legal())), metadata=m),
        lambda at, m: at.inference.Route(inference_pb2.RouteRequest(**read()), metadata=m),
        lambda at, m: at.inference.Route(inference_pb2.RouteRequest(**read(**mixed("legal"))), metadata=m),
    ],
    "InferenceService/CountTokens": [
        lambda at, m: at.inference.CountTokens(
            inference_pb2.CountTokensRequest(**read(**legal())), metadata=m
        ),
        lambda at, m: at.inference.CountTokens(inference_pb2.CountTokensRequest(**read()), metadata=m),
    ],
    "FeedbackService/RecordFeedback": [
        lambda at, m: at.feedback.RecordFeedback(
            feedback_pb2.RecordFeedbackRequest(response_id="0" * 40, should_have_been="adapters/legal"),
            metadata=m,
        ),
        lambda at, m: at.feedback.RecordFeedback(rated(at.stolen), metadata=m),
        lambda at, m: at.feedback.RecordFeedback(
            rated("0" * 40, answered_by="adapters/legal/versions/2.0.0"), metadata=m
        ),
    ],
    "FeedbackService/ListFeedback": [
        lambda at, m: at.feedback.ListFeedback(
            feedback_pb2.ListFeedbackRequest(adapter="adapters/legal"), metadata=m
        ),
        lambda at, m: at.feedback.ListFeedback(
            feedback_pb2.ListFeedbackRequest(adapter="adapters/medical"), metadata=m
        ),
    ],
    "FeedbackService/DeleteFeedback": [
        lambda at, m: at.feedback.DeleteFeedback(
            feedback_pb2.DeleteFeedbackRequest(unit="anna", tenant="bravo"), metadata=m
        ),
        lambda at, m: at.feedback.DeleteFeedback(feedback_pb2.DeleteFeedbackRequest(unit="anna"), metadata=m),
    ],
    "AdapterService/ListAdapters": [
        lambda at, m: at.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(), metadata=m),
        lambda at, m: at.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(page_size=1), metadata=m),
        lambda at, m: at.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(domain="legal"), metadata=m),
    ],
    "AdapterService/GetAdapter": [
        *adapters("GetAdapter", adapters_pb2.GetAdapterRequest),
        *adapters("GetAdapter", adapters_pb2.GetAdapterRequest, "adapters/legal/versions/2.1.0"),
    ],
    "AdapterService/WatchAdapters": [watched],
    "AdapterService/ListPlugins": [
        lambda at, m: at.adapters.ListPlugins(adapters_pb2.ListPluginsRequest(), metadata=m)
    ],
    "AdapterService/LoadAdapter": adapters("LoadAdapter", adapters_pb2.LoadAdapterRequest),
    "AdapterService/UnloadAdapter": adapters("UnloadAdapter", adapters_pb2.UnloadAdapterRequest),
    "AdapterService/SetDefaultVersion": adapters(
        "SetDefaultVersion",
        adapters_pb2.SetDefaultVersionRequest,
        "adapters/legal/versions/2.1.0",
        force=True,
    ),
    "AdapterService/ResetDefaultVersion": adapters(
        "ResetDefaultVersion", adapters_pb2.ResetDefaultVersionRequest
    ),
    "FleetService/ListReplicas": [
        lambda at, m: at.fleet.ListReplicas(fleet_pb2.ListReplicasRequest(), metadata=m)
    ],
    "FleetService/DrainReplica": [
        lambda at, m: at.fleet.DrainReplica(fleet_pb2.DrainReplicaRequest(name="0"), metadata=m)
    ],
    "ExperimentService/RecordOutcome": [
        lambda at, m: at.experiments.RecordOutcome(
            pb.RecordOutcomeRequest(outcome=outcome(response_id=at.stolen)), metadata=m
        ),
        *named("RecordOutcome", lambda name: pb.RecordOutcomeRequest(outcome=outcome(**of_unit(name[12:])))),
        *named(  # a value that a plan forbids
            "RecordOutcome",
            lambda name: pb.RecordOutcomeRequest(outcome=outcome(value=3.0, **of_unit(name[12:]))),
        ),
    ],
    "ExperimentService/RecordOutcomes": [
        lambda at, m: at.experiments.RecordOutcomes(
            iter(
                [
                    batch(outcome(response_id=at.stolen), *(outcome(**of_unit(name)) for name in OTHERS)),
                    batch(*(outcome(value=2.0, **of_unit(name)) for name in OTHERS)),
                ]
            ),
            metadata=m,
        ),
    ],
    "ExperimentService/GetExperiment": named(
        "GetExperiment", lambda name: pb.GetExperimentRequest(name=name)
    ),
    "ExperimentService/ListExperiments": [
        lambda at, m: at.experiments.ListExperiments(pb.ListExperimentsRequest(), metadata=m),
        lambda at, m: at.experiments.ListExperiments(pb.ListExperimentsRequest(page_size=1), metadata=m),
    ],
    "ExperimentService/GetReport": [
        *named("GetReport", lambda name: pb.GetReportRequest(name=name)),
        *named("GetReport", lambda name: pb.GetReportRequest(name=name, phase=7)),
    ],
    "ExperimentService/CreateExperiment": [
        created("legal-tone"),
        created("legal-other"),
        created("acme-new", **vars_of(legal_plan())),
        created("acme-route", **vars_of(holdout_plan()), control="held"),
    ],
    "ExperimentService/UpdateExperiment": [
        *map(edited, OTHERS),
        edited("acme-tone", **vars_of(legal_plan())),
        edited("acme-tone", **vars_of(holdout_plan()), control="held"),
    ],
    "ExperimentService/DeleteExperiment": named(
        "DeleteExperiment", lambda name: pb.DeleteExperimentRequest(name=name)
    ),
    "ExperimentService/StartExperiment": named(
        "StartExperiment", lambda name: pb.StartExperimentRequest(name=name)
    ),
    "ExperimentService/StopExperiment": named(
        "StopExperiment", lambda name: pb.StopExperimentRequest(name=name)
    ),
    "ExperimentService/PromoteArm": named(
        "PromoteArm", lambda name: pb.PromoteArmRequest(name=name, arm="new", force=True)
    ),
    "ExperimentService/RollBackPromotion": named(
        "RollBackPromotion", lambda name: pb.RollBackPromotionRequest(name=name)
    ),
}


def test_every_method_has_its_cases() -> None:
    ours = {m for m, row in ROWS.items() if row.role is not Role.OPEN and m.startswith("/router.v1.")}
    assert {method.removeprefix("/router.v1.") for method in ours} == set(CASES)


async def seen(call: Any) -> Any:
    """All that an answer or a refusal says, but for ids, times and the like."""
    try:
        if hasattr(call, "__aiter__"):
            messages = [message async for message in call]
        else:
            found = await call
            messages = found if isinstance(found, list) else [found]
    except grpc.aio.AioRpcError as error:
        said = [(name, plain(one)) for name, one in details(error).items() if name != "RequestInfo"]
        return error.code().name, error.details(), said
    rest = [plain(m) for m in messages if not is_delta(m)]
    return rest, "".join(m.delta.text for m in messages if is_delta(m))  # however it was cut


def is_delta(message: Message) -> bool:
    return isinstance(message, inference_pb2.StreamGenerateResponse) and message.HasField("delta")


def plain(message: Message) -> bytes:
    """As bytes, without what differs from call to call."""
    copy = type(message)()
    copy.CopyFrom(message)
    _quieten(copy)
    return copy.SerializeToString(deterministic=True)


def _quieten(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in NOISE:
            message.ClearField(field.name)
        elif field.message_type is None or field.message_type.full_name.startswith("google.protobuf"):
            if field.name == "metadata":
                value.pop("request_id", None)
        elif field.message_type.GetOptions().map_entry:
            for name in ("request_id", "response_id"):
                value.pop(name, None)
        elif hasattr(value, "ListFields"):
            _quieten(value)
        else:
            for one in value:
                _quieten(one)


@pytest.fixture
async def answers(
    tmp_path: Path, start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]:
    """What a client is told in all cases: beside the other tenant's things, and without them."""

    async def told(client: str, theirs: bool) -> dict[str, Any]:
        async with world(tmp_path, start_server, connect, theirs) as at:
            at.stolen = new_response_id("bravo")
            if theirs:
                at.stolen = (await answered(at, at.clients.other, "a legal question", "anna")).response_id
                await at.feedback.RecordFeedback(rated(at.stolen), metadata=at.clients.other)
            await answered(at, at.clients.mine, "a medical question", "anna")
            mine, found = getattr(at.clients, client), {}
            for method, cases in CASES.items():
                for number, case in enumerate(cases):
                    said = await seen(case(at, mine))
                    found[f"{method} {number}"] = repr(said).replace(at.stolen, "STOLEN")
            return found

    async def both(client: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return await told(client, theirs=True), await told(client, theirs=False)

    return both


async def test_nothing_tells_of_another_tenant(answers: Any) -> None:
    beside, alone = await answers("mine")
    assert beside == alone
    assert not [case for case, said in beside.items() if "INTERNAL" in said or "UNKNOWN'" in said]


async def test_who_may_know_of_all_sees_the_difference_in_every_method(answers: Any) -> None:
    beside, alone = await answers("ops")
    differs = {case.split()[0] for case in beside if beside[case] != alone[case]}
    alike = {"AdapterService/ListPlugins"}
    assert differs == {n for n in CASES if not n.startswith("FleetService/")} - alike
