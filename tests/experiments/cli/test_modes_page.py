"""The plans of docs/experiment-modes.md are plans."""

import re
import tomllib
from pathlib import Path

import pytest

from router.experiments.cli.plan_file import plan_of
from router.experiments.live.assigner import holdout_problem
from router.experiments.management.plans import Known, check_plan
from router.experiments.model import Mode
from router.types import AdapterInfo, AdapterRef, AdapterState, RouterVariant

PAGE = (Path(__file__).parents[3] / "docs" / "experiment-modes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def resolve(name: str, version: str = "") -> AdapterInfo:
    return AdapterInfo(AdapterRef(name, version or "1.0.0"), AdapterState.READY)


@pytest.mark.parametrize("block", BLOCKS, ids=["shadow", "router", "holdout"])
def test_a_plan_can_be_kept_and_started(block):
    check_plan(plan_of(tomllib.loads(block)), Known(resolve, lambda: ["exact_match"], lambda: ["keywords"]))


def test_they_are_what_the_page_says():
    shadow, router, holdout = (plan_of(tomllib.loads(block)) for block in BLOCKS)
    assert (shadow.mode, shadow.judge, shadow.shadow_share) == (Mode.SHADOW, "exact_match", 0.5)
    assert (router.route, router.arms[1].router) == ("", RouterVariant(threshold=0.8))
    assert (holdout.mode, holdout.route, holdout.control) == (Mode.HOLDOUT, "", "kept-out")
    assert holdout_problem(holdout, 0.05) == ""
