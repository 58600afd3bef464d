"""Pictures of the sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from router.extensions.training.evaluation.report import draw_bias, draw_data_need, draw_generalization

ESTIMATE = {"value": 0.2, "low": 0.1, "high": 0.4}
POINT = {"fraction": 0.1, "rows": 30, "score": ESTIMATE}
SECTIONS: dict[Callable[[Mapping[str, Any], Path], None], dict[str, Any]] = {
    draw_data_need: {
        "metric": "chrF",
        "points": [POINT, POINT | {"rows": 300, "fraction": 1.0}],
    },
    draw_generalization: {"margin": 0.1, "sets": [{"what": "legal", "difference": ESTIMATE}]},
    draw_bias: {"rows": [{"what": "gender", "base": ESTIMATE, "adapter": ESTIMATE}]},
}


@pytest.mark.parametrize(
    ("draw", "section"), SECTIONS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_picture_shows_something_and_is_small(
    draw: Callable[[Mapping[str, Any], Path], None], section: dict[str, Any], tmp_path: Path
) -> None:
    draw(section, tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")
    assert pixels.std() > 0.05
    assert (tmp_path / "picture.png").stat().st_size < 60_000


def test_nothing_compared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        draw_generalization({"margin": 0.1, "sets": []}, tmp_path / "picture.png")
