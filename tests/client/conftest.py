from types import SimpleNamespace

import pytest

from tests.client.scripted import Scripted, ScriptedAdapters, serving


@pytest.fixture
def remote():
    """A scripted server: `.target`, `.inference`, `.adapters`."""
    inference, adapters = Scripted(), ScriptedAdapters()
    with serving(inference, adapters) as target:
        yield SimpleNamespace(target=target, inference=inference, adapters=adapters)
