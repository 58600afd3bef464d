from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import AdapterRejected
from router.registry.disk.places import Found, Place, Stamp
from router.registry.gate.judging import Standing, Verdict
from router.registry.index import candidate, default_version
from router.registry.record import Record
from router.types import AdapterRef
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, states

PASSED, PENDING, FAILED = Standing.PASSED, Standing.PENDING, Standing.FAILED
FOUND = Found(Place(Path("/x"), "x"), Path("/"), Stamp())


def versions(text: str) -> list[Record]:
    """`1.0 1.1+ 1.2!`: + is proven, ! is quarantined; * passed the gate, ? may yet pass."""
    records = []
    for word in text.split():
        record = Record(AdapterRef("m", word.rstrip("+!*?")), FOUND, None, lambda _: None)
        record.proven, record.quarantined = "+" in word, "!" in word
        standing = {"*": PASSED, "?": PENDING}.get(word[-1], FAILED)
        record.verdict = Verdict(standing, open=standing is PASSED)
        records.append(record)
    return records


@pytest.mark.parametrize(
    ("there", "chosen", "current", "expected", "rising"),
    [
        ("", "", "", "", None),
        ("1.0 1.10 1.9", "", "", "1.10", None),  # at the start the highest
        ("1.0 1.10!", "", "", "1.0", None),  # that is not quarantined
        ("1.0! 1.1!", "", "", "", None),
        ("1.0+ 1.1", "", "1.0", "1.0", "1.1"),  # a new one has to prove itself
        ("1.0+ 1.1 1.2 1.3!", "", "1.0", "1.0", "1.2"),
        ("1.0+ 1.1+ 1.2", "", "1.0", "1.1", "1.2"),
        ("1.0 1.1+", "", "1.0", "1.1", None),
        ("0.9+ 1.0", "", "1.0", "1.0", None),  # never downwards by itself
        ("0.9+ 0.8+ 1.1", "", "1.0", "0.9", "1.1"),  # the present one is gone: a proven one
        ("0.8 0.9 1.0!", "", "1.0", "0.9", None),
        ("1.0 2.0+", "1.0", "2.0", "1.0", None),  # chosen
        ("1.0! 2.0+", "1.0", "1.0", "1.0", None),  # also when it is refused: 2.0 may be what was rolled back
        ("2.0+", "1.0", "1.0", "2.0", None),  # but not when it is gone
        ("1.0* 1.1", "", "", "1.0", None),  # with the gate: at the start the highest that passed
        ("1.0 1.1? 1.2", "", "", "1.1", "1.2"),  # or may yet pass
        ("1.0+* 1.1*", "", "1.0", "1.0", "1.1"),
        ("1.0+* 1.1+* 1.2+", "", "1.0", "1.1", None),  # nothing that failed takes over
        ("1.0* 1.1+", "", "1.1", "1.1", "1.0"),  # but gives way, also to a lower one
        ("1.0+* 1.1+", "", "1.1", "1.0", None),
        ("1.0+* 1.1+*", "1.0", "1.1", "1.0", None),
        ("1.0 1.1+*", "1.0", "1.1", "1.0", None),  # what was chosen is
    ],
)
def test_the_default_version(
    there: str, chosen: str, current: str, expected: str, rising: str | None
) -> None:
    records = versions(there)
    default = default_version(records, chosen, current)
    assert default == expected
    if default and not chosen:
        found = candidate(records, default)
        assert (found and found.ref.version) == rising


async def test_a_chosen_version_that_breaks_is_not_replaced_in_silence(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    old = drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")
    registry = await start_registry(preload=False)
    await registry.set_default(AdapterRef("m", "1.0"))
    weights = (old / "adapter_model.safetensors").read_bytes()
    (old / "adapter_model.safetensors").write_bytes(weights[:50])
    await eventually(lambda: states(registry)["m@1.0"] == "quarantined")
    with pytest.raises(AdapterRejected, match=r"m@1\.0 is quarantined"):
        registry.resolve("m")
    assert registry.profiles() == ()
    await registry.set_default(AdapterRef("m", "2.0"))
    assert [p.version for p in registry.profiles()] == ["2.0"]
