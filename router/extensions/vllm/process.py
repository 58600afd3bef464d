"""vLLM's processes as ours to end: what they inherit, who they are, and a keeper for when we are killed."""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Self

from router.extensions.vllm import keeper

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2
KEEPER_SECONDS = 1.0
LONGEST = 70  # of a folder of sockets: their paths have 107 characters at most, and vLLM adds 37


class Processes:
    """The processes that were begun below this one after this was made, and their files and sockets."""

    def __init__(self) -> None:
        resource_tracker.ensure_running()  # it is everybody's, and lets signals through where it is begun
        self.folder = self.sockets = Path(tempfile.mkdtemp(prefix="lora-vllm-"))
        if len(str(self.folder)) > LONGEST:
            self.sockets = Path(tempfile.mkdtemp(prefix="lora-vllm-", dir="/tmp"))
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._keeper.wait()  # its first process, which starts the one that stays
        self._not_ours = set(keeper.children_of(os.getpid()))
        self._begun: dict[int, str] = {}
        self._not_shared = keeper.shared_files(os.getpid())  # files of shared memory that were there before
        self._shared: set[str] = set()  # and those that came since
        self._settled = threading.Event()
        for folder in (self.folder, self.sockets):
            self._tell(f"folder {folder}")

    def look(self) -> None:
        """Find those that were begun since, and the shared memory of all.

        Python removes that memory at the end, unless its resource tracker is killed, too.
        """
        for pid in keeper.children_of(os.getpid()):
            if pid not in self._not_ours and pid not in self._begun:
                self._begun[pid] = keeper.begun(pid)
                self._tell(f"process {pid}")
        found = set().union(*map(keeper.shared_files, (os.getpid(), *self._begun)))
        for file in sorted(found - self._shared - self._not_shared):
            self._shared.add(file)
            self._tell(f"file {file}")

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """While processes are begun: those that exist are known to the keeper a moment later."""
        thread = threading.Thread(target=self._look_on, name="vllm processes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._settled.set()
            thread.join()
            self.look()

    def kill(self) -> None:
        """End them at once."""
        keeper.end(self._begun)

    def end_workers(self) -> None:
        """Ask those that began none of the others to end: nothing has to wait for them."""
        parents = {pid for pid in self._begun if keeper.children_of(pid)}
        workers = {pid: start for pid, start in self._begun.items() if pid not in parents}
        keeper.end(workers, signal.SIGTERM)

    def close(self) -> None:
        """End what is left, the keeper, too, and remove the folder."""
        self.kill()
        with suppress(OSError):
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
        if self._keeper.stdout is not None:
            done, _, _ = select.select([self._keeper.stdout], [], [], KEEPER_SECONDS)
            if not done:
                log.warning("the keeper of vLLM's processes did not end")
            self._keeper.stdout.close()
        for folder in (self.folder, self.sockets):
            shutil.rmtree(folder, ignore_errors=True)

    def _look_on(self) -> None:
        while not self._settled.wait(LOOK_SECONDS):
            self.look()

    def _tell(self, line: str) -> None:
        if self._keeper.stdin is None:
            return
        try:
            self._keeper.stdin.write(line + "\n")
            self._keeper.stdin.flush()
        except (OSError, ValueError):  # it is gone, or we are closing
            log.warning("the keeper of vLLM's processes is gone: a killed server would leave them behind")


def environment(folder: Path, log_level: str, threads: int) -> dict[str, str]:
    """What vLLM reads when it is imported and when its processes begin; what the user says is stronger."""
    wanted = {
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "INFO" if log_level == "debug" else "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",  # else it listens at whatever the machine's name leads to
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a process with threads is not to be forked
        "HF_HUB_OFFLINE": "1",  # the base is a folder by now
    }
    if threads:
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
    # Without TMPDIR its processes leave a file `vllm_dist_*` behind at every start.
    own = {"VLLM_RPC_BASE_PATH": str(folder), "TMPDIR": str(folder)}
    return {key: value for key, value in wanted.items() if key not in os.environ} | own


class Environment:
    """Variables for what is begun meanwhile, and Ctrl-C not: it reaches all of a terminal, and would end vLLM
    before a server has drained. Whatever else comes into the environment meanwhile is taken out at once. What
    is vLLM's own stays until it has ended: it is read at every step.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._kept = {key for key in variables if key.startswith("VLLM_")}

    def __enter__(self) -> Self:
        self._before = dict(os.environ)
        self._masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.environ.update(self._variables)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masked)
        self._restore(set(os.environ) - self._kept)

    def take_back(self) -> None:
        """The rest."""
        self._restore(self._kept)

    def _restore(self, keys: Collection[str]) -> None:
        for key in {*keys, *self._before} - (self._kept - {*keys}):
            if key in self._before:
                os.environ[key] = self._before[key]
            else:
                os.environ.pop(key, None)
