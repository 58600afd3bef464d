"""Names that mean the base that is served, wherever it was loaded from when the adapter was trained."""

from __future__ import annotations

import pytest

from router.models import DEFAULT_BASE, models_dir
from router.registry.format.checks import check_base, plain_name
from router.registry.format.findings import Findings
from router.registry.format.manifest import BasePin
from tests.registry.tiny import BASE


@pytest.mark.parametrize(
    "trained",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        str(models_dir() / f"{DEFAULT_BASE}-bcc81830"),
        f"{models_dir() / DEFAULT_BASE}-bcc81830/",
        "/root/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f77366fa6b",
        "unsloth/SmolLM2-135M-Instruct-bnb-4bit",
        "C:/models/smollm2-135m-instruct",
    ],
)
def test_the_default_base_by_any_name(trained: str) -> None:
    assert plain_name(trained) == DEFAULT_BASE


@pytest.mark.parametrize(
    "trained", ["HuggingFaceTB/SmolLM2-135M", "/x/smollm2-135m-instruct-bcc81830", "models--a--b"]
)
def test_other_names_stay_other(trained: str) -> None:
    assert plain_name(trained) != DEFAULT_BASE


def test_a_folder_trained_on_the_cached_base_gets_no_note() -> None:
    found = Findings()
    check_base(BasePin(), f"/home/me/.cache/lora-router/models/{plain_name(BASE.name)}-0123abcd", BASE, found)
    assert not list(found)
    check_base(BasePin(), "/home/me/other", BASE, found)
    assert [finding.code for finding in found] == ["other-base-name"]
