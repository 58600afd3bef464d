"""A server with a filled cache needs no network and looks for none.

`tests/cli/test_demo.py` has the demonstration run without a network; here are the commands one by one.
"""

import re
import shutil
import subprocess
import sys

import pytest

from router.models import fetch_base, fetch_encoder
from tests.addresses import free_address
from tests.commands import without_network

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]

# Serve until ready, ask once, stop; $1 is a prefix for both commands, $2 the address.
SCRIPT = """
python=%s
$1 $python -m router.cli serve --listen $2 --metrics-listen= > out 2> err &
server=$!
for _ in $(seq 200); do grep -q 'is ready' out && break; kill -0 $server || break; sleep 0.5; done
$1 $python -m router.cli ask --server $2 -n 5 Hello > answer 2> said
asked=$?
kill -TERM $(cat /proc/$server/task/$server/children) $server
wait $server
echo "asked $asked stopped $?"
"""


@pytest.fixture(autouse=True)
def filled_cache():
    fetch_base()
    fetch_encoder()


def session(prefix=""):
    """The script, with these words before both commands."""
    return ["bash", "-c", SCRIPT % sys.executable, "bash", prefix, free_address()]


def outcome(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("asked 0 stopped"), done.stderr + (folder / "err").read_text()
    assert (folder / "answer").read_text().strip()
    return done.stdout


def test_it_serves_where_only_loopback_exists(tmp_path):
    command = without_network(session())
    if command is None:
        pytest.skip("no network namespaces here")
    assert outcome(command, tmp_path) == "asked 0 stopped 0\n"


def test_it_opens_no_outgoing_connection(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    outcome(session("strace -f -qq --seccomp-bpf -A -o trace -e trace=connect,sendto"), tmp_path)
    reached = re.findall(r'inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"', (tmp_path / "trace").read_text())
    assert {address.removeprefix("::ffff:") for address in reached} == {"127.0.0.1"}
