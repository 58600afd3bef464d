"""No manifest that is accepted lets one request of any permitted size take more than 100 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.models import DEFAULT_BASE, models_dir, resolve_model
from router.server.pipeline import COUNTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MOST = 100_000_000  # bytes
UNITS = [
    "a",
    "7",
    " ",
    "\n",
    "-",
    "word ",
    "a b\n",
    "7,1\n",
    "你",
    "你好，",
    "🙃",
    "𠀀",
    "é",
    "\u0301",
    "<|im_end|>",
]
Measure = Callable[[dict[str, Any]], dict[str, Any]]
TOKENIZERS = [  # the base's is byte-level
    *("base", "pure_python"),
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("byte_level", "sentencepiece", "unigram", "word_piece")
    ),
]


@pytest.fixture(scope="module", params=TOKENIZERS)
def measure(request: pytest.FixtureRequest) -> Iterator[Measure]:
    """Encodes one prompt in a process of its own."""
    name = request.param
    if name == "base":
        if not any(models_dir().glob(f"{DEFAULT_BASE}-*")):
            pytest.skip("the base is not fetched")
        name = str(resolve_model(DEFAULT_BASE))
    command = [sys.executable, "-m", "tests.security.prompt_memory", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def measured(asked: dict[str, Any]) -> dict[str, Any]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(asked) + "\n")
            child.stdin.flush()
            found: dict[str, Any] = json.loads(child.stdout.readline())
            return found

        yield measured
        child.stdin.close()


asking = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(UNITS)
        | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="'"), min_size=1),
        "odd": st.sampled_from(["", "🙃"]),  # takes every other letter of the text to four bytes
        "before": st.floats(0, 1),
        "messages": st.sampled_from([1, 2, 3, 255, 256]),
        "most": st.sampled_from([2048, 8191, 131_072, COUNTED]),
        "raw": st.booleans(),
    }
)


@given(asking)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_permitted_request_under_any_accepted_manifest(measure: Measure, asked: dict[str, Any]) -> None:
    found = measure(asked)
    assert found["bytes"] < MOST, found


@pytest.mark.parametrize("most", [8191, COUNTED])
def test_the_largest_of_each_kind(measure: Measure, most: int) -> None:
    """With a few that are encoded to their end, so that a memory is measured at all."""
    ends: Counter[str] = Counter()
    for unit in UNITS:
        for messages in (1, 256):
            asked = {"unit": unit, "odd": "", "before": 0.5, "messages": messages, "most": most, "raw": False}
            found = measure(asked)
            ends[found["end"]] += 1
            assert found["bytes"] < MOST, (asked, found)
    assert ends["PromptTooLong"] + ends["InvalidRequest"] > 0
