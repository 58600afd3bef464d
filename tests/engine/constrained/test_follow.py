"""Answers keep to their constraint whatever is drawn, and where one is depends on its tokens alone."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLParserLimits

from router.engine.constrained import grammars
from router.engine.constrained.grammars import CompiledGrammar, _Base, _compiled
from router.errors import InvalidRequest
from router.types import Constraint
from tests.engine.constrained.driving import allowed, base, compiled, text_of, walked
from tests.engine.constrained.schemas import SCHEMAS

SEEDS = st.integers(0, 2**20)
KINDS = st.sampled_from(["byte_level", "sentencepiece"])
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)


def choices(*texts: str) -> Constraint:
    return Constraint("choices", choices=texts)


@given(schema=SCHEMAS, seed=SEEDS)
def test_every_answer_is_json_that_its_schema_accepts(schema: dict[str, Any], seed: int) -> None:
    grammar = compiled(Constraint("json_schema", json.dumps(schema)))
    tokens, ended = walked(grammar, seed)
    assume(ended)
    value = json.loads(text_of(tokens))
    Draft202012Validator(schema).validate(value)


@given(texts=st.lists(TEXTS, min_size=1, max_size=6, unique=True), seed=SEEDS)
def test_every_answer_is_one_of_the_choices(texts: list[str], seed: int) -> None:
    tokens, ended = walked(compiled(choices(*texts)), seed)
    assert ended
    assert text_of(tokens) in texts


@given(texts=st.permutations(["a", "ab", "abc", "b", " b", "b\n"]), seed=SEEDS, kind=KINDS)
def test_a_choice_that_begins_another_can_be_had(texts: list[str], seed: int, kind: str) -> None:
    tokens, ended = walked(compiled(choices(*texts), kind), seed, kind=kind)
    assert ended
    text = text_of(tokens, kind)
    # A decoder of SentencePiece leaves out a space that begins a text.
    assert text in texts or (kind == "sentencepiece" and f" {text}" in texts)


@given(data=st.data(), seed=SEEDS, kind=KINDS)
def test_every_answer_matches_from_end_to_end(data: st.DataObject, seed: int, kind: str) -> None:
    expression = data.draw(
        st.sampled_from(
            ["[a-c]{1,3}", "(foo|bar)+", "[0-9]{4}-[01][0-9]", "x*y?z", "(a|b)(c|d|)", "[^a-z]{2,5}", "ü+|é"]
        )
    )
    tokens, ended = walked(compiled(Constraint("regex", expression), kind), seed, kind=kind)
    assume(ended)
    text = text_of(tokens, kind)
    assert any(re.fullmatch(expression, said, re.DOTALL) for said in (text, f" {text}"))


@given(seed=SEEDS)
def test_a_lark_grammar_is_kept_to(seed: int) -> None:
    grammar = compiled(Constraint("grammar", 'start: "(" start ")" | WORD\nWORD: /[a-z]{1,4}/'))
    tokens, ended = walked(grammar, seed)
    assume(ended)
    text = text_of(tokens)
    assert re.fullmatch(r"\(*[a-z]{1,4}\)*", text)
    assert text.count("(") == text.count(")")


@given(seed=SEEDS)
def test_where_it_is_depends_on_its_tokens_alone(seed: int) -> None:
    """So a row that is computed again, or one whose tokens were forced, goes on as it would have."""
    grammar = compiled(Constraint("json_schema", json.dumps({"type": "object", "properties": {"ab": {}}})))
    chance, stepped, tokens = random.Random(seed), grammar.follower(), list[int]()
    for _ in range(chance.randrange(12)):
        tokens += stepped.forced()
        if stepped.complete:
            break
        stepped.make_mask(keep_going=False)
        tokens.append(chance.choice([token for token in allowed(stepped) if token not in base().spec.ends]))
        stepped.accept(tokens[-1])
    told = grammar.follower(forcing=False)
    for token in tokens:
        told.accept(token)
    assert told.complete == stepped.complete
    stepped.make_mask(keep_going=False)
    told.make_mask(keep_going=False)
    assert allowed(told) == allowed(stepped)


ASKED = (
    Constraint("regex", r"([a-z]{1,12}[ ,.])*"),
    Constraint("regex", r"(.|\n)*"),
    Constraint("regex", "(ü|🙂){3}"),
    choices("Paris is the capital", "Paris is the city", "naïve café 你好 🙂"),
    Constraint("grammar", 'start: "(" start ")" | WORD\nWORD: /[a-z]{1,4}/'),
    Constraint("grammar", 'start: a b\na[max_tokens=2]: /.*/\nb: "x" /[0-9]{2}/'),
    Constraint("grammar", "start: a b\na[lazy]: /.*;/\nb: /[0-9]{2}/"),
    Constraint("json_schema", json.dumps({"properties": {"ab": {"maxLength": 5}}, "required": ["ab"]})),
    Constraint("json_schema", json.dumps({"type": "integer", "minimum": 3, "maximum": 120})),
)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "eager_right"])
@settings(max_examples=25)
@given(constraint=st.sampled_from(ASKED), seed=SEEDS)
def test_it_permits_one_token_if_its_mask_would(kind: str, constraint: Constraint, seed: int) -> None:
    chance, follower = random.Random(seed), compiled(constraint, kind).follower(forcing=bool(seed % 2))
    every, ends = range(base(kind).spec.width), base(kind).spec.ends
    for _ in range(chance.randrange(1, 20)):
        follower.forced()
        if follower.complete:
            return
        permitted = [token for token in every if follower.permits(token)]
        follower.make_mask(keep_going=False)
        assert permitted == allowed(follower)
        assert permitted == [token for token in every if follower.permits(token)]
        if not (going := [token for token in permitted if token not in ends]):
            return
        follower.accept(chance.choice(going))
    assert follower.error is None


def test_every_end_is_permitted_where_the_answer_is_whole_and_nowhere_else() -> None:
    spec = replace(base().spec, ends=(*base().spec.ends, base().spec.ends[0] - 1))
    two_ends = _Base(spec, spec.tokens(), base().trials)
    constraint = Constraint("regex", "ab?")
    follower = CompiledGrammar(constraint, spec, _compiled(two_ends, constraint)).follower()
    assert text_of(follower.forced()) == "a"
    assert [follower.permits(end) for end in spec.ends] == [True, True]
    assert not any(compiled(constraint).follower(forcing=False).permits(end) for end in spec.ends)


def test_an_answer_at_an_error_refuses_nothing() -> None:
    follower = compiled(choices("yes", "no")).follower()
    follower.accept(base().tokens.tokenize_str("q")[0])
    assert follower.error is not None
    assert follower.permits(0)


def test_an_end_is_allowed_where_the_answer_is_whole_and_nowhere_else() -> None:
    follower, (end,) = compiled(Constraint("regex", "ab?")).follower(forcing=False), base().spec.ends
    follower.make_mask(keep_going=False)
    assert end not in allowed(follower)
    (a,) = [token for token in allowed(follower) if text_of([token]) == "a"]
    follower.accept(a)
    follower.make_mask(keep_going=False)
    assert end in allowed(follower)
    follower.make_mask(keep_going=True)
    assert [text_of([token]) for token in allowed(follower)] == ["b"]
    assert not follower.complete
    follower.accept(allowed(follower)[0])
    assert follower.complete


def test_who_must_go_on_ends_where_nothing_can_follow() -> None:
    follower, (end,) = compiled(choices("ab")).follower(forcing=False), base().spec.ends
    for letter in "ab":
        follower.make_mask(keep_going=True)
        follower.accept(next(t for t in allowed(follower) if text_of([t]) == letter))
    follower.make_mask(keep_going=True)
    assert allowed(follower) == [end]


def test_logits_that_are_no_token_are_never_allowed() -> None:
    follower = compiled(Constraint("grammar", "start: /(.|\\n)*/")).follower()
    follower.make_mask(keep_going=False)
    assert follower.error is None
    known = base().spec.width - 7
    assert max(allowed(follower)) < known
    assert len(allowed(follower)) > known // 2


def test_what_is_forced_is_told_once_and_not_where_each_is_sampled() -> None:
    grammar = compiled(choices("Paris is the capital", "Paris is the city"))
    follower = grammar.follower()
    assert text_of(follower.forced()).startswith("Paris is the")
    assert follower.forced() == []
    assert grammar.follower(forcing=False).forced() == []


def test_a_token_that_is_not_allowed_breaks_this_answer_alone() -> None:
    grammar = compiled(choices("yes", "no"))
    broken, fine = grammar.follower(), grammar.follower()
    (wrong,) = base().tokens.tokenize_str("q")
    broken.accept(wrong)
    assert isinstance(broken.error, InvalidRequest)
    assert broken.error.violations[0].field == "sampling.choices"
    assert not broken.complete
    assert broken.forced() == []
    fine.make_mask(keep_going=False)
    assert fine.error is None
    assert grammar.spoiled


def test_a_grammar_that_gets_too_complex_breaks_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "limits", lambda: LLParserLimits(max_items_in_row=40, verbose_errors=False))
    follower = compiled(Constraint("grammar", 'start: s\ns: s s | s s s | "a"')).follower()
    (a,) = base().tokens.tokenize_str("a")
    for _ in range(40):
        follower.make_mask(keep_going=False)
        if follower.error is not None:
            break
        follower.accept(a)
    assert follower.error is not None
    assert follower.error.violations[0].description == "is too complex to be followed any further"


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "eager_right"])
def test_tokenizers_of_every_supported_kind(kind: str) -> None:
    grammar = compiled(choices("naïve café 你好 🙂", "no"), kind)
    found = {text_of(walked(grammar, seed, kind=kind)[0], kind) for seed in range(40)}
    assert found == {"naïve café 你好 🙂", "no"}


KEYWORDS: list[dict[str, Any]] = [
    {"type": "object", "minProperties": 1},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "required": ["z"]},
    {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": False}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
    {"allOf": [{"type": "integer"}, {"minimum": 3}]},
    {"type": "integer", "anyOf": [{"minimum": 3, "maximum": 5}, {"minimum": 7, "maximum": 9}]},
    {"type": "integer", "multipleOf": 3},
    {"type": "integer", "enum": [1, "a", 2]},
    {"type": "number", "exclusiveMinimum": 3, "maximum": 9},
    {"type": ["integer", "null"]},
    {"type": "string", "pattern": "b", "maxLength": 6},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "format": "date-time"},
    {"const": {"a": [1, "x"]}},
    {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 5, "maximum": 9},
    {"definitions": {"a": {"type": "null"}}, "$ref": "#/definitions/a"},
]


@pytest.mark.parametrize("schema", KEYWORDS, ids=json.dumps)
def test_keywords_are_kept_to(schema: dict[str, Any]) -> None:
    grammar, ended = compiled(Constraint("json_schema", json.dumps(schema))), 0
    for seed in range(40):
        tokens, whole = walked(grammar, seed, most=100)
        if whole:
            Draft202012Validator(schema).validate(json.loads(text_of(tokens)))
            ended += 1
    assert ended


@pytest.mark.parametrize(
    "schema",
    [
        {"if": {"type": "string"}, "then": {"minLength": 2}},
        {"not": {"type": "null"}},
        {"type": "array", "contains": {"type": "integer"}},
        {"type": "array", "uniqueItems": True},
        {"type": "array", "unevaluatedItems": False},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "dependentSchemas": {"a": {}}},
        {"type": "object", "unevaluatedProperties": False},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    ],
    ids=json.dumps,
)
def test_keywords_that_cannot_be_kept_to_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"not supported.*, at \$\."):
        compiled(Constraint("json_schema", json.dumps(schema)))
