"""`lora-router compare`: flags that do not fit each other."""

import pytest

from router.cli.main import run

ROWS = ["--data", "rows.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--metric METRIC, or --judge NAME"),
        (["--metric", "exact_match", "--judge", "base"], "not both"),
        (["--metric", "exact"], "there are chrf, exact_match"),
        (["--metric", "execution"], "needs its recipe"),
        (["--metric", "chrf", "--judge-prompt", "f"], "goes with --judge"),
        (["--metric", "chrf", "--require", "good"], "better or not-worse"),
        (["--metric", "chrf", "--require", "not-worse"], "needs --margin"),
        (["--metric", "chrf", "--html", "absent/r.html"], "there is no folder absent"),
        (["--metric", "chrf"], "rows.jsonl cannot be read"),
    ],
)
def test_flags_that_do_not_fit_are_refused(capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(["compare", "a@1.0.0", "a@1.1.0", *ROWS, *flags]) == 2
    assert message in capsys.readouterr().err
