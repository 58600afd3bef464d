"""The one table of who may call what. A method that is not in it is denied to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Role(Enum):
    """What a client may be trusted with; none contains another."""

    OPEN = "open"  # of a method, never of a client: anybody may call it
    INFER = "infer"
    OBSERVE = "observe"
    ADMIN = "admin"


GIVEN = frozenset({Role.INFER, Role.OBSERVE, Role.ADMIN})  # what clients can have

ROLES: Mapping[str, Role] = {
    "/router.v1.InferenceService/Generate": Role.INFER,
    "/router.v1.InferenceService/StreamGenerate": Role.INFER,
    "/router.v1.InferenceService/Route": Role.INFER,
    "/router.v1.InferenceService/CountTokens": Role.INFER,
    "/router.v1.InferenceService/RecordCorrection": Role.INFER,
    "/router.v1.AdapterService/ListAdapters": Role.OBSERVE,
    "/router.v1.AdapterService/GetAdapter": Role.OBSERVE,
    "/router.v1.AdapterService/WatchAdapters": Role.OBSERVE,
    "/router.v1.AdapterService/ListPlugins": Role.OBSERVE,
    "/router.v1.AdapterService/LoadAdapter": Role.ADMIN,
    "/router.v1.AdapterService/UnloadAdapter": Role.ADMIN,
    "/router.v1.AdapterService/SetDefaultVersion": Role.ADMIN,
    "/router.v1.AdapterService/ResetDefaultVersion": Role.ADMIN,
    "/router.v1.FleetService/ListReplicas": Role.OBSERVE,
    "/router.v1.FleetService/ResizeReplicas": Role.ADMIN,
    "/router.v1.FleetService/ReplaceReplicas": Role.ADMIN,
    "/router.v1.FleetService/DrainReplica": Role.ADMIN,
    "/router.v1.ExperimentService/RecordOutcome": Role.INFER,
    "/router.v1.ExperimentService/RecordOutcomes": Role.INFER,
    "/router.v1.ExperimentService/GetExperiment": Role.OBSERVE,
    "/router.v1.ExperimentService/ListExperiments": Role.OBSERVE,
    "/router.v1.ExperimentService/GetReport": Role.OBSERVE,
    "/router.v1.ExperimentService/PlanExperiment": Role.OBSERVE,
    "/router.v1.ExperimentService/CreateExperiment": Role.ADMIN,
    "/router.v1.ExperimentService/UpdateExperiment": Role.ADMIN,
    "/router.v1.ExperimentService/DeleteExperiment": Role.ADMIN,
    "/router.v1.ExperimentService/StartExperiment": Role.ADMIN,
    "/router.v1.ExperimentService/StopExperiment": Role.ADMIN,
    "/router.v1.ExperimentService/PromoteArm": Role.ADMIN,
    "/router.v1.ExperimentService/RollBackPromotion": Role.ADMIN,
    "/grpc.health.v1.Health/Check": Role.OPEN,
    "/grpc.health.v1.Health/List": Role.OPEN,
    "/grpc.health.v1.Health/Watch": Role.OPEN,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Role.OBSERVE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.OBSERVE,
}

WEB: Mapping[str, Role] = {  # what is asked over HTTP alone; all else there is one of the above
    "/openai.v1/ListModels": Role.INFER,
    "/ofrep.v1/EvaluateFlag": Role.INFER,
    "/ofrep.v1/EvaluateFlags": Role.INFER,
    "/console.v1/SignIn": Role.OPEN,
    "/console.v1/Overview": Role.OBSERVE,
    "/console.v1/ListActivity": Role.ADMIN,
    "/console.v1/Playground": Role.INFER,
    "/console.v1/Routing": Role.OBSERVE,
    "/console.v1/ListCorrections": Role.ADMIN,  # users' words: each look is in the audit
}

KSERVE: Mapping[str, Role] = {  # where the setting `kserve` is on; else no such method is there
    "/inference.GRPCInferenceService/ServerLive": Role.OPEN,
    "/inference.GRPCInferenceService/ServerReady": Role.OPEN,
    "/inference.GRPCInferenceService/ModelReady": Role.OBSERVE,
    "/inference.GRPCInferenceService/ServerMetadata": Role.OBSERVE,
    "/inference.GRPCInferenceService/ModelMetadata": Role.OBSERVE,
    "/inference.GRPCInferenceService/ModelInfer": Role.INFER,
    "/inference.GRPCInferenceService/ModelStreamInfer": Role.INFER,
}

LOOKS = frozenset({"/console.v1/ListActivity"})  # of the role admin, and no act: the audit has no line of it


def role_of(method: str) -> Role | None:
    """The role that a method needs; None is for nobody."""
    return ROLES.get(method) or WEB.get(method) or KSERVE.get(method)
