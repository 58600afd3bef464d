"""Two versions compared: rows read, answers scored, the result in words."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from router.client import ClientError
from router.errors import ConfigError
from router.extensions.training.comparison import words
from router.extensions.training.comparison.judge import ModelJudge, read_template
from router.extensions.training.comparison.page import page
from router.extensions.training.comparison.run import PromptRow, compare, read_prompts
from router.extensions.training.new.rows import Columns
from router.types import Usage


class ScriptedClient:
    """Answers by a function of adapter and prompt; an exception that it returns is raised."""

    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    async def generate(self, prompt, *, adapter, **options):
        self.prompts.append((adapter, prompt, options))
        await asyncio.sleep(0)
        text = self.answer(adapter, prompt)
        if isinstance(text, Exception):
            raise text
        return SimpleNamespace(text=text, usage=Usage(prompt_tokens=5, completion_tokens=len(text)))


def rows(count=40):
    return [PromptRow(f"question {n}", f"answer {n}", str(n), f"rows.jsonl:{n}") for n in range(count)]


def right(prompt):
    return prompt.replace("question", "answer")


def compared(answer, many=40, **options):
    options = options or {"metric": "exact_match"}
    return asyncio.run(compare(ScriptedClient(answer), "old", "new", rows(many), **options))


def test_better_version_is_found_and_nothing_became_worse():
    found = compared(lambda adapter, prompt: right(prompt) if adapter == "new" else "no")
    assert words.verdict(found) == "better"
    assert (found.old_score, found.new_score, found.difference.better) == (0.0, 1.0, 40)
    assert words.headline(found).startswith("new is better than old: +100.0 points (")
    assert found.regressions() == []


def test_equal_answers_are_undecided_and_not_worse_by_a_margin():
    found = compared(lambda adapter, prompt: right(prompt), many=100)
    assert words.verdict(found) == "undecided"
    assert words.verdict(found, margin=0.05) == "not worse"
    assert "by 5.0 points or more" in words.headline(found, 0.05)


def test_worst_prompts_are_listed_with_both_answers():
    found = compared(lambda adapter, p: "wrong" if adapter == "new" and p.endswith(" 7") else right(p))
    (worst,) = found.regressions()
    assert (worst.row.prompt, worst.old.text, worst.new.text) == ("question 7", "answer 7", "wrong")
    assert "wrong" in page(found, "rows.jsonl")


def test_refused_answer_scores_zero_and_row_that_both_refuse_is_left_out():
    def answer(adapter, prompt):
        if prompt.endswith(" 1") or (adapter == "new" and prompt.endswith(" 2")):
            return ClientError("INVALID_ARGUMENT", "too long")
        return right(prompt)

    found = compared(answer)
    assert (found.left_out, found.difference.rows, found.new_load.errors) == (1, 39, 1)
    assert found.regressions()[0].new.error


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNAVAILABLE", "UNAUTHENTICATED"])
def test_error_that_all_requests_would_get_ends_the_comparison(code):
    client = ScriptedClient(lambda adapter, prompt: ClientError(code, "no"))
    with pytest.raises(BaseExceptionGroup):
        asyncio.run(compare(client, "old", "new", rows(400), metric="exact_match"))
    assert len(client.prompts) < 40


def test_each_version_is_first_in_half_of_the_pairs():
    client = ScriptedClient(lambda adapter, prompt: right(prompt))
    asyncio.run(compare(client, "old", "new", rows(), metric="exact_match"))
    firsts = {prompt: adapter for adapter, prompt, _ in reversed(client.prompts)}
    assert list(firsts.values()).count("old") == 20


def judging(verdicts):
    """A client whose judge says what `verdicts` has for (answer A, answer B)."""

    def answer(adapter, prompt):
        if adapter != "judge":
            return adapter
        a, b = (part.split("\n\n")[0] for part in prompt.split("Answer A:\n")[1].split("Answer B:\n"))
        return verdicts[a, b]

    client = ScriptedClient(answer)
    return asyncio.run(compare(client, "old", "new", rows(), judge=ModelJudge(client, "judge")))


def test_judge_that_names_the_new_answer_in_both_orders():
    found = judging({("old", "new"): "B", ("new", "old"): "A"})
    assert words.verdict(found) == "better"
    assert (found.contradictions, found.named_first) == (0, 0.5)


def test_judge_that_always_names_the_first_answer_decides_nothing():
    found = judging({("old", "new"): "A", ("new", "old"): "A"})
    assert (found.difference.mean, found.contradictions, found.named_first) == (0.0, 40, 1.0)
    assert "contradicts itself" in words.advice(found)


def written(tmp_path, records):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return file


def test_rows_are_read_once_each_with_their_conversation(tmp_path):
    records = [{"prompt": f"q {n // 2}", "response": "a", "chat": f"c{n % 3}"} for n in range(60)]
    found = read_prompts(written(tmp_path, records), Columns("", "", "chat"), judged=False)
    assert len(found) == 30
    assert {row.group for row in found} == {"c0", "c1", "c2"}


def test_judged_rows_need_no_answer(tmp_path):
    file = written(tmp_path, [{"prompt": f"q {n}"} for n in range(60)])
    assert len(read_prompts(file, Columns("", ""), judged=True)) == 60
    with pytest.raises(ConfigError, match="which column"):
        read_prompts(file, Columns("", ""), judged=False)


def test_context_and_system_text_are_part_of_the_prompt(tmp_path):
    alpaca = [{"instruction": "Shorten.", "input": f"text {n}", "output": "a"} for n in range(20)]
    (first, *_) = read_prompts(written(tmp_path, alpaca), Columns("", ""), judged=False)
    assert (first.prompt, first.response) == ("Shorten.\n\ntext 0", "a")
    turns = [[{"role": r, "content": f"{r} {n}"} for r in ("system", "user", "assistant")] for n in range(20)]
    file = written(tmp_path, [{"messages": one} for one in turns])
    (first, *_) = read_prompts(file, Columns("", ""), judged=False)
    assert (first.prompt, first.response) == ("system 0\n\nuser 0", "assistant 0")


def test_a_judged_file_may_have_other_columns_beside_the_named_prompt(tmp_path):
    file = written(tmp_path, [{"q": f"q {n}", "id": n} for n in range(20)])
    (first, *_) = read_prompts(file, Columns("q", ""), judged=True)
    assert (first.prompt, first.response) == ("q 0", "")


def test_few_rows_are_refused(tmp_path):
    file = written(tmp_path, [{"prompt": f"q {n}", "response": "a"} for n in range(19)])
    with pytest.raises(ConfigError, match="needs 20 at least"):
        read_prompts(file, Columns("", ""), judged=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$prompt $a", "\\$b is missing"),
        ("$prompt $a $b $c", "\\$c is unknown"),
        ("$ $prompt", "written \\$\\$"),
    ],
)
def test_bad_judge_prompt_is_refused(tmp_path, text, message):
    file = tmp_path / "judge.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_template(file)


def test_agreement_with_the_right_answers_of_other_rows_is_no_agreement():
    def answer(adapter, prompt):
        return "one of the labels" if adapter == "new" else "no"

    many = [PromptRow(f"question {n}", "one of the labels", str(n), "") for n in range(40)]
    client = ScriptedClient(answer)
    found = asyncio.run(compare(client, "old", "new", many, metric="exact_match"))
    assert found.difference.found
    assert not found.by_chance.found
