"""A name that looks like a path is none: refused where it does not fit, else unknown, and never opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.v1 import adapters_pb2 as pb
from router.v1 import experiments_pb2 as experiments
from router.v1 import feedback_pb2, inference_pb2
from tests.fuzz import rpcs
from tests.security.requests import every_field
from tests.server.helpers import ask, details, failure

# Triton's list (CVE-2023-31036 and its tests), and what else a file system takes for a way out.
NAMES = (
    *(
        "../medical",
        "..",
        ".",
        " ..",
        ".. ",
        "../..",
        "a/../medical",
        "/etc/passwd",
        "//etc/passwd",
        "medical/",
    ),
    *(
        "./medical",
        "medical/.",
        "medical/..",
        "..\\medical",
        "C:\\medical",
        "~",
        "~root",
        "%2e%2e%2f",
        "..%2fx",
    ),
    *(
        "medical\0",
        "medi\0cal",
        "x" * 64,
        "x" * 300,
        "x" * 5000,
        "\u2024\u2024/x",
        "file:///etc/passwd",
        "CON",
    ),
    *("$HOME", "`id`", ";id", "*", "?", "[a-z]*", "medical\n", "\ufeffmedical", "MEDICAL", "outside"),
)
VERSIONS = ("..", "../1.0.0", "1.0.0/..", "/1.0.0", "1.0.0\0", "x" * 300)
FINE = {"INVALID_ARGUMENT", "NOT_FOUND"}


def adapter_calls(stubs: Any, name: str) -> Iterator[Any]:
    """Every method that takes an adapter's name."""
    yield stubs.adapters.GetAdapter(pb.GetAdapterRequest(name=name))
    yield stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name=name))
    yield stubs.adapters.UnloadAdapter(pb.UnloadAdapterRequest(name=name))
    yield stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=name))
    yield stubs.adapters.ResetDefaultVersion(pb.ResetDefaultVersionRequest(name=name))
    text = inference_pb2.Input(text="hi")
    mixture = [{"adapter": name, "weight": 0.5}, {"adapter": "adapters/legal", "weight": 0.5}]
    for routing in ({"adapter": name}, {"mixture": mixture}):
        yield stubs.inference.Generate(ask(routing=routing))
        yield stubs.inference.StreamGenerate(inference_pb2.StreamGenerateRequest(input=text, routing=routing))
        yield stubs.inference.Route(inference_pb2.RouteRequest(input=text, routing=routing))
        yield stubs.inference.CountTokens(inference_pb2.CountTokensRequest(input=text, routing=routing))
    said = feedback_pb2.RecordFeedbackRequest(response_id="0" * 32, should_have_been=name)
    yield stubs.feedback.RecordFeedback(said)


def experiment_calls(stubs: Any, name: str) -> Iterator[Any]:
    """Every method that takes an experiment's name."""
    stub = stubs.experiments
    for method in ("Get", "Delete", "Start", "Stop"):
        kind = getattr(experiments, f"{method}ExperimentRequest")
        yield getattr(stub, f"{method}Experiment")(kind(name=name))
    yield stub.GetReport(experiments.GetReportRequest(name=name))
    yield stub.PromoteArm(experiments.PromoteArmRequest(name=name, arm="a"))
    yield stub.RollBackPromotion(experiments.RollBackPromotionRequest(name=name))
    named = experiments.Experiment(name=name)
    yield stub.UpdateExperiment(
        experiments.UpdateExperimentRequest(experiment=named, update_mask={"paths": ["hypothesis"]})
    )
    identifier = name.removeprefix("experiments/")
    if identifier != "outside":
        yield stub.CreateExperiment(
            experiments.CreateExperimentRequest(experiment_id=identifier, experiment=named)
        )
    unit = experiments.Outcome.UnitOfExperiment(experiment=name, unit="u")
    yield stub.RecordOutcome(
        experiments.RecordOutcomeRequest(outcome=experiments.Outcome(unit=unit, metric="solved", value=1))
    )


def names() -> Iterator[tuple[str, str]]:
    """What is sent as names of adapters and of experiments."""
    for name in NAMES:
        yield f"adapters/{name}", f"experiments/{name}"
        yield name, name
    for version in VERSIONS:
        yield f"adapters/medical/versions/{version}", f"experiments/trial/{version}"


def test_every_field_that_names_something_is_sent_such_names() -> None:
    """A new one has to be added to the calls above."""
    named = {
        path for path in every_field() if path.rpartition(".")[2] in ("name", "experiment_id", "adapter")
    }
    known = {
        *(f"{m}AdapterRequest.name" for m in ("Get", "Load", "Unload")),
        *("SetDefaultVersionRequest.name", "ResetDefaultVersionRequest.name"),
        *(
            f"{m}Request.routing.{field}"
            for m in ("Generate", "StreamGenerate", "Route", "CountTokens")
            for field in ("adapter", "mixture.adapter")
        ),
        "DrainReplicaRequest.name",  # of a replica: compared with those that there are
        *(f"{m}ExperimentRequest.name" for m in ("Get", "Delete", "Start", "Stop")),
        *("GetReportRequest.name", "PromoteArmRequest.name", "RollBackPromotionRequest.name"),
        "UpdateExperimentRequest.experiment.name",
        "CreateExperimentRequest.experiment_id",
    }
    # Texts of a plan, and names of functions, which are letters, digits, underscores and hyphens.
    parts = (".experiment.", ".metric.", ".tools.", ".tool_calls.")
    inside = {path for path in named if any(part in path for part in parts)}
    assert named - inside == known - inside


@pytest.mark.slow
async def test_no_name_leads_out_of_the_folder(
    tmp_path: Path, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    async with rpcs.serving(tmp_path) as app:
        (tmp_path / "adapters" / "medical").rename(outside)  # a good adapter, beside the folder
        (tmp_path / "adapters" / "linked").symlink_to(outside)
        stubs: SimpleNamespace = connect(app)
        opened = watch_opens(monkeypatch)
        seen = set()
        for adapter, experiment in names():
            for call in (*adapter_calls(stubs, adapter), *experiment_calls(stubs, experiment)):
                error = await failure(call)
                assert error.code().name in FINE, (adapter, error.code(), error.details())
                assert str(tmp_path) not in error.details() + repr(error.trailing_metadata())
                seen.add(details(error)["ErrorInfo"].reason)
        assert seen <= {"INVALID_REQUEST", "ADAPTER_NOT_FOUND", "EXPERIMENT_NOT_FOUND", "NOT_FOUND"}
        assert not [path for path in opened if "passwd" in path or "outside" in path]


def watch_opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that `os.open` and `os.stat` are asked for from now on."""
    paths: list[str] = []
    for name in ("open", "stat", "lstat"):
        original = getattr(os, name)

        def watched(path: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            paths.append(str(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(os, name, watched)
    return paths
