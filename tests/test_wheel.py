"""The wheel serves from any folder what it has inside. Nothing of a user's is in it, nor in the sdist."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.addresses import free_address
from tests.serving import serving

ROOT = Path(__file__).parents[1]
PACKED = ("router", "adapters", "plugins", "proto", "recipes/execution")
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist of a tree without git, to which a user has added files."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    for name in PACKED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    shutil.copytree(tree / "adapters" / "qa", tree / "adapters" / "private")
    (tree / "adapters" / "medical" / "private.jsonl").write_text("{}\n")
    (tree / "plugins" / "private.py").write_text("")
    tools = out / "tools"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), "hatchling"]
    subprocess.run(pip, check=True, capture_output=True)
    build = "import sys; from hatchling.build import *; build_sdist(sys.argv[1]); build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(out)],
        check=True,
        capture_output=True,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tools)},
    )
    return out


@pytest.fixture(scope="module")
def site(built):
    """The wheel's contents, as an installer would unpack them."""
    (wheel,) = built.glob("lora_router-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site")
    return built / "site"


def run(site, folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "router.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shipped():
    return (ROOT / "router" / "shipped.txt").read_text().splitlines()


def test_nothing_of_a_users_is_packed(built, site):
    (sdist,) = built.glob("lora_router-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()]
    assert sorted(name for name in names if name.startswith(("adapters/", "plugins/"))) == shipped()
    assert {"hatch_build.py", "router/shipped.txt"} <= set(names), "a wheel is built of it"
    data = site / "router" / "_data"
    files = [path for name in ("adapters", "plugins") for path in (data / name).rglob("*") if path.is_file()]
    assert sorted(path.relative_to(data).as_posix() for path in files) == shipped()


def test_it_has_what_it_serves(site):
    here = {p.relative_to(ROOT) for p in (ROOT / "proto").rglob("*") if p.is_file()}
    assert here
    assert all((site / "router" / "_data" / name).is_file() for name in here)
    assert list((site / "router").rglob("*.cpp")), "the native source is needed to build it on first start"
    console = Path("router") / "extensions" / "console"
    for name in ("templates", "static"):
        here = {path.name for path in (ROOT / console / name).iterdir()}
        assert here == {path.name for path in (site / console / name).iterdir()}


def test_it_works_in_an_empty_folder(site, tmp_path):
    assert run(site, tmp_path, "--version").startswith("lora-router ")
    plugins = json.loads(run(site, tmp_path, "plugins", "list", "--json"))
    assert {p["name"]: p["error"] for p in plugins}.keys() >= {"examples", "multilingual"}
    assert all(str(site) in p["path"] and not p["error"] for p in plugins)


@pytest.mark.long
def test_it_serves_there_with_nothing_else(site, tmp_path):
    """As in docs/first-ten-minutes.md: adapters and plugins are the package's, nothing is written here."""
    http = free_address()
    alone = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    with serving(tmp_path, "--http-listen", http, **alone) as (_, address):
        question = "Which ICD-10-CM chapter does Beard ringworm belong to?"
        asked = ("ask", "--adapter", "medical", "--server", address, question)
        assert run(site, tmp_path, *asked) == "Certain infectious and parasitic diseases\n"
        listed = json.loads(run(site, tmp_path, "adapters", "list", "--json", "--server", address))
        manifests = (site / "router/_data/adapters").glob("*/adapter.toml")
        inside = {tomllib.loads(path.read_text())["adapter"]["name"] for path in manifests}
        assert {adapter["ref"].split("/")[1] for adapter in listed} == inside
        with urllib.request.urlopen(f"http://{http}/v1/models") as answer:
            assert "medical" in {model["id"] for model in json.load(answer)["data"]}
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # the test's own
