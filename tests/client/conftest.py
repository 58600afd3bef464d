from types import SimpleNamespace

import pytest

from tests.client.scripted import Scripted, ScriptedAdapters, serving
from tests.client.scripted_experiments import ScriptedExperiments


@pytest.fixture
def remote():
    """A scripted server: `.target`, `.inference`, `.adapters`, `.experiments`."""
    inference, adapters, experiments = Scripted(), ScriptedAdapters(), ScriptedExperiments()
    with serving(inference, adapters, experiments) as target:
        yield SimpleNamespace(target=target, inference=inference, adapters=adapters, experiments=experiments)
