"""What is wrong with a constraint is said with the place, before anything is compiled."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from router.engine.constrained.source import BYTES, VocabularySpec, check_size, grammar_text, spec_of
from router.errors import Findings, InvalidRequest
from router.types import Constraint
from tests.engine import small_tokenizers


def refusal(kind: Any, text: str = "", choices: tuple[str, ...] = ()) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        grammar_text(Constraint(kind, text, choices))
    violation = caught.value.violations[0]
    return violation.field, violation.description


def nested(depth: int) -> str:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return json.dumps(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "must be a JSON object"),
        ("true", "must be a JSON object"),
        ("[" * 30000, "is nested too deeply"),
        (nested(80), "is nested deeper than 64 levels, at \\$.items.items"),
        ('{"$ref": "https://example.com/s"}', "refers to something outside, .* at \\$.\\$ref"),
        ('{"properties": {"a": {"$ref": "file:///etc/passwd"}}}', "outside, .* at \\$.properties.a.\\$ref"),
        ('{"anyOf": [{}, {"$dynamicRef": "other.json"}]}', "outside, .* at \\$.anyOf\\[1\\].\\$dynamicRef"),
        ('{"x-guidance": {"lenient": true}}', "is not a keyword of JSON Schema, at \\$.x-guidance"),
        ('{"pattern": "a{5000}"}', "repeats more than 1000 times: .5000. at character 1, at \\$.pattern"),
        (" ", "must not be empty"),
        ('{"title": "' + "x" * 65536 + '"}', "must have at most 65536 bytes"),
    ],
)
def test_schemas(schema: str, said: str) -> None:
    field, description = refusal("json_schema", schema)
    assert field == "sampling.json_schema"
    assert re.search(said, description), description


def test_what_is_data_in_a_schema_refers_to_nothing() -> None:
    text = json.dumps({"enum": [{"$ref": "https://example.com"}], "default": {"x-guidance": 1}})
    assert "example.com" in grammar_text(Constraint("json_schema", text))


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(a{1001})b", "repeats more than 1000 times: {1001} at character 2"),
        ("a{2,99999999999}", "repeats more than 1000 times"),
        ("", "must not be empty"),
    ],
)
def test_expressions(expression: str, said: str) -> None:
    field, description = refusal("regex", expression)
    assert (field, said in description) == ("sampling.regex", True), description


@pytest.mark.parametrize(
    ("choices", "field", "said"),
    [
        ((), "sampling.choices", "must have 1 to 1024 entries, got 0"),
        (("a",) * 1025, "sampling.choices", "must have 1 to 1024 entries, got 1025"),
        (("a", ""), "sampling.choices[1]", "must have 1 to 1024 bytes, got 0"),
        (("a", "b", "a"), "sampling.choices[2]", "is the same as entry 0"),
        (("é" * 513,), "sampling.choices[0]", "must have 1 to 1024 bytes, got 1026"),
        (tuple(f"{i:0>1000}" for i in range(70)), "sampling.choices", "65536 bytes together, got 70000"),
    ],
)
def test_choices(choices: tuple[str, ...], field: str, said: str) -> None:
    found = refusal("choices", choices=choices)
    assert found[0] == field
    assert said in found[1]


@pytest.mark.parametrize(
    ("grammar", "line"),
    [
        ('start: <|im_start|> "a"', 1),
        ('start: "a"\n  | <[5-10]>', 2),
        ('start: "a" // no <b> here\n  | b\nb: /<c>/ <d>', 3),
        ("start: <", 1),
    ],
)
def test_special_tokens(grammar: str, line: int) -> None:
    _, description = refusal("grammar", grammar)
    assert description.startswith(f"line {line}: <")
    assert "special token" in description


@pytest.mark.parametrize("grammar", ['start: "<b>" /<i>/ "</b>"', 'start: "\\"<" // <x>', "start: /\\/</"])
def test_what_only_looks_like_one(grammar: str) -> None:
    assert grammar_text(Constraint("grammar", grammar))


def test_every_bad_choice_is_named_with_the_field_that_is_asked_for() -> None:
    found = Findings()
    check_size(Constraint("choices", choices=("", "x", "x")), "there", found)
    with pytest.raises(InvalidRequest) as caught:
        found.check()
    assert [v.field for v in caught.value.violations] == ["there[0]", "there[2]"]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "eager_right"])
def test_those_whose_tokens_are_bytes(kind: str) -> None:
    tokenizer = getattr(small_tokenizers, kind)()
    spec = spec_of(tokenizer, len(tokenizer) + 100, [tokenizer.eos_token_id, 10**6])
    assert isinstance(spec, VocabularySpec)
    assert spec.ends == (tokenizer.eos_token_id,)
    tokens = spec.tokens()
    assert tokens.vocab_size == len(tokenizer) + 100
    ids = tokenizer.encode("Paris <think> 12", add_special_tokens=False)
    assert tokens.decode_bytes(ids).strip() == b"Paris <think> 12"


@pytest.mark.parametrize(
    ("kind", "why"),
    [("unigram", "not of a kind"), ("word_piece", "not of a kind"), ("pure_python", "written in Python")],
)
def test_others_say_why(kind: str, why: str) -> None:
    tokenizer = getattr(small_tokenizers, kind)()
    found = spec_of(tokenizer, len(tokenizer), [1])
    assert isinstance(found, str)
    assert why in found


def test_logits_that_do_not_fit() -> None:
    tokenizer = small_tokenizers.byte_level()
    assert spec_of(tokenizer, len(tokenizer) - 1, [3]) == (
        f"its tokenizer has {len(tokenizer)} tokens, its logits only {len(tokenizer) - 1}"
    )
    assert spec_of(tokenizer, len(tokenizer), []) == "no token ends its answers"


def test_a_tokenizer_that_shows_other_texts_than_its_vocabulary_has() -> None:
    class Loud:
        backend_tokenizer = small_tokenizers.byte_level().backend_tokenizer

        def __len__(self) -> int:
            return 300

        def encode(self, text: str, **_: object) -> list[int]:
            return small_tokenizers.byte_level().encode(text.upper(), add_special_tokens=False)

        def decode(self, ids: list[int], **_: object) -> str:
            return small_tokenizers.byte_level().decode(ids).lower()

    found = spec_of(Loud(), 1000, [3])
    assert isinstance(found, str)
    assert "not the bytes" in found


def test_padding_and_truncation_of_the_tokenizer_are_left_behind() -> None:
    tokenizer = small_tokenizers._wrap(
        type(small_tokenizers.byte_level().backend_tokenizer).from_str(
            small_tokenizers.byte_level().backend_tokenizer.to_str()
        ),
        None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    spec = spec_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    assert isinstance(spec, VocabularySpec), spec
    assert len(spec.tokens().tokenize_str("a long text of more tokens than four")) > 8


def test_bytes() -> None:
    tokens = VocabularySpec(BYTES, 262, (261,)).tokens()
    assert (tokens.vocab_size, tokens.tokenize_str("aé")) == (262, [97, 195, 169])
