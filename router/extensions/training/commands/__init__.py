"""`lora-router adapters new | train | evaluate | convert`, and `lora-router compare`."""
