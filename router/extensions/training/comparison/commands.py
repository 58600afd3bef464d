"""`lora-router compare OLD NEW --data FILE`."""

from __future__ import annotations

import asyncio
import json as jsons
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import connect, flags

if TYPE_CHECKING:
    from router.extensions.training.comparison.run import PromptRow, VersionComparison

Old = Annotated[str, typer.Argument(metavar="OLD", help="NAME@VERSION, NAME (its default version) or base.")]
New = Annotated[str, typer.Argument(metavar="NEW", help="What may replace it.")]
Data = Annotated[
    Path,
    typer.Option("--data", metavar="FILE", help="Rows: CSV, TSV, JSON lines or JSON.", show_default=False),
]
Metric = Annotated[
    str, typer.Option("--metric", metavar="METRIC", help="exact_match, token_f1, rouge_l or chrf.")
]
Judge = Annotated[
    str,
    typer.Option(
        "--judge", metavar="NAME", help="Instead of --metric: an adapter, or base, that compares two answers."
    ),
]
JudgePrompt = Annotated[
    Path | None,
    typer.Option("--judge-prompt", metavar="FILE", help="Its prompt, with $prompt, $a, $b and $reference."),
]
PromptColumn = Annotated[str, typer.Option("--prompt-column", metavar="COLUMN", help="The request.")]
ResponseColumn = Annotated[str, typer.Option("--response-column", metavar="COLUMN", help="The right answer.")]
GroupColumn = Annotated[
    str,
    typer.Option("--group-column", metavar="COLUMN", help="Rows alike here depend on each other: a chat."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Of an answer.")]
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
Require = Annotated[
    str,
    typer.Option(
        "--require",
        metavar="RESULT",
        help="Exit with 1 unless NEW is `better`, or `not-worse` (by --margin).",
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="OLD and NEW are adapter folders; they answer here, without a server."),
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the result as a page.")]


def compare(
    old: Old,
    new: New,
    data: Data,
    metric: Metric = "",
    judge: Judge = "",
    judge_prompt: JudgePrompt = None,
    prompt_column: PromptColumn = "",
    response_column: ResponseColumn = "",
    group_column: GroupColumn = "",
    max_tokens: MaxTokens = 256,
    margin: Margin = None,
    require: Require = "",
    html: Html = None,
    offline: Offline = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 300.0,
    json: flags.Json = False,
) -> None:
    """Compare two versions on the same prompts.

    A running server answers each prompt with both, in shared batches. The answers are scored by the rows'
    right answers, or by a judge that sees both in both orders. The test is exact and paired by prompt.

    \b
    Examples:
      lora-router compare medical@1.0.0 medical@1.1.0 --data rows.jsonl --metric exact_match
      lora-router compare base summarization --data articles.csv --metric rouge_l --html result.html
      lora-router compare chat@1 chat@2 --data prompts.jsonl --judge base --group-column conversation
      lora-router compare adapters/medical ../new/medical --offline --data rows.jsonl --metric exact_match
    """
    from router.cli.command import FAILED, MISUSED, CliError

    wanted = _check(metric, judge, judge_prompt, require, margin, old, new)
    if html is not None and not html.parent.is_dir():
        raise CliError(f"--html {html}: there is no folder {html.parent}", MISUSED)
    if offline and (judge or server):
        raise CliError("--offline goes with --metric: there is no server to ask", MISUSED)
    ask: Any = partial(_run, judge=judge, judge_prompt=judge_prompt, server=server, timeout=timeout)
    ask = _run_offline if offline else ask
    found = ask(
        old,
        new,
        data,
        columns={"prompt": prompt_column, "response": response_column, "group": group_column},
        metric=metric,
        max_tokens=max_tokens,
    )
    share = None if margin is None else margin / 100
    _print(found, share, json)
    if html is not None:
        from router.extensions.training.comparison.page import page

        html.write_text(page(found, data.name, share), encoding="utf-8")
    from router.extensions.training.comparison.words import verdict

    if (kind := verdict(found, share)) not in wanted:
        raise CliError(f"--require {require}: {new} is {kind}", FAILED)


RESULTS = {"better": {"better"}, "not-worse": {"better", "not worse"}}
ANY_RESULT = {"better", "worse", "not worse", "undecided"}


def _check(
    metric: str, judge: str, judge_prompt: Path | None, require: str, margin: float | None, old: str, new: str
) -> set[str]:
    """Raises ConfigError for flags that do not fit each other. Returns the results that end with 0."""
    from router.errors import ConfigError
    from router.extensions.training.evaluation.scoring import RECIPE_METRICS
    from router.extensions.training.recipe import TEXT_METRICS

    if bool(metric) == bool(judge):
        raise ConfigError(
            "say how answers are judged: --metric METRIC, or --judge NAME" + (", not both" if judge else "")
        )
    if metric and metric not in TEXT_METRICS:
        more = " (that one needs its recipe)" if metric in RECIPE_METRICS else ""
        raise ConfigError(
            f"--metric {metric!r} is unknown{more}; there are {', '.join(sorted(TEXT_METRICS))}"
        )
    if judge_prompt and not judge:
        raise ConfigError("--judge-prompt goes with --judge NAME")
    if require and require not in RESULTS:
        raise ConfigError(f"--require {require!r}: better or not-worse")
    if require == "not-worse" and margin is None:
        raise ConfigError("--require not-worse needs --margin POINTS: how much worse would matter")
    if old == new:
        raise ConfigError(f"{old} against itself shows nothing; name two versions")
    return RESULTS.get(require, ANY_RESULT)


def _run(
    old: str,
    new: str,
    data: Path,
    *,
    columns: dict[str, str],
    metric: str,
    judge: str,
    judge_prompt: Path | None,
    max_tokens: int,
    server: str,
    timeout: float,
) -> VersionComparison:
    from router.client import AsyncClient, ClientError

    try:
        from router.extensions.training.comparison import run
        from router.extensions.training.comparison.judge import ModelJudge, read_template
        from router.extensions.training.new.rows import Columns
    except ModuleNotFoundError as error:
        from router.errors import ConfigError, install_extra

        raise ConfigError(f"compare needs {error.name}: {install_extra('train')}") from error

    template = read_template(judge_prompt)
    rows = run.read_prompts(data, Columns(**columns), judged=bool(judge))
    target = connect.target_of(server)

    async def compared(done: Any) -> VersionComparison:
        async with AsyncClient(target, timeout=timeout, **connect.secured_for(target)) as client:
            return await run.compare(
                client,
                old,
                new,
                rows,
                metric=metric,
                judge=ModelJudge(client, judge, template) if judge else None,
                max_tokens=max_tokens,
                done=done,
            )

    try:
        with _progress(rows) as done:
            return asyncio.run(compared(done))
    except* ClientError as group:
        raise connect.explain_call(_first(group), target) from None


def _run_offline(
    old: str,
    new: str,
    data: Path,
    *,
    columns: dict[str, str],
    metric: str,
    max_tokens: int,
) -> VersionComparison:
    from router.cli.command import quiet_libraries
    from router.cli.settings import load_settings
    from router.extensions.training.evaluation import require_extra

    require_extra("compare")
    from router.extensions.training.comparison.offline import compare_folders
    from router.extensions.training.comparison.run import read_prompts
    from router.extensions.training.new.rows import Columns

    settings = load_settings()
    quiet_libraries()
    rows = read_prompts(data, Columns(**columns), judged=False)
    with _progress(rows) as done:
        return compare_folders(
            old,
            new,
            rows,
            metric=metric,
            base=settings.model,
            max_tokens=max_tokens,
            device=settings.device,
            done=done,
        )


def _first(group: BaseException) -> Any:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _progress(rows: list[PromptRow]) -> Any:
    """A bar on stderr, or a line for each tenth where that is no terminal."""
    from contextlib import contextmanager

    from router.cli.output import console, is_plain

    @contextmanager
    def plain() -> Any:
        tenth = max(1, len(rows) // 10)

        def done(count: int) -> None:
            if count % tenth == 0 or count == len(rows):
                print(f"{count} of {len(rows)} prompts", file=sys.stderr, flush=True)

        yield done

    @contextmanager
    def bar() -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        looks = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*looks, console=console(stderr=True), transient=True) as shown:
            task = shown.add_task("prompts", total=len(rows))
            yield lambda count: shown.update(task, completed=count)

    return plain() if is_plain(sys.stderr) else bar()


def _print(found: VersionComparison, margin: float | None, json: bool) -> None:
    from router.cli.output import clean, print_json, print_pairs, print_table
    from router.extensions.training.comparison import words

    if json:
        print_json({"result": words.verdict(found, margin), **_plain(found)})
        return
    print(words.headline(found, margin), words.advice(found, margin), "", sep="\n")
    print_table(words.LOAD_COLUMNS, words.load_rows(found))
    print(words.LOAD_NOTE, "", sep="\n")
    print_pairs(words.facts(found))
    if worst := found.regressions(3):
        print("\nbecame worse, the worst first (--html shows ten, whole):")
        for pair in worst:
            print(f"  {pair.row.place}  {clean(jsons.dumps(pair.row.prompt[:100], ensure_ascii=False))}")
            for name, side in ((found.old, pair.old), (found.new, pair.new)):
                text = side.error or side.text[:100]
                print(f"    {name}: {clean(jsons.dumps(text, ensure_ascii=False))}")


def _plain(found: VersionComparison) -> dict[str, Any]:
    """For programs: all numbers, the change of each row's score, and the regressions with their texts."""
    from dataclasses import fields

    shown = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "pairs"}
    changes = [pair.change for pair in found.pairs]
    return shown | {"changes": changes, "regressions": found.regressions()}
