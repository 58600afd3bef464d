"""A server that speaks S3 (moto), and a driver for it (s3fs), both from outside this environment.

Their packages are installed on first use and kept in the user's cache folder, some 250 MB.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from router.folders import cache_folder
from tests.addresses import free_address

PACKAGES = ("s3fs", "moto[s3,server]")
SITE = cache_folder() / "clients" / "s3"
MADE = "made"  # of a folder that is whole
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from moto.server import main; main(sys.argv[1:])"


def site_with_s3() -> Path:
    """The folder with both; skips where they cannot be installed."""
    if not (SITE / MADE).exists():
        install = ("-m", "pip", "install", "-q", "--no-compile", "--target", str(SITE), *PACKAGES)
        if subprocess.run((sys.executable, *install), check=False).returncode:
            pytest.skip("s3fs and moto cannot be installed")
        (SITE / MADE).touch()
    return SITE


@contextmanager
def moto(site: Path) -> Iterator[str]:
    """The URL of a store that has `bucket`."""
    port = free_address().rpartition(":")[2]
    command = [sys.executable, "-c", SERVER, str(site), "-H", "127.0.0.1", "-p", port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx2.Client(base_url=url, trust_env=False) as client:
                _wait_for(client)
                client.put("/bucket").raise_for_status()
            yield url
        finally:
            server.terminate()


def _wait_for(client: httpx2.Client) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            client.get("/")
        except httpx2.TransportError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("moto does not answer")
