"""Plugins are code: a folder or file that strangers can write is refused.

A stranger is who could not make this server run their code anyway: anyone but its user, root, and those who
can write the router package itself.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


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
