"""Folders whose contents are served, or copied into what is served: nobody else may write there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from router.errors import ConfigError


def private_folder(path: Path) -> Path:
    """The folder, made for this user alone if it is not there. Raises ConfigError for one of somebody else.

    A group may have been let in by who mounts it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{path} is a link: set mirror_dir to a folder of this user's own")
    if info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
        raise ConfigError(f"others may write into {path}: set mirror_dir to a folder of this user's own")
    return path
