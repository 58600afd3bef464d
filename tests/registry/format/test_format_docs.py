"""docs/adapter-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from router.registry.format.lora_config import INITS
from router.registry.format.manifest import parse_manifest, parse_probes
from router.registry.format.untrusted import Code

PAGE = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text()


def _block(language: str) -> bytes:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found.group(1).encode() if found else b""


def test_every_initialisation_is_on_the_page():
    assert [name for name in INITS if f"`{name}`" not in PAGE] == []


def test_the_codes_on_the_page_exist():
    told = PAGE.partition("\n## Findings\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", told)) <= set(Code)


def test_the_examples_are_valid():
    example = _block("toml").replace("…".encode(), b"a" * 64)
    manifest, findings = parse_manifest(example, "x")
    assert (findings, manifest.name, manifest.routing.keywords) == ((), "medical", ("symptom", "dose"))
    probes, findings = parse_probes(_block("json"))
    assert (findings, len(probes)) == ((), 1)
