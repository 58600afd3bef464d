"""The engine's and PEFT's contestants as they are started, on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.contestants import Entry, Field, environment, ours, physical_cores
from benchmarks.engine import SERVED
from benchmarks.workload import random_adapter
from tests.extensions.training.tiny import save_base

WORK = {"prompts": [[5, 6, 7], [8, 9], [10, 11, 12, 13]], "new": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.mark.long
def test_this_engine_answers_and_writes_its_adapters(base: str, tmp_path: Path):
    command = ours("contestant_engine", "--model", base, "--adapters", "2", "--export", str(tmp_path))
    with Field() as field:
        about = field.start(Entry("ours", command, SERVED))
        for adapters in (0, 2):
            answer = field.ask("ours", WORK | {"adapters": adapters})
            assert answer["tokens"] == 12
            assert answer["seconds"] > 0
    assert about["settings"] == SERVED
    assert set(about["libraries"]) == {"lora-router", "torch"}
    assert json.loads((tmp_path / "1" / "adapter_config.json").read_text())["r"] == 16


@pytest.mark.long
def test_peft_has_all_physical_cores_and_no_settings_of_ours(base: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not {"OMP_WAIT_POLICY", "OMP_NUM_THREADS"} & set(environment({}))
    with Field() as field:
        about = field.start(Entry("PEFT", ours("contestant_peft", "--model", base, "--adapters", "2")))
        for adapters in (0, 2):
            assert field.ask("PEFT", WORK | {"adapters": adapters})["tokens"] == 12
    assert (about["threads"], about["settings"]) == (physical_cores(), {})
    assert set(about["libraries"]) == {"peft", "transformers", "torch"}


def test_adapters_are_the_same_in_every_process():
    places = {"b": (3, 2), "a": (2, 2)}
    one, other = (random_adapter("1", dict(order)) for order in (places.items(), reversed(places.items())))
    assert {site: bytes(delta.a.data) for site, delta in one.sites.items()} == {
        site: bytes(delta.a.data) for site, delta in other.sites.items()
    }
