"""The training log as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from router.training.trainer import Record

WINDOW = 10  # steps the training loss is averaged over


def draw_curves(history: Sequence[Record], best_step: int, path: Path) -> None:
    """Training loss, validation loss and validation exact match over the steps, as a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("agg")
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="nats per answer token", yscale="log")
    exact = axes.twinx()
    exact.set(ylabel="validation exact match", ylim=(0, 1))
    judged = [record for record in history if "valid_loss" in record]
    steps = [record["step"] for record in judged]
    axes.plot(
        [r["step"] for r in history], _smooth([r["loss"] for r in history]), color="0.6", label="train loss"
    )
    axes.plot(steps, [r["valid_loss"] for r in judged], "o-", color="tab:blue", label="validation loss")
    exact.plot(
        steps, [r["valid_exact"] for r in judged], "s--", color="tab:green", label="validation exact match"
    )
    axes.axvline(best_step, color="tab:red", lw=0.8, ls=":", label="kept")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(path)


def _smooth(values: Sequence[float]) -> list[float]:
    windows = [values[max(0, end - WINDOW) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
