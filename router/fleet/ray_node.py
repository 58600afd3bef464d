"""`python -m router.fleet.ray_node`: a Ray of one server's own, here, for as long as its input is open.

In a process of its own, which has one thread when it starts Ray's: a server with threads of gRPC must not
fork. `RAY_AUTH_TOKEN` comes in the environment; the address, or why there is none, is told as a line of JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the machine's outer address


def main(store_bytes: int) -> int:
    """Exit code 1 where Ray does not start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which drains first
    import ray

    try:
        ray.init(
            "local",
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=store_bytes,
            _node_ip_address=LOOPBACK,
        )
    except Exception as error:  # told to the server, whatever it is
        _say(error=str(error))
        return 1
    _say(address=ray.get_runtime_context().gcs_address)
    sys.stdin.read()
    ray.shutdown()
    return 0


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
