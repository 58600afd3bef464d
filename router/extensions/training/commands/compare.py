"""`lora-router compare OLD NEW --data FILE`."""

from __future__ import annotations

import json as jsons
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.extensions.training.evaluation.versions import VersionComparison

WORST = 10  # prompts that became worse, shown
Old = Annotated[str, typer.Argument(metavar="OLD", help="An adapter folder, NAME or NAME@VERSION.")]
New = Annotated[str, typer.Argument(metavar="NEW", help="What may replace it.")]
Data = Annotated[
    Path,
    typer.Option("--data", metavar="FILE", help="Rows: CSV, TSV, JSON lines or JSON.", show_default=False),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help="exact_match, token_f1, rouge_l or chrf.",
        show_default=False,
    ),
]
PromptColumn = Annotated[str, typer.Option("--prompt-column", metavar="COLUMN", help="The request.")]
ResponseColumn = Annotated[str, typer.Option("--response-column", metavar="COLUMN", help="The right answer.")]
GroupColumn = Annotated[
    str,
    typer.Option("--group-column", metavar="COLUMN", help="Rows alike here depend on each other: a chat."),
]
Margin = Annotated[
    float | None,
    typer.Option(
        "--margin",
        metavar="POINTS",
        min=0.0,
        max=100.0,
        help="A loss of fewer points counts as not worse.",
    ),
]


def compare(
    old: Old,
    new: New,
    data: Data,
    metric: Metric,
    prompt_column: PromptColumn = "",
    response_column: ResponseColumn = "",
    group_column: GroupColumn = "",
    margin: Margin = None,
    json: flags.Json = False,
) -> None:
    """Compare two versions on the same prompts.

    Both answer here, without a server, on the base of the settings. The answers are scored by the rows' right
    answers. The test is paired by prompt.

    \b
    Example:
      lora-router compare medical@1.0.0 adapters/medical-1.1.0 --data rows.jsonl --metric exact_match
    """
    from router.cli.command import quiet_libraries
    from router.cli.output import print_json
    from router.cli.settings import load_settings
    from router.errors import ConfigError
    from router.extensions.training.evaluation import require_extra

    if old == new:
        raise ConfigError(f"{old} against itself shows nothing; name two versions")
    require_extra("compare")
    from router.extensions.training.evaluation.exam import find_candidate, ready_base
    from router.extensions.training.evaluation.versions import compare_folders, read_rows
    from router.extensions.training.rows import Columns

    settings = load_settings()
    quiet_libraries()
    adapters = next(iter(settings.adapters_dir), Path("adapters"))
    columns = Columns(prompt_column, response_column, group_column)
    pairs = read_rows(data, metric, columns, lambda text: None if json else print(text))
    one, other = (find_candidate(name, Path(adapters)) for name in (old, new))
    with ready_base(settings.model, settings.device) as ready:
        found = compare_folders(one, other, pairs, ready, metric)
    share = None if margin is None else margin / 100
    if json:
        print_json({"result": verdict(found, share), **_plain(found)})
    else:
        _print(found, share)


def verdict(found: VersionComparison, margin: float | None = None) -> str:
    """One word for programs: better, worse, not worse, or undecided."""
    gap = found.difference
    if gap.found and gap.mean != 0:
        return "better" if gap.mean > 0 else "worse"
    if margin is not None and gap.low > -margin:
        return "not worse"
    return "undecided"


def headline(found: VersionComparison, margin: float | None = None) -> str:
    """The result first: points, the range, and what it means."""
    from router.quantities import SHARE

    gap = found.difference
    shown = SHARE.change(gap.mean, gap.low, gap.high)
    kind = verdict(found, margin)
    if kind == "undecided":
        allowed = "" if margin is None else f", and a loss of {SHARE.margin(margin)} is not excluded"
        return f"No difference is shown between {found.new} and {found.old}: {shown}{allowed}."
    if kind == "not worse" and margin is not None:
        return f"{found.new} is not worse than {found.old} by {SHARE.margin(margin)} or more: {shown}."
    return f"{found.new} is {kind} than {found.old}: {shown}."


def _advice(found: VersionComparison, kind: str) -> str:
    from router.paired import POWER
    from router.quantities import SHARE

    if kind == "better":
        return "Try it on users next: lora-router experiments create, with a small share for the new version."
    if kind == "worse":
        return "Read the prompts that became worse before you train again."
    if kind == "not worse":
        return "Where it is cheaper or faster, it can replace the old version."
    return (
        f"So many prompts show a difference of {SHARE.margin(found.difference.smallest)} in "
        f"{100 * POWER:.0f} of 100 comparisons; half of that needs four times as many."
    )


def _print(found: VersionComparison, margin: float | None) -> None:
    from router.cli.output import clean, print_pairs

    gap = found.difference
    kind = "exact sign-flip test" if gap.exact else "sign-flip test, by draws or its normal limit"
    groups = "" if gap.groups == gap.rows else f" in {gap.groups} groups"
    ties = gap.rows - gap.better - gap.worse
    print(headline(found, margin), _advice(found, verdict(found, margin)), "", sep="\n")
    print_pairs(
        [
            (
                "score",
                f"{found.metric}: {100 * found.new_score:.1f}, before {100 * found.old_score:.1f} (of 100)",
            ),
            ("prompts", f"{gap.rows}{groups}: {gap.better} better, {gap.worse} worse, {ties} equal"),
            ("p", f"{gap.p:.2g} ({kind})"),
            ("answers", f"{found.new_tokens:.1f} tokens, before {found.old_tokens:.1f}"),
            *([("left out", f"{found.left_out} longer than the base's context")] if found.left_out else []),
        ]
    )
    if worst := found.regressions(WORST):
        print("\nbecame worse, the worst first:")
        for row in worst:
            print(f"  {clean(jsons.dumps(row.prompt[:100], ensure_ascii=False))}")
            for name, text in ((found.old, row.old), (found.new, row.new)):
                print(f"    {name}: {clean(jsons.dumps(text[:100], ensure_ascii=False))}")


def _plain(found: VersionComparison) -> dict[str, Any]:
    """For programs: all numbers, the change of each row's score, and the regressions with their texts."""
    shown = asdict(found)
    changes = [row["change"] for row in shown.pop("rows")]
    return shown | {"changes": changes, "regressions": [asdict(row) for row in found.regressions(WORST)]}
