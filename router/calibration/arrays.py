"""The one name for numpy arrays here; shapes are told in docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

__all__ = ["Array"]
