"""Code that a configuration names is neither imported nor run: the field is refused by its name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from router.registry.format.artifact import FolderRules, validate_folder
from router.registry.format.untrusted import Severity
from tests.registry.tiny import BASE, write_adapter

MODULE = "evil_module_of_an_adapter"
FIELDS: dict[str, Any] = {
    "megatron_core": MODULE,
    "megatron_config": {"module": MODULE},
    "auto_mapping": {"base_model_class": "Model", "parent_library": MODULE},
    "auto_map": {"AutoModel": f"{MODULE}.Model"},
    "custom_module": MODULE,
    "trust_remote_code": True,
    "quantization_config": {"quant_method": MODULE},
    "tokenizer_class": f"{MODULE}.Tokenizer",
    "peft_type": MODULE,
    "task_type": MODULE,
    "init_lora_weights": MODULE,
}


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported from anywhere, and leaves a mark when it is."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n")
    monkeypatch.syspath_prepend(str(folder))
    return tmp_path / "marker"


@pytest.mark.parametrize("field", FIELDS)
def test_the_field_is_refused_and_nothing_imported(field: str, tmp_path: Path, marker: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {field: FIELDS[field]})
    (folder / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    findings = validate_folder(folder, FolderRules(BASE)).findings
    refused = [str(f) for f in findings if f.severity is Severity.REFUSE]
    assert any(field in text for text in refused), findings
    assert MODULE not in sys.modules
    assert not marker.exists()
