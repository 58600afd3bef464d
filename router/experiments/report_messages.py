"""Reports as messages and back: nothing is lost on the way but the statistics behind them."""

from __future__ import annotations

from dataclasses import fields

from router.conversion import fill, read
from router.experiments.messages import experiment_of
from router.experiments.report.model import Report
from router.v1 import experiments_pb2 as pb


def report_message(report: Report, experiment: pb.Experiment) -> pb.GetReportResponse:
    """A report; `experiment` is its experiment as a message."""
    parts = {field.name: getattr(report, field.name) for field in fields(report)}
    message = fill(pb.GetReportResponse(), {**parts, "experiment": None})
    message.experiment.CopyFrom(experiment)
    return message


def report_of(message: pb.GetReportResponse) -> Report:
    """The report as the server made it."""
    return read(Report, message, experiment=experiment_of(message.experiment))
