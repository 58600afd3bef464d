"""What was released is still there: commands, settings, errors, paths, metrics, keys of files, names."""

from __future__ import annotations

import json

import pytest

from router import __version__
from tests.surface import RELEASED, ROOT, surface

KEPT: dict[str, list[str]] = json.loads(RELEASED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def here() -> dict[str, list[str]]:
    return surface()


@pytest.mark.parametrize("kind", KEPT)
def test_nothing_released_is_gone(kind: str, here: dict[str, list[str]]) -> None:
    """Where it has to go: docs/stability.md says how. A name that is new is no matter."""
    assert len(KEPT[kind]) >= 5
    assert sorted(set(KEPT[kind]) - set(here[kind])) == []


def test_it_is_told_what_is_kept(here: dict[str, list[str]]) -> None:
    assert KEPT.keys() == here.keys()
    examples = {
        "commands": "lora-router serve --http-listen",
        "errors": "NOT_FOUND ADAPTER_NOT_FOUND",
        "http": "/v1/chat/completions",
        "metrics": "lora_router_requests_total",
        "adapter.toml": "routing.examples",
        "recipe": "lora.rank",
        "clients.toml": "client.roles",
        "python": "router.client.Client.generate(prompt)",
        "settings": "max_running",
    }
    assert {kind: name for kind, name in examples.items() if name not in KEPT[kind]} == {}


def test_the_version_is_told_where_it_is_named() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {__version__} - 20" in changes
    for name in ("Containerfile", "docs/operations.md", "deploy/kubernetes/base/deployment.yaml"):
        assert f"lora-router:{__version__}" in (ROOT / name).read_text(encoding="utf-8"), name
