"""What is served in a soak: adapters of three tenants, a clients file, and all that changes while it runs."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from router.access.clients import hash_of, new_token
from router.registry.format.artifact import digest_of_folder
from tests.registry.tiny import lora_tensors, safetensors, write_adapter
from tests.soak.checks import TEMPLATE
from tests.soak.journal import IN_FORCE_SECONDS, Journal

ROOT = Path(__file__).parents[2]
SHARED, ADMIN, GUEST, ROTATING, BOUNDED = "shared", "admin", "guest", "north-2", "south-2"
PHRASES = ("unpaid invoice", "credit note", "payment reminder")  # of both tenants' billing
VERSIONS = {
    SHARED: ("1.0.0", "2.0.0"),
    "north-billing": ("1.0.0", "2.0.0"),
    "south-billing": ("1.0.0", "2.0.0"),
    "north-legal": ("1.0.0",),
    "south-legal": ("1.0.0",),
}
ALL = tuple((name, version) for name, versions in VERSIONS.items() for version in versions)
TENANTS = {
    "north-1": "north",
    ROTATING: "north",
    "south-1": "south",
    BOUNDED: "south",
    GUEST: "south",
    "ops-1": "ops",
    ADMIN: "ops",
}
ASKING = ("north-1", ROTATING, "south-1", BOUNDED, "ops-1", "north-1", "south-1", GUEST)
PLUGIN = """
from router import hookimpl
from router.routing import Classifier, Scores

class Phrases(Classifier):
    name = "phrases"
    def fit(self, adapters):
        self.phrases = {a.name: a.keywords for a in adapters if a.keywords}
    def classify_batch(self, requests):
        return [self.scores(r.text) for r in requests]
    def scores(self, text):
        found = {name: 1.0 for name, phrases in self.phrases.items() if all(p in text for p in phrases)}
        return Scores(found) if found else None

@hookimpl
def register_classifiers(register):
    register(Phrases())
