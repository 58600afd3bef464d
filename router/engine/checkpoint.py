"""A base as files, read without torch and without its weights in memory: identity, linear layers, ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router.engine.beside import beside
from router.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}  # bytes, by safetensors' names
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_QUIET_NAN = 0x7FC0


def float32_of(dtype: str, data: bytes | memoryview) -> NDArray[np.float32]:
    """The values that are stored there, flat."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def stored_as(dtype: str, values: NDArray[np.float32]) -> bytes:
    """The values rounded to the nearest that `dtype` has, ties to even, as torch rounds."""
    if dtype == "F32":
        return np.ascontiguousarray(values, np.float32).tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = _QUIET_NAN
    return rounded.tobytes()


CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}  # transformers' class by `model_type`, of the decoders whose layers can be packed from files as they are
NOT_LINEAR = ("embed_tokens", "wte", "wpe", "lm_head")
HEAD = "lm_head.weight"
NO_PARAMETERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")  # buffers that old files hold, too
INDEX = "model.safetensors.index.json"
MOST_HEADER = 100 << 20  # bytes, as the format says
BLOCK = 1 << 22  # bytes read at once, which stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a weight of the base lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def blocks(self) -> Iterator[memoryview]:
        """Its bytes, at most `BLOCK` at a time, each until the next are asked for. Raises OSError, EOFError.

        Read and not mapped: of a file that is cut meanwhile, access to a mapped page ends the process.
        """
        with self.file.open("rb", buffering=0) as opened:
            opened.seek(self.start)
            buffer = memoryview(bytearray(min(BLOCK, self.end - self.start)))
            for start in range(self.start, self.end, BLOCK):
                block = rest = buffer[: self.end - start]
                while rest:
                    count = opened.readinto(rest)
                    if not count:
                        raise EOFError(f"{self.file.name} is shorter than its header says")
                    rest = rest[count:]
                yield block


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All weights in the safetensors files of a folder, by name. Raises ConfigError for a damaged file."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= tensors_in(file)
    return found


def served_tensors(folder: Path) -> dict[str, Tensor]:
    """Those in the files that transformers loads: `model.safetensors`, or all that `INDEX` names.

    Empty where the folder has neither. Raises ConfigError for a damaged or missing file.
    """
    if (whole := folder / "model.safetensors").is_file():
        return tensors_in(whole)
    if not (index := folder / INDEX).is_file():
        return {}
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{INDEX} cannot be read: {error!r}") from error
    found: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise ConfigError(f"{name} is missing, which {INDEX} names")
        found |= tensors_in(folder / name)
    if missing := places.keys() - found.keys():
        raise ConfigError(f"{_some(missing)} missing in the files that {INDEX} names")
    return found


def tensors_in(file: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, by name. Only its header is read.

    Raises ConfigError if the header is damaged, or the file is not as long as that says.
    """
    found: dict[str, Tensor] = {}
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size - 8, MOST_HEADER):
                raise ConfigError(f"{file.name} is no whole safetensors file")
            header: dict[str, Any] = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                shape, (start, end) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
                found[name] = Tensor(file, entry["dtype"], shape, 8 + length + start, 8 + length + end)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file.name} is no whole safetensors file: {error!r}") from error
    for name, tensor in found.items():
        given, width = tensor.end - tensor.start, WIDTHS.get(tensor.dtype)
        if tensor.start < 8 + length or given < 0 or (width and given != width * prod(tensor.shape)):
            raise ConfigError(f"{file.name}: the place of {name} does not fit its shape")
    if (end := max((t.end for t in found.values()), default=0)) > size:
        raise ConfigError(f"{file.name} is shorter than its header says: {size} of {end} bytes")
    return found


def _some(names: Collection[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return f"{min(names)}{more}"


def sites_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Linear modules, each with its outputs and inputs."""
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and not _is_table(name)
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The base's identity as `router.engine.loader.base_digest` computes it of the loaded model.

    The same for files that name weights as transformers does, in bfloat16, float16 or float32. Weights of
    other kinds, such as those of a quantised base, count by their bytes.
    """
    return _digest(parameters(tensors))


def parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is no parameter of the loaded model: buffers, and a head that is the embeddings again."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(NO_PARAMETERS) and not (name == HEAD and _is_tied(tensors))
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.shape}\n".encode())
        for block in tensor.blocks():
            plain = tensor.dtype == "BF16" or tensor.dtype not in WIDTHS
            total.update(block if plain else stored_as("BF16", float32_of(tensor.dtype, block)))
    return total.hexdigest()


def open_files(folder: Path, name: str) -> BaseFiles | None:
    """The weights of a base of `CLASSES`, if they are safetensors. Raises ConfigError that names the base."""
    try:
        kind = config_of(folder).get("model_type")
    except (OSError, ValueError, TypeError, AttributeError):  # what loads the base reports it
        return None
    try:
        files = BaseFiles(folder) if kind in CLASSES else None
    except ConfigError as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {error}") from error
    return files if files is not None and files.tensors else None


class BaseFiles:
    """The weights of a base in files, and their digest, which a thread computes from now on.

    Hashing leaves the interpreter's lock, so it goes on beside imports, and reads the files from the disk
    before they are packed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError for a damaged or missing file."""
        self.folder, self.tensors = folder, served_tensors(folder)
        self._stamps = self._look()
        self._hashed = beside(self._hash, "base digest")

    def digest(self, names: Collection[str]) -> str:
        """`digest_of` the weights of these names, when it is there.

        Raises ConfigError if the files changed since they were opened.
        """
        try:
            hashed, digest = self._hashed.result()
            if hashed != set(names):
                digest = _digest({name: self.tensors[name] for name in names})
            changed = self._look() != self._stamps
        except (OSError, EOFError) as error:
            raise ConfigError(f"the base's weights cannot be read: {error}") from error
        if changed:
            raise ConfigError(f"the weights in {self.folder} changed while they were read: start again")
        return digest

    def _hash(self) -> tuple[Collection[str], str]:
        own = parameters(self.tensors)
        return own.keys(), _digest(own)

    def _look(self) -> list[tuple[int, ...]]:
        """What changes when a file does."""
        found = [file.stat() for file in sorted({tensor.file for tensor in self.tensors.values()})]
        return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found]


def config_of(folder: Path) -> dict[str, Any]:
    """The base's config.json; of one that reads more than text, with the text model's entries."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config | (config.get("text_config") or {}) | {"architectures": config.get("architectures")}


def ends_of(folder: Path) -> frozenset[int]:
    """Tokens that end an answer, as generation_config.json says, or else config.json."""
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else config_of(folder)
    value = config.get("eos_token_id")
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def cache_bytes(config: Mapping[str, Any], width: int) -> int:
    """What the keys and values of one token take, in numbers of `width` bytes."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kept = int(config.get("num_key_value_heads") or heads)
    return 2 * width * size * kept * int(config["num_hidden_layers"])


def _is_table(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in NOT_LINEAR


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the head was stored although it is the table of embeddings."""
    head = tensors[HEAD]
    table = next((t for name, t in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if table is None or (table.shape, table.dtype) != (head.shape, head.dtype):
        return False
    pairs = zip(head.blocks(), table.blocks(), strict=True)
    return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs)
