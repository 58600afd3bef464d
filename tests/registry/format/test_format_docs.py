"""docs/adapter-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.registry.format.lora_config import HONOURED, INITS, REFUSED, WITHOUT_EFFECT
from router.registry.format.manifest import parse_manifest, parse_probes
from router.registry.format.untrusted import Code

PAGE = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text()


def _block(language: str) -> bytes:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found.group(1).encode() if found else b""


@pytest.mark.parametrize("names", [Code, HONOURED, WITHOUT_EFFECT, REFUSED, INITS], ids=range(5))
def test_every_code_and_field_is_on_the_page(names):
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_the_examples_are_valid():
    example = _block("toml").replace("…".encode(), b"a" * 64)
    manifest, findings = parse_manifest(example, "x")
    assert (findings, manifest.name, manifest.routing.keywords) == ((), "medical", ("symptom", "dose"))
    probes, findings = parse_probes(_block("json"))
    assert (findings, len(probes)) == ((), 1)
