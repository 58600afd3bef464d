"""Where a step's time goes: each part of a step is stamped once, and together they are the step."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.step_parts import CALL, COMPUTING, PARTS, Stopwatch
from benchmarks.workload import run_jobs
from router.engine.base import Job
from router.types import SamplingParams
from tests.engine import tiny
from tests.engine.ops_cases import compiled

pytestmark = compiled
ROWS, TOKENS = 3, 8


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "seed": 1}], ids=["greedy", "drawn"])
def test_every_part_of_a_decoding_step_has_its_time(params):
    engine = tiny.engine("llama", native=True, speculation="off")
    watch = Stopwatch(engine, ROWS)
    wanted = SamplingParams(max_tokens=TOKENS, min_tokens=TOKENS, **params)
    jobs = [Job(str(row), (7 + row, 8, 9), wanted, None) for row in range(ROWS)]
    began = time.perf_counter_ns()
    asyncio.run(run_jobs(engine, jobs))
    elapsed = time.perf_counter_ns() - began
    engine.close()
    assert watch.steps
    for part in ("schedule", "plan", CALL, "choose", "choose: native", "accept", COMPUTING):
        assert all(step[part] > 0 for step in watch.steps), part
    assert sum(step[part] for step in watch.steps for part in (COMPUTING, *PARTS)) <= elapsed
