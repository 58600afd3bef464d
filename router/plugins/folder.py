"""What lies in a plugins folder, by stat only: nothing here runs or reads plugin code.

Plugins are code, so a folder or file that strangers can write is refused. A stranger is who could not make
this server run their code anyway: all but its user, root, and those who can write the router package.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin, a file or a folder with `__init__.py`; or a plugins folder that is `unusable`.

    `refusal` empty: it may be loaded.
    """

    path: Path
    stamp: Stamp
    refusal: str = ""
    unusable: bool = False

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.path.stem if self.path.suffix == ".py" and not self.unusable else self.path.name


def scan(folders: Sequence[Path]) -> list[Found]:
    """Plugins in order of folder and name, and folders that are refused."""
    return [found for folder in folders for found in _scan_one(folder)]


def _scan_one(folder: Path) -> list[Found]:
    try:
        status = os.stat(folder)
        refusal = distrust(status, "folder") if stat.S_ISDIR(status.st_mode) else "not a folder"
        if refusal:
            return [Found(folder, stamp_of(status), refusal, unusable=True)]
        names = sorted(os.listdir(folder))
    except OSError as error:
        return [Found(folder, (), f"{error.strerror or type(error).__name__}", unusable=True)]
    files = (_look(folder / name) for name in names if name[0] not in "_.")
    return [found for found in files if found is not None]


def _look(path: Path) -> Found | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None  # removed since it was listed, or a dangling link
    except OSError as error:
        return Found(path, (), error.strerror or type(error).__name__)
    if stat.S_ISDIR(status.st_mode):
        return _look_inside(path, status)
    if not stat.S_ISREG(status.st_mode) or path.suffix != ".py":
        return None
    return Found(path, stamp_of(status), distrust(status, "file"))


def _look_inside(path: Path, status: os.stat_result) -> Found | None:
    """A folder that is one plugin: with a stamp of all its modules, each of which must be trusted."""
    if path.suffix or not (path / "__init__.py").is_file():
        return None
    stamp, refusal = stamp_of(status), distrust(status, "folder")
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if name[0] not in "_.")
        for name in sorted(one for one in files if one.endswith(".py")):
            try:
                inside = os.stat(os.path.join(folder, name))
            except OSError:
                continue  # removed since it was listed
            stamp += stamp_of(inside)
            refusal = refusal or distrust(inside, f"file {name}")
    return Found(path, stamp, refusal)


def folder_stamp(folder: Path) -> Stamp:
    """One stat: differs when a file was added to or removed from the folder. Empty: not there."""
    try:
        return stamp_of(os.stat(folder))
    except OSError:
        return ()


def stamp_of(found: os.stat_result) -> Stamp:
    """Differs when a file was written, replaced, or its owner or mode changed."""
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def distrust(found: os.stat_result, what: str) -> str:
    """Why code from a file or folder with this stat must not run; empty if it may."""
    package = os.stat(PACKAGE)
    if found.st_uid not in (os.geteuid(), 0, package.st_uid):
        return (
            f"{what} belongs to another user (uid {found.st_uid}): plugins are code and must belong to the "
            "server's user or root (chown it)"
        )
    if found.st_mode & stat.S_IWOTH:
        return f"{what} is writable by everyone: plugins are code (chmod o-w it)"
    group_writes = bool(found.st_mode & stat.S_IWGRP)
    group_writes_package = bool(package.st_mode & stat.S_IWGRP) and package.st_gid == found.st_gid
    if group_writes and not group_writes_package and not _private_group(found):
        return f"{what} is writable by its group: plugins are code (chmod g-w it)"
    return ""


def _private_group(found: os.stat_result) -> bool:
    """Whether the group is its owner's alone, as umask 002 with one group per user makes it."""
    if found.st_uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return (
        user.pw_gid == found.st_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    )
