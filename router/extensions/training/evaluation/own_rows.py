"""Any adapter folder against its base on rows that somebody brings along: without a recipe or a manifest."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.errors import AdapterRejected, ConfigError
from router.extensions.training.data import Example, Rendering, TrainingRow
from router.extensions.training.evaluation.exam import ReadyBase, ReadyBases, Say, draw_rows
from router.extensions.training.evaluation.metrics import METRICS, check_rows, score_answers
from router.extensions.training.evaluation.report import (
    SCHEMA,
    bracketed,
    first_samples,
    gain_lines,
    measured_by,
    precision,
    rows_for_gate,
    sample_table,
    score_table,
    whose,
    with_weights,
    write_report,
)
from router.extensions.training.evaluation.scoring import Resampled, Task, resample, row_scores
from router.extensions.training.evaluation.subject import Answerer, ComparedArm, EngineAnswer, Tokens
from router.extensions.training.new.rows import Columns, read_pairs
from router.extensions.training.recipe import TEXT_METRICS
from router.names import looks_like_version
from router.registry.folders import places, weights_sha256
from router.registry.format.artifact import FolderRules, inspect_folder
from router.registry.format.manifest import Manifest
from router.registry.format.untrusted import nearest
from router.types import SamplingParams

FEWEST = 20  # rows: the bootstrap's interval of fewer is too narrow to prove anything
SPARE = 4  # tokens that an answer may be longer than the longest right one
LABELS = 50  # distinct right answers, at most, that are looked for as names of a list
ARMS = (ComparedArm.BASE, ComparedArm.ADAPTER)


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Somebody's file, how its answers are judged, and on which base. `rows`: at most so many of them."""

    data: Path
    metric: str
    base: str
    prompt_column: str = ""
    response_column: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class CandidateFolder:
    """An adapter folder that was looked into."""

    given: str  # on the command line
    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Answers:
    """What one side answered, what it scores, by row too (0 to 1), and mean lengths in tokens."""

    texts: Sequence[str]
    score: Resampled
    blind: Resampled
    lengths: Mapping[str, float]
    rows: Sequence[float]


@dataclass(frozen=True, slots=True)
class OwnRowsArms:
    """Base and adapter on the same rows."""

    task: Task
    by: Mapping[ComparedArm, Answers]


def evaluate_own_rows(
    names: Sequence[str], request: OwnRows, adapters: Path, device: str, say: Say
) -> list[dict[str, Any]]:
    """Measure each adapter against the base on `asked`; writes report.json and REPORT.md into its folder.

    Raises ConfigError (metric, file, columns, too few rows, no such adapter), AdapterRejected (a folder that
    the registry would refuse). All that is checked before the base is loaded, once for all.
    """
    rows = read_rows(request, say)
    found = [find_candidate(name, adapters) for name in dict.fromkeys(names)]
    with ReadyBases(device) as bases:
        ready = bases.ready(request.base)
        return [_evaluate(candidate, ready, rows, request, say) for candidate in found]


def read_rows(request: OwnRows, say: Say) -> list[TrainingRow]:
    """The usable rows of the file. Raises ConfigError that says what is missing."""
    if request.metric not in TEXT_METRICS:
        hint, known = nearest(request.metric, TEXT_METRICS), ", ".join(TEXT_METRICS)
        raise ConfigError(f"--metric {request.metric!r} is not known here{hint}; known: {known}")
    pairs, _, _ = read_pairs(request.data, Columns(request.prompt_column, request.response_column), say)
    rows = [TrainingRow(pair.prompt, pair.response, request.data.name) for pair in pairs]
    _require_enough(rows, request)
    check_rows(request.metric, rows)
    return rows


def _require_enough(rows: Sequence[TrainingRow], request: OwnRows) -> None:
    count = min(len(rows), request.rows or len(rows))
    if count < FEWEST:
        raise ConfigError(
            f"{request.data.name}: {count} usable rows are too few for a gain to be shown: {FEWEST} are "
            "needed at least, and a small gain takes hundreds"
        )


