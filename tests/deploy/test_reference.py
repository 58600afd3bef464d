import pytest

from deploy.reference import BEGIN, END, GROUPS, PAGE, row, written
from router.config import Settings


def test_the_page_has_the_settings_as_they_are():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run `make reference`"


def test_every_setting_stands_once_below_a_heading():
    told = written(f"{BEGIN}{END}")
    for name, field in Settings.model_fields.items():
        assert told.count(row(name, field)) == 1
    for heading in GROUPS.values():
        assert f"\n### {heading}\n" in told
    assert "\n### Built-in plugins\n" in told
    assert "| `otel.endpoint` |" in told


def test_what_people_wrote_stays():
    page = written(f"before\n{BEGIN}old\n{END}after\n")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page.split("\n")


def test_a_page_without_its_place_is_refused():
    with pytest.raises(ValueError, match="has no lines"):
        written("# Settings")
