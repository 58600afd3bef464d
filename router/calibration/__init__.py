"""Calibration: confidences that mean what they say, and a threshold whose error is bounded."""
