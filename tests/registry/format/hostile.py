"""Adapter folders made to hurt a server, with the code of the refusal that each must get (or none)."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.registry.format.bad_headers import BAD
from tests.registry.tiny import CONFIG, PREFIX, lora_tensors, pack, safetensors, write_adapter

Builder = Callable[[Path], object]
WEIGHTS, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
EVIL = "(([a-z._0-9])+)+$X"


class Bomb:
    """Unpickling it makes the folder's `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def _weights(data: bytes) -> Builder:
    return lambda folder: write_adapter(folder, weights=data)


def _config(**changes: object) -> Builder:
    return lambda folder: write_adapter(folder, changes)


def _raw_config(data: bytes) -> Builder:
    return lambda folder: (write_adapter(folder) / CONFIG_FILE).write_bytes(data)


def _file(**files: str | bytes) -> Builder:
    return lambda folder: write_adapter(folder, **files)


def _sparse(folder: Path, size: int = 1 << 40) -> None:
    write_adapter(folder)
    rows = size // 64
    header = json.dumps(
        {f"{PREFIX}x.lora_A.weight": {"dtype": "F32", "shape": [rows, 16], "data_offsets": [0, size]}}
    )
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)


def _sparse_header(folder: Path) -> None:
    with (write_adapter(folder) / WEIGHTS).open("wb") as file:
        file.write((1 << 39).to_bytes(8, "little"))
        file.truncate(1 << 40)


def _pickle(folder: Path) -> None:
    (write_adapter(folder) / WEIGHTS).write_bytes(pickle.dumps(Bomb(folder / "marker")))


def _pickle_bin(folder: Path) -> None:
    (write_adapter(folder) / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(folder / "marker")))


def _torch_zip(folder: Path) -> None:
    write_adapter(folder)
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(folder / "marker")))


def _linked(name: str) -> Builder:
    def build(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        (write_adapter(folder) / name).rename(outside / name)
        (folder / name).symlink_to(outside / name)

    return build


def _linked_folder(folder: Path) -> None:
    folder.symlink_to(write_adapter(folder.parent / "outside"))


def _linked_subfolder(folder: Path) -> None:
    folder.mkdir()
    (folder / "inner").symlink_to(write_adapter(folder.parent / "outside"))


def _replaced(name: str, make: Callable[[Path], object]) -> Builder:
    def build(folder: Path) -> None:
        (write_adapter(folder) / name).unlink()
        make(folder / name)

    return build


def _values(value: float, dtype: str = "<f4") -> Builder:
    def build(folder: Path) -> None:
        tensors = {name: t.astype(dtype) for name, t in lora_tensors().items()}
        list(tensors.values())[-1][-1, -1] = value
        write_adapter(folder, weights=safetensors(tensors))

    return build


def _many_tensors(folder: Path, count: int) -> None:
    entry = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}
    spans = [[2 * i, 2 * i + 2] for i in range(count)]
    header = {f"a.b.c{i}.lora_A.weight": {**entry, "data_offsets": span} for i, span in enumerate(spans)}
    write_adapter(folder, weights=pack(header, b"\0\0" * count))


def _huge_header(folder: Path) -> None:
    header = b'{"a":' + b" " * 84_000_000 + b"{}}"
    write_adapter(folder, weights=pack(header))


def _many_files(folder: Path) -> None:
    write_adapter(folder)
    for number in range(1_001):
        os.close(os.open(folder / f"f{number}", os.O_CREAT))


def _keys(count: int) -> bytes:
    return json.dumps(dict.fromkeys(map(str, range(count)))).encode()


def _many_folders(folder: Path) -> None:
    for number in range(1_000):
        (folder / f"f{number}").mkdir(parents=True)


def _long_names(folder: Path) -> None:
    names = [f"{PREFIX}{'model.layers.' * 2_000}{i}.lora_A.weight" for i in range(30)]
    write_adapter(folder, weights=safetensors({name: np.ones((4, 16), "<f4") for name in names}))


