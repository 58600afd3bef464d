"""The wheel alone carries first-party plugins, adapters and protos, and finds them from any folder."""

import json
import os
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest

from router.cli.demo import free_address
from tests.serving import serving

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
    console = Path("router") / "extensions" / "console"
    for name in ("templates", "static"):
        here = {path.name for path in (ROOT / console / name).iterdir()}
        assert here == {path.name for path in (site / console / name).iterdir()}


def test_it_works_in_an_empty_folder(site, tmp_path):
    assert run(site, tmp_path, "--version").startswith("lora-router ")
    plugins = json.loads(run(site, tmp_path, "plugins", "list", "--json"))
    assert {p["name"]: p["error"] for p in plugins}.keys() >= {"keywords", "linear", "embedding"}
    assert all(str(site) in p["path"] and not p["error"] for p in plugins)


@pytest.mark.long
def test_it_serves_there_with_nothing_else(site, tmp_path):
    """As in docs/first-ten-minutes.md: adapters and plugins are the package's, nothing is written here."""
    http = free_address()
    alone = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    with serving(tmp_path, "--http-listen", http, **alone) as (_, address):
        question = "Which ICD-10-CM chapter does Beard ringworm belong to?"
        asked = ("ask", "--quiet", "--adapter", "medical", "--server", address, question)
        assert run(site, tmp_path, *asked) == "Certain infectious and parasitic diseases\n"
        listed = json.loads(run(site, tmp_path, "adapters", "list", "--json", "--server", address))
        manifests = (site / "router/_data/adapters").glob("*/adapter.toml")
        carried = {tomllib.loads(path.read_text())["adapter"]["name"] for path in manifests}
        assert {adapter["ref"].split("/")[1] for adapter in listed} == carried
        with urllib.request.urlopen(f"http://{http}/v1/models") as answer:
            assert "medical" in {model["id"] for model in json.load(answer)["data"]}
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # the test's own
