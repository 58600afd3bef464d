"""The image: what its file says, and (long) what its one step makes, without a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from router import __version__
from router.cli.settings import ENV_PREFIX
from router.config import Settings
from tests.addresses import free_address

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Containerfile").read_text()
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
FINAL = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM")) :]
IGNORED = (ROOT / ".containerignore").read_text().split()
LET_IN = [line[1:] for line in IGNORED if line.startswith("!")]


def test_it_runs_as_the_user_of_the_manifests() -> None:
    (user,) = [line.split()[1] for line in FINAL if line.startswith("USER")]
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())["spec"]["template"][
        "spec"
    ]
    context = pod["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    after = FINAL[next(i for i, line in enumerate(FINAL) if line.startswith("USER")) :]
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]


def test_it_says_which_version_it_is() -> None:
    (label,) = [line for line in FINAL if line.startswith("LABEL")]
    assert f'version="{__version__}"' in label


def test_no_compiler_and_nothing_fetched_in_what_is_shipped() -> None:
    assert not [line for line in FINAL if re.search(r"apt|pip|curl|wget|g\+\+|^ADD", line)]
    assert "HF_HUB_OFFLINE=1" in " ".join(FINAL)


def test_its_variables_are_settings() -> None:
    named = re.findall(rf"\b{ENV_PREFIX}(\w+)=", " ".join(FINAL))
    assert named == ["NATIVE_DIR"]
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_the_build_gets_what_it_reads_and_no_more() -> None:
    """That it is enough shows in the build below, which has nothing else."""
    assert IGNORED[0] == "*"
    assert [name for name in LET_IN if not (ROOT / name).exists()] == []


def test_what_makes_the_package_is_let_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["hooks"]["custom"].get("path", "hatch_build.py")
    needed = ("pyproject.toml", "router", "recipes/execution", hook)
    assert [name for name in needed if name not in LET_IN] == []


@pytest.mark.parametrize("script", ["build.sh", "smoke.sh"])
def test_scripts_are_sound_shell_that_may_be_run(script: str) -> None:
    path = ROOT / "deploy" / script
    assert os.access(path, os.X_OK)
    assert subprocess.run(["sh", "-n", path], capture_output=True, text=True).stderr == ""


def test_extras_that_are_not_locked_are_held_to_what_is() -> None:
    """The script's own line, with the lock as it is."""
    script = (ROOT / "deploy/build.sh").read_text()
    assert 'EXTRAS="${EXTRAS}" /src/deploy/build.sh' in TEXT
    (line,) = re.findall(r"^  (sed -n .*) \"\$source/requirements.lock\"", script, re.MULTILINE)
    held = subprocess.run(
        f"{line} requirements.lock", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    locked = re.findall(
        r"^([A-Za-z0-9][^ ]*==[^ ;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    assert held.stdout.split() == locked
    assert "grpcio==" in held.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Not pytest's own, which is for one user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_what_the_build_makes_serves_as_another_user_without_a_compiler(open_folder: Path) -> None:
    links = os.environ.get("PIP_FIND_LINKS")
    found = {"TORCH_FROM": f"--find-links {links}"} if links else {}
    folder, source = open_folder / "image", open_folder / "source"
    source.mkdir()
    for name in LET_IN:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    built = subprocess.run(
        [source / "deploy/build.sh", folder], env=os.environ | found, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    ports = {"GRPC_PORT": free_address().rpartition(":")[2], "HTTP_PORT": free_address().rpartition(":")[2]}
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    ran = subprocess.run(
        [ROOT / "deploy/smoke.sh", folder], env=os.environ | ports, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "smoke: good" in ran.stdout
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before, "it wrote into the image"
