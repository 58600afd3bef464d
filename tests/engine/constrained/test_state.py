"""Answers keep to their constraint whatever is drawn, and where one is depends on its tokens alone."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.engine.constrained.choosing import make_masks, sample_rows
from router.engine.constrained.compiler import CompiledGrammar, _Base, _compiled
from router.engine.constrained.source import limits
from router.engine.constrained.state import GrammarState
from router.engine.constrained.work import PAIRS, PAIRS_PER_TOKEN, TOKEN_PAIRS, counts
from router.engine.ops import ChosenToken, TokenChoice
from router.engine.sampling import Sampler, SamplingState, TorchChooser, truncate
from router.errors import InvalidRequest
from router.types import Constraint, SamplingParams, TokenLogprob
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
    chance, stepped, tokens = random.Random(seed), grammar.start(), list[int]()
    for _ in range(chance.randrange(12)):
        tokens += stepped.forced()
        if stepped.complete:
            break
        stepped.make_mask(keep_going=False)
        tokens.append(chance.choice([token for token in allowed(stepped) if token not in base().spec.ends]))
        stepped.accept(tokens[-1])
    told = grammar.start(forcing=False)
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
    chance, follower = random.Random(seed), compiled(constraint, kind).start(forcing=bool(seed % 2))
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
    follower = CompiledGrammar(constraint, spec, _compiled(two_ends, constraint)).start()
    assert text_of(follower.forced()) == "a"
    assert [follower.permits(end) for end in spec.ends] == [True, True]
    assert not any(compiled(constraint).start(forcing=False).permits(end) for end in spec.ends)


def test_an_answer_at_an_error_refuses_nothing() -> None:
    follower = compiled(choices("yes", "no")).start()
    follower.accept(base().tokens.tokenize_str("q")[0])
    assert follower.error is not None
    assert follower.permits(0)


def test_an_end_is_allowed_where_the_answer_is_whole_and_nowhere_else() -> None:
    follower, (end,) = compiled(Constraint("regex", "ab?")).start(forcing=False), base().spec.ends
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
    follower, (end,) = compiled(choices("ab")).start(forcing=False), base().spec.ends
    for letter in "ab":
        follower.make_mask(keep_going=True)
        follower.accept(next(t for t in allowed(follower) if text_of([t]) == letter))
    follower.make_mask(keep_going=True)
    assert allowed(follower) == [end]


def test_logits_that_are_no_token_are_never_allowed() -> None:
    follower = compiled(Constraint("grammar", "start: /(.|\\n)*/")).start()
    follower.make_mask(keep_going=False)
    assert follower.error is None
    known = base().spec.width - 7
    assert max(allowed(follower)) < known
    assert len(allowed(follower)) > known // 2


def test_what_is_forced_is_told_once_and_not_where_each_is_sampled() -> None:
    grammar = compiled(choices("Paris is the capital", "Paris is the city"))
    follower = grammar.start()
    assert text_of(follower.forced()).startswith("Paris is the")
    assert follower.forced() == []
    assert grammar.start(forcing=False).forced() == []


def test_a_token_that_is_not_allowed_breaks_this_answer_alone() -> None:
    grammar = compiled(choices("yes", "no"))
    broken, fine = grammar.start(), grammar.start()
    (wrong,) = base().tokens.tokenize_str("q")
    broken.accept(wrong)
    assert isinstance(broken.error, InvalidRequest)
    assert broken.error.violations[0].field == "sampling.choices"
    assert not broken.complete
    assert broken.forced() == []
    fine.make_mask(keep_going=False)
    assert fine.error is None
    assert grammar.spoiled


AMBIGUOUS = {
    "sixty bytes": 'start: s\ns: s s | s s s | "a" | "b" | "ab" | "ba"',
    "one letter": 'start: s\ns: s s | s s s | "a"',
    "parts that begin again": 'start: (t "\\n")+\nt: t t | t t t | "a"',
    "behind a text": 'start: /[a-z]{9}/ ":" s\ns: s s | s s s | s s s s | "a"',
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_grammar_fails_its_answer_at_bounded_work(name: str) -> None:
    """All masks of it make at most so many items, however long the answer might become."""

    def chosen() -> int:
        """Any, but a line ends only now and then: a row of the parser grows until then."""
        going = [token for token in allowed(follower) if token not in ends]
        within = [token for token in going if "\n" not in text_of([token])]
        return chance.choice(within if within and tokens % 60 else going)

    grammar = compiled(Constraint("grammar", AMBIGUOUS[name]))
    chance, follower, tokens = random.Random(0), grammar.start(forcing=False), 0
    ends, most = base().spec.ends, limits("grammar").step_max_items
    while follower.error is None and tokens < 2000:
        before = follower._work.pairs
        follower.make_mask(keep_going=True)
        assert follower._work.pairs - before <= (most + 2000) ** 2
        if follower.error is None:
            follower.accept(chosen())
            tokens += 1
    assert follower.error is not None
    assert follower.error.violations[0].field == "sampling.grammar"
    assert "make it less ambiguous" in follower.error.violations[0].description
    assert before <= PAIRS + PAIRS_PER_TOKEN * tokens
    assert follower.cost >= before // TOKEN_PAIRS, "its tenant is charged"


@pytest.mark.parametrize(
    ("grammar", "answer"),
    [
        ('start: s\ns: s " and " s | s " or " s | "(" s ")" | WORD\nWORD: /[a-z]+/', "(a and b) or c and d"),
        ('start: e\ne: e "+" e | e "*" e | "(" e ")" | NUM\nNUM: /[0-9]+/', "1+2*(3+4)*5+6+7*8"),
        ("start: (WORD SIGN)*\nWORD: /[a-z]+/\nSIGN: /[,.;] /", "a, b. c; d, e. " * 20),
    ],
)
def test_answers_of_usual_length_keep_far_below_the_bounds(grammar: str, answer: str) -> None:
    follower = compiled(Constraint("grammar", grammar)).start(forcing=False)
    for token in base().tokens.tokenize_str(answer):
        follower.make_mask(keep_going=False)
        follower.accept(token)
        assert follower.error is None
    assert follower._work.pairs < PAIRS / 4


def test_masks_of_many_optional_properties_count_no_more_than_the_answer() -> None:
    """So it is answered as fast as others, also beside these."""
    names = {f"property{number}": {"type": "string", "maxLength": 9} for number in range(150)}
    schema = {"type": "object", "properties": names, "additionalProperties": False}
    follower = compiled(Constraint("json_schema", json.dumps(schema))).start(forcing=False)
    answer = json.dumps(dict.fromkeys(list(names)[::6], "short"), separators=(",", ":"))
    for number, token in enumerate(base().tokens.tokenize_str(answer)):
        follower.make_mask(keep_going=False)
        assert follower.cost <= number
        follower.accept(token)
        assert follower.error is None


def test_work_is_told_by_the_library() -> None:
    """It is read from the text of an error, so another version may say it in other words."""
    matcher = _compiled(base(), Constraint("grammar", 'start: "a" b\nb: "b" | "c" b // "rows": 7'))
    before = counts(matcher)
    assert matcher.consume_token(base().tokens.tokenize_str("a")[0])
    after = counts(matcher)
    assert not matcher.is_error(), "a copy was asked"
    assert (before.rows, after.rows) == (1, 2)
    assert 0 < before.items < after.items
    assert before.fuel > 0


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


WIDTH, ENDS = base().spec.width, base().spec.ends
CONSTRAINTS = (
    Constraint("regex", r"([a-z]{1,12}[ ,.])*"),
    Constraint("regex", r"(.|\n)*"),
    Constraint("regex", "ab?"),
    Constraint("choices", choices=("cat", "caterpillar", "dog")),
    Constraint("grammar", 'start: "(" start ")" | WORD\nWORD: /[a-z]{1,4}/'),
    Constraint("json_schema", json.dumps({"type": "object"})),
)
SAMPLER = Sampler(
    WIDTH, lambda token, value, top: TokenLogprob(str(token), token, value), TorchChooser().choose
)
GREEDY = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.3, 0.7]),
        "presence_penalty": st.just(0.5),
        "logprobs": st.just(2),
        "min_tokens": st.sampled_from([1, 50]),
    },
)
TRUNCATED = st.sampled_from([{"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 5, "top_p": 0.9}])


def row(follower: GrammarState | None, params: SamplingParams) -> Any:
    """At the beginning of its answer."""
    state = SamplingState(params, (1, 2, 3), ENDS, constrained=follower is not None)
    return SimpleNamespace(grammar=follower, generated=0, sampling=state, job=SimpleNamespace(params=params))


def somewhere(constraint: Constraint, seed: int) -> GrammarState:
    """A few tokens into an answer that is not whole yet."""
    chance, follower = random.Random(seed), compiled(constraint).start(forcing=bool(seed % 2))
    for _ in range(chance.randrange(6)):
        follower.forced()
        going = [token for token in range(WIDTH) if token not in ENDS and follower.permits(token)]
        if follower.complete or not going:
            return compiled(constraint).start(forcing=False)
        follower.accept(chance.choice(going))
    return compiled(constraint).start(forcing=False) if follower.complete else follower


def masked(rows: list[Any], logits: torch.Tensor) -> list[ChosenToken]:
    """What the rows get that have their masks before anything is chosen."""
    states = []
    for one in rows:
        one.grammar.make_mask(keep_going=one.generated < one.job.params.min_tokens)
        states.append(SamplingState(one.job.params, (1, 2, 3), ENDS, one.grammar.allowed.copy()))
    return SAMPLER.sample(logits, states)


def scores(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3


@given(
    rows=st.lists(st.tuples(st.sampled_from(CONSTRAINTS), GREEDY), min_size=1, max_size=4),
    seed=st.integers(0, 2**20),
)
def test_the_likeliest_is_that_of_the_mask(rows: list[Any], seed: int) -> None:
    made = [row(somewhere(constraint, seed), SamplingParams(**params)) for constraint, params in rows]
    logits = scores(seed, len(made))
    assert sample_rows(made, logits, SAMPLER) == masked(made, logits)


@given(
    constraint=st.sampled_from(CONSTRAINTS),
    truncated=TRUNCATED,
    seed=st.integers(0, 2**20),
    peak=st.sampled_from([1.0, 4.0]),
)
def test_what_is_drawn_from_the_likeliest_few_is_one_of_those_of_the_mask(
    constraint: Constraint, truncated: dict[str, Any], seed: int, peak: float
) -> None:
    made = row(somewhere(constraint, seed), SamplingParams(temperature=1.0, seed=seed, **truncated))
    logits = scores(seed, 1) * peak
    (sampled,) = sample_rows([made], logits, SAMPLER)
    made.grammar.make_mask(keep_going=False)
    weights = torch.softmax(logits[0], -1)
    weights[[token for token in range(WIDTH) if token not in allowed(made.grammar)]] = 0.0
    truncate(weights[None], [TokenChoice(**truncated)])
    assert weights[sampled.token] > 0


def test_a_draw_with_logprobs_has_its_mask_before() -> None:
    made = [row(somewhere(CONSTRAINTS[0], 3), SamplingParams(temperature=1.0, seed=1, top_p=0.7, logprobs=2))]
    logits = scores(3, 1)
    assert sample_rows(made, logits, SAMPLER) == masked(made, logits)


@pytest.mark.parametrize("least", [0, 5])
@pytest.mark.parametrize(
    "truncated", [{}, {"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.5}, {"top_k": 5, "top_p": 0.8}]
)
def test_draws_have_the_distribution_of_what_is_allowed(truncated: dict[str, Any], least: int) -> None:
    """Whole as it is, the answer may end, or must go on where `least` says so."""
    follower = compiled(Constraint("regex", "[a-d]*")).start()
    follower.make_mask(keep_going=least > 0)
    possible = allowed(follower)
    assert (ENDS[0] in possible) == (not least)
    logits = torch.zeros(1, WIDTH)
    logits[0, possible] = torch.linspace(4.0, 6.0, len(possible))  # half of all draws, or so, are refused
    kept = torch.softmax(torch.where(logits > 0, logits, -torch.inf), -1)
    truncate(kept, [TokenChoice(**truncated)])
    expected = (kept[0, possible] / kept.sum()).tolist()
    draws, counts = 1000, Counter[int]()
    for seed in range(draws):
        drawing = row(follower, SamplingParams(temperature=1.0, seed=seed, min_tokens=least, **truncated))
        counts[sample_rows([drawing], logits, SAMPLER)[0].token] += 1
    assert set(counts) <= {token for token, share in zip(possible, expected, strict=True) if share}
    distance = sum((counts[t] / draws - p) ** 2 / p for t, p in zip(possible, expected, strict=True) if p)
    assert (
        distance * draws < 3 * len(possible) + 15
    )  # chi-squared: 1 in 10,000 exceeds it, and seeds are fixed


def test_masks_are_made_only_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[GrammarState] = []
    make_mask = GrammarState.make_mask
    monkeypatch.setattr(
        GrammarState,
        "make_mask",
        lambda self, keep_going: made_of.append(self) or make_mask(self, keep_going),
    )
    a, q = (base().tokens.tokenize_str(letter)[0] for letter in "aq")
    rows = [row(compiled(Constraint("regex", "[a-d]*")).start(), SamplingParams()) for _ in range(3)]
    rows.append(row(None, SamplingParams()))
    rows.append(
        row(compiled(Constraint("regex", "[a-d]*")).start(), SamplingParams(temperature=1.0, top_p=0.9))
    )
    logits = scores(0, 5)
    logits[[0, 1, 2, 3, 4], [a, q, a, q, a]] = 99.0
    sampled = sample_rows(rows, logits, SAMPLER)
    assert made_of == [rows[1].grammar]
    assert [sampled[at].token for at in (0, 2, 3, 4)] == [a, a, q, a]
    assert sampled[1].token in allowed(rows[1].grammar)


def test_a_mask_holds_for_one_token() -> None:
    refused = row(compiled(Constraint("regex", "[a-d]*")).start(), SamplingParams())
    logits = scores(0, 1)
    logits[0, base().tokens.tokenize_str("q")[0]] = 99.0
    (sampled,) = sample_rows([refused], logits, SAMPLER)
    assert refused.sampling.allowed is not None
    refused.sampling.accept(sampled.token)
    assert refused.sampling.allowed is None


def test_a_row_whose_logits_are_broken_fails_without_being_looked_at() -> None:
    rows = [row(compiled(Constraint("regex", "[a-d]*")).start(), SamplingParams()) for _ in range(2)]
    logits = scores(0, 2)
    logits[0, 7] = torch.nan
    assert [sampled.failed for sampled in sample_rows(rows, logits, SAMPLER)] == [True, False]
    assert rows[0].sampling.allowed is None


class Scripted:
    """A follower that says what is done with it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.raises = error
        self.kept_going, self.error, self.allowed = False, None, object()

    def make_mask(self, keep_going: bool) -> None:
        self.kept_going = keep_going
        if self.raises:
            raise self.raises

    def give_up(self, why: str) -> None:
        self.error = why


def scripted_row(follower: Any, generated: int = 5, least: int = 0) -> Any:
    return SimpleNamespace(
        grammar=follower,
        generated=generated,
        job=SimpleNamespace(params=SimpleNamespace(min_tokens=least)),
        sampling=SimpleNamespace(allowed=None),
    )


def test_rows_with_a_grammar_get_theirs() -> None:
    one, other = Scripted(), Scripted()
    rows = [scripted_row(one, least=9), scripted_row(None), scripted_row(other)]
    make_masks(rows)
    assert (one.kept_going, other.kept_going) == (True, False)
    assert [made.sampling.allowed for made in rows] == [one.allowed, None, other.allowed]


def test_one_that_raises_fails_alone() -> None:
    broken, fine = Scripted(error=RuntimeError("no")), Scripted()
    make_masks([scripted_row(broken), scripted_row(fine)])
    assert (broken.error is not None, fine.error) == (True, None)
