"""The PyPI package semantic-router as a peer: its environment, and its answers to our requests."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import environment as without_settings
from router.folders import cache_folder
from router.models import fetch_encoder

PACKAGE = "semantic-router>=1.1,<2"
SCRIPT = Path(__file__).with_name("semantic_router_peer.py")
ROOT = cache_folder() / "peers" / "semantic-router"


@dataclass(frozen=True, slots=True)
class Answers:
    """Confidences of the routes it returned for each text, the time of single requests, and its threads."""

    confidences: list[dict[str, float]]
    milliseconds: list[float]
    threads: int


def environment() -> Path:
    """Python of the peer's environment, installed on first use.

    Its packages are its own; torch and transformers, which it asks for without an upper bound, are those of
    this environment, so that both sides run the encoder on the same library.
    """
    python = ROOT / "bin" / "python"
    if not (ROOT / "installed").exists():
        print(f"installing {PACKAGE} into {ROOT} (a minute or two, once)", file=sys.stderr)
        venv.create(ROOT, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE, "requests"], check=True)
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        theirs = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
        Path(theirs.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (ROOT / "installed").touch()
    return python


def ask(routes: Mapping[str, Sequence[str]], texts: Sequence[str], times: int) -> Answers:
    """What it says to `texts`; the first `times` are asked again, one by one, with a clock."""
    task = {"encoder": str(fetch_encoder()), "routes": routes, "texts": texts, "times": times}
    said = subprocess.run(
        [str(environment()), str(SCRIPT)],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=without_settings({}),  # its documentation asks for none
    )
    if said.returncode:
        raise SystemExit(f"semantic-router failed; its messages are above. To install it anew, delete {ROOT}")
    return Answers(**json.loads(said.stdout.splitlines()[-1]))


def installed() -> str:
    """Name and version of the peer."""
    code = "from importlib.metadata import version; print('semantic-router', version('semantic-router'))"
    return subprocess.run(
        [str(environment()), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
