"""Prompts: the base's template, the adapter's text, and no special token from anybody's words."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.engine.base import Prompt
from router.engine.prompt import PromptEncoder, apply_template
from router.errors import AdapterRejected, InvalidRequest
from router.types import PromptTemplate, Turn
from tests.engine import small_tokenizers as small

WITH_TEMPLATE = [small.byte_level, small.sentencepiece, small.eager_right]
ALL = [*WITH_TEMPLATE, small.unigram, small.word_piece, small.pure_python]
HOSTILE = [
    "<|im_end|>",
    "<|im_start|>system",
    "</s>",
    "<s>",
    "<unk>",
    "<pad>",
    "<|end|>",
    "<think>",
    "＜/s＞",
]
texts = st.lists(st.sampled_from([*HOSTILE, " ", "\n", "12", "naïve", "你好", "🙂", "<|", "x"]), max_size=8)


def user(text: str) -> Prompt:
    return Prompt(turns=(Turn("user", text),))


@pytest.mark.parametrize("make", WITH_TEMPLATE)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
@example(text="  padded\n ")
def test_equals_transformers_for_ordinary_text(make: Any, text: str) -> None:
    tokenizer = make()
    turns = [("user", text), ("assistant", "It is Paris."), ("user", f"and {text}")]
    messages = [{"role": role, "content": content} for role, content in turns]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ours = PromptEncoder(tokenizer).encode(Prompt(turns=tuple(Turn(r, t) for r, t in turns)))
    assert ours == theirs


@pytest.mark.parametrize("make", ALL)
@given(parts=texts)
def test_no_text_of_anybody_gives_control_tokens(make: Any, parts: list[str]) -> None:
    tokenizer, text = make(), "".join(parts)
    encoder = PromptEncoder(tokenizer)
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    template = PromptTemplate(system=text, template=text + "{prompt}")

    def count(prompt: Prompt) -> int:
        return sum(i in control for i in encoder.encode(prompt))

    assert count(Prompt(turns=(Turn("user", text),), template=template)) == count(
        Prompt(turns=(Turn("user", "a"),), template=PromptTemplate("b", "c {prompt}"))
    )
    assert count(Prompt(raw=text)) == count(Prompt(raw=""))
    ids, prompt_length = encoder.encode_example(user("a"), text)
    assert sum(i in control for i in ids[prompt_length:]) == 1
    assert ids[-1] in encoder.end_ids


@pytest.mark.parametrize("make", [small.byte_level, small.sentencepiece, small.pure_python])
def test_special_names_stay_readable_as_text(make: Any) -> None:
    tokenizer = make()
    ids = PromptEncoder(tokenizer).encode(Prompt(raw="say <|im_end|> and </s> twice"))
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "say <|im_end|> and </s> twice"


def test_words_in_a_vocabulary_that_spell_a_special_token_are_spelt_out() -> None:
    tokenizer = small.unigram()
    assert tokenizer("x</s>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id
    ids = PromptEncoder(tokenizer).encode(Prompt(raw="a</s>a<unk>a"))
    assert tokenizer.decode(ids).replace(" ", "") == "a</s>a<unk>a"
    unknown = PromptEncoder(tokenizer).encode(Prompt(raw="aЖ"))
    assert unknown[-1] == tokenizer.unk_token_id


def test_added_tokens_that_the_template_writes_are_control_tokens() -> None:
    tokenizer = small.byte_level()
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think in PromptEncoder(tokenizer).encode(user("<think>"))
    reasoning = small._wrap(
        tokenizer.backend_tokenizer,
        small.CHATML + "<think>\n",
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
    )
    assert PromptEncoder(reasoning).encode(user("<think> hm </think>")).count(think) == 1


def test_adapter_template_is_replaced_literally() -> None:
    template = PromptTemplate("", "Q: {prompt} {0} {{7*7}} {prompt.__class__} A")
    (turn,) = apply_template([Turn("user", "{prompt}%s\\1")], template)
    assert turn.text == "Q: {prompt}%s\\1 {0} {{7*7}} {prompt.__class__} A"


def test_template_goes_to_the_last_user_turn_and_system_comes_first() -> None:
    turns = [Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three")]
    template = PromptTemplate("sys", "<{prompt}>")
    assert apply_template(turns, template) == [Turn("system", "sys"), *turns[:2], Turn("user", "<three>")]
    own = [Turn("system", "mine"), *turns]
    assert apply_template(own, template)[0] == Turn("system", "mine")
    assert [t.role for t in apply_template(own, template)].count("system") == 1


@pytest.mark.parametrize("template", ["no place", "{prompt} and {prompt}"])
def test_template_with_no_place_or_two_for_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(AdapterRejected, match=r"\{prompt\}"):
        PromptEncoder(small.byte_level()).encode(
            Prompt(turns=(Turn("user", "a"),), template=PromptTemplate("", template))
        )


def test_system_text_joins_the_user_where_the_base_has_no_system_role() -> None:
    encoder = PromptEncoder(small.sentencepiece())
    apart = encoder.encode(Prompt(turns=(Turn("system", "Be kind"), Turn("user", "hello"))))
    assert apart == encoder.encode(user("Be kind\n\nhello"))


def test_order_of_roles_that_the_base_refuses_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="order of roles") as raised:
        PromptEncoder(small.sentencepiece()).encode(Prompt(turns=(Turn("assistant", "a"), Turn("user", "b"))))
    assert raised.value.violations[0].field == "input.chat.messages"


def test_base_without_template_gets_the_texts() -> None:
    tokenizer = small.word_piece()
    prompt = Prompt(
        turns=(Turn("user", "capital of France"),), template=PromptTemplate("Be brief", "{prompt}?")
    )
    expected = tokenizer("Be brief\n\ncapital of France?", add_special_tokens=False)["input_ids"]
    assert PromptEncoder(tokenizer).encode(prompt) == expected


def test_raw_prompt_gets_a_bos_only_from_tokenizers_that_add_one() -> None:
    for make in (small.byte_level, small.sentencepiece, small.word_piece):
        tokenizer = make()
        assert (
            PromptEncoder(tokenizer).encode(Prompt(raw="the capital"))
            == tokenizer("the capital")["input_ids"]
        )
    assert PromptEncoder(small.byte_level()).encode(Prompt(raw="")) == []


@pytest.mark.parametrize("make", ALL)
@given(asked=st.lists(texts, min_size=2, max_size=2))
@settings(max_examples=30, deadline=None)
def test_what_is_everybodys_is_the_same_whatever_is_asked(make: Any, asked: list[list[str]]) -> None:
    encoder = PromptEncoder(make())
    template = PromptTemplate("Be brief, what is the capital", "Q: {prompt} A:")
    beginning = encoder.beginning(template)
    for parts in asked:
        for turns in ((Turn("user", "".join(parts)),), (Turn("system", "".join(parts)), Turn("user", "a"))):
            try:
                tokens = encoder.encode(prompt := Prompt(turns, template=template))
            except InvalidRequest:  # a base without the role system, and nothing that is said
                continue
            shared = encoder.shared(prompt, tokens)
            assert tuple(tokens[:shared]) == beginning[:shared]
            assert shared == len(tokens) or shared == len(beginning) or tokens[shared] != beginning[shared]
    raw = Prompt(raw="Be brief")
    assert encoder.shared(raw, encoder.encode(raw)) == 0


def test_a_templates_own_beginning_is_everybodys_and_a_callers_system_text_is_not() -> None:
    encoder = PromptEncoder(small.byte_level())
    template = PromptTemplate("What is the capital of France?" * 4, "Q: {prompt}")
    asked = Prompt((Turn("user", "of Spain"),), template=template)
    own = Prompt((Turn("system", "Other " * 20), *asked.turns), template=template)
    system = encoder.encode(Prompt(raw=template.system))
    shared = encoder.shared(asked, tokens := encoder.encode(asked))
    assert len(system) < shared < len(tokens)
    assert encoder.shared(own, encoder.encode(own)) < 20


def test_a_base_that_refuses_a_question_alone_shares_nothing() -> None:
    raw = small.byte_level().backend_tokenizer
    wants = "{% if messages|length < 2 %}{{ raise_exception('alone') }}{% endif %}" + small.CHATML
    encoder = PromptEncoder(small._wrap(raw, wants, eos_token="<|im_end|>", bos_token="<|im_start|>"))
    prompt = Prompt((Turn("system", "a"), Turn("user", "b")))
    assert encoder.shared(prompt, encoder.encode(prompt)) == 0


@pytest.mark.parametrize("make", WITH_TEMPLATE)
def test_example_continues_the_served_prompt(make: Any) -> None:
    tokenizer = make()
    encoder, prompt = PromptEncoder(tokenizer), user("What is the capital of France?")
    ids, prompt_length = encoder.encode_example(prompt, "It is Paris.")
    assert ids[:prompt_length] == encoder.encode(prompt)
    assert tokenizer.decode(ids[prompt_length:-1]).strip() == "It is Paris."
    assert ids[-1] == tokenizer.eos_token_id


def test_end_ids_come_from_the_template_and_the_tokenizer() -> None:
    raw = small.byte_level().backend_tokenizer
    other = small._wrap(raw, small.CHATML, eos_token="</think>", bos_token="<|im_start|>")
    ends = {other.convert_tokens_to_ids(name) for name in ("<|im_end|>", "</think>")}
    encoder = PromptEncoder(other)
    assert encoder.end_ids == ends
    assert encoder.encode_example(user("a"), "b")[0][-1] == other.convert_tokens_to_ids("<|im_end|>")
    assert encoder.encode_example(Prompt(raw="a"), "b")[0][-1] == other.eos_token_id


def test_threads_agree_and_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = small.byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    encoder, prompt = PromptEncoder(tokenizer), user("<|im_end|> 你好 12")
    expected = encoder.encode(prompt)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: encoder.encode(prompt if i % 2 else user("a")), range(200)))
    assert all(result == expected for result in results[1::2])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["<|im_end|>", "a", " ", "word 12 ", "你"])
def test_time_grows_linearly(unit: str) -> None:
    encoder = PromptEncoder(small.byte_level())

    def seconds(size: int) -> float:
        prompt = user(unit * (size // len(unit.encode())))
        times = []
        for _ in range(3):
            started = time.process_time()
            encoder.encode(prompt)
            times.append(time.process_time() - started)
        return min(times)

    small_time = seconds(1 << 12)
    assert seconds(1 << 16) < 16 * 4 * max(small_time, 0.002)
