import numpy as np
import pytest

from router.cli.base_files import equals_base, find_base, read_base
from router.engine.base import TensorData
from router.errors import ConfigError
from tests.cli.tiny import EMBEDDING, MODULES, write_base


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


def given(values, dtype="F32"):
    return TensorData(dtype, values.shape, memoryview(values.tobytes()))


def test_linear_modules_are_sites_and_tables_are_not(base):
    read = read_base(base, "tiny", with_digest=False)
    assert read.sites == MODULES
    assert (read.architecture, read.vocab_size, read.digest) == ("LlamaForCausalLM", 32, "")


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
def test_a_copy_of_a_matrix_equals_it(base, module):
    equals = equals_base(base)
    assert equals(module, given(EMBEDDING))
    assert equals(module, given(EMBEDDING.astype(np.float16), "F16"))
    bfloat16 = (EMBEDDING.view(np.uint32) >> 16).astype(np.uint16)
    assert equals(module, given(bfloat16, "BF16"))


def test_another_matrix_differs(base):
    equals = equals_base(base)
    changed = EMBEDDING.copy()
    changed[-1, -1] += 1
    assert not equals("model.embed_tokens", given(changed))
    assert not equals("model.embed_tokens", given(EMBEDDING[:-1]))
    assert not equals("model.unknown", given(EMBEDDING))
    assert not equals("model.embed_tokens", given(EMBEDDING.astype(np.float64), "F64"))


def test_a_known_base_that_was_not_fetched_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_base("smollm2-135m-instruct") is None


def test_a_base_without_safetensors_is_named(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no safetensors"):
        read_base(base, "tiny", with_digest=False)
