"""docs/reference.md: methods of gRPC, errors, metrics, hooks, built-in plugins, fields of OpenAI's API, and
findings in adapter folders, each as the code describes it. `python -m deploy.reference` writes the page.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from router import errors, hookspecs
from router.built_in import built_in_modules, name_of
from router.errors import RouterError
from router.extensions.openai import requests
from router.extensions.openai.fields import UNSUPPORTED, refusal_text
from router.extensions.replicas.service import ROWS as FLEET_ROWS
from router.extensions.replicas.service import FleetCollector
from router.extensions.sharing.sharing import EdgesCollector
from router.extensions.training.evaluation.report import report_card
from router.markers import NAME
from router.registry.format.lora_config import HONOURED, REFUSED, WITHOUT_EFFECT
from router.registry.format.untrusted import Code
from router.routing import BaseModel, Classifier
from router.server.http import CODES
from router.server.policy import Policy
from router.server.status import http_status
from router.testing import serving

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
REFERENCE = ROOT / "docs" / "reference.md"
PROTOS = (ROOT / "proto" / "router" / "v1", ROOT / "proto" / "router" / "kserve")
OF_A_REPLICA = "EngineService"  # which only edges call
HEAD = """\
# Reference

`make reference` writes this page from the code. Commands and settings are in [cli.md](cli.md), the fields of
messages in [`proto/router/v1`](../proto/router/v1).
"""
FIELDS = "They are ignored or refused, and so is any other that is not in [http.md](http.md#fields).\n\n"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def sentence(text: str | None) -> str:
    """The first paragraph of a docstring or comment on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def code(names: Iterable[str]) -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


# -- what a running server tells


async def told_by_a_server() -> tuple[Mapping[str, Policy], list[tuple[str, str, tuple[str, ...]]]]:
    """The policy of each gRPC method by /SERVICE/METHOD; name, help and labels of each metric."""
    async with serving(**{"plugins_dir": (), "kserve.enabled": True}) as served:
        server = served.server
        rows = {name: endpoint.policy for name, endpoint in server.methods.items()} | dict(FLEET_ROWS)
        found = list(metrics_of(server.metrics.registry))
    others = CollectorRegistry()  # of what that server does not do
    others.register(FleetCollector(SimpleNamespace(replicas={})))
    others.register(EdgesCollector(SimpleNamespace(problem="", edges=0)))
    return rows, sorted([*found, *metrics_of(others)])


