"""`make demo-cluster`: two replicas on this machine, children first, then one in each of two Ray nodes; each
time one of them is killed.

The same server and the same client as `make demo`; the edge's log tells which replica answered. All of it
runs in a network of its own where that is possible, since Ray listens on all interfaces; else a token alone
guards it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from router.cli.command import INTERRUPTED, CliError, report
from router.cli.demo import DemoRequest, DemoServer, ask_all, brief, demo_server, failed_of, fetch_models
from router.replicas.ray import ENVIRONMENT, require_ray

HEAD, SECOND, PORT = "127.0.0.2", "127.0.0.3", 6379
STORE_BYTES = 200 << 20
ALONE = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
INSIDE = "--inside"
MARK = "DEMO_CLUSTER_MARK"  # in the environment of all that this starts
REPLICA = "--child"  # in the command of a replica's process
QUICK = "keywords,linear,embedding"  # classifiers that need nothing of the replicas, and no minute to learn
KILL_AFTER = 1.0  # seconds of the second round
BACK_SECONDS, END_SECONDS = 120.0, 10.0
FLAWS = "lora_router_engine_flaws"


def main() -> int:
    """Exit code 0 if all was answered that could be."""
    try:
        if INSIDE in sys.argv:
            return demonstrate()
        fetch_models()
        alone = subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
        if not alone:
            print(
                "no network of its own here (unshare --net): Ray's ports are open to others, who need its "
                "token"
            )
        command = [*(ALONE if alone else ()), sys.executable, "-m", "router.cli.demo_cluster", INSIDE]
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(error)


def demonstrate() -> int:
    """Ask servers over two replicas, without Ray and with it, while a replica is killed; end everything."""
    require_ray()
    os.environ.setdefault("LORA_ROUTER_LOAD_PLUGINS", QUICK)
    began = time.monotonic()
    with everything_ended() as mark:
        print("starting a server with two replicas, without Ray ...", flush=True)
        serve_and_kill((), mark)
        print(f"starting two Ray nodes, {HEAD} and {SECOND} ...", flush=True)
        start_nodes()
        print("starting a server with a replica on each ...", flush=True)
        serve_and_kill(("--set", f"ray={HEAD}:{PORT}"), mark)
    print(f"all ended; {time.monotonic() - began:.1f} s in all")
    return 0


def serve_and_kill(where: Sequence[str], mark: str) -> None:
    """Ask, ask while a replica is killed, ask when there are two again. Raises CliError for a lost answer."""
    began = time.monotonic()
    with demo_server("--set=replicas=2", "--set=threads=1", "--set=log_level=debug", *where) as server:
        server.wait_until_serving()
        print(f"serving after {time.monotonic() - began:.1f} s on {server.address}\n", flush=True)
        first = asyncio.run(ask_all(server))[0]
        print_places(first, server)
        if len(failed_of(first)) == len(first):
            raise server.failure("nothing was answered")
        second = asyncio.run(ask_while_killing(server, mark))
        print_places(second, server)
        print("waiting until there are two again ...", flush=True)
        print(f"two again after {until_whole(server):.1f} s\n", flush=True)
        third = asyncio.run(ask_all(server))[0]
        print_places(third, server)
        lost = [one for one in second if one.error and not one.first_token]
        if wrong := [*failed_of(first), *lost, *failed_of(third)]:
            raise server.failure(f"{len(wrong)} requests failed that should not: {wrong[0].error}")
        server.stop()


# -- the cluster


def start_nodes() -> None:
    """A head, and a second node that joins it. Both are this machine, so the second has ports of its own."""
    ray("--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--include-dashboard=false")
    ports = ("--min-worker-port=20000", "--max-worker-port=29999")
    agents = ("--dashboard-agent-listen-port=52366", "--dashboard-agent-grpc-port=52367")
    ray(f"--address={HEAD}:{PORT}", f"--node-ip-address={SECOND}", *ports, *agents)


def ray(*arguments: str) -> None:
    """One node, with a core for one replica. Raises CliError."""
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *arguments]
    command += ["--num-cpus=1", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CliError(f"Ray does not start: {brief(done.stderr or done.stdout, 300)}")


@contextmanager
def everything_ended() -> Iterator[str]:
    """A mark in the environment; whatever has it ends with the block, by process id. Ray's files are in a
    folder that goes with it, or the next plain `ray.init()` would look for this cluster.
    """
    mark, folder = secrets.token_hex(16), mkdtemp(prefix="lr-")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(ENVIRONMENT | token | {MARK: mark, "RAY_TMPDIR": folder})
    try:
        yield mark
    finally:
        end_all(mark)
        rmtree(folder, ignore_errors=True)


def end_all(mark: str) -> None:
    """End whatever has the mark. Raises CliError for what does not end."""
    end = time.monotonic() + END_SECONDS
    while left := marked(mark):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if time.monotonic() < end - END_SECONDS / 2 else signal.SIGKILL)
        if time.monotonic() > end:
            raise CliError(f"{len(left)} processes of Ray do not end: {left}")
        time.sleep(0.5)


def marked(mark: str, name: str = "") -> list[int]:
    """Processes with the mark, whose command has the name in it, but this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            ours = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if ours and name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


async def ask_while_killing(server: DemoServer, mark: str) -> list[DemoRequest]:
    """The same requests again; in between a replica's process is killed, as the kernel would."""

    async def kill() -> None:
        await asyncio.sleep(KILL_AFTER)
        victim = marked(mark, REPLICA)[0]
        os.kill(victim, signal.SIGKILL)
        print(f"killed a replica, process {victim}\n", flush=True)

    killing = asyncio.create_task(kill())
    asked, *_ = await ask_all(server)
    await killing
    return asked


def until_whole(server: DemoServer) -> float:
    """Seconds until no replica is missing. Raises CliError."""
    began = time.monotonic()
    while server.metric(FLAWS):
        if time.monotonic() - began > BACK_SECONDS:
            raise server.failure(f"the replica did not come back within {BACK_SECONDS:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - began


# -- who answered where


def print_places(asked: Sequence[DemoRequest], server: DemoServer) -> None:
    """A line for each request: who answered, on which replica, and what."""
    from router.cli.output import print_table

    places = places_of(server.log_lines())
    rows = []
    for one in asked:
        who = str(one.decision.adapter or "base") if one.decision else "-"
        ways = " then ".join(places.get(one.response_id, ("-",)))
        rows.append((brief(one.prompt, 44), who, ways, one.error or brief(one.text, 60)))
    print_table(["ASKED", "ANSWERED BY", "REPLICA", "ANSWER"], rows)
    print(flush=True)


def places_of(lines: Sequence[str]) -> dict[str, list[str]]:
    """By response: the replicas that it went to, as the edge's log tells."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        with suppress(ValueError):
            entry = json.loads(line)
            if "replica" in entry and "response_id" in entry:
                found.setdefault(str(entry["response_id"]), []).append(str(entry["replica"]))
    return found


if __name__ == "__main__":
    sys.exit(main())
