"""Settings: flag > LORA_ROUTER_* environment > lora-router.toml > default.

No setting is called port or host: Kubernetes sets NAME_PORT for every Service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

CONFIG_FILE = "lora-router.toml"
MOST_FOUND = 16  # replicas of DNS names, for the bound on the streams of one connection
FLUSH_SECONDS = 5.0  # of a shutdown: experiments write what is queued
REST_SECONDS = 3.0  # of a shutdown: the engine's end and what only takes moments


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix="LORA_ROUTER_", toml_file=CONFIG_FILE, extra="forbid", frozen=True
    )

    listen: str = Field("127.0.0.1:50051", description="gRPC address, HOST:PORT")
    http_listen: str = Field(
        "127.0.0.1:8000",
        description="HTTP address of OpenAI's API and the console, HOST:PORT; empty: off. The default is not "
        "taken where something else listens",
    )
    http_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose pages may call OpenAI's API from a browser (CORS): comma list of "
        "SCHEME://HOST[:PORT], or * where `clients` is set; empty: none",
    )
    metrics_listen: str = Field(
        "127.0.0.1:9464", description="HTTP address of metrics and probes; empty: off"
    )
    http_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names by which HTTP, console and metrics are reached beside their address (comma list)",
    )
    clients: Path | None = Field(
        None,
        description="file of the clients that may call; read again when it changes; none: anyone may call",
    )
    audit: Path | None = Field(
        None,
        description="file that gets a line for every administrative call and every refusal; none: no file",
    )
    tls_cert: Path | None = Field(None, description="certificate chain of the server (PEM); none: plain text")
    tls_key: Path | None = Field(None, description="private key of `tls_cert` (PEM)")
    tls_client_ca: Path | None = Field(
        None, description="clients must show a certificate of this CA (PEM); none: no certificate is needed"
    )
    engine: str = Field("torch", description="what runs the base: torch (our own engine) or a plugin's")
    model: str = Field("smollm2-135m-instruct", description="base model: the default, a folder or a hub id")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="serving dtype")
    quantize: Literal["none", "int8", "int4"] = Field(
        "none", description="weights of the linear layers: none (as dtype says), int8 or int4"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    native: bool = Field(True, description="use the fused native operations where they build")
    native_dir: str = Field(
        "", description="folder of native operations built ahead; nothing is compiled then"
    )
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: all cores")
    max_running: int = Field(32, ge=1, le=1024, description="requests in one step")
    max_queue: int = Field(256, ge=0, description="requests that wait for a place; more are refused")
    max_step_tokens: int = Field(512, ge=16, description="tokens in one step; longer prompts go in chunks")
    max_context: int = Field(0, ge=0, description="tokens of prompt and answer; 0: the base's own limit")
    cache_tokens: Annotated[int, Field(ge=256)] | Literal["auto"] = Field(
        "auto",
        description="tokens of the KV cache, which running requests share; auto: 32768, on CUDA what fits",
    )
    stall_seconds: float = Field(
        10.0,
        gt=0,
        description="seconds without a step, with work queued, after which the server is NOT_SERVING",
    )
    adapters_dir: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="adapter folders, watched; default ./adapters and the built-in ones"
    )
    plugins_dir: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="plugin folders, watched; default ./plugins and the built-in ones"
    )
    bare: bool = Field(
        False, description="leave out the built-in adapters, and the built-in plugins where ./plugins exists"
    )
    load_plugins: str | None = Field(
        None, description="load only these plugin files (comma list; empty: none)"
    )
    installed_plugins: str = Field(
        "", description="plugins of installed packages to load (comma list: NAME or PACKAGE:NAME)"
    )
    slots: int = Field(32, ge=1, le=4096, description="adapters on the device at once")
    max_rank: int = Field(64, ge=1, le=512, description="largest LoRA rank accepted")
    host_memory_mb: int = Field(2048, ge=16, description="host memory for adapter weights")
    gate: Literal["replacements", "strict", "off"] = Field(
        "replacements",
        description="which versions need a report with a gain, or a won experiment, to be routed to: "
        "replacements of one that serves; strict: all, by a report; off: none",
    )
    require_signed: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="minisign public keys of adapters (comma list of files or base64); empty: any adapter"
    )
    adapters_lock: str = Field("", description="file that lists digests of adapters; empty: any adapter")
    abstain_threshold: float = Field(
        0.5, ge=0, le=1, description="confidence a classifier needs to route, without a calibration"
    )
    calibration: str = Field(
        "auto", description="calibration file; auto: calibration.json in an adapters folder; empty: none"
    )
    replicas: int = Field(
        0, ge=0, le=1024, description="engines in processes of their own; 0: one, in this process"
    )
    replica_addresses: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="replicas that others start (`lora-router replica`), comma list of HOST:PORT and "
        "dns:///HOST:PORT; empty: none",
    )
    replica_secret: SecretStr | None = Field(
        None, description="secret that edges and replicas share (`replica_addresses`); is never shown"
    )
    replica_tls_ca: Path | None = Field(
        None, description="CA of the replicas' certificates (PEM); none: plain text"
    )
    replica_tls_cert: Path | None = Field(
        None, description="certificate that an edge shows replicas (PEM), by a CA of their tls_client_ca"
    )
    replica_tls_key: Path | None = Field(None, description="private key of `replica_tls_cert` (PEM)")
    replica_tls_name: str = Field(
        "", description="name in the replicas' certificates; empty: the host of their address"
    )
    database: str = Field(
        "",
        description="URL of the database of experiments and feedback, and of what edges share: "
        "postgresql://... or sqlite:///FILE; empty: SQLite files in the state folder",
    )
    max_tokens_limit: int = Field(4096, ge=1, description="largest max_tokens accepted")
    max_body_bytes: int = Field(
        2 << 20, ge=1 << 16, le=64 << 20, description="largest message of an inference request, in bytes"
    )
    max_deadline_seconds: float = Field(600.0, gt=0, description="deadline of requests without one")
    lame_duck_seconds: float = Field(
        1.0, ge=0, description="time between NOT_SERVING and the first refusal at shutdown"
    )
    drain_seconds: float = Field(20.0, ge=0, description="time running requests get at shutdown")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")

    _tables: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def tables(self) -> Mapping[str, Any]:
        """The settings of plugins by the plugin's name (`router.plugins.tables.Table`)."""
        return self._tables

    def with_tables(self, tables: Mapping[str, Any]) -> Self:
        """The same with those settings of plugins."""
        found = self.model_copy()
        found._tables = tables
        return found

    @property
    def shutdown_seconds(self) -> float:
        """After so long a process that was asked to end is gone: the parts, and some time for the rest."""
        return self.lame_duck_seconds + self.drain_seconds + FLUSH_SECONDS + REST_SECONDS

    @model_validator(mode="after")
    def _certificates_are_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Least and most replicas; both 0 for an engine in this process. Of a DNS name one is counted."""
        found = len(self.replica_addresses)
        if any(address.startswith("dns:") for address in self.replica_addresses):
            return found, MOST_FOUND
        return (found, found) if found else (self.replicas, self.replicas)

    @field_validator("http_origins")
    @classmethod
    def _origins_are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: write SCHEME://HOST[:PORT], such as https://a.example"
                )
        return value

    @model_validator(mode="after")
    def _any_origin_needs_clients(self) -> Self:
        if "*" in self.http_origins and self.clients is None:
            raise ValueError(
                "http_origins: * lets every page that is open on this machine call: set clients, too"
            )
        return self

    @model_validator(mode="after")
    def _replicas_have_a_place(self) -> Self:
        least, _ = self.replica_bounds
        if self.replica_addresses and self.replicas:
            raise ValueError("replicas are started here, replica_addresses are started by others: give one")
        if (self.replica_tls_cert is None) != (self.replica_tls_key is None):
            raise ValueError("replica_tls_cert and replica_tls_key go together")
        number = self.device.partition(":")[2]
        if least and number:
            raise ValueError(f"device {self.device} is one device, and replicas have one each: say cuda")
        return self

    @field_validator("adapters_dir", "plugins_dir", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """The environment gives folders as one string, separated like PATH."""
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("require_signed", "http_hosts", "http_origins", "replica_addresses", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        """The environment and `--set` give a list as one string."""
        if not isinstance(value, str):
            return value
        return tuple(filter(None, map(str.strip, value.split(","))))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of strength; dotenv and secret files are not read."""
        return init_settings, env_settings, _FlatSettings(settings_cls)


class _FlatSettings(TomlConfigSettingsSource):
    """The settings file without its tables, which are for plugins."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if not isinstance(value, dict)}