def find_candidate(given: str, adapters: Path) -> CandidateFolder:
    """A folder, or the adapter of that name; PEFT's own folder without adapter.toml will do.

    Raises ConfigError (none there, or several versions), AdapterRejected with all that is wrong with it.
    """
    top = next((place for place in (Path(given), adapters / given) if place.is_dir()), None)
    if top is None:
        known = sorted(entry.name for entry in adapters.iterdir()) if adapters.is_dir() else []
        raise ConfigError(f"no adapter folder {given!r}, here or in {adapters}{nearest(given, known)}")
    versions = places(top.resolve())
    if len(versions) > 1:
        named = ", ".join(str(top / place.version) for place in versions)
        raise ConfigError(f"{top} holds several versions, name one of them: {named}")
    folder = versions[0].folder
    seen = inspect_folder(folder, FolderRules(None, max_rank=512))
    if not seen.ok:
        raise AdapterRejected(f"{folder} cannot be served: {seen.error}")
    return CandidateFolder(given, folder, _named(seen.manifest, folder))


def _named(manifest: Manifest, folder: Path) -> Manifest:
    """NAME/VERSION says both where there is no manifest."""
    if (folder / "adapter.toml").exists() or not looks_like_version(folder.name):
        return manifest
    return replace(manifest, name=folder.parent.name, version=folder.name)


def _evaluate(
    candidate: CandidateFolder, ready: ReadyBase, rows: Sequence[TrainingRow], request: OwnRows, say: Say
) -> dict[str, Any]:
    started, folder = time.monotonic(), candidate.folder
    arms = _ask(candidate, ready, rows, request, say)
    report = {**_head(candidate, ready, len(rows), arms, request), **_measured(arms)}
    write_report(folder, report, "\n".join(_page(report)) + "\n")
    say(f"{candidate.manifest.name}: {verdict(report)} ({time.monotonic() - started:.0f} s)")
    say(f"wrote {folder / 'report.json'} and REPORT.md")
    return report


def _ask(
    candidate: CandidateFolder, ready: ReadyBase, rows: Sequence[TrainingRow], request: OwnRows, say: Say
) -> OwnRowsArms:
    """Base and adapter answer the same rows under the adapter's own prompt, greedily, with one limit."""
    manifest, engine = candidate.manifest, ready.engine
    drawn = draw_rows(rows, request.rows)
    fitting, examples, limit = _fitting(drawn, Rendering.of(ready.plain.tokenizer, manifest.prompt), ready)
    if dropped := len(drawn) - len(fitting):
        say(f"left out: {dropped} longer than the base's context")
        _require_enough(fitting, request)
    task = Task(request.metric, fitting, _labels(fitting, request.metric), limit)
    generation = manifest.generation
    params = SamplingParams(max_tokens=limit, stop=generation.stop or (), constraint=generation.constraint)
    prompts = [example.prompt for example in examples]
    digest = engine.load(candidate.folder)
    given = {
        arm: Answerer(engine, params, digest if arm is ComparedArm.ADAPTER else None).answers(
            prompts, arm.value, [row.prompt for row in fitting]
        )
        for arm in ARMS
    }
    engine.unload(digest)
    return OwnRowsArms(task, {arm: _score(task, given[arm], prompts) for arm in ARMS})


def _score(task: Task, given: Sequence[EngineAnswer], prompts: Sequence[Tokens]) -> Answers:
    texts, count = [answer.text for answer in given], len(given)
    judged = score_answers(task, texts)
    lengths = {
        "prompt_tokens": round(sum(map(len, prompts)) / count, 1),
        "answer_tokens": round(sum(answer.usage.completion_tokens for answer in given) / count, 1),
    }
    rows = row_scores(judged.score, count, METRICS[task.metric].whole)
    return Answers(texts, resample(judged.score, count), resample(judged.blind, count), lengths, rows)


def _fitting(
    rows: Sequence[TrainingRow], rendering: Rendering, ready: ReadyBase
) -> tuple[list[TrainingRow], list[Example], int]:
    """Rows that the base's context holds, encoded, and the longest answer allowed, in tokens."""
    encoded = rendering.examples(rows)
    limit = max(len(example.answer) for example in encoded) + SPARE
    room = ready.engine.info.context_length - limit
    kept = [(row, example) for row, example in zip(rows, encoded, strict=True) if len(example.prompt) <= room]
    return [row for row, _ in kept], [example for _, example in kept], limit


