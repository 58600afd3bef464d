"""At least 60 hostile folders: each refused by its code within 100 ms and 50 MB, nothing run or followed.

Time is this thread's own (CPU): the machine may be busy with other things. What blocks runs into the timeout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc

import pytest

from router.registry.format.artifact import FolderRules, inspect_folder, validate_folder
from router.registry.format.untrusted import Severity
from tests.registry.format.hostile import FOLDERS
from tests.registry.tiny import BASE, write_adapter

SECONDS, BYTES = 0.1, 50 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_refused_by_code_quickly_in_little_memory_and_without_effect(name, tmp_path):
    build, code = FOLDERS[name]
    folder = tmp_path / "adapter"
    build(folder)
    times = []
    for _ in range(5):
        start = time.thread_time()
        report = validate_folder(folder, FolderRules(BASE))
        times.append(time.thread_time() - start)
        if times[-1] < SECONDS:
            break
    tracemalloc.start()
    inspect_folder(folder, FolderRules(BASE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    refusals = [f.code for f in report.findings if f.severity is Severity.REFUSE]
    assert code in refusals if code else refusals == []
    assert min(times) < SECONDS
    assert peak < BYTES
    assert not (folder / "marker").exists()
    assert len(json.dumps(report.to_json())) < 50_000
    assert all(f.message.isprintable() for f in report.findings)


@pytest.mark.slow
def test_the_process_stays_small(tmp_path):
    """Peak resident memory of a process that looks at every one of them."""
    for number, (build, _) in enumerate(FOLDERS.values()):
        (tmp_path / str(number)).mkdir()
        build(tmp_path / str(number) / "adapter")
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.registry.tiny import BASE\n"
        "from router.registry.format.artifact import FolderRules, validate_folder\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rules = FolderRules(BASE)\nvalidate_folder(Path(sys.argv[1]), rules)\nbefore = peak()\n"
        "[validate_folder(p / 'adapter', rules) for p in Path(sys.argv[2]).iterdir() if p.name.isdigit()]\n"
        "print(peak() - before)"
    )
    warm = write_adapter(tmp_path / "warm")
    done = subprocess.run(
        [sys.executable, "-c", script, str(warm), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < BYTES
