"""Generate the stubs again and compare: `python -m tests.stub_freshness`; exit 1 if some are stale."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("router/v1", "router/kserve")


def stale(root: Path = ROOT) -> list[str]:
    """Files of stubs that differ from what proto/ gives, are missing, or should not be there."""
    protos = sorted(str(path.relative_to(root / "proto")) for path in (root / "proto").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as temp:
        outputs = [f"--{kind}_out={temp}" for kind in ("python", "pyi", "grpc_python")]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, *protos]
        subprocess.run(command, cwd=root, check=True)
        fresh, present = _contents(Path(temp)), _contents(root)
    return sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def _contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in FOLDERS
        for path in (root / folder).glob("*.py*")
        if path.is_file() and path.name != "__init__.py"
    }


def main() -> int:
    names = stale()
    for name in names:
        print(f"{name} is stale: run `make proto` and commit the result", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
