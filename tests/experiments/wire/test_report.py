"""A report goes through its message unchanged."""

from dataclasses import replace

from router.experiments.report.build import report
from router.experiments.report_messages import report_message, report_of
from router.v1 import experiments_pb2 as pb
from tests.experiments.report.sums import STARTED, SumsStore
from tests.experiments.report.told import REPORT


def carried(made):
    """There and back; the experiment travels by a conversion of its own."""
    whole = pb.GetReportResponse.FromString(
        report_message(made, pb.Experiment(name="experiments/medical-v2")).SerializeToString()
    )
    return replace(report_of(whole), experiment=made.experiment)


def test_nothing_is_lost_on_the_way():
    assert carried(REPORT) == REPORT


def test_what_is_unset_stays_unset():
    made = report(SumsStore([]), "medical-v2", now=STARTED)
    found = carried(made)
    assert found == made
    assert found.arms[0].primary is None
