"""The arms of a comparison, the engine's answers and the ranking of labels, on a tiny base."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from router.evaluation import efficiency
from router.evaluation.answering import (
    MOST_PAIRS,
    MOST_ROWS,
    Answering,
    Speaker,
    likeliest,
    ranked_rows,
    shell,
)
from router.evaluation.generalization import row_losses
from router.evaluation.metrics import Task
from router.evaluation.subject import Arm, Asking, Subject, ask, load_subject, read_manifest, worked_examples
from router.training.base import load_base
from router.training.batch import AnswerModel
from router.training.data import Row, load_splits
from router.training.probes import greedy_tokens
from router.training.recipe import load_recipe
from router.types import SamplingParams


@pytest.fixture(scope="module")
def staged(trained: Path) -> Iterator[tuple[Subject, Answering, dict[Arm, Asking]]]:
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    splits = load_splits(recipe.data)
    folder = trained / "adapters" / "colours"
    base = load_base(recipe.base.model, "cpu")
    answering = Answering(base)
    subject = load_subject(folder, read_manifest(folder), base)
    shots = worked_examples(splits.train, 3)
    assert [row.response for row in shots] == ["red", "blue", "green"]
    yield subject, answering, {arm: ask(arm, splits.test, subject.rendering, shots) for arm in Arm}
    answering.close()


def test_arms_differ_only_in_what_is_shown(staged: tuple[Subject, Answering, dict[Arm, Asking]]) -> None:
    subject, _, askings = staged
    assert askings[Arm.BASE].examples == askings[Arm.ADAPTER].examples
    text = subject.rendering.tokenizer.decode(askings[Arm.SHOTS].examples[0].prompt)
    assert text.count("<|im_start|>user") == 4
    assert text.count("Name the colour.") == 1
    assert subject.rendering.prompt("q?") == subject.rendering.example(Row("q?", "a", "")).prompt
    answers = AnswerModel(subject.model)
    with subject.answering_as(Arm.BASE):
        plain = row_losses(answers, askings[Arm.BASE].examples)
    assert plain.nats.sum() > row_losses(answers, askings[Arm.ADAPTER].examples).nats.sum()
    answers.close()


def test_engine_answers_as_plain_generation_does(
    staged: tuple[Subject, Answering, dict[Arm, Asking]],
) -> None:
    """All but one of nine: the tiny base's random weights may leave next to nothing between two tokens."""
    subject, answering, askings = staged
    digest = answering.load(subject.folder)
    words = [tuple(subject.base.tokenizer(text)["input_ids"]) for text in ("thing 3?", "a longer colour")]
    for arm, asking in askings.items():
        prompts = [*(example.prompt for example in asking.examples[:7]), *words]
        done = iter(range(9))
        adapter = digest if arm is Arm.ADAPTER else None
        given = answering.answers(prompts, SamplingParams(max_tokens=8), adapter, partial(next, done))
        assert next(done, None) is None
        assert all(answer.usage.prompt_tokens == len(p) for answer, p in zip(given, prompts, strict=True))
        with subject.answering_as(arm):
            plain = greedy_tokens(subject.model, prompts, subject.rendering.ends, 8)
        texts = [subject.rendering.text(tokens) for tokens in plain]
        assert sum(answer.text == text for answer, text in zip(given, texts, strict=True)) >= 8
        assert all(texts[7:])
    answering.unload(digest)


def test_stop_strings_end_an_answer(staged: tuple[Subject, Answering, dict[Arm, Asking]]) -> None:
    subject, answering, _ = staged
    prompt = subject.base.tokenizer("colour of thing 3?")["input_ids"]
    [whole] = answering.answers([prompt], SamplingParams(max_tokens=8))
    cut = answering.alone(prompt, SamplingParams(max_tokens=8, stop=(whole.text[:2],)))
    assert (len(whole.text), cut.text) == (8, "")
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


def test_efficiency_of_single_requests(staged: tuple[Subject, Answering, dict[Arm, Asking]]) -> None:
    _, answering, askings = staged
    base = Speaker(answering, SamplingParams(max_tokens=4))
    compared = {arm: askings[arm] for arm in (Arm.SHOTS, Arm.BASE)}
    section = efficiency.measure(compared, dict.fromkeys(Arm, base), {Arm.SHOTS: 0.0, Arm.BASE: 0.25})
    shots, plain = (section["arms"][name] for name in ("base_with_examples", "base"))
    assert section["rows"] == 9
    assert shots["cached_tokens"] > plain["prompt_tokens"]
    assert plain["answer_tokens"] <= 4
    assert plain["seconds"] > 0
    assert plain["seconds_per_point"] == pytest.approx(4 * plain["seconds"], abs=1e-3)
    assert shots["seconds_per_point"] is None


@pytest.mark.parametrize(
    ("adapter", "shots", "said"),
    [
        (0.2, 0.9, "takes the adapter 0.20 s, 4.5 times less than the base with examples (0.90 s)."),
        (0.9, 0.2, "4.5 times more than"),
        (0.2, None, "the base with examples gave none"),
        (None, 0.2, "The adapter gave no right answer"),
    ],
)
def test_efficiency_is_said_plainly(adapter: float | None, shots: float | None, said: str) -> None:
    costs = {"prompt_tokens": 9.0, "cached_tokens": 1.0, "answer_tokens": 3.0, "seconds": 0.1}
    arms = {
        name: {**costs, "seconds_per_point": value}
        for name, value in (("adapter", adapter), ("base_with_examples", shots))
    }
    page = "\n".join(efficiency.markdown({"rows": 20, "arms": arms}))
    assert said in page
    assert ("none right" in page) is (None in (adapter, shots))


def test_shell_shares_weights_and_leaves_the_model_whole(trained: Path) -> None:
    model = load_base(str(trained / "base"), "cpu").model
    copied = shell(model)
    weights = dict(model.named_parameters())
    assert all(value.data_ptr() == weights[name].data_ptr() for name, value in copied.named_parameters())
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    copied.model.layers[0] = torch.nn.Identity()
    copied.float()
    assert model.dtype == torch.bfloat16
    assert not isinstance(model.model.layers[0], torch.nn.Identity)


def test_likeliest_is_the_one_with_the_least_loss(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AnswerModel(load_base(str(trained / "base"), "cpu").model)
    answers = [(5, 6), (7,), (8, 9, 10)]
    chosen = likeliest(model, (3, 4), answers)
    monkeypatch.setattr("router.evaluation.answering.LABELS", 2)
    assert likeliest(model, (3, 4), answers) == chosen
    logits = model.model
    model.close()
    losses = []
    for answer in answers:
        tokens = torch.tensor([(3, 4, *answer)])
        with torch.no_grad():
            scores = torch.log_softmax(logits(input_ids=tokens).logits.float(), -1)[0, 1:-1]
        losses.append(-scores.gather(1, torch.tensor(answer)[:, None]).mean().item())
    assert chosen == losses.index(min(losses))


def test_many_labels_are_ranked_on_fewer_rows() -> None:
    rows = [Row(f"p{place}", "r", "") for place in range(300)]
    assert ranked_rows(Task("exact_match", rows[:7], ["a", "b"], 4)) == list(range(7))
    assert len(ranked_rows(Task("exact_match", rows, ["a", "b"], 4))) == MOST_ROWS
    many = ranked_rows(Task("exact_match", rows, [str(label) for label in range(200)], 4))
    assert len(many) == MOST_PAIRS // 200
    assert many == sorted(set(many))
    assert ranked_rows(Task("chrf", rows, [], 4)) == []
