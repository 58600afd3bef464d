import re

import pytest

from deploy.interfaces import REFERENCE, page
from deploy.reference import BEGIN, END, GROUPS, PAGE, all_commands, options, row, written
from router.config import Settings

EMPTY = "".join(f"{side.format(what)}" for what in ("commands", "settings") for side in (BEGIN, END))


def test_the_page_has_commands_and_settings_as_they_are():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run `make reference`"


def test_the_reference_is_what_the_code_says():
    made = page()
    assert REFERENCE.read_text(encoding="utf-8") == made, "run `make reference`"
    rows = {
        "`SetDefaultVersion` | admin | 64 KiB | Picks the version that requests for adapters/NAME get",
        "`PROMPT_TOO_LONG` | INVALID_ARGUMENT | 400 | `context_length_exceeded` | Prompt",
        "`lora_router_requests_total` | `adapter`, `version`, `code` | Requests",
        "`lora_router_replicas` | `state` |",
        "`on_report(report, server)` |",
        "`openai` | OpenAI's API over HTTP",
        "`suffix` | completions | refused: ",
        "`store` | chat, completions | ignored: ",
    }
    assert {row for row in rows if f"\n| {row}" not in made} == set()


def test_every_command_has_a_row_with_its_options():
    made = written(EMPTY)
    for name, command in all_commands().items():
        (row_of_command,) = [line for line in made.splitlines() if line.startswith(f"| `{name}` |")]
        assert re.findall(r"`(--[^`]*)`", row_of_command) == options(command)
    assert "| `experiments report` |" in made  # of an extension


def test_every_setting_stands_once_below_a_heading():
    made = written(EMPTY)
    for name, field in Settings.model_fields.items():
        assert made.count(row(name, field)) == 1
    for heading in GROUPS.values():
        assert f"\n### {heading}\n" in made
    assert "\n### Built-in plugins\n" in made
    assert "| `otel.endpoint` |" in made


def test_what_people_wrote_stays():
    page = written(f"before\n{EMPTY}after\n")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert written(page) == page


def test_a_page_without_its_place_is_refused():
    with pytest.raises(ValueError, match="has no lines"):
        written("# Settings")
