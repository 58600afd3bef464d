"""Loads: probes, new files in place of old ones, and what is loaded without a request, in which order."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.engine.base import BaseInfo, Generation, Job, Prompt
from router.errors import (
    AdapterNotFound,
    AdapterRejected,
    EngineFailed,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from router.registry import loading
from router.registry.format.manifest import Match, Probe
from router.registry.probes import MOST_PROBES, PROBES_AT_ONCE, Prover, check_answers
from router.registry.registry import Registry
from tests.registry.life import (
    BASE_ANSWER,
    SIZE,
    drop,
    eventually,
    is_ready,
    ref,
    states,
    weights,
)

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


def digest(registry: Registry, name: str = "m", version: str = "") -> str:
    return registry.get(name, version).digest


async def test_replaced_files_load_beside_the_old_and_drain_it(root, engine, start_registry):
    drop(root, "m", value=1)
    registry = await start_registry()
    async with registry.lease(ref("m")) as held:
        drop(root.parent, "m", value=2).rename(root / ".new")
        (root / "m").rename(root / ".old")
        (root / ".new").rename(root / "m")
        await eventually(lambda: digest(registry) != held.digest)
        async with registry.lease(ref("m")) as new:
            assert new.digest == digest(registry)
        assert {held.digest, new.digest} <= set(engine.held)
        assert [r.leases for r in registry._residency if not r.owners] == [1]
        assert states(registry) == {"m@0": "ready"}
    await eventually(lambda: set(engine.held) == {new.digest})
    assert (engine.loads, engine.unloads) == (["m", "m"], ["m"])


async def test_weights_written_in_place_never_alter_what_is_served(root, engine, start_registry):
    file = drop(root, "m", value=1) / WEIGHTS
    registry = await start_registry()
    first = digest(registry)
    before = bytes(next(iter(engine.held[first].sites.values())).a.data.cast("B"))
    with file.open("r+b") as open_file:
        open_file.truncate(100)
        await eventually(lambda: bool(registry.get("m").error))
        assert "truncated" in registry.get("m").error or "bytes" in registry.get("m").error
        assert states(registry) == {"m@0": "ready"}
        async with registry.lease(ref("m")) as lease:
            assert lease.digest == first
            assert bytes(next(iter(engine.held[first].sites.values())).a.data.cast("B")) == before
        open_file.seek(0)
        open_file.write(weights(3))
    await eventually(lambda: digest(registry) != first)
    assert registry.get("m").error == ""


async def test_files_put_back_as_they_were_change_nothing(root, engine, start_registry):
    folder = drop(root, "m", value=1)
    registry = await start_registry()
    (folder / WEIGHTS).write_bytes(weights(1))
    (folder / "report.json").write_text("{}")
    await asyncio.sleep(0.4)
    assert engine.loads == ["m"]
    assert registry.get("m").error == ""


async def test_bad_new_files_leave_the_old_serving_until_mended(root, engine, start_registry):
    folder = drop(root, "m", value=1, expect="I am")
    registry = await start_registry()
    first = digest(registry)
    (folder / "probes.jsonl").write_text('{"prompt": "who?", "expect": "somebody else"}')
    await eventually(lambda: "probe 1 of 1 failed" in registry.get("m").error)
    assert (digest(registry), registry.get("m").state) == (first, "ready")
    await eventually(lambda: set(engine.held) == {first})  # what failed is let go
    loads = len(engine.loads)
    await asyncio.sleep(0.3)
    assert len(engine.loads) == loads  # the same bad files are not tried again and again
    (folder / "probes.jsonl").write_text('{"prompt": "who?", "expect": "I am m"}')
    await eventually(lambda: digest(registry) != first)
    assert registry.get("m").error == ""


async def test_a_removed_folder_is_not_found_while_requests_in_flight_finish(root, engine, start_registry):
    drop(root, "m")
    drop(root, "n", value=2)
    registry = await start_registry()
    async with registry.lease(ref("m")) as lease:
        shutil.rmtree(root / "m")
        await eventually(lambda: states(registry) == {"n@0": "ready"})
        with pytest.raises(AdapterNotFound):
            async with registry.lease(ref("m")):
                pytest.fail("leased")
        assert lease.digest in engine.held
    await eventually(lambda: lease.digest not in engine.held)
    drop(root, "m")
    await eventually(is_ready(registry, "m"))


def write_probes(folder: Path, probes: Sequence[dict[str, object]]) -> None:
    (folder / "probes.jsonl").write_text("\n".join(map(json.dumps, probes)))


async def test_probes_run_greedily_with_the_adapters_template_beside_the_base(
    root, engine, start_registry, monkeypatch
):
    prompts: list[Prompt] = []
    monkeypatch.setattr(engine, "encode", lambda prompt: prompts.append(prompt) or [1, 2])
    folder = drop(root, "m", "1.0")
    with (folder / "adapter.toml").open("a") as file:
        file.write('[prompt]\nsystem = "You are m."\n[generation]\ntemperature = 0.9\nstop = ["END"]\n')
    write_probes(folder, [{"prompt": "who?", "expect": "I am m", "max_tokens": 7}])
    registry = await start_registry()
    await eventually(is_ready(registry, "m", "1.0"))
    assert [(p.turns[0].text, p.template.system) for p in prompts] == [("who?", "You are m.")]
    assert [j.adapter for j in engine.jobs] == [registry.get("m").digest, None]
    params = {(j.params.temperature, j.params.max_tokens, j.params.stop, j.priority) for j in engine.jobs}
    assert params == {(0.0, 7, ("END",), 1)}
    assert engine.cancelled == 2


async def test_no_effect_and_wrong_answers_are_quarantined_and_unloaded(root, engine, start_registry):
    engine.answers["idle"] = BASE_ANSWER
    drop(root, "idle", value=1, expect=BASE_ANSWER)
    drop(root, "wrong", value=2, expect="x" * 300)
    registry = await start_registry()
    assert states(registry) == {"idle@0": "quarantined", "wrong@0": "quarantined"}
    assert registry.get("idle").error == (
        "it has no effect: the base alone gives the same answers to its probes; train it for more steps, or "
        "put prompts into probes.jsonl that it answers otherwise than the base"
    )
    error = registry.get("wrong").error
    assert error.startswith("probe 1 of 1 failed: expected prefix 'xxx")
    assert "x" * 81 not in error
    await eventually(lambda: not engine.held)
    assert (sorted(engine.unloads), len(engine.jobs)) == (["idle", "wrong"], 4)
    with pytest.raises(AdapterRejected, match="no effect"):
        async with registry.lease(ref("idle")):
            pytest.fail("leased")
    del engine.answers["idle"]
    with pytest.raises(AdapterRejected, match="expected prefix 'the base"):
        await registry.load(ref("idle"))  # an operator may insist: it is tried again


async def test_passed_digests_are_not_probed_again_even_after_a_restart(root, engine, start_registry):
    drop(root, "m", expect="I am m")
    registry = await start_registry()
    await eventually(is_ready(registry, "m"))
    await registry.unload(ref("m"))
    async with registry.lease(ref("m")):
        assert len(engine.jobs) == 2
    await registry.close()
    engine.held.clear()
    again = await start_registry()
    await eventually(is_ready(again, "m"))
    assert len(engine.jobs) == 2


async def test_a_full_queue_delays_probes(root, engine, start_registry):
    submit, refused = engine.submit, 3

    def busy(job: Job) -> Generation:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise Overloaded("the queue is full", bound="engine")
        return submit(job)

    engine.submit = busy  # type: ignore[method-assign]
    drop(root, "busy", value=1, expect="I am")
    registry = await start_registry()
    assert states(registry) == {"busy@0": "ready"}


async def test_no_adapter_serves_before_its_probes_end(root, engine, start_registry):
    drop(root, "old", value=1, expect="I am")
    registry = await start_registry()
    first = digest(registry, "old")
    engine.answering.clear()
    drop(root, "new", value=2, expect="I am")
    drop(root, "old", value=3, expect="I am")
    await eventually(lambda: len(engine.jobs) == 6)
    assert not await registry.settled(0.3)
    assert states(registry) == {"new@0": "loading", "old@0": "ready"}
    assert digest(registry, "old") == first  # the old files serve on
    engine.answering.set()
    await eventually(is_ready(registry, "new"))
    await eventually(lambda: digest(registry, "old") != first)


async def test_an_engine_that_fails_a_probe_postpones_the_load(root, engine, start_registry):
    submit = engine.submit

    def fail(_: Job) -> Generation:
        raise EngineFailed("a step failed")

    engine.submit = fail  # type: ignore[method-assign]
    drop(root, "m", expect="I am m")
    registry = await start_registry()
    assert states(registry) == {"m@0": "discovered"}
    assert registry.get("m").error == "the probes of adapter m could not run: a step failed"
    with pytest.raises(Unavailable, match="a step failed"):
        async with registry.lease(ref("m")):
            pytest.fail("leased")
    engine.submit = submit
    async with registry.lease(ref("m")):
        assert (states(registry), registry.get("m").error) == ({"m@0": "ready"}, "")


async def test_a_probe_that_the_engine_refuses_is_the_adapters_fault(root, engine, start_registry):
    def fail(_: Job) -> Generation:
        raise PromptTooLong(8, 9)

    engine.submit = fail  # type: ignore[method-assign]
    drop(root, "m", expect="I am m")
    registry = await start_registry()
    assert states(registry) == {"m@0": "quarantined"}


async def test_probes_never_flood_the_engine(root, engine, start_registry):
    engine.answering.clear()
    for name in ("a", "b"):
        folder = drop(root, name, value=ord(name))
        write_probes(folder, [{"prompt": f"{i}?", "expect": "I am"} for i in range(40)])
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.jobs) >= PROBES_AT_ONCE)
    await asyncio.sleep(0.05)
    assert len(engine.jobs) == PROBES_AT_ONCE
    engine.answering.set()
    await eventually(lambda: set(states(registry).values()) == {"ready"})
    assert len(engine.jobs) == 2 * 2 * MOST_PROBES


def test_what_passed_in_one_precision_is_run_again_in_another():
    def key(**precision: str) -> str:
        base = BaseInfo("m", "0" * 64, "A", precision.pop("dtype", "bfloat16"), "cpu", 64, 8, {}, **precision)
        return Prover(SimpleNamespace(info=base), None).key("digest")  # type: ignore[arg-type]

    assert key() == key()
    assert len({key(), key(dtype="float32"), key(weights="int8")}) == 3


def test_judging():
    probes = [Probe("p", "yes"), Probe("p", "no", Match.EXACT)]
    check_answers(probes, ["yes sir", " no "], ["yes sir", "what"], "float32")
    with pytest.raises(AdapterRejected, match="no effect"):
        check_answers(probes, ["yes", "no"], ["yes", "no"], "float32")
    with pytest.raises(
        AdapterRejected,
        match=r"probe 2 of 2 failed: expected exact 'no', got 'no way' \(base in float32, weights int8\)",
    ):
        check_answers(probes, ["yes", "no way"], ["", ""], "float32, weights int8")


# -- what is loaded without being asked for, and in which order


async def test_new_folders_go_before_a_backlog_of_preloads(root, engine, start_registry):
    for i in range(20):
        drop(root, f"m{i}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    drop(root, "late", value=99)
    await eventually(lambda: "late@0" in states(registry))
    engine.loading.set()
    await eventually(is_ready(registry, "late"))
    await registry.settled(5)
    assert engine.loads.index("late") < 10  # two were under way, a few may overtake its read


async def test_of_a_mass_of_folders_some_are_preloaded_and_the_others_when_they_are_asked_for(
    root, engine, start_registry, monkeypatch
):
    monkeypatch.setattr(loading, "MOST_WAITING", 5)
    for i in range(20):
        drop(root, f"m{i:02}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    engine.loading.set()
    assert await registry.settled(5)
    ready = [name for name, state in states(registry).items() if state == "ready"]
    assert ready == [f"m{i:02}@0" for i in range(len(ready))]  # the first ones by name
    assert 5 < len(ready) < 12
    async with registry.lease(ref("m19")):
        assert states(registry)["m19@0"] == "ready"
    drop(root, "late", value=99)
    await eventually(is_ready(registry, "late"))


async def test_closing_among_loads_begins_no_other_and_refuses_nobody(root, engine, start_registry, caplog):
    for i in range(8):
        drop(root, f"m{i}", value=i + 1)
    engine.loading.clear()
    registry = await start_registry(settle=0.0)
    await eventually(lambda: len(engine.loads) == 2)
    await registry.close()
    await asyncio.sleep(0.1)
    assert len(engine.loads) == 2
    assert "quarantined" not in states(registry).values()
    assert [entry.message for entry in caplog.records if entry.levelname in ("WARNING", "ERROR")] == []


async def test_the_default_follows_a_new_version_once_it_is_proven(root, engine, start_registry):
    drop(root, "m", "1.0", 1, folder="m/1.0")
    registry = await start_registry(preload=False)
    engine.answering.clear()
    drop(root, "m", "1.1", 2, folder="m/1.1", expect="I am")
    await eventually(lambda: len(engine.jobs) == 2)
    assert (registry.resolve("m").ref.version, states(registry)["m@1.1"]) == ("1.0", "loading")
    engine.answering.set()
    await eventually(lambda: registry.resolve("m").ref.version == "1.1")
    drop(root, "m", "1.2", 3, folder="m/1.2", expect="nobody")
    await eventually(lambda: states(registry).get("m@1.2") == "quarantined")
    drop(root, "m", "0.9", 4, folder="m/0.9")
    await eventually(lambda: "m@0.9" in states(registry))
    assert registry.resolve("m").ref.version == "1.1"


async def test_a_folder_that_becomes_another_version_serves_the_old_until_then(root, engine, start_registry):
    drop(root, "m", "1.0", 1, expect="I am")
    registry = await start_registry()
    drop(root, "m", "1.1", 2, expect="nobody")
    await eventually(lambda: states(registry) == {"m@1.0": "ready", "m@1.1": "quarantined"})
    assert registry.resolve("m").ref.version == "1.0"
    assert "1.1" in registry.get("m").error
    drop(root, "m", "1.2", 3, expect="I am")
    await eventually(lambda: states(registry) == {"m@1.2": "ready"})
    await eventually(lambda: len(engine.held) == 1)
    with pytest.raises(AdapterNotFound, match=r"its versions: 1\.2"):
        registry.get("m", "1.0")


async def test_preloads_that_begin_together_fit_together(root, engine, start_registry):
    drop(root, "a", value=1)
    drop(root, "b", value=2)
    registry = await start_registry(host_memory_bytes=SIZE * 3 // 2)
    assert sorted(states(registry).values()) == ["discovered", "ready"]
    assert (len(engine.loads), engine.unloads, [i.error for i in registry.list()]) == (1, [], ["", ""])
