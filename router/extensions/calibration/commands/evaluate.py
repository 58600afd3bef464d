"""`lora-router route evaluate`: how well the classifiers here route labelled requests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.errors import install_extra
from router.extensions.calibration.commands.judge import CalibrationFile
from router.extensions.calibration.commands.local import Base, Files, KeptIn, Ood, PluginsDirs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from router.routing.in_force import RuleInForce

Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the risk-coverage curve: .png, .svg, .pdf or .html."),
]


def evaluate(
    files: Files,
    ood: Ood = None,
    calibration: CalibrationFile = "auto",
    plot: Plot = None,
    adapters_dir: flags.AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    votes: KeptIn = None,
    json: flags.Json = False,
) -> None:
    """Measure how requests are routed, without a server.

    Accuracy with every request forced to a choice, and what happens at the thresholds that would be served.
    Each line of FILE is {"text": ..., "label": ADAPTER or "", "source": ...}.

    \b
    Example:
      lora-router route evaluate requests.jsonl --ood strange.jsonl --plot risk.png
    """
    from router.cli.output import print_json
    from router.extensions.calibration.commands.judge import judge_of, local_rule
    from router.extensions.calibration.commands.local import latencies, open_local, read_known, read_strange
    from router.extensions.calibration.evaluation import evaluate as measure

    picture = picture_file(plot)
    with open_local(adapters_dir, plugins_dir, base=base, learned_by=calibration) as local:
        known, strange = read_known(files, local.taught), read_strange(ood, local.taught)
        rule = local_rule(local, calibration)
        target, delta = _goal(rule)
        ballots = (
            local.votes(known, "requests", votes),
            local.votes(strange, "out-of-distribution", votes),
        )
        latency = latencies(local.fitted, known)
    found = measure(*ballots, judge_of(rule, local), sorted(local.kinds), delta, target)
    found |= {"calibration": rule.status, "target": target, "latency": latency}
    found["skipped"] = dict(local.fitted.skipped)
    if picture is not None:
        draw_curve(picture, found["risk_coverage"], target, (_all_coverage(found), found["routing"]["error"]))
    if json:
        print_json(found)
    else:
        _print(found)


def _goal(in_force: RuleInForce) -> tuple[float, float]:
    """(target, delta) of the calibration, or the usual ones."""
    from router.routing.policy import CalibratedRule

    rule = in_force.now
    return (
        (rule.calibration.target, rule.calibration.delta)
        if isinstance(rule, CalibratedRule)
        else (0.05, 0.05)
    )


def picture_file(path: Path | None) -> Path | None:
    """The picture to write. Raises CliError for a kind that is not known."""
    if path is not None and path.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise CliError(f"{path}: a picture is .png, .svg, .pdf or .html", MISUSED)
    return path


def _all_coverage(found: dict[str, Any]) -> float:
    return float(found["routing"]["routed"] / max(1, found["rows"]))


def draw_curve(
    path: Path, curve: Sequence[Sequence[float]], target: float, routed: tuple[float, float]
) -> None:
    """The risk-coverage curve as a picture.

    `curve` of (threshold, coverage, error); `routed` is (coverage, error) of the router as it stands.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    axes.plot([c for _, c, _ in curve], [e for _, _, e in curve], label="every threshold")
    axes.axhline(target, color="tab:red", linestyle="--", linewidth=1, label=f"target {target:.0%}")
    axes.plot(*([value] for value in routed), "o", color="tab:green", label="as it routes now")
    axes.set(xlabel="share of requests routed", ylabel="error among routed", xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False)
    save_figure(figure, path, "Risk and coverage")


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches. Raises CliError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise CliError(f"pictures need matplotlib: {install_extra('pictures')}") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, title: str) -> None:
    """As the kind of picture that the file's name says; HTML is a page with the drawing in it."""
    if path.suffix != ".html":
        figure.savefig(path, dpi=150)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    page = f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n{svg[svg.index('<svg') :]}"
    path.write_text(page, encoding="utf-8")


def _print(found: dict[str, Any]) -> None:
    from router.cli import output
    from router.cli.output import print_pairs, print_table

    print_pairs(_pairs(found))
    print("\nby label and source: right if forced to choose, routed, wrong among routed")
    table = [(name or "(base)", "label", one) for name, one in found["labels"].items()]
    table += [(name or "-", "source", one) for name, one in found["sources"].items()]
    columns = ["", "", "ROWS", "RIGHT", "ROUTED", "WRONG", "TAKEN FROM OTHERS"]
    keys = ("rows", "right", "routed", "errors", "taken")
    print_table(columns, [(kind, name, *(str(one.get(k, "")) for k in keys)) for name, kind, one in table])
    print("\nconfusion: true label down, choice across")
    labels = found["confusion"]["labels"]
    rows = zip(labels, found["confusion"]["table"], strict=True)
    print_table(["", *labels], [(label, *map(str, row)) for label, row in rows])
    print()
    decided = found["routing"]["decided_by"]
    print_table(
        ["CLASSIFIER", "MEDIAN", "95 %", "DECIDED"],
        [
            (name, output.duration(median), output.duration(high), str(decided.get(name, 0)))
            for name, (median, high) in found["latency"].items()
        ],
    )


def _pairs(found: dict[str, Any]) -> list[tuple[str, str]]:
    routing, ece, ood = found["routing"], found["ece"], found["ood"]
    pairs = [
        ("requests", str(found["rows"])),
        ("calibration", found["calibration"] or "none"),
        ("forced to choose", f"accuracy {found['accuracy']:.3f}, macro-F1 {found['macro_f1']:.3f}"),
        ("coverage", f"{routing['coverage']:.1%} of the requests that are for an adapter"),
        (
            "error among routed",
            f"{routing['errors']} of {routing['routed']}, {routing['error']:.1%} "
            f"(bound {routing['error_bound']:.1%})",
        ),
        (
            "coverage at target",
            f"{found['coverage_at_target']:.1%} with at most {found['target']:.0%} error, in hindsight",
        ),
        ("ECE", f"{ece['ece']:.3f} ({ece['low']:.3f} to {ece['high']:.3f})"),
        ("AURC", f"{found['aurc']:.4f}"),
    ]
    if ood is not None:
        bound = f"(bound {ood['share_bound']:.1%}), AUROC {ood['auroc']:.3f}"
        pairs.append(
            ("out of distribution", f"{ood['routed']} of {ood['rows']} routed, {ood['share']:.1%} {bound}")
        )
    return pairs