def metrics_of(registry: CollectorRegistry) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, help and labels of each metric. A family without samples knows its labels nowhere else."""
    for collector in registry._collector_to_names:
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield name, family.documentation, tuple(labels)


# -- the sections


def methods(rows: Mapping[str, Policy]) -> str:
    """Every service with its methods, their roles and what the proto says of them."""
    made = []
    for name, about, comments in services():
        policies = ((method, rows[f"/{name}/{method}"], text) for method, text in comments.items())
        told = [(f"`{method}`", row.role.value, size(row.max_body), text) for method, row, text in policies]
        made.append(f"### {name}\n\n{about}\n\n{table(('method', 'role', 'message', 'what it does'), told)}")
    others = sorted(name for name in rows if not name.startswith(("/router.", "/inference.")))
    told = [(f"`{name[1:]}`", rows[name].role.value) for name in others]
    return "\n".join([*made, f"### Health and reflection\n\n{table(('method', 'role'), told)}"])


def size(most: int) -> str:
    """The largest message of a method."""
    return f"{most >> 10} KiB" if most else "`max_body_bytes`"


def services() -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Each service of the protos: its full name, its comment, and the comments of its methods."""
    for path in (path for folder in PROTOS for path in sorted(folder.glob("*.proto"))):
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        found = re.search(r"((?:^//[^\n]*\n)+)service (\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        if package is None or found is None or found[2] == OF_A_REPLICA:
            continue
        comments = re.findall(r"((?:^  //[^\n]*\n)+)  rpc (\w+)", found[3], re.MULTILINE)
        yield (
            f"{package[1]}.{found[2]}",
            comment(found[1]),
            {name: first_upper(comment(text).removeprefix(f"{name} ")) for text, name in comments},
        )


def comment(text: str) -> str:
    """The first paragraph of a comment in a proto."""
    return sentence(re.sub(r"^ *// ?", "", text, flags=re.MULTILINE))


def first_upper(text: str) -> str:
    """The text as a sentence."""
    return text[:1].upper() + text[1:]


def error_rows() -> Iterator[tuple[str, ...]]:
    """Every error that a caller can get."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RouterError)
    ]
    for kind in kinds:
        if kind not in (RouterError, errors.ConfigError):
            openai = CODES.get(kind.reason, kind.reason.lower())
            status = str(http_status(kind.code, kind.reason))
            yield f"`{kind.reason}`", kind.code, status, f"`{openai}`", sentence(kind.__doc__)


def alert_rows() -> Iterator[tuple[str, str, str]]:
    """Every alert rule."""
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield f"`{rule['alert']}`", rule["labels"]["severity"], rule["annotations"]["description"]


def hook_rows() -> Iterator[tuple[str, str]]:
    """Every hook with its arguments but `settings`, which all have."""
    for hook in vars(hookspecs).values():
        if hasattr(hook, f"{NAME}_spec"):
            names = ", ".join(name for name in inspect.signature(hook).parameters if name != "settings")
            yield f"`{hook.__name__}({names})`", sentence(hook.__doc__)


def classifier_rows() -> Iterator[tuple[str, str]]:
    """The methods that a classifier may have, and that of the base that it may call."""
    for prefix, kind in (("", Classifier), ("base.", BaseModel)):
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_") and method.__doc__:
                taken = [one for one in inspect.signature(method).parameters if one != "self"]
                told = " ".join(inspect.cleandoc(method.__doc__).split())
                yield f"`{prefix}{name}({', '.join(taken)})`", told


def plugin_rows() -> Iterator[tuple[str, str]]:
    """Every built-in plugin and what its module says of it."""
    for module in built_in_modules():
        yield f"`{name_of(module)}`", sentence(importlib.import_module(module).__doc__)


KINDS: Mapping[str, Any] = {"chat": requests.ChatCompletion, "completions": requests.Completion}


def field_rows() -> Iterator[tuple[str, ...]]:
    """Fields of OpenAI's and vLLM's completions that are ignored or refused."""
    found: dict[str, dict[str, str]] = {}
    for kind, model in KINDS.items():
        for name, why in model.rules.ignored.items():
            found.setdefault(name, {})[kind] = f"ignored: {why}"
        for name, refusal in model.rules.refused.items():
            found.setdefault(name, {})[kind] = refusal_text(refusal).replace(UNSUPPORTED, "refused", 1)
    for name, by_kind in sorted(found.items()):
        whys = list(dict.fromkeys(by_kind.values()))
        told = whys[0] if len(whys) == 1 else "; ".join(f"{kind}: {why}" for kind, why in by_kind.items())
        yield f"`{name}`", ", ".join(by_kind), told


def adapter_folders() -> str:
    """What stands in adapter_config.json, and what checks find."""
    fields = {
        "Honoured": sorted(HONOURED),
        "Without effect on serving": WITHOUT_EFFECT,
        "Refused unless unset": REFUSED,
    }
    made = "".join(f"- {what}: {code(names)}.\n" for what, names in fields.items())
    return f"Fields of `adapter_config.json`:\n\n{made}\nCodes of findings: {code(Code)}.\n"


def page() -> str:
    """The whole page."""
    rows, metrics = asyncio.run(told_by_a_server())
    told = ((f"`{name}`", code(labels), text) for name, text, labels in metrics)
    sections = {
        "gRPC methods": methods(rows),
        "Errors": table(("reason", "gRPC", "HTTP", "`code` over HTTP", "what it means"), error_rows()),
        "Metrics": table(("metric", "labels", "what it counts"), told),
        "Alerts": table(("alert", "severity", "what to do"), alert_rows()),
        "Hooks": table(("hook", "what it does"), hook_rows()),
        "Methods of a classifier": table(("method", "when, and what for"), classifier_rows()),
        "Built-in plugins": table(("plugin", "what it adds"), plugin_rows()),
        "Other fields of OpenAI's API": FIELDS + table(("field", "in", "what happens"), field_rows()),
        "Adapter folders": adapter_folders(),
        "report.json": "\n\n".join(inspect.cleandoc(str(report_card.__doc__)).split("\n\n")[:-1]) + "\n",
    }
    return HEAD + "".join(f"\n## {name}\n\n{text}" for name, text in sections.items())
