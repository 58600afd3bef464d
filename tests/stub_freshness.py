"""Generate the stubs again and compare: `python -m tests.stub_freshness`; exit 1 if router/v1 is stale."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stale(root: Path = ROOT) -> list[str]:
    """Names under router/v1 that differ from what proto/ gives, are missing, or should not be there."""
    protos = sorted(str(path.relative_to(root / "proto")) for path in (root / "proto").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as temp:
        outputs = [f"--{kind}_out={temp}" for kind in ("python", "pyi", "grpc_python")]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, *protos]
        subprocess.run(command, cwd=root, check=True)
        fresh, present = _contents(Path(temp, "router/v1")), _contents(root / "router/v1")
    present.pop("__init__.py", None)
    return sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py*") if path.is_file()}


def main() -> int:
    names = stale()
    for name in names:
        print(f"router/v1/{name} is stale: run `make proto` and commit the result", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
