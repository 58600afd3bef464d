"""A thread that needs a name of transformers while another one imports the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

BESIDE = """
import sys, threading
from router.models.whole import import_transformers
threading.Thread(target=__import__, args=("transformers",)).start()
while "transformers.{module}" not in sys.modules:
    pass
import_transformers()
from transformers import AutoTokenizer
print(AutoTokenizer.__name__)
"""


@pytest.mark.parametrize("module", ["utils", "utils.import_utils"])
def test_it_waits_for_another_threads_import(module: str) -> None:
    code = BESIDE.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("AutoTokenizer\n", "")
