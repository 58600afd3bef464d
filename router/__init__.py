"""lora-router: the right LoRA adapter for every request, on one resident base model."""

from router.markers import hookimpl

__version__ = "0.2.0"
__all__ = ["__version__", "hookimpl"]
