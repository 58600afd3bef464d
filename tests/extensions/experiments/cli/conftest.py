"""Commands run in an empty folder, against a scripted server where they ask one."""

from tests.commands import cli, own_folder, remote

__all__ = ["cli", "own_folder", "remote"]
