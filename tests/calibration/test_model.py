"""What a calibration notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.calibration.model import binding_of, differences
from router.types import AdapterProfile

MEDICAL = AdapterProfile("medical", "1", domain="medical", examples=("What is flu?",), keywords=("flu",))
LEGAL = AdapterProfile("legal", "1", domain="legal")
PRINTS = {"keywords": "keywords/1", "linear": "linear/1"}
FITTED = binding_of([MEDICAL, LEGAL], PRINTS, "smol")


def test_the_same_set_has_no_differences_in_any_order() -> None:
    assert differences(FITTED, binding_of([LEGAL, MEDICAL], PRINTS, "smol")) == ()


def test_a_new_version_with_the_same_routing_text_routes_alike() -> None:
    assert differences(FITTED, binding_of([replace(MEDICAL, version="2"), LEGAL], PRINTS, "smol")) == ()


@pytest.mark.parametrize(
    ("profiles", "prints", "base", "said"),
    [
        ([MEDICAL], PRINTS, "smol", "adapter legal is gone"),
        ([MEDICAL, LEGAL, AdapterProfile("cooking", "1")], PRINTS, "smol", "adapter cooking is new"),
        ([replace(MEDICAL, examples=("What?",)), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([replace(MEDICAL, keywords=()), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([replace(MEDICAL, task="triage"), LEGAL], PRINTS, "smol", "adapter medical changed"),
        ([MEDICAL, LEGAL], {**PRINTS, "linear": "linear/2"}, "smol", "classifier linear changed"),
        ([MEDICAL, LEGAL], {**PRINTS, "shout": "shout/0"}, "smol", "classifier shout is new"),
        ([MEDICAL, LEGAL], {"keywords": "keywords/1"}, "smol", "classifier linear is gone"),
        ([MEDICAL, LEGAL], dict(reversed(PRINTS.items())), "smol", "classifiers are asked in another order"),
        ([MEDICAL, LEGAL], PRINTS, "other", "the base is other, not smol"),
    ],
)
def test_differences_are_named(
    profiles: list[AdapterProfile], prints: dict[str, str], base: str, said: str
) -> None:
    assert differences(FITTED, binding_of(profiles, prints, base)) == (said,)
