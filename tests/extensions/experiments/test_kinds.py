"""Every kind of metric at every place that reads kinds. A new kind needs a row in `EXPECTED`."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from router.errors import Findings, InvalidRequest
from router.extensions.console import experiment_plan
from router.extensions.experiments import plan_file
from router.extensions.experiments.client import metric
from router.extensions.experiments.messages import plan_message, plan_of
from router.extensions.experiments.model import Aggregate, ExperimentPhase, Kind, MetricSpec
from router.extensions.experiments.plan_lines import metric_line
from router.extensions.experiments.plans import metric_problems
from router.extensions.experiments.report.source import metric_of
from router.extensions.experiments.store.series import info_of
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.plans import plan

EXPECTED = {  # columns of a unit, usual aggregate, least and largest value, may it have a cap
    Kind.PROPORTION: (1, Aggregate.MAX, (0, 1), False),
    Kind.MEAN: (1, Aggregate.SUM, (-np.inf, np.inf), True),
    Kind.RATIO: (2, Aggregate.SUM, (-np.inf, np.inf), False),
}
STATISTICS = Path(__file__).parents[3] / "docs/experiments-statistics.md"
kinds = pytest.mark.parametrize("kind", Kind)


@kinds
def test_what_holds_for_a_kind(kind: Kind) -> None:
    made, rules = metric("cost", kind), kind.rules
    found = (rules.columns, made.combined, metric_of(made).range, not rules.uncappable)
    assert found == EXPECTED[kind]


@pytest.mark.parametrize(("kind", "aggregate"), list(product(Kind, Aggregate)))
def test_a_plan_names_only_the_aggregates_of_the_kind(kind: Kind, aggregate: Aggregate) -> None:
    refused = {p.field for p in metric_problems(plan(primary=MetricSpec("cost", kind, aggregate=aggregate)))}
    assert refused == (set() if aggregate in kind.rules.aggregates else {"primary.aggregate"})


@kinds
def test_a_plan_has_a_cap_only_where_the_kind_may(kind: Kind) -> None:
    refused = {p.field for p in metric_problems(plan(primary=metric("cost", kind, cap=9.0, missing="zero")))}
    assert refused == (set() if EXPECTED[kind][3] else {"primary.cap"})


@kinds
def test_messages_carry_it(kind: Kind) -> None:
    spec = plan(primary=metric("cost", kind))
    assert plan_of(plan_message(spec), Findings()) == spec
    bare = pb.Experiment(primary={"name": "cost", "kind": f"KIND_{kind.name}"})
    assert plan_of(bare, Findings()).primary == spec.primary


def test_an_unknown_number_is_refused_with_all_names() -> None:
    found = Findings()
    plan_of(pb.Experiment(primary={"kind": 99}), found)
    with pytest.raises(InvalidRequest) as caught:
        found.check()
    (text,) = (v.description for v in caught.value.violations if v.field.endswith("primary.kind"))
    assert re.findall(r"KIND_\w+", text) == [f"KIND_{kind.name}" for kind in Kind]


@kinds
def test_a_file_takes_it(kind: Kind) -> None:
    given = {"name": "cost", "kind": kind.value}
    made = plan_file.plan_of({"hypothesis": "", "control": "a", "arms": [], "primary": given}).primary
    assert made == metric("cost", kind)
    assert metric_line(made).startswith(f"cost: {kind}, more is better")


@kinds
def test_the_example_and_the_docs_explain_it(kind: Kind) -> None:
    (line,) = (line for line in plan_file.example_plan().splitlines() if kind.rules.words in line)
    assert f'"{kind}"' in line
    assert f"| `{kind}` |" in STATISTICS.read_text()


@kinds
def test_the_consoles_form_takes_it(kind: Kind) -> None:
    form = {"control": "a@1", "treatment": "base", "metric": f"{kind}:cost"}
    assert experiment_plan.spec_of(form).primary == metric("cost", kind)


@kinds
@pytest.mark.parametrize("covariate", [False, True])
def test_the_store_keeps_the_columns_that_statistics_read(kind: Kind, covariate: bool) -> None:
    made = replace(metric("cost", kind), covariate=covariate)
    first, *_ = info_of(1, ExperimentPhase(1, 0.0, "", "", plan(primary=made))).series
    assert first.columns == metric_of(made).columns
