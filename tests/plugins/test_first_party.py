"""The plugins folder as it is shipped, and the plugin that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from router.classifiers.contract import Registrar
from router.plugins import PluginHost
from router.plugins.doctor import doctor, examine, requests_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_classifiers_in_the_order_in_which_they_are_asked() -> None:
    host = PluginHost([ROOT / "plugins"])
    host.refresh()
    assert [r.name for r in host.registrations()] == ["multilingual", "examples"]
    assert all(not s.error and not s.warnings for s in host.status())


def test_the_plugin_in_the_documentation_works(tmp_path: Path) -> None:
    code = re.search(r"```python\n(# plugins/shout.py\n.*?)```", (ROOT / "docs/plugins.md").read_text(), re.S)
    assert code is not None
    (tmp_path / "shout.py").write_text(code[1])
    host = PluginHost([tmp_path])
    assert doctor(host) == ()
    (registration,) = host.registrations()
    loud, quiet = registration.classifier.classify_batch(requests_of(["SUE", "sue"]))
    assert loud is not None
    assert (loud.values, quiet) == ({"legal": 1.0}, None)


def test_the_classifier_on_the_base_in_the_documentation_works() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.S)
    (code,) = [block for block in blocks if "def bind" in block]
    made: dict[str, Any] = {}
    exec(code, made)
    registrar = Registrar("docs")
    registrar(made["Nearest"](), timeout_ms=500)
    assert examine(registrar.registrations[0]) == []
    nearest = registrar.registrations[0].classifier
    (scores,) = nearest.classify_batch(requests_of(["May my landlord enter my flat?"]))
    assert scores is not None
    assert scores.values == {"legal": 0.6}
