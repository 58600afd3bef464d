"""Examples added to a manifest's text: nothing else changes, and nothing is ever spoilt."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.extensions.calibration.manifest import quoted, with_examples
from router.extensions.calibration.proposals import Addition
from router.registry.format.manifest import parse_manifest

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "adapters").glob("*/adapter.toml"))
NEW = Addition(("a new one",), ("not this",))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def both(examples: list[str], negative: list[str]) -> dict[str, list[str]]:
    return {"examples": examples, "negative_examples": negative}


@given(TEXTS)
def test_any_text_is_a_string_of_one_line(text: str) -> None:
    line = f"x = {quoted(text)}"
    assert "\n" not in line
    assert tomllib.loads(line) == {"x": text}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", '\n[routing]\nexamples = [\n  "a new one",\n]\n'),
        ('[adapter]\nname = "a"', '[adapter]\nname = "a"\n\n[routing]\nexamples = [\n  "a new one",\n]\n'),
        ("[routing] # mine\n", '[routing] # mine\nexamples = [\n  "a new one",\n]\n'),
        ("[routing]", '[routing]\nexamples = [\n  "a new one",\n]\n'),
        (
            '[routing]\nkeywords = ["x"]\n',
            '[routing]\nexamples = [\n  "a new one",\n]\nkeywords = ["x"]\n',
        ),
        ("[routing]\nexamples = []\n", '[routing]\nexamples = [\n  "a new one",\n]\n'),
        ('[routing]\nexamples = ["x"]\n', '[routing]\nexamples = ["x",\n  "a new one",\n]\n'),
        ('[routing]\nexamples = ["x", ]\n', '[routing]\nexamples = ["x",\n  "a new one",\n]\n'),
        (
            '[routing]\nexamples = [\n  "x", # why\n  "y" # and ] why\n]\n# end\n',
            '[routing]\nexamples = [\n  "x", # why\n  "y", # and ] why\n  "a new one",\n]\n# end\n',
        ),
        (
            '[routing]\r\nexamples = [\r\n  "x",\r\n]\r\n',
            '[routing]\r\nexamples = [\r\n  "x",\r\n  "a new one",\r\n]\r\n',
        ),
    ],
)
def test_where_they_are_written(text: str, wanted: str) -> None:
    assert with_examples(text, Addition(("a new one",))) == wanted


HARD = '''# examples = ["no"]
[prompt]
template = """
[routing]
examples = ["no"]
{prompt}"""
system = "a ] \\" [routing] '"
[other]
examples = ["no"]
[routing] # ]
negative_examples = ['a "quoted" ]', """two
lines ]""", # ] "
]
  examples = [ 'x]', [], ] # end
[last]
x = [[1, 2], {a = "]"}]
'''


def test_brackets_in_strings_comments_and_other_tables_are_no_ends() -> None:
    text = HARD.replace("[], ", "")
    before, after = tomllib.loads(text), tomllib.loads(with_examples(text, NEW))
    assert after["routing"]["examples"] == ["x]", "a new one"]
    assert after["routing"]["negative_examples"][2:] == ["not this"]
    assert {k: v for k, v in after.items() if k != "routing"} == {
        k: v for k, v in before.items() if k != "routing"
    }
    left = [line for line in with_examples(text, NEW).splitlines() if line.strip() and line in text]
    assert set(text.splitlines()) - set(left) <= {"  examples = [ 'x]', ] # end", ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[routing", "not valid TOML"),
        ("x = " + "[" * 3000, "not valid TOML"),
        ("routing = 1\n", "no list|cannot tell"),
        ('[routing]\nexamples = "x"\n', "is no list"),
        ('routing = {examples = ["x"]}\n', "cannot tell"),
        ('routing.examples = ["x"]\n', "cannot tell"),
        ('["routing"]\nexamples = ["x"]\n', "cannot tell"),
        ('[routing]\n"examples" = ["x"]\n', "cannot tell"),
        ('[[routing]]\nexamples = ["x"]\n', "no list|cannot tell"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_examples(text, NEW)


LISTS = st.lists(TEXTS, max_size=4)


def written(values: list[str], style: int) -> str:
    """The same list in several ways."""
    if style == 0:
        return f"[{', '.join(map(quoted, values))}]"
    if style == 1:
        return "[\n" + "".join(f'  {quoted(v)}, # ] "\n' for v in values) + "]  # end"
    return "[\n# [\n" + "\n  ,".join(map(quoted, values)) + "\n\t]"


@given(LISTS, LISTS, LISTS, LISTS, st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_any_lists_get_what_is_new_and_nothing_else_changes(
    examples: list[str],
    negative: list[str],
    new: list[str],
    new_negative: list[str],
    style: int,
    other: int,
    turned: bool,
) -> None:
    lines = [f"examples = {written(examples, style)}", f"negative_examples = {written(negative, other)}"]
    text = (
        "[adapter]\nname = 'a'\n[routing]\n"
        + "\n".join(lines[:: -1 if turned else 1])
        + "\n[base]\nmodel = 'b'\n"
    )
    made = with_examples(text, Addition(tuple(new), tuple(new_negative)))
    assert tomllib.loads(made) == {
        "adapter": {"name": "a"},
        "routing": both([*examples, *new], [*negative, *new_negative]),
        "base": {"model": "b"},
    }


@given(st.text("[]{}\"'#=,.\\ \n\r\tabroutingexamples", max_size=80))
def test_any_text_is_a_manifest_with_examples_or_an_error(text: str) -> None:
    try:
        made = with_examples(text, NEW)
    except ConfigError:
        return
    before, after = tomllib.loads(text), tomllib.loads(made)
    assert after["routing"]["examples"][-1:] == ["a new one"]
    assert {k: v for k, v in after.items() if k != "routing"} == {
        k: v for k, v in before.items() if k != "routing"
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_manifests_here(path: Path) -> None:
    text = path.read_bytes().decode()
    made = with_examples(text, NEW)
    before, _ = parse_manifest(text.encode(), path.parent.name)
    after, findings = parse_manifest(made.encode(), path.parent.name)
    assert findings == ()
    assert after.routing.examples == (*before.routing.examples, "a new one")
    assert after.routing.negative_examples == (*before.routing.negative_examples, "not this")
    old = text.splitlines()
    assert [line for line in made.splitlines() if line not in ('  "a new one",', '  "not this",')] == old
