"""Training recipes (extra: train)."""
