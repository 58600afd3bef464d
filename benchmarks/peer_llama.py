"""llama.cpp's server as a contestant of a benchmark: a line in, a round, a line out.

Started as `python -m benchmarks.peer_llama llama-server OPTIONS`; the address is added. Prompts are sent as
token ids. In: {"prompts": [...], "new": N, "adapters": N}, all adapters by default; out: {"seconds": ...,
"tokens": ...}. With "one by one": true and "adapter": N see `answering.one_by_one`; an answer then ends where
the model ends it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks import llama_cpp
from benchmarks.answering import About, Round, answer, dealt, one_by_one, threading_settings

LOOK_SECONDS = 0.05


def prepare() -> tuple[About, Round]:
    """The server with its model and adapters."""
    command = sys.argv[1:]
    port = free_port()
    address = ("--host", "127.0.0.1", "--port", str(port))
    server = subprocess.Popen([*command, *address])
    ask = partial(request, port)
    while "status" not in ask("GET", "/health", None):
        if server.poll() is not None:
            raise SystemExit(f"llama-server ended: {server.returncode}")
        time.sleep(LOOK_SECONDS)
    adapters = len(ask("GET", "/lora-adapters", None))

    def complete(prompt: list[int], adapter: int | None, new: int, *, forced: bool = False) -> list[int]:
        """The tokens of one answer; `forced`: so many, whatever the model says, and nothing from a cache."""
        wanted = {
            "prompt": prompt,
            "n_predict": new,
            "ignore_eos": forced,
            "cache_prompt": not forced,
            "temperature": 0,
            "samplers": ["temperature"],
            "return_tokens": True,
            "lora": [{"id": adapter, "scale": 1}] if adapter is not None else [],
        }
        found = ask("POST", "/completion", wanted)
        if "tokens" not in found:
            raise SystemExit(f"llama-server refused a prompt: {found}")
        tokens: list[int] = found["tokens"]
        return tokens

    def run(work: dict[str, Any]) -> dict[str, Any]:
        if work.get("one by one"):
            return one_by_one(complete, work)
        prompts, whole = work["prompts"], partial(complete, forced=True)
        with ThreadPoolExecutor(len(prompts)) as threads:
            begin = time.perf_counter()
            found = list(threads.map(whole, prompts, dealt(work, adapters), [work["new"]] * len(prompts)))
            seconds = time.perf_counter() - begin
        return {"seconds": seconds, "tokens": sum(map(len, found))}

    said = {
        "process": os.getpid(),
        "threads": command[command.index("--threads") + 1],
        "settings": threading_settings(os.environ),
        "libraries": {"llama.cpp of": f"{llama_cpp.PACKAGE} {llama_cpp.VERSION}"},
    }
    return said, run


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def request(port: int, method: str, path: str, body: dict[str, Any] | None) -> Any:
    """One answer of the server as JSON; empty while it does not listen yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        return json.loads(connection.getresponse().read())
    except ConnectionRefusedError:
        return {}
    finally:
        connection.close()


if __name__ == "__main__":
    answer(prepare)
