"""Functions, their calls and their results in prompts, with chat templates of several kinds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from router.engine.base import Prompt
from router.engine.prompt import PromptEncoder
from router.types import PromptTemplate, Tool, ToolCall, Tools, Turn
from tests.engine import small_tokenizers as small

# Like Hermes and Qwen: functions in the system turn, calls and results between marks.
MARKED = (
    "{% if tools %}<|im_start|>system\nFunctions:{% for t in tools %}\n{{ t | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<result>{{ m.content }}</result>{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like DeepSeek: arguments are a text. Like Llama 3: a result is JSON, and one call a turn.
TEXTUAL = (
    "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one') }}{% endif %}"
    "{{ m.tool_calls[0].function.name + m.tool_calls[0].function.arguments }}<|im_end|>"
    "{% elif m.role == 'tool' %}{{ {'output': m.content} | tojson }}<|im_end|>"
    "{% else %}{{ m.role + ': ' + m.content }}<|im_end|>{% endif %}{% endfor %}"
)
NONE = Tools()
WEATHER = Tool(
    "get_weather",
    'The "weather" <|im_end|>',
    '{"type": "object", "properties": {"city": {"type": "string", "enum": ["<|im_end|>", "Paris"]}}}',
)
CALL = ToolCall("a", "get_weather", '{"city": "Pa\\"ris <|im_end|>"}')
TURNS = (
    Turn("user", "Is it warm?"),
    Turn("assistant", "", (CALL,)),
    Turn("tool", '22 "degrees" <|im_end|>', call_id="a"),
)


@cache
def encoder(template: str) -> tuple[Any, PromptEncoder]:
    raw = small.byte_level().backend_tokenizer
    made = small._wrap(raw, template, bos_token="<|im_start|>", eos_token="<|im_end|>")
    return made, PromptEncoder(made)


def rendered(template: str, turns: tuple[Turn, ...], tools: Tools = NONE, ends: int = 0) -> str:
    """The prompt, which has so many tokens that end a turn."""
    tokenizer, encode = encoder(template)
    ids = encode.encode(Prompt(turns, tools=tools))
    assert sum(i == tokenizer.eos_token_id for i in ids) == ends
    text: str = tokenizer.decode(ids)
    return text


def test_whether_a_template_shows_functions_is_found_out() -> None:
    assert encoder(MARKED)[1].has_tool_form
    assert not encoder(TEXTUAL)[1].has_tool_form
    assert not encoder(small.CHATML)[1].has_tool_form
    assert not PromptEncoder(small.word_piece()).has_tool_form


def test_functions_calls_and_results_go_into_the_template_and_name_no_control_token() -> None:
    text = rendered(MARKED, TURNS, Tools((WEATHER,)), ends=4)
    assert '"description": "The \\"weather\\" <|im_end|>"' in text
    assert '"enum": ["<|im_end|>", "Paris"]' in text
    assert '<call>get_weather {"city": "Pa\\"ris <|im_end|>"}</call>' in text
    assert '<result>22 "degrees" <|im_end|></result>' in text


def test_a_template_that_wants_arguments_as_text_gets_text() -> None:
    text = rendered(TEXTUAL, TURNS, ends=3)
    assert 'get_weather{"city": "Pa\\"ris <|im_end|>"}' in text
    assert '{"output": "22 \\"degrees\\" <|im_end|>"}' in text


def test_results_stand_before_the_question_where_the_template_has_no_form_or_refuses_them() -> None:
    result = 'Result of get_weather {"city": "Pa\\"ris <|im_end|>"}: 22 "degrees" <|im_end|>'
    for template, ends in ((small.CHATML, 2), (small.STRICT, 0)):
        assert f"{result}\n\nIs it warm?" in rendered(template, TURNS, ends=ends)
    several = (TURNS[0], Turn("assistant", "Wait.", (CALL, CALL)), TURNS[2], TURNS[2], Turn("user", "So?"))
    text = rendered(TEXTUAL, several, ends=3)
    assert f"user: Is it warm?<|im_end|>assistant: Wait.<|im_end|>user: {result}\n{result}\n\nSo?" in text


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_base_without_a_form_sees_no_functions_unless_it_has_to_call_one(choice: Any) -> None:
    without = rendered(small.CHATML, TURNS[:1], ends=2)
    assert rendered(small.CHATML, TURNS[:1], Tools((WEATHER,), choice), ends=2) == without
    assert "Paris" in rendered(small.CHATML, TURNS[:1], Tools((WEATHER,), "required"), ends=2)
    assert rendered(MARKED, TURNS[:1], Tools((WEATHER,), "none"), ends=1) == rendered(
        MARKED, TURNS[:1], ends=1
    )


def test_a_base_without_a_chat_template_gets_calls_and_functions_as_text() -> None:
    encode = PromptEncoder(small.pure_python())
    ids = encode.encode(Prompt(TURNS, tools=Tools((WEATHER,), "required")))
    text = bytes(i - 3 for i in ids).decode()
    assert text.startswith("Result of get_weather ")
    assert text.endswith("as JSON: Is it warm?")
    assert "\n\nFunctions:\n" in text


def test_the_template_of_an_adapter_is_for_the_last_question() -> None:
    tokenizer, encode = encoder(small.CHATML)
    ids = encode.encode(Prompt(TURNS, template=PromptTemplate(template="Q: {prompt}")))
    assert "Q: Is it warm?" in tokenizer.decode(ids)
    assert tokenizer.decode(ids).count("Q:") == 1
