"""Metrics that stand beside the recipes that use them: `METRIC` in recipes/NAME/metric.py."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec

from router.carried import carried
from router.errors import ConfigError
from router.extensions.training.evaluation.scoring import RecipeMetric

RECIPE_METRICS = ("execution",)


def recipe_metric(name: str) -> RecipeMetric:
    """The metric of a folder of recipes. Raises ConfigError where the folder is not there."""
    folders = carried(f"recipes/{name}")
    if not folders:
        raise ConfigError(f"the metric {name} needs the folder recipes/{name}, which is not there")
    module = f"lora_router_recipe_{name}"
    if module not in sys.modules:
        loader = SourceFileLoader(module, str(folders[0] / "__init__.py"))
        spec = ModuleSpec(module, loader, is_package=True)
        spec.submodule_search_locations = [str(folders[0])]
        package = sys.modules[module] = module_from_spec(spec)
        loader.exec_module(package)
    metric: RecipeMetric = import_module(f"{module}.metric").METRIC
    return metric
