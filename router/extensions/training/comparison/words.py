"""The result in sentences, for the terminal and the page."""

from __future__ import annotations

from router.extensions.training.comparison.run import Load, VersionComparison
from router.paired import POWER
from router.quantities import SHARE, TIME


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
    gap = found.difference
    shown = SHARE.change(gap.mean, gap.low, gap.high)
    kind = verdict(found, margin)
    if kind == "undecided":
        allowed = "" if margin is None else f", and a loss of {SHARE.margin(margin)} is not excluded"
        return f"No difference is shown between {found.new} and {found.old}: {shown}{allowed}."
    if kind == "not worse" and margin is not None:
        return f"{found.new} is not worse than {found.old} by {SHARE.margin(margin)} or more: {shown}."
    return f"{found.new} is {kind} than {found.old}: {shown}."


def advice(found: VersionComparison, margin: float | None = None) -> str:
    """What to do next."""
    gap, kind = found.difference, verdict(found, margin)
    if 2 * found.contradictions > gap.rows:
        return "The judge contradicts itself in most pairs. Use a larger model as the judge, or a metric."
    if kind == "better":
        return "Try it on users next: lora-router experiments create, with a small share for the new version."
    if kind == "worse":
        return "Read the prompts that became worse before you train again."
    if kind == "not worse":
        return "Where it is cheaper or faster, it can replace the old version."
    return (
        f"So many prompts show a difference of {SHARE.margin(gap.smallest)} in {100 * POWER:.0f} of 100 "
        "comparisons; half of that needs four times as many."
    )


def facts(found: VersionComparison) -> list[tuple[str, str]]:
    """The numbers behind the headline, as pairs of a name and a value."""
    gap = found.difference
    kind = "exact sign-flip test" if gap.exact else "sign-flip test, by draws or its normal limit"
    groups = "" if gap.groups == gap.rows else f" in {gap.groups} conversations"
    pairs = [
        (
            "score",
            f"{found.metric}: {100 * found.new_score:.1f}, before {100 * found.old_score:.1f} (of 100)",
        ),
        ("prompts", f"{gap.rows}{groups}: {gap.better} better, {gap.worse} worse, {found.ties} equal"),
        ("p", f"{gap.p:.2g} ({kind})"),
    ]
    if found.left_out:
        pairs.append(("left out", f"{found.left_out} prompts that both versions refuse"))
    if found.metric == "the judge":
        pairs.append(
            (
                "judge",
                f"{found.contradictions} pairs judged differently when changed over (counted as equal); the "
                f"first answer named in {100 * found.named_first:.0f} %",
            )
        )
    return pairs


LOAD_COLUMNS = ("", "prompt tokens", "answer tokens", "first token", "whole answer", "refused")
LOAD_NOTE = (
    "Both versions shared the server and its batches. So the times compare the answers' lengths, not speed."
)


def load_rows(found: VersionComparison) -> list[tuple[str, ...]]:
    """Cost and latency of both versions."""
    return [_load_row(found.old, found.old_load), _load_row(found.new, found.new_load)]


def _load_row(name: str, load: Load) -> tuple[str, ...]:
    return (
        name,
        f"{load.prompt_tokens:.0f}",
        f"{load.tokens:.1f}",
        TIME.value(load.first_token),
        TIME.value(load.total),
        str(load.errors),
    )
