"""`lora-router route calibrate`: fit and prove the thresholds of the classifiers here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.route.local import AdaptersDirs, Base, Files, KeptIn, Ood, PluginsDirs

if TYPE_CHECKING:
    from router.calibration.model import Calibration

Target = Annotated[float, typer.Option("--target", metavar="P", help="Most error among routed requests.")]
Delta = Annotated[float, typer.Option("--delta", metavar="P", help="Chance that a promise does not hold.")]
OodTarget = Annotated[
    float,
    typer.Option("--ood-target", metavar="P", help="Most share of strange requests that is routed."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Default: calibration.json in the adapters folder.",
        show_default=False,
    ),
]  # fmt: skip


def calibrate(
    files: Files,
    ood: Ood = None,
    target: Target = 0.05,
    delta: Delta = 0.05,
    ood_target: OodTarget = 0.05,
    output: Output = None,
    adapters_dir: AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    votes: KeptIn = None,
    json: flags.Json = False,
) -> None:
    """Fit and prove the thresholds of routing.

    A third of the requests fits temperatures and weights, the others prove the thresholds. Writes the
    calibration file that `serve` reads. Each line of FILE is {"text": ..., "label": ADAPTER or ""}.

    \b
    Example:
      lora-router route calibrate requests.jsonl --ood strange.jsonl --target 0.05
    """
    from router.calibration.certify import Goal
    from router.calibration.file import FILE_NAME, write_calibration
    from router.calibration.fit import Setting, calibrate
    from router.classifiers.axes import Axes
    from router.cli.output import print_json
    from router.cli.route.local import note, open_local, read_known, read_strange

    goal = Goal(target, delta, ood_target)
    with open_local(adapters_dir, plugins_dir, base=base) as local:
        known, strange = read_known(files, local.profiles), read_strange(ood, local.profiles)
        setting = Setting(
            classifiers=local.panel.names,
            kinds=local.kinds,
            axes=Axes(local.settings.task_first, local.settings.domain_first),
            goal=goal,
            binding=local.binding(),
            left_out=tuple(local.panel.skipped),
            profiles=local.profiles,
        )
        ballots = (
            local.votes(known, "requests", votes),
            local.votes(strange, "out-of-distribution", votes),
        )
    found = calibrate(*ballots, setting, say=note)
    path = output or local.settings.adapter_folders[0] / FILE_NAME
    write_calibration(path, found)
    if json:
        print_json({"file": path, **found.report, "threshold": found.threshold})
    else:
        _print(found)
        print(f"\nwrote {path}; a server reads it when it starts")


def _print(found: Calibration) -> None:
    from router.cli.output import print_pairs, print_table

    proof, held = found.report["proof"], found.report["held_out"]
    sure = f"at {1 - found.delta:.0%} confidence"
    print_table(
        ["CLASSIFIER", "TEMPERATURE", "ECE", "95 % INTERVAL", "DECIDES"],
        [
            (name, f"{scaler.temperature:.2f}", *_ece(held["ece"][name]), str(held["stages"][name]))
            for name, scaler in found.scalers.items()
        ],
    )
    print()
    pairs = [
        ("threshold", f"{found.threshold:.3f}"),
        (
            "error among routed",
            f"{proof['errors']} of {proof['routed']}, under {proof['error_bound']:.1%} {sure}",
        ),
        ("coverage", f"{held['coverage']:.1%} of the requests that are for an adapter"),
        ("forced to choose", f"accuracy {held['accuracy']:.3f}, macro-F1 {held['macro_f1']:.3f}"),
        ("ECE together", " ".join(_ece(held["ece_all"]))),
    ]
    if held["ood_routed"] is not None:
        strange = f"{proof['strange_routed']} routed, under {proof['strange_bound']:.1%} {sure}"
        pairs.append(("out of distribution", f"{strange}; AUROC {held['ood_auroc']:.3f}"))
    else:
        pairs.append(("out of distribution", "not tested; give requests with --ood"))
    print_pairs(pairs)


def _ece(found: dict[str, Any]) -> tuple[str, str]:
    return f"{found['ece']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"