def _labels(rows: Sequence[TrainingRow], metric: str) -> list[str]:
    """The right answers, commonest first, if they are few enough to be names of a list."""
    counts = Counter(row.response for row in rows)
    few = metric == "exact_match" and len(counts) <= min(LABELS, len(rows) // 4)
    return [label for label, _ in counts.most_common()] if few else []


def _head(
    candidate: CandidateFolder, ready: ReadyBase, found: int, arms: OwnRowsArms, request: OwnRows
) -> dict[str, Any]:
    manifest, base, engine = candidate.manifest, ready.plain, ready.engine.info
    options = f"--data {request.data} --metric {request.metric}" + (
        f" --rows {request.rows}" if request.rows else ""
    )
    return {
        "schema": SCHEMA,
        **whose(manifest, weights_sha256(candidate.folder), base),
        "data": {
            "file": request.data.name,
            "sha256": hashlib.sha256(request.data.read_bytes()).hexdigest(),
            "rows": found,
            "asked": len(arms.task.rows),
        },
        "metric": METRICS[request.metric].title,
        "scale": METRICS[request.metric].digits,
        **measured_by(base.device, engine, candidate.manifest.generation.constraint),
        "command": f"{with_weights(engine.weights)}lora-router adapters evaluate {candidate.given} {options}",
    }


def _measured(arms: OwnRowsArms) -> dict[str, Any]:
    base, ours = (arms.by[arm] for arm in ARMS)
    gains = {
        "score": ours.score.minus(base.score).rounded(),
        "format_blind": ours.blind.minus(base.blind).rounded(),
    }
    return {
        "arms": {
            arm.value: {
                "score": side.score.rounded(),
                "format_blind": side.blind.rounded(),
                **side.lengths,
                **rows_for_gate(arm, side.rows),
            }
            for arm, side in arms.by.items()
        },
        "gains": {"adapter - base": gains},
        "regressions": [],  # nothing but these rows was asked
        "samples": first_samples(arms.task.rows, {arm: side.texts for arm, side in arms.by.items()}),
    }


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: both scores, the gain, and whether it is shown; else how many rows it would take."""
    digits, rows = report["scale"], report["data"]["asked"]
    base, ours = (report["arms"][arm.value]["score"]["value"] for arm in ARMS)
    gain = report["gains"]["adapter - base"]["score"]
    text = (
        f"{report['metric']} {ours:.{digits}f} against {base:.{digits}f} for the base, gain "
        f"{bracketed(gain, digits, '+')}, n={rows}"
    )
    if gain["low"] > 0:
        return f"{text}: shown"
    if gain["value"] <= 0:
        return f"{text}: there is none"
    needed = math.ceil(rows * ((gain["value"] - gain["low"]) / gain["value"]) ** 2) + 1
    return f"{text}: not shown, the interval holds zero; a gain of this size takes about {needed} rows"


def _page(report: Mapping[str, Any]) -> Iterator[str]:
    adapter, data, base, machine = (report[name] for name in ("adapter", "data", "base", "machine"))
    yield f"# {adapter['name']} {adapter['version']}: report card on rows of one's own"
    yield f"\n**{verdict(report)}.**\n"
    yield f"- Base: {base['model']}, digest `{base['digest'][:12]}…`"
    yield f"- Weights: sha256 `{adapter['weights_sha256'][:12]}…`"
    yield f"- Data: {data['asked']} of {data['rows']} usable rows of `{data['file']}`"
    yield "- Not known here: whether it was trained on these rows, and what it does to anything else"
    yield f"- Answers: greedy, by the engine that serves ({precision(report['engine'])})"
    yield f"- Machine: {machine['device']}, {machine['cores']} cores; {machine['date']}"
    yield f"- Command: `{report['command']}`"
    yield "\nIn brackets: 95 % bootstrap intervals, paired for differences. Format-blind: what stands around"
    yield "the answer does not count.\n"
    yield from score_table(report)
    yield ""
    yield from gain_lines(report)
    yield f"\n## Answers\n\nThe first {len(report['samples'])} rows, not picked.\n"
    yield from sample_table(report)