"""
EXCHANGE = 2  # RENAME_EXCHANGE of <linux/fs.h>
REAL = ("code", "legal", "medical", "translation")  # whose weights real adapters take turns with


class World:
    """A folder with `adapters`, `plugins`, `clients.toml` and the journal. One process may change it."""

    def __init__(self, folder: Path, real: bool = False) -> None:
        self.folder, self.real = folder, real
        self.adapters, self.clients = folder / "adapters", folder / "clients.toml"
        self.journal = Journal(folder / "journal.jsonl")
        self._locks = {ref: asyncio.Lock() for ref in ALL}
        self._tokens: dict[str, list[str]] = {}
        self._globs = {client: _globs(tenant) for client, tenant in TENANTS.items()} | {GUEST: [SHARED]}
        self._generations = itertools.count(1)
        self._bad = itertools.count()

    def lay_out(self) -> None:
        """Everything as it is at the start."""
        for name in ("adapters", "plugins", "state"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "plugins" / "phrases.py").write_text(PLUGIN)
        self.journal.path.touch()
        for number, (name, version) in enumerate(ALL):
            self._make(name, version, self.adapters / f"{name}-{version}", number)
        self._tokens = {client: [new_token(client)] for client in TENANTS}
        for client in TENANTS:
            self._tell(client)
        self.write_clients()
        self.journal.read()
        for name, version in ALL:
            self.journal.confirm(name, version, self.journal.current(name, version).digest)

    def take_over(self) -> None:
        """Go on in another process with what the journal says."""
        self.journal.read()
        self._tokens = {client: [entries[-1].token] for client, entries in self.journal.clients.items()}
        contents = [c for found in self.journal.contents.values() for c in found.values()]
        self._generations = itertools.count(max(c.generation for c in contents) + 1)

    # -- adapters

    def lock(self, name: str, version: str) -> asyncio.Lock:
        """Held by anyone who changes the files of a version."""
        return self._locks[name, version]

    def replace(self, name: str, version: str) -> str:
        """Give a version other files, in one step as the server sees it; returns their digest."""
        place, new = self.adapters / f"{name}-{version}", self.adapters / f".new-{name}-{version}"
        digest = self._make(name, version, new, random.randrange(len(REAL)))
        _exchange(new, place)
        shutil.rmtree(new)
        return digest

    def _make(self, name: str, version: str, folder: Path, choice: int) -> str:
        generation = next(self._generations)
        weights = REAL[choice % len(REAL)] if self.real else "tiny"
        manifest = _manifest(name, version, generation, "" if self.real else TEMPLATE)
        if self.real:
            folder.mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(ROOT / "adapters" / weights / file, folder / file)
            (folder / "adapter.toml").write_text(manifest)
        else:
            write_adapter(folder, None, _tiny_weights(), adapter_toml=manifest)
        digest = digest_of_folder(folder)
        self.journal.begin(name, version, digest, generation, weights)
        return digest

    def drop_bad(self) -> None:
        """One more folder that must harm nobody, of the next kind; the third last one goes."""
        number = next(self._bad)
        old = self.adapters / f"bad-{number - 3}"
        shutil.rmtree(old, ignore_errors=True)
        folder = write_adapter(self.adapters / f"bad-{number}", None, _tiny_weights())
        weights = folder / "adapter_model.safetensors"
        kind = number % 5
        if kind == 0:
            weights.write_bytes(weights.read_bytes()[:100])
        elif kind == 1:
            (folder / "adapter.toml").write_text("[adapter\nname = ")
        elif kind == 2:
            weights.unlink()
        elif kind == 3:
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": {"a": "os"}}')
        else:
            weights.write_bytes(b"\x80\x04cos\nsystem\n.")

    def remove_bad(self) -> None:
        """All of them."""
        for folder in self.adapters.glob("bad-*"):
            shutil.rmtree(folder)

    # -- clients

    def write_clients(self, without: Sequence[str] = (), more: str = "") -> None:
        """The clients file, in one step."""
        new = self.clients.with_suffix(".new")
        new.write_text("".join(self._table(client) for client in TENANTS if client not in without) + more)
        new.chmod(0o600)
        new.replace(self.clients)

    async def change_clients(self) -> None:
        """A new token without a gap, a client that comes or goes, adapters that are hidden or shown, and a
        file that is no file for a moment."""
        self._tokens[ROTATING].append(new_token(ROTATING))
        hides = self._globs[ROTATING] == [SHARED]
        self._globs[ROTATING] = _globs("north") if hides else [SHARED]
        if hides:  # what is shown is told before it is, so that nobody is surprised by an answer
            self._tell(ROTATING, self._tokens[ROTATING][0])
        without = () if hides else (GUEST,)
        self.write_clients(without)
        await asyncio.sleep(IN_FORCE_SECONDS)
        self._tell(ROTATING)  # from now on calls bring the new token
        await asyncio.sleep(IN_FORCE_SECONDS)
        del self._tokens[ROTATING][0]
        self.write_clients(without)
        await asyncio.sleep(IN_FORCE_SECONDS)
        self.write_clients(without, "[[client")
        await asyncio.sleep(IN_FORCE_SECONDS)
        self.write_clients(without)

    async def calm(self) -> None:
        """What was there at the start: no bad folder, all clients, all adapters shown."""
        self.remove_bad()
        self._globs[ROTATING] = _globs("north")
        self._tell(ROTATING)
        self.write_clients()
        await asyncio.sleep(IN_FORCE_SECONDS)

    def _tell(self, client: str, token: str = "") -> None:
        token = token or self._tokens[client][-1]
        self.journal.client(client, TENANTS[client], token, self._globs[client])

    def _table(self, client: str) -> str:
        roles = {ADMIN: ["admin", "observe", "infer"], "ops-1": ["infer", "observe"]}.get(client, ["infer"])
        quota = "max_concurrent = 2\n" if client == BOUNDED else ""
        return (
            f'[[client]]\nid = "{client}"\ntenant = "{TENANTS[client]}"\nroles = {roles}\n{quota}'
            f"token_sha256 = {[hash_of(token) for token in self._tokens[client]]}\n"
            f'adapters = {self._globs[client]}\nexperiments = ["*"]\n\n'
        )


def asked_text(random_: random.Random, client: str) -> str:
    """A prompt for the fake engine; a third of them are for the billing adapter of the caller."""
    number = random_.getrandbits(64)
    if random_.random() < 1 / 3:
        return f"{client} asks {number:016x} of " + " and ".join(PHRASES)
    return f"{client} says {number:016x} and no more"


def _globs(tenant: str) -> list[str]:
    return ["*"] if tenant == "ops" else [SHARED, f"{tenant}-*"]


def _tiny_weights() -> bytes:
    return _TINY


_TINY = safetensors(lora_tensors())


def _manifest(name: str, version: str, generation: int, template: str) -> str:
    lines = [
        "[adapter]",
        f'name = "{name}"',
        f'version = "{version}"',
        f'description = "generation {generation}"',
    ]
    if template:
        said = template.format(name=name, version=version, generation=generation)
        lines += ["[prompt]", f'template = "{said} {{prompt}}"']
    if name.endswith("billing"):
        lines += ["[routing]", f"keywords = [{', '.join(map(_quoted, PHRASES))}]"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _exchange(one: Path, other: Path) -> None:
    """Two folders take each other's name at once; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE):  # -100: AT_FDCWD
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def environment(folder: Path) -> Mapping[str, str]:
    """That of the server: its state stays in the folder."""
    return {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}
