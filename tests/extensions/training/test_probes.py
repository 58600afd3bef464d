"""Which validation rows become probes, and the answers they hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.subject import Answerer, EngineAnswer
from router.extensions.training.probes import choose_probes, lead_of
from router.types import Constraint, LabelProbabilities, SamplingParams, Usage

RENDERING: Any = SimpleNamespace(prompt=lambda text: tuple(map(ord, text)), answer=lambda text: tuple(text))
ROWS = [TrainingRow(f"say {letter}", letter, "here") for letter in "abc"]
CHOICES = Constraint("choices", choices=("a", "b"))


def answer(text: str, sureness: float = 0.9, **more: Any) -> EngineAnswer:
    return EngineAnswer(text, Usage(), sureness=sureness, **more)


class Engine:
    """Answers by the prompt: the adapter `ours`, the base `theirs`."""

    def __init__(self, ours: dict[str, EngineAnswer], theirs: dict[str, str] | None = None) -> None:
        self.ours, self.theirs = ours, theirs or {}
        self.base_params: list[SamplingParams] = []

    def answers(self, prompts, params, adapter, labels, texts):
        asked = ["".join(map(chr, prompt)) for prompt in prompts]
        if adapter is not None:
            assert (labels is not None) == (params.constraint is not None)
            return [self.ours[text] for text in asked]
        self.base_params.append(params)
        return [answer(self.theirs.get(text, "x")) for text in asked]


def chosen(engine: Engine, rows=ROWS, params: SamplingParams | None = None) -> list[str]:
    side = Answerer(engine, params or SamplingParams(), "adapter")  # type: ignore[arg-type]
    return [probe.expect for probe in choose_probes(side, RENDERING, rows, 2)]


def given(**changes: EngineAnswer) -> dict[str, EngineAnswer]:
    texts = {"a": answer("a", 0.99), "b": answer("b", 0.95), "c": answer("c")} | changes
    return {f"say {letter}": said for letter, said in texts.items()}


def test_the_surest_answers_are_probes():
    assert chosen(Engine(given())) == ["a", "b"]
    assert chosen(Engine(given(a=answer("c", 0.8)))) == ["b", "c"]  # distinct answers


def test_an_answer_with_a_near_tie_is_no_probe():
    assert chosen(Engine(given(b=answer("b", 0.52)))) == ["a", "c"]


def test_an_answer_that_the_base_gives_is_no_probe():
    assert chosen(Engine(given(), {"say a": "a"})) == ["b", "c"]


def test_an_answer_that_was_cut_off_is_no_probe():
    assert chosen(Engine(given(b=answer("b", whole=False)))) == ["a", "c"]


def test_long_prompts_and_answers_are_not_asked():
    rows = [ROWS[0], TrainingRow("x" * 4_001, "b", "here"), TrainingRow("say d", "d" * 25, "here")]
    assert chosen(Engine(given()), rows) == ["a"]


def test_a_choice_is_ahead_of_the_others_and_the_base_is_free():
    def labels(a: float) -> Any:
        return LabelProbabilities((("a", a), ("b", 1 - a)))

    assert lead_of(answer("a", labels=labels(0.8))) > 0.5
    assert lead_of(answer("b", labels=labels(0.8))) == 0.0  # found token by token, and not the likeliest
    engine = Engine(given(a=answer("a", labels=labels(0.9)), b=answer("b", labels=labels(0.46))))
    rows = ROWS[:2]
    assert chosen(engine, rows, SamplingParams(constraint=CHOICES)) == ["a"]
    assert engine.base_params[0].constraint is None
