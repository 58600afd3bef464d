"""What can be wrong with rows to calibrate on, or with a calibration file."""

from __future__ import annotations

from router.errors import ConfigError


class CalibrationError(ConfigError):
    """The rows, the votes or the file cannot be used; the message says what to do."""