FOLDERS: dict[str, tuple[Builder, str]] = {
    **{f"header: {name}": (_weights(data), code) for name, (data, code) in BAD.items() if data},
    "sparse tensor of 1 TB": (_sparse, "weights-sparse"),
    "sparse tensor of 1 MB": (lambda folder: _sparse(folder, 1 << 20), "weights-sparse"),
    "sparse header": (_sparse_header, "weights-sparse"),
    "header of 84 MB": (_huge_header, "header-too-large"),
    "4,096 strange tensors": (lambda folder: _many_tensors(folder, 4_096), "keys-unmatched"),
    "9,000 tensors": (lambda folder: _many_tensors(folder, 9_000), "header-invalid"),
    "14,000 tensors": (lambda folder: _many_tensors(folder, 14_000), "header-too-large"),
    "names of 26 KB": (_long_names, "keys-unmatched"),
    "pickle as safetensors": (_pickle, "header-invalid"),
    "PyTorch file as safetensors": (_torch_zip, "header-invalid"),
    "pickle .bin": (_pickle_bin, "pickle-weights"),
    "NaN": (_values(np.nan), "not-finite"),
    "infinity": (_values(-np.inf), "not-finite"),
    "NaN in half precision": (_values(np.nan, "<f2"), "not-finite"),
    "weights linked": (_linked(WEIGHTS), "file-not-regular"),
    "configuration linked": (_linked(CONFIG_FILE), "file-not-regular"),
    "folder linked": (_linked_folder, "folder-unreadable"),
    "subfolder linked": (_linked_subfolder, "no-adapter"),
    "link to itself": (_replaced(WEIGHTS, lambda p: p.symlink_to(p)), "file-not-regular"),
    "link to a device": (_replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "file-not-regular"),
    "pipe as weights": (_replaced(WEIGHTS, os.mkfifo), "file-not-regular"),
    "pipe as configuration": (_replaced(CONFIG_FILE, os.mkfifo), "file-not-regular"),
    "folder as weights": (_replaced(WEIGHTS, Path.mkdir), "file-not-regular"),
    "1,003 files": (_many_files, "folder-unreadable"),
    "regex in rank_pattern": (_config(rank_pattern={EVIL: 4}), "config-pattern"),
    "regex in alpha_pattern": (_config(alpha_pattern={EVIL: 4}), "config-pattern"),
    "regex in layers_pattern": (_config(layers_pattern=[EVIL], layers_to_transform=[0]), ""),
    "regex in target_modules": (_config(target_modules=EVIL), ""),
    "regex in exclude_modules": (_config(exclude_modules=EVIL), ""),
    "regex in modules_to_save": (_config(modules_to_save=[EVIL]), "config-unsupported"),
    "regex of 1 MB": (_config(target_modules="(a+)+" * 200_000), ""),
    "4,096 targets": (_config(target_modules=[f"m.{i}" for i in range(4_096)]), "weights-without-target"),
    "4,096 patterns": (_config(rank_pattern={f"q.{i}": 4 for i in range(4_096)}), ""),
    "4,097 patterns": (_config(rank_pattern={f"q.{i}": 4 for i in range(4_097)}), "config-value"),
    "module in megatron_core": (_config(megatron_core="evil"), "config-unsupported"),
    "module in auto_mapping": (
        _config(auto_mapping={"base_model_class": "x", "parent_library": "evil"}),
        "config-unsupported",
    ),
    "configuration of 2 MB": (_raw_config(b"{" + b" " * (2 << 20) + b"}"), "file-too-large"),
    "configuration nested": (_raw_config(b'{"a":' * 100_000), "config-syntax"),
    "configuration of keys": (_raw_config(_keys(60_000)), "peft-type"),
    "configuration of numbers": (_raw_config(b'{"a":[' + b"1.5," * 250_000 + b"1]}"), "peft-type"),
    "1,000 subfolders": (_many_folders, "no-adapter"),
    "configuration of lists": (_raw_config(b"[" + b"[]," * 300_000 + b"[]]"), "config-syntax"),
    "huge number": (_raw_config(b'{"r": ' + b"9" * 900_000 + b"}"), "config-syntax"),
    "duplicate keys": (_raw_config(b'{"r": 4,' + json.dumps(CONFIG).encode()[1:]), "config-syntax"),
    "rank of 2^40": (_config(r=1 << 40), "config-value"),
    "name with ../": (_file(adapter_toml="[adapter]\nname = '../../etc'"), "manifest-value"),
    "version with /": (_file(adapter_toml="[adapter]\nversion = '../1'"), "manifest-value"),
    "manifest with deep keys": (_file(adapter_toml=b"a." * 100_000 + b"a = 1"), "manifest-syntax"),
    "manifest of 1 MB": (_file(adapter_toml=b"#" * (1 << 20)), "file-too-large"),
    "probes of 2 MB": (_file(probes_jsonl=b"\n" * (2 << 20)), "file-too-large"),
    "300,000 probes": (_file(probes_jsonl=b"{}\n" * 300_000), "probe-invalid"),
    "tokenizer of junk": (_file(tokenizer_json=b'"added_tokens":' + b"[" * 400_000), ""),
}  # fmt: skip
