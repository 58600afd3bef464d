"""The doctor finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from router.plugins import PluginHost
from router.plugins.doctor import PluginFinding, doctor

pytestmark = pytest.mark.slow

FLAWED = """
import itertools, threading, time
class C(Classifier):
    name = "flawed"
    seen = itertools.count()
    def classify_batch(self, requests):
        return [{} for r in requests]
@hookimpl
def register_classifiers(register):
    register(C(), timeout_ms=20)
"""


def findings(folder: Path, seconds: float = 20) -> tuple[PluginFinding, ...]:
    return doctor(PluginHost([folder]), seconds)


def test_the_documentations_plugin_is_healthy(folder: Path, write: Callable[..., Path]) -> None:
    write("shout.py")
    assert findings(folder) == ()


@pytest.mark.parametrize(
    ("row", "check"),
    [
        ("0.5", "valid"),
        ("Scores({'a': 1.0 / len(requests)})", "batch_equals_single"),
        ("Scores({'a': (next(self.seen) % 97) / 97})", "deterministic"),
        ("Scores({'a': len(r.text[:9]) / len(r.text)})", "odd_texts"),
        ("time.sleep(0.005)", "latency"),
    ],
)
def test_each_flaw_is_found_by_its_check(
    folder: Path, write: Callable[..., Path], row: str, check: str
) -> None:
    timeout = "timeout_ms=4" if check == "latency" else "timeout_ms=20"
    write("flawed.py", FLAWED.replace("{} for", f"{row} for").replace("timeout_ms=20", timeout))
    found = findings(folder)
    assert check in {f.check for f in found}
    assert {(f.plugin, f.classifier, f.level) for f in found} == {("flawed", "flawed", "error")}


@pytest.mark.parametrize(
    ("fit", "check"),
    [
        ("self.names = [a.name for a in adapters]; self.first = self.names[0]", "refits"),
        ("self.ok = False; time.sleep(0.005); self.ok = True", "answers_while_fitting"),
        ("raise ValueError('bad data')", "prepare"),
        ("threading.Event().wait(3)", "prepare"),
    ],
)
def test_flaws_of_fit(folder: Path, write: Callable[..., Path], fit: str, check: str) -> None:
    body = FLAWED.replace("{} for", "(None if getattr(self, 'ok', True) else 7) for")
    write(
        "flawed.py", body.replace("    def classify", f"    def fit(self, adapters): {fit}\n    def classify")
    )
    assert check in {f.check for f in findings(folder, seconds=1)}


def test_what_does_not_load_and_what_is_doubled(folder: Path, write: Callable[..., Path]) -> None:
    write("a.py")
    write("b.py")
    write("broken.py", "import nothing_like_this")
    levels = [(f.plugin, f.level, f.check) for f in findings(folder)]
    assert levels == [("b", "warning", "load"), ("broken", "error", "load")]


BASED = """
class C(Classifier):
    name = "based"
    def bind(self, base): self.base = base
    def fit(self, adapters): self.base.hidden([a.name for a in adapters], background=True)
    def classify_batch(self, requests):
        asked = [r.text or "-" for r in requests]
        return [Scores({"a": float(min(1, row.max()))}) for row in self.base.hidden(asked)] if asked else []
@hookimpl
def register_classifiers(register):
    register(C(), timeout_ms=500)
"""


def test_a_classifier_on_the_base_is_tried_with_a_stand_in(folder: Path, write: Callable[..., Path]) -> None:
    write("based.py", BASED)
    assert findings(folder) == ()
    write("based.py", BASED.replace('r.text or "-"', "r.text"))
    assert {f.check for f in findings(folder)} == {"odd_texts"}


def test_trying_plugins_loads_no_engine() -> None:
    code = (
        "import sys, router.testing, router.plugins.doctor; print([m for m in sys.modules if '.engine' in m])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
