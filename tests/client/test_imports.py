import subprocess
import sys

import router.client


def test_the_client_needs_no_torch():
    heavy = "{'torch', 'transformers', 'peft', 'numpy', 'pydantic', 'pluggy'} & set(sys.modules)"
    code = f"import sys; from router.client import Client, AsyncClient; print(sorted({heavy}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['pluggy']"


def test_exports_are_there():
    assert sorted(router.client.__all__) == router.client.__all__
    assert all(hasattr(router.client, name) for name in router.client.__all__)
