"""Packages that only an extra brings: without one its feature is refused by name, and all else works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from router.access.certificates import check_library
from router.access.issuers import check_library as check_issuers
from router.cli.command import CliError
from router.engine.constrained.source import grammar_text
from router.engine.prompt import ChatTemplate
from router.errors import ConfigError, RouterError
from router.extensions.experiments.page import page
from router.extensions.hub import make_source
from router.models.base import fetch_base, fetch_from_hub
from router.registry.format.trust import read_public_key
from router.types import Constraint
from tests.cli.tiny import write_adapter

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = Path(__file__).with_name("few_packages.py")
MODULES = {"grpcio-reflection": "grpc_reflection", "huggingface-hub": "huggingface_hub"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", requirement, maxsplit=1)[0] for requirement in requirements}


TORCH = "https://download.pytorch.org/whl/cpu"  # builds for CPUs
CORE, EXTRAS = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
OPTIONAL = sorted(names(EXTRAS["standard"]))


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Any import of the package, or of a module in it, fails."""
    module = MODULES.get(package, package)
    for loaded in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)


def test_the_core_is_small() -> None:
    assert len(CORE) <= 18
    assert not CORE & set(OPTIONAL)


@pytest.mark.parametrize("extra", ["console", "constraints", "gguf", "hub", "reflection", "signed"])
def test_the_standard_extra_has_all_of_the_narrow_ones(extra: str) -> None:
    assert set(EXTRAS[extra]) <= set(EXTRAS["standard"])


REFUSED: list[tuple[str, str, Callable[[], Any]]] = [
    ("cryptography", "signed", lambda: read_public_key("release.pub")),
    ("cryptography", "signed", check_library),
    ("gguf", "gguf", fetch_base),
    ("httpx2", "jwt", lambda: check_issuers(fetches=True)),
    ("huggingface-hub", "hub", lambda: fetch_from_hub("a/b")),
    ("huggingface-hub", "hub", lambda: make_source("hub:a/b", "")),
    ("jinja2", "console", lambda: page(None)),
    ("jinja2", "standard", lambda: ChatTemplate(None)),
    ("llguidance", "constraints", lambda: grammar_text(Constraint("choices", choices=("a",)))),
]


@pytest.mark.parametrize(("package", "extra", "use"), REFUSED, ids=[f"{p}-{e}" for p, e, _ in REFUSED])
def test_without_a_package_its_feature_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, extra: str, use: Callable[[], Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hide(monkeypatch, package)
    with pytest.raises((RouterError, CliError)) as caught:
        use()
    assert f"the package {MODULES.get(package, package)}" in str(caught.value).replace("-", "_")
    assert f"pip install -e '.[{extra}]'" in str(caught.value)


def test_a_jinja2_with_a_hole_renders_no_chat_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.engine.prompt.version", lambda package: "3.1.5")
    with pytest.raises(ConfigError, match=r"needs the package jinja2, 3\.1\.6 or newer: pip install"):
        ChatTemplate(None)


BIKES = """
from router import hookimpl
from router.routing import Classifier, Scores

class Bikes(Classifier):
    name = "bikes"
    def classify_batch(self, requests):
        return [Scores({"bikes": 1.0}) if "bike" in r.text else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Bikes())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an adapter for bikes and a plugin that knows it, and an adapter whose answers are constrained."""
    write_adapter(tmp_path / "adapters" / "bikes", manifest='[adapter]\nname = "bikes"\nversion = "1.0.0"\n')
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins" / "bikes.py").write_text(BIKES)
    write_adapter(
        tmp_path / "adapters" / "yes",
        manifest='[adapter]\nname = "yes"\nversion = "1.0.0"\n[generation]\nchoices = ["yes", "no"]\n',
    )
    return tmp_path


def served(python: Path | str, folder: Path, *hidden: str, **environment: str) -> tuple[dict[str, Any], str]:
    """What a server of that Python does, and its log."""
    more = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [python, "-P", SERVER, *hidden],
        cwd=folder,
        env={**os.environ, **more, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


CONSTRAINTS = "constraints need the package llguidance: pip install -e '.[constraints]' in the checkout"


def check_served(what: dict[str, Any], log: str) -> None:
    """As without llguidance, jinja2 and grpcio-reflection."""
    assert what["named"] == "bikes"
    assert "bike" in what["routed"]
    assert what["constrained"].startswith(f"FAILED_PRECONDITION: {CONSTRAINTS}")
    assert what["adapters"]["bikes"] == ["READY", ""]
    state, reason = what["adapters"]["yes"]
    assert state == "QUARANTINED"
    assert CONSTRAINTS in reason
    assert (what["models"], what["metrics"], what["experiments"]) == (200, 200, [])
    assert what["reflection"] == "UNIMPLEMENTED"
    assert "no reflection: it needs the package grpcio-reflection: pip install -e '.[reflection]'" in log


@pytest.mark.slow
def test_a_server_without_any_of_them_serves_all_else(folder: Path) -> None:
    hidden = [MODULES.get(package, package) for package in (*OPTIONAL, "platformdirs")]
    what, log = served(sys.executable, folder, *hidden, PYTHONPATH=str(ROOT))
    check_served(what, log)
    assert what["console"] == 404
    assert "no console: its pages need the package jinja2: pip install -e '.[console]'" in log


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_wheel_serves_with_its_own_dependencies_alone(folder: Path, tmp_path: Path) -> None:
    """In an empty environment, with the versions of the lock."""
    site = tmp_path / "venv"
    venv.create(site, with_pip=True)
    pip = [site / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    pins = re.findall(r"^([A-Za-z0-9.-]+==[^ \\;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (tmp_path / "pins").write_text("\n".join(pins))
    torch = [] if os.environ.get("PIP_FIND_LINKS") else ["--extra-index-url", TORCH]
    subprocess.run([*pip, "install", *torch, "-c", tmp_path / "pins", wheel], check=True)
    folders = (site / "lib").glob("python*/site-packages")
    installed = {found.metadata["name"].lower() for found in distributions(path=map(str, folders))}
    absent = {"cryptography", "gguf", "grpcio-reflection", "llguidance", "platformdirs"}
    assert not absent & installed
    what, log = served(site / "bin" / "python", folder, PYTHONPATH="")
    check_served(what, log)
    tool, empty = site / "bin" / "lora-router", {"XDG_CACHE_HOME": str(tmp_path / "empty"), "PYTHONPATH": ""}
    fetched = subprocess.run(
        [tool, "models", "fetch"], capture_output=True, text=True, env=os.environ | empty, check=False
    )
    assert (fetched.returncode, fetched.stdout) == (2, "")
    assert "by the package gguf, which is not installed: pip install -e '.[gguf]'" in fetched.stderr
