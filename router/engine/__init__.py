"""The engine: one base model, many adapters, one batch."""
