"""`adapters add s3://…` with its own driver, against a server that speaks S3; see `moto`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx2
import pytest

from tests.sources.conftest import in_view
from tests.sources.moto import KEYS, moto, site_with_s3

ROUTER = "import sys; sys.path.append(sys.argv.pop(1)); from router.cli.main import main; main()"
PREFIX = "adapters/contracts/1.2.0"
pytestmark = [pytest.mark.interop, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site():
    return site_with_s3()


@pytest.fixture(scope="module")
def store(site, adapter_files):
    """The URL of a store with an adapter in `bucket`."""
    with moto(site) as url, httpx2.Client(base_url=url, trust_env=False) as client:
        for name, data in {**adapter_files, "train.py": b"", "checkpoint-1/x": b""}.items():
            client.put(f"/bucket/{PREFIX}/{name}", content=data).raise_for_status()
        yield url


@pytest.fixture
def add(site, store, tmp_path):
    """`lora-router adapters add ARGUMENTS` in an empty folder, with the driver."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_"))}
        known = alone | {
            "FSSPEC_S3_ENDPOINT_URL": store,
            "HOME": str(tmp_path),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        command = [sys.executable, "-c", ROUTER, str(site), "adapters", "add", *arguments, "--no-base"]
        return subprocess.run(
            command, env=known | environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_from_a_bucket(add, tmp_path, adapter_files):
    done = add(f"s3://bucket/{PREFIX}/", "--json", **KEYS)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["name"], said["version"], said["outcome"]) == ("contracts", "1.2.0", "added")
    assert {left["name"] for left in said["left"]} == {"train.py", "checkpoint-1/"}
    folder = tmp_path / "adapters" / "contracts" / "1.2.0"
    assert {name: (folder / name).read_bytes() for name in adapter_files} == adapter_files
    again = add(f"s3://bucket/{PREFIX}/", "--digest", said["digest"], **KEYS)
    assert "is there already, the same bytes" in again.stdout, again.stderr


@pytest.mark.parametrize(
    ("said", "keys", "message"),
    [
        ("s3://bucket/none/", KEYS, "not found: nothing is there"),
        ("s3://nobucket/none/", KEYS, "not found: nothing is there"),
        (f"s3://bucket/{PREFIX}/", {}, "wants credentials"),
    ],
)
def test_what_fails_is_one_line(add, tmp_path, said, keys, message):
    done = add(said, **keys)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert in_view(tmp_path / "adapters") == []
