"""The page on gRPC names every error reason and metric."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from router import errors
from router.engine.fake import FakeEngine
from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.service import ExperimentMetrics
from router.extensions.feedback.service import FeedbackCollector
from router.extensions.replicas.service import FleetCollector
from router.extensions.sharing.sharing import EdgesCollector
from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from router.replicas.engine import FleetEngine
from router.server.metrics import ServerMetrics
from router.server.registration import PluginsCollector
from tests.extensions.experiments.memory_store import MemoryStore
from tests.replicas.local import LocalLink

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/grpc.md").read_text()


def reasons() -> set[str]:
    return {
        kind.reason for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "reason")
    }


def metrics() -> list[str]:
    experiments = ExperimentMetrics(LiveExperiments(MemoryStore())).collect()
    engine = FleetEngine([LocalLink("0", FakeEngine)], FakeEngine, max_running=1, max_queue=1)
    fleet = FleetCollector(engine.members).collect()
    edges = EdgesCollector(SimpleNamespace(problem="", edges=1)).collect()
    plugins = PluginsCollector(SimpleNamespace(running=tuple)).collect()
    recorder = FeedbackRecorder(FeedbackStore.in_folder(Path("nowhere")), "labels", 90)
    feedback = FeedbackCollector(recorder).collect()
    server = [*feedback, *fleet, *edges, *plugins]
    collected = [*ServerMetrics().registry.collect(), *experiments, *server]
    return [f"{m.name}_total" if m.type == "counter" else m.name for m in collected]


@pytest.mark.parametrize("names", [reasons(), metrics()], ids=lambda names: str(len(names)))
def test_all_are_named(names: list[str]) -> None:
    assert names
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_the_metrics_named_exist() -> None:
    named = set(re.findall(r"`((?:lora_router|grpc_server|http_server|process)_[a-z_]+)`", PAGE))
    assert named == set(metrics())
