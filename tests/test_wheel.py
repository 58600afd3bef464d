"""The wheel alone carries first-party plugins, adapters and protos, and finds them from any folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel's contents, as an installer would unpack them."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = out.glob("lora_router-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def run(site, folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "router.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_carries_what_it_serves(site):
    carried = site / "router" / "_data"
    for name in ("plugins", "adapters", "proto"):
        here = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob("*") if p.is_file()}
        there = {p.relative_to(carried / name) for p in (carried / name).rglob("*") if p.is_file()}
        assert {p for p in here if "__pycache__" not in p.parts and p.name != ".gitkeep"} <= there
    assert list((site / "router").rglob("*.cpp")), "the native source is needed to build it on first start"
    console = Path("router") / "web" / "console"
    for name in ("templates", "static"):
        here = {path.name for path in (ROOT / console / name).iterdir()}
        assert here == {path.name for path in (site / console / name).iterdir()}


def test_it_works_in_an_empty_folder(site, tmp_path):
    assert run(site, tmp_path, "--version").startswith("lora-router ")
    plugins = json.loads(run(site, tmp_path, "plugins", "list", "--json"))
    assert {p["name"]: p["error"] for p in plugins}.keys() >= {"keywords", "linear", "embedding"}
    assert all(str(site) in p["path"] and not p["error"] for p in plugins)
