"""Two adapter folders compared without a server, by the engine that serves, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from router.extensions.training.comparison.run import PromptRow, Side, VersionComparison, judged_pairs
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.exam import ReadyBase, ReadyBases
from router.extensions.training.evaluation.metrics import check_rows
from router.extensions.training.evaluation.own_rows import CandidateFolder, find_candidate
from router.types import SamplingParams

TOO_LONG = "the prompt is longer than the context"


def compare_folders(
    old: str,
    new: str,
    rows: Sequence[PromptRow],
    *,
    metric: str,
    base: str,
    adapters: Path = Path("adapters"),
    max_tokens: int = 256,
    device: str = "auto",
    done: Callable[[int], None] = lambda count: None,
) -> VersionComparison:
    """Both folders answer all prompts greedily, each under its own prompt and constraint.

    `old` and `new` are folders, or names of adapters in `adapters`. `done` is called with the number of rows
    that both have answered. Raises ConfigError (no such folder, rows that the metric cannot judge),
    AdapterRejected (another base, or a folder that the registry would refuse).
    """
    check_rows(metric, [TrainingRow(row.prompt, row.response, row.place) for row in rows])
    found = [find_candidate(name, adapters) for name in (old, new)]
    with ReadyBases(device) as bases:
        ready = bases.ready(base)
        answered = 0

        def one_done() -> None:
            nonlocal answered
            answered += 1
            done(answered // 2)

        sides = [_sides(folder, ready, rows, max_tokens, one_done) for folder in found]
    pairs = [(row, first, second, None) for row, first, second in zip(rows, *sides, strict=True)]
    return judged_pairs(old, new, pairs, metric=metric, max_tokens=max_tokens)


def _sides(
    candidate: CandidateFolder,
    ready: ReadyBase,
    rows: Sequence[PromptRow],
    max_tokens: int,
    done: Callable[[], None],
) -> list[Side]:
    """One folder's answers; a prompt that does not fit is a refused one."""
    engine = ready.engine
    rendering = Rendering.of(ready.plain.tokenizer, candidate.manifest.prompt)
    prompts = [rendering.prompt(row.prompt) for row in rows]
    room = engine.info.context_length - max_tokens
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt) <= room]
    generation = candidate.manifest.generation
    params = SamplingParams(max_tokens, stop=generation.stop or (), constraint=generation.constraint)
    digest = engine.load(candidate.folder)
    try:
        texts = [rows[place].prompt for place in fitting]
        given = engine.answers([prompts[place] for place in fitting], params, digest, done, texts=texts)
    finally:
        engine.unload(digest)
    sides = [Side(error=TOO_LONG)] * len(rows)
    for place, answer in zip(fitting, given, strict=True):
        usage = answer.usage
        sides[place] = Side(
            answer.text,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.time_to_first_token,
            usage.total_time,
        )
    return sides
