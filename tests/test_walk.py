"""`docs/architecture.md` against the files that really run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.walk import (
    CLASSIFIED,
    NAMED,
    OUTCOME,
    ROOT,
    VERSION,
    outcome_walk,
    request_walks,
    version_walk,
    walking,
)

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SHARED_WORDS = {"errors.py", "names.py", "types.py"}  # used by all, a step of nothing
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Steps that another setting, transport or caller causes.
ELSEWHERE = {
    "server/http.py",
    "server/policy.py",
    "server/encoding.py",
    "access/quotas.py",
    "experiments/runtime.py",
    "experiments/assignment.py",
    "registry/format/trust.py",
    "experiments/manager.py",
    "engine/labels.py",
}
BACKGROUND = ("registry/", "plugins/loader.py", "reread.py")  # may look at folders during a request


def named_in(section: str) -> set[str]:
    """The files of a section's numbered lines."""
    text = re.search(rf"^## The life of {section}\n(.*?)^## ", PAGE, re.M | re.S)
    assert text
    return {
        file for file in re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", text[1]) if not file.startswith("tests/")
    }


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    with walking(Path(tmp_path_factory.mktemp("walked"))) as walker:
        found = request_walks(walker) | {VERSION: version_walk(walker)}
        return found | {OUTCOME: outcome_walk(walker)}


def test_page_names_the_files_that_run_for_a_request(walks):
    ran, named = {*walks[NAMED].files, *walks[CLASSIFIED].files} - SHARED_WORDS, named_in("a request")
    assert {file for file in ran - named if not file.startswith(BACKGROUND)} == set()
    assert named - ran - ELSEWHERE - SHARED_WORDS == set()


def test_page_counts_the_files_of_a_request(walks):
    numbers = re.search(r"names an adapter runs code of (\d+) files, one that is classified of (\d+)", PAGE)
    assert numbers
    named = named_in("a request")
    for number, kind in zip(numbers.groups(), (NAMED, CLASSIFIED), strict=True):
        files = [file for file in walks[kind].files if not file.startswith(BACKGROUND) or file in named]
        assert abs(int(number) - len(files)) <= 2


@pytest.mark.parametrize(("section", "kind"), [("a version", VERSION), ("an outcome", OUTCOME)])
def test_files_that_the_page_names_run(walks, section, kind):
    assert named_in(section) - set(walks[kind].files) - ELSEWHERE == set()
