"""Metrics and report cards."""
