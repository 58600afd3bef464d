"""Default versions as operators choose them, and overrides of the gate, on the disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from router.errors import NotSaved
from router.registry.state import append_durably, write_atomically
from router.types import Override

log = logging.getLogger(__name__)

MOST_SERVED = 20  # versions of a name that are remembered for having been the default


class FormerDefault(BaseModel):
    """A version was the default until another took over: its weights then, and whether it was routed to."""

    model_config = ConfigDict(frozen=True, strict=True)

    weights_sha256: str
    routed: bool


class Choice(BaseModel):
    """What is kept of a name: the chosen version ('': none), the override of the gate for it, which versions
    were the default before, and which one passes the gate as the first one."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    version: str = ""
    override: Override | None = None
    served: dict[str, FormerDefault] = {}
    first: str = ""


NONE = Choice()


class DefaultChoices:
    """Choices by name, in `defaults.json`; `overrides.jsonl` has a line for every override, every one taken
    back, every way back, and only grows.

    Kept on the event loop; only `read`, `save` and `write` touch the disk, in a thread, one at a time.
    `unsaved`: something changed that nobody waits for; `moved` has the names of which other edges do not know
    it yet.
    """

    def __init__(self, folder: Path, dirs: Sequence[Path]) -> None:
        self._file, self._book = folder / "defaults.json", folder / "overrides.jsonl"
        self._dirs = [str(d) for d in dirs]
        self._choices: dict[str, Choice] = {}
        self._ways_back: list[Override] = []  # to be written with the next choice
        self.unsaved, self.moved = False, set[str]()

    def read(self) -> None:
        """Read the file; what is damaged counts as not there, and the log says so."""
        try:
            for name, value in dict(json.loads(self._file.read_bytes())["defaults"]).items():
                try:
                    self._choices[name] = choice_of(value)
                except ValueError as error:
                    log.warning("the default version of %s set earlier is lost: %s", name, error)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("default versions set earlier are lost: %s cannot be used (%s)", self._file, error)

    def get(self, name: str) -> Choice:
        """What is kept of `name`."""
        return self._choices.get(name, NONE)

    def entries(self) -> dict[str, Any]:
        """All that is kept, by name, as JSON has it."""
        return {name: choice.model_dump(mode="json") for name, choice in self._choices.items()}

    def with_default(self, name: str, version: str = "", override: Override | None = None) -> Choice:
        """What is kept of `name`, with the choice of another version, or of none; `save` and `take` it.

        An override of the gate holds until another version is chosen, or the same one without it.
        """
        return self.get(name).model_copy(update={"version": version, "override": override})

    def save(self, name: str, choice: Choice) -> None:
        """Write down a choice. Blocks. Raises NotSaved."""
        held, override = self.get(name).override, choice.override
        back, self._ways_back = self._ways_back, []
        lines = [("not overruled: went back", entry) for entry in back]
        if held is not None and held != override:
            lines.append(("no longer overruled", held))
        if override is not None and held != override:
            lines.append(("overruled", override))
        try:
            for action, entry in lines:
                self._note(action, name, entry)
            self._write({**self._choices, name: choice})
        except OSError as error:
            with suppress(OSError):
                for action, entry in lines:
                    self._note(f"not saved: {action}", name, entry)
            what = f"{name}@{choice.version}" if choice.version else f"of {name}"
            log.warning("default %s is not set: cannot write %s (%s)", what, self._file, error)
            raise NotSaved(f"cannot write {self._file} ({error})") from error

    def take(self, name: str, choice: Choice) -> None:
        """It holds from now on."""
        self._choices[name] = choice
        if choice == NONE:
            del self._choices[name]

    def write(self) -> None:
        """The file alone, on the disk; blocks. Raises OSError."""
        self._write({**self._choices})

    def _write(self, choices: dict[str, Choice]) -> None:
        kept = {name: choice.model_dump(mode="json") for name, choice in choices.items() if choice != NONE}
        document = {"format": 2, "adapters_dirs": self._dirs, "defaults": kept}
        write_atomically(self._file, json.dumps(document, indent=1, sort_keys=True).encode())

    def _note(self, action: str, name: str, override: Override) -> None:
        """Add a line to the book and to the log."""
        log.warning(
            "gate of %s@%s %s (by %s: %s); it found: %s",
            *(name, override.version, action, override.by, override.reason or "no reason given"),
            override.finding,
        )
        entry = {"time": time.time(), "action": action, "adapter": name, "override": asdict(override)}
        append_durably(self._book, json.dumps(entry))

    def note_first(self, name: str, version: str) -> None:
        """Remember the version that passes as the first one, across restarts and at other edges."""
        if self.get(name).first != version:
            self._update(name, first=version)

    def replaced(self, name: str, version: str, former: FormerDefault) -> None:
        """It was the default until now."""
        served = {of: one for of, one in self.get(name).served.items() if of != version}
        self._update(name, served=dict([*served.items(), (version, former)][-MOST_SERVED:]))

    def went_back(self, entry: Override) -> None:
        """A default that did not pass, allowed without force: for the record, once the choice is saved."""
        self._ways_back.append(entry)

    def agree(self, name: str, entry: Any) -> None:
        """Take over what another edge's `entry` says; None: there is none. Raises ValueError for a damaged
        one, and changes nothing."""
        own, theirs = self.get(name), NONE if entry is None else choice_of(entry)
        served = {of: one for of, one in theirs.served.items() if of not in own.served or one.weights_sha256}
        both = {"served": {**own.served, **served}, "first": theirs.first or own.first}
        agreed = theirs.model_copy(update=both)
        if agreed != own:
            self.take(name, agreed)
            self.unsaved = True

    def _update(self, name: str, **changes: Any) -> None:
        self._choices[name] = self.get(name).model_copy(update=changes)
        self.unsaved = True
        self.moved.add(name)


def choice_of(value: Any) -> Choice:
    """As it was written. Raises ValueError for anything else."""
    try:
        return Choice.model_validate_json(json.dumps(value))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
