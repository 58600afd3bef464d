"""A PostgreSQL server of one's own, from installed binaries: started for tests, gone after them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from tests.addresses import free_address

WAYS = ("initdb", "pg_ctl")


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl, or None: Debian does not put it on the path."""
    on_path = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    found = [Path(on_path).resolve().parent] if on_path else []
    return next((f for f in [*found, *reversed(folders)] if all((f / w).exists() for w in WAYS)), None)


class Server:
    """A cluster in a folder of its own, on a free port of this machine. PostgreSQL refuses to run as root."""

    def __init__(self, where: Path, *settings: str) -> None:
        self._bin, self._settings = where, settings
        self._folder = Path(tempfile.mkdtemp(prefix="lora-router-pg-"))
        self._user = _other_user() if os.geteuid() == 0 else None
        self.port = _free_port()
        if self._user:
            shutil.chown(self._folder, self._user)
        self._call("initdb", "-D", self._data, "-U", "router", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def url(self, database: str = "postgres") -> str:
        """Of one of its databases."""
        return f"postgresql://router@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it takes connections."""
        options = [f"-p {self.port}", f"-k {self._folder}", "-h 127.0.0.1", *self._settings]
        log = str(self._folder / "log")
        self._call("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", " ".join(options), "start")

    def stop(self, mode: str = "immediate") -> None:
        """Connections are cut."""
        self._call("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def signal(self, number: int) -> None:
        """Send a signal to all its processes at once; after SIGKILL they are gone when this returns."""
        first = psutil.Process(int((self._folder / "data/postmaster.pid").read_text().split()[0]))
        found = [first, *first.children(recursive=True)]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number == signal.SIGKILL:
            psutil.wait_procs(found, timeout=30)

    def close(self) -> None:
        """Stop it and remove its folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, name: str, *arguments: str) -> None:
        command = [str(self._bin / name), *arguments]
        if self._user:
            command = ["setpriv", f"--reuid={self._user}", "--clear-groups", "--", *command]
        done = subprocess.run(
            command, cwd=self._folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stdout}")


def _other_user() -> str:
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def _free_port() -> int:
    return int(free_address().rpartition(":")[2])
