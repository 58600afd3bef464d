"""The adapter under evaluation, loaded beside its base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from router.errors import AdapterRejected, ConfigError
from router.registry.format.findings import Severity
from router.registry.format.manifest import Manifest, parse_manifest
from router.training.base import LoadedBase
from router.training.batch import Example, Rendering
from router.training.data import Row

# The three arms of a comparison: the same questions, asked in three ways.


class Arm(StrEnum):
    """Who answers, and what it is shown first."""

    BASE = "base"  # the bare question, under the adapter's own prompt
    SHOTS = "base_with_examples"  # with worked examples before it
    ADAPTER = "adapter"  # the bare question


@dataclass(frozen=True, slots=True)
class Asking:
    """Questions of one arm, encoded with their gold answers."""

    arm: Arm
    examples: tuple[Example, ...]

    @property
    def prompt_tokens(self) -> float:
        """Mean length of a prompt."""
        return sum(len(example.prompt) for example in self.examples) / len(self.examples)


def ask(arm: Arm, rows: Sequence[Row], rendering: Rendering, shots: Sequence[Row]) -> Asking:
    """Encode `rows` for an arm; only the arm with examples sees `shots`."""
    before = shots if arm is Arm.SHOTS else ()
    return Asking(arm, tuple(rendering.example(row, before) for row in rows))


def worked_examples(train: Sequence[Row], count: int) -> list[Row]:
    """The first `count` training rows with distinct answers: fixed, and not picked by result."""
    distinct = {row.response: row for row in reversed(train)}
    return [row for row in train if distinct[row.response] is row][:count]


WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter on its base; `model` answers as either."""

    folder: Path
    manifest: Manifest
    weights_sha256: str
    base: LoadedBase
    model: Any
    rendering: Rendering

    def answering_as(self, arm: Arm) -> AbstractContextManager[Any]:
        """Inside the block the model is the adapter or the bare base."""
        plain: Callable[[], AbstractContextManager[Any]] = self.model.disable_adapter
        return nullcontext() if arm is Arm.ADAPTER else plain()

    def close(self) -> None:
        """Take the adapter off the base again."""
        self.model.unload()


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises ConfigError if there is none, AdapterRejected if it is wrong."""
    file = folder / "adapter.toml"
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} holds no adapter with a manifest: needs adapter.toml and {WEIGHTS}")
    manifest, findings = parse_manifest(file.read_bytes(), folder.name)
    if refused := [finding for finding in findings if finding.severity is Severity.REFUSE]:
        raise AdapterRejected(f"{file}: " + "; ".join(str(finding) for finding in refused))
    return manifest


def check_base(manifest: Manifest, base: LoadedBase) -> None:
    """Raises AdapterRejected if the adapter was trained on another base."""
    if manifest.base.digest not in ("", base.digest):
        trained = f"{manifest.base.model} (digest {manifest.base.digest[:12]}…)"
        raise AdapterRejected(
            f"{manifest.name} was trained on {trained}, whose digest differs from that of {base.name} "
            f"({base.digest[:12]}…): name the right base in its recipe, or train it again"
        )


def load_subject(folder: Path, manifest: Manifest, base: LoadedBase) -> Subject:
    """Put the adapter on `base`. Raises AdapterRejected if it was trained on another one."""
    from peft import PeftModel

    check_base(manifest, base)
    model = PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False).eval()
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    rendering = Rendering.of(base.tokenizer, manifest.prompt)
    return Subject(folder, manifest, sha256, base, model, rendering)
