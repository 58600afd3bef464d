"""A model named by its hub id: from the local hub cache, else downloaded."""

from __future__ import annotations

from pathlib import Path

from router.errors import ConfigError

# Weights as safetensors only: neither pickles nor the repository's own code are ever fetched.
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def fetch_from_hub(model_id: str) -> Path:
    """The snapshot folder of `OWNER/NAME`. Raises ConfigError if it is not cached and out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(_FILES)
    try:
        cached = Path(snapshot_download(model_id, allow_patterns=patterns, local_files_only=True))
        if _complete(cached):
            return cached
    except HFValidationError as error:
        raise ConfigError(f"model {model_id!r} is not a valid hub id OWNER/NAME") from error
    except LocalEntryNotFoundError:
        pass  # not cached: ask the hub
    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"model {model_id!r} is not cached and the hub did not give it: check the name, HF_TOKEN (if "
            "gated) and HF_HUB_OFFLINE; without network give a folder, or leave --model out (default base)"
        ) from error


def _complete(snapshot: Path) -> bool:
    """Whether a cached snapshot has weights: looking at a model's config alone caches a part of it."""
    return (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))
