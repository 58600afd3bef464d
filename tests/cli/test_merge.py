"""`lora-router adapters merge`: what it says, and what is wrong with what was asked."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["advisor", "legal=much", "financial"], 2, "'legal=much': a weight is a number, such as legal=0.5"),
        (["advisor", "legal", "financial"], 2, "legal is no adapter folder"),
        (["advisor", "legal"], 2, "two adapters at least"),
        (["advisor", "legal", "medical", "--method", "magic"], 2, "--method 'magic': there are"),
        (["advisor", "legal=0", "medical"], 2, "a weight is a number other than 0"),
    ],
)
def test_bad_input_is_one_line(cli, arguments, code, message):
    done = cli("adapters", "merge", *arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert done.err.count("\n") == 1
