"""The base model: loading it, and the two ways to run its layers."""
