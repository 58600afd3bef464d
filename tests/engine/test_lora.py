"""Adapters on their way to a step: one slab each, uploads nobody waits for, shortages that stay alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine import lora
from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.lora import (
    LINE,
    DeviceSlots,
    HostStore,
    LoraBatch,
    PackedAdapter,
    pack_adapter,
    pinned_bytes,
)
from router.engine.ops import SiteGroup
from router.engine.scheduler import Scheduler
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.errors import EngineFailed, ResourceExhausted
from tests.engine import tiny
from tests.engine.rows import make, row

GROUPS = [
    SiteGroup(("q", "k", "v"), 24, (0, 20, 30, 40)),
    SiteGroup(("o",), 20, (0, 24)),
    SiteGroup(("down",), 10, (0, 24)),
]


def delta(rank: int, inputs: int, outputs: int, seed: int) -> SiteDelta:
    def data(*shape: int) -> TensorData:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + shape[0]))
        return TensorData("F32", shape, memoryview(values.numpy().tobytes()))

    return SiteDelta(data(rank, inputs), data(outputs, rank), 2.0)


def packed(dtype: torch.dtype = torch.float32) -> PackedAdapter:
    """Rank 3 at q and v, 5 at o, nothing at down."""
    sites = {"q": delta(3, 24, 20, 1), "v": delta(3, 24, 10, 2), "o": delta(5, 20, 24, 3)}
    artifact = AdapterArtifact("name", "1", "digest", sites)
    return pack_adapter(artifact, GROUPS, TorchOps(), dtype, pin=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_views_of_one_slab_each_on_a_line_of_its_own(dtype: torch.dtype) -> None:
    adapter = packed(dtype)
    assert adapter.ranks == [4, 6, 0]
    assert adapter.weights[2] is None
    assert adapter.nbytes == adapter.slab.nbytes
    spans = sorted(
        (t.data_ptr() - adapter.slab.data_ptr(), t.nbytes) for w in adapter.weights if w for t in w
    )
    assert [at % LINE for at, _ in spans] == [0] * 4
    ends = [at + size for at, size in spans]
    assert all(end <= at for end, (at, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= adapter.nbytes < ends[-1] + LINE
    a, b = adapter.weights[0] or pytest.fail("no weights")
    assert (a.shape, b.shape) == ((12, 24), (40, 4))
    assert not a[3].any()  # the rank is padded to an even one
    assert not a[4:8].any()  # k has no weights
    assert not b[20:30].any()
    assert adapter.table[0].tolist() == [a.data_ptr(), b.data_ptr(), 4]


def test_the_plans_of_a_batch_follow_its_token_ranges() -> None:
    batch = LoraBatch([packed()], torch.device("cpu"))
    for bounds in ([0, 3], [1, 3], [1, 3], [0, 5]):
        step = batch.at(bounds)
        assert step.starts.tolist() == bounds
        assert [(p.starts.tolist(), p.bounds) for p in step.sites if p is not None] == [(bounds, bounds)] * 2


def test_a_copy_of_the_slab_is_the_adapter_elsewhere() -> None:
    adapter = packed()
    other = adapter.on(adapter.slab.clone())
    adapter.slab.fill_(0)
    again = packed()
    for ours, theirs in zip(other.weights, again.weights, strict=True):
        assert (ours is None) == (theirs is None)
        for mine, expected in zip(ours or (), theirs or (), strict=True):
            assert torch.equal(mine, expected)
    assert other.table[1].tolist() == [*(t.data_ptr() for t in other.weights[1] or ()), 6]
    assert other.here


def test_page_locked_memory_counts_as_what_is_taken() -> None:
    assert [pinned_bytes(n) for n in (0, 1, 4096, 4097, 84 << 20)] == [0, 1, 4096, 8192, 128 << 20]


def test_no_memory_for_packing_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lora, "map_pages", short)
    with pytest.raises(MemoryError):
        packed()


# -- Slots of a device that copies in its own time and has room for so many.


class Device:
    """`room` adapters fit; a copy is done when the test says so."""

    def __init__(self, slots: int, room: int = 99, slow: bool = False) -> None:
        self.room, self.slow = room, slow
        self.copies: list[str] = []
        self.on_the_way: set[str] = set()
        host = HostStore()
        for digest in "abcdef":
            host.put(PackedAdapter(digest, [], torch.zeros(0, 3, dtype=torch.int64), [], 1))
        self.slots = DeviceSlots(slots, host, self._upload)
        self.evicted: list[str] = []
        self.slots.evicted = self.evicted.append

    def _upload(self, adapter: PackedAdapter) -> PackedAdapter:
        self.copies.append(adapter.digest)
        if len(self.slots.resident()) >= self.room:
            raise MemoryError("device")
        if self.slow:
            self.on_the_way.add(adapter.digest)
        return adapter.on(adapter.slab, Copy(self, adapter.digest))


class Copy:
    def __init__(self, device: Device, digest: str) -> None:
        self._device, self._digest = device, digest

    def query(self) -> bool:
        return self._digest not in self._device.on_the_way


def test_a_slot_is_held_once_the_upload_is_done() -> None:
    device = Device(2, slow=True)
    slots = device.slots
    assert not slots.acquire("a")
    assert slots.coming("a")
    assert not slots.acquire("a")
    assert device.copies == ["a"]
    assert not slots.coming("b")
    assert not slots.coming(None)
    device.on_the_way.clear()
    assert not slots.coming("a")
    assert slots.acquire("a")
    assert device.copies == ["a"]


def test_what_is_on_its_way_is_not_evicted() -> None:
    device = Device(1, slow=True)
    assert not device.slots.acquire("a")
    assert not device.slots.acquire("b")
    assert device.copies == ["a"]
    device.on_the_way.clear()
    assert device.slots.acquire("a")
    device.slots.release("a")
    assert not device.slots.acquire("b")
    assert device.copies == ["a", "b"]
    assert device.evicted == ["a"]


def test_a_full_device_gives_the_room_of_those_nobody_uses() -> None:
    device = Device(4, room=2)
    for digest in "ab":
        assert device.slots.acquire(digest)
    device.slots.release("a")
    assert device.slots.acquire("c")
    assert device.slots.resident() == ("b", "c")
    assert device.evicted == ["a"]


def test_a_full_device_is_asked_again_only_after_a_slot_is_free() -> None:
    device = Device(4, room=1)
    assert device.slots.acquire("a")
    for _ in range(5):
        assert not device.slots.acquire("b")
    assert device.copies == ["a", "b"]
    device.slots.release("a")
    assert device.slots.acquire("b")
    assert device.slots.resident() == ("b",)


def test_there_is_room_where_a_slot_and_memory_can_be_had_now() -> None:
    device = Device(4, room=1, slow=True)
    assert device.slots.has_room("a")
    assert not device.slots.acquire("a")
    assert device.slots.has_room("a")
    assert not device.slots.acquire("b")
    assert not device.slots.has_room("b")  # the device is full, and what is there is on its way
    device.on_the_way.clear()
    assert device.slots.has_room("b")
    assert device.slots.acquire("a")
    assert not device.slots.has_room("b")


def test_an_adapter_that_fits_on_no_empty_device_is_refused() -> None:
    device = Device(4, room=1)
    assert device.slots.acquire("a")
    device.slots.release("a")
    device.room = 0
    with pytest.raises(ResourceExhausted, match="the device has no room for this adapter"):
        device.slots.acquire("b")
    device.room = 1
    assert device.slots.acquire("b")


def test_a_spare_one_takes_nobodys_room() -> None:
    device = Device(4, room=1)
    assert device.slots.acquire("a")
    device.slots.release("a")
    assert not device.slots.acquire("b", spare=True)
    assert device.slots.resident() == ("a",)
    device.room = 0
    device.slots.drop("a")
    assert not device.slots.acquire("b", spare=True)


@given(
    slots=st.integers(1, 4),
    room=st.integers(1, 5),
    slow=st.booleans(),
    acts=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["get", "spare", "give", "land"]))),
)
def test_users_keep_their_slots_and_everybody_gets_one_in_the_end(
    slots: int, room: int, slow: bool, acts: list[tuple[str, str]]
) -> None:
    device = Device(slots, room, slow)
    held: list[str] = []
    for digest, act in acts:
        if act == "land":
            device.on_the_way.discard(digest)
        elif act == "give" and digest in held:
            device.slots.release(digest)
            held.remove(digest)
        elif act in ("get", "spare") and device.slots.acquire(digest, spare=act == "spare"):
            held.append(digest)
            assert device.slots[digest].here
        resident = device.slots.resident()
        assert set(held) <= set(resident)
        assert len(resident) <= min(slots, room)
    for digest in held:
        device.slots.release(digest)
    for digest in "abcdef":
        device.on_the_way.clear()
        if not device.slots.acquire(digest):
            device.on_the_way.clear()
            assert device.slots.acquire(digest)
        device.slots.release(digest)


# -- Rows: one whose adapter cannot be brought in fails or waits, and nobody with it.


def failing(scheduler: Scheduler, errors: dict[str, Exception]) -> None:
    def upload(adapter: PackedAdapter) -> PackedAdapter:
        if adapter.digest in errors:
            raise errors[adapter.digest]
        return adapter

    scheduler.slots._upload = upload


@pytest.mark.parametrize("error", [MemoryError("device"), RuntimeError("a bug")])
@pytest.mark.parametrize("background", [False, True])
def test_only_the_row_that_needs_it_fails(error: Exception, background: bool) -> None:
    scheduler = make()
    failing(scheduler, {"b": error})
    first, bad, last = row(3, "a"), row(3, "b", background=background), row(3)
    for each in (first, bad, last):
        scheduler.add(each)
    chunks = scheduler.schedule()
    assert {c.row for c in chunks} == {first, last}
    gone = [r for r, _ in scheduler.failed] + scheduler.dropped
    if isinstance(error, RuntimeError):
        assert gone == [bad]
        assert scheduler.failed == [(bad, error)]
    elif background:
        assert scheduler.dropped == [bad]
    else:  # others hold slots: theirs may be its room
        assert gone == []
        assert bad in scheduler.waiting
    assert scheduler.slots.resident() == ("a",)


def test_a_row_that_waits_for_memory_runs_when_others_are_done() -> None:
    scheduler = make()
    errors: dict[str, Exception] = {"b": MemoryError("device")}
    failing(scheduler, errors)
    first, late = row(3, "a"), row(3, "b")
    scheduler.add(first)
    scheduler.add(late)
    scheduler.schedule()
    scheduler.finish(first)
    errors.clear()
    assert [c.row for c in scheduler.schedule()] == [late]
    assert scheduler.slots.resident() == ("b",)


def test_background_rows_are_not_dropped_for_an_adapter_that_is_on_its_way() -> None:
    scheduler = make(running=8)
    shadow = row(3, background=True)
    scheduler.add(shadow)
    scheduler.schedule()
    device = Device(4, slow=True)
    scheduler.slots = device.slots
    cold = row(3, "a")
    scheduler.add(cold)
    scheduler.schedule()
    assert scheduler.background == [shadow]
    device.on_the_way.clear()
    assert cold in [c.row for c in scheduler.schedule()]


def test_nobody_is_preempted_for_an_adapter_that_is_on_its_way() -> None:
    scheduler = make(running=8, patience=0.0)
    device = Device(4, slow=True)
    scheduler.slots = device.slots
    cold = row(3, "a")
    cold.queued = cold.arrived = time.monotonic() - 10
    later = [row(3, new=8) for _ in range(3)]
    for each in (cold, *later):
        scheduler.add(each)
    for _ in range(3):
        assert {c.row for c in scheduler.schedule()} == set(later)
    assert scheduler.preemptions == 0
    device.on_the_way.clear()
    assert cold in [c.row for c in scheduler.schedule()]


@pytest.fixture
def made() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama", slots=4)
    yield engine
    engine.close()


async def test_an_upload_that_raises_fails_its_request_and_changes_no_other(
    made: TorchEngine, tmp_path: Path
) -> None:
    prompt = list(range(40, 80))
    digests, expected = [], []
    for seed, name in enumerate("abc"):
        tuned = tiny.save_adapter("llama", tmp_path / name, seed)
        artifact = tiny.artifact(tmp_path / name, made)
        await made.load(artifact)
        digests.append(artifact.digest)
        expected.append(tiny.reference(tuned, prompt, 24))
    upload: Callable[[PackedAdapter], PackedAdapter] = made._loop._scheduler.slots._upload

    def broken(adapter: PackedAdapter) -> PackedAdapter:
        if adapter.digest == digests[2]:
            raise RuntimeError("a fault of the device")
        return upload(adapter)

    made._loop._scheduler.slots._upload = broken
    work = [tiny.answer(made, prompt, digest, max_tokens=24) for digest in digests * 2]
    answers: list[Any] = await asyncio.gather(*work, return_exceptions=True)
    for index, found in enumerate(answers):
        if index % 3 == 2:
            assert isinstance(found, EngineFailed)
        else:
            ends = tiny.SHAPE["eos_token_id"]
            assert found[0] == [t for t in expected[index % 3] if t != ends]
    made._loop._scheduler.slots._upload = upload
    assert (await tiny.answer(made, prompt, digests[2], max_tokens=24))[0]
    assert made.status().failed == ""


async def test_a_device_without_any_room_says_so(made: TorchEngine, tmp_path: Path) -> None:
    tiny.save_adapter("llama", tmp_path / "a")
    artifact = tiny.artifact(tmp_path / "a", made)
    await made.load(artifact)

    def full(adapter: PackedAdapter) -> PackedAdapter:
        raise MemoryError("device")

    made._loop._scheduler.slots._upload = full
    with pytest.raises(ResourceExhausted, match="no room"):
        await tiny.answer(made, [1, 2, 3], artifact.digest, max_tokens=4)
    assert (await tiny.answer(made, [1, 2, 3], max_tokens=4))[0]
