"""What the wheel and the sdist take from folders that a user may fill, too: only the files that are listed.

The list is `router/shipped.txt`, so that neither git nor its absence changes what is packed.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("proto", "recipes/execution")  # nothing of a user's is there


class ShippedFiles(BuildHookInterface):
    """Packs the listed adapters and plugins; in the wheel below `router/_data`, where the package looks."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling. An editable install finds the folders in the checkout."""
        root = Path(self.root)
        files = (root / "router" / "shipped.txt").read_text(encoding="utf-8").splitlines()
        if self.target_name == "sdist":
            packed = {name: name for name in files}
        elif version == "editable":
            packed = {}
        else:
            packed = {name: f"router/_data/{name}" for name in (*files, *FOLDERS)}
        build_data["force_include"].update({str(root / name): there for name, there in packed.items()})
