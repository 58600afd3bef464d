import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Adapter(_message.Message):
    __slots__ = ("name", "version", "digest", "domain", "task", "description", "base_model", "rank", "target_modules", "size_bytes", "state", "default", "pinned", "leases", "last_used", "error", "notes", "etag", "routable", "routing", "gate", "gate_advice", "override", "invocation_tokens", "built_in")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Adapter.State]
        STATE_DISCOVERED: _ClassVar[Adapter.State]
        STATE_LOADING: _ClassVar[Adapter.State]
        STATE_READY: _ClassVar[Adapter.State]
        STATE_OFFLOADED: _ClassVar[Adapter.State]
        STATE_QUARANTINED: _ClassVar[Adapter.State]
    STATE_UNSPECIFIED: Adapter.State
    STATE_DISCOVERED: Adapter.State
    STATE_LOADING: Adapter.State
    STATE_READY: Adapter.State
    STATE_OFFLOADED: Adapter.State
    STATE_QUARANTINED: Adapter.State
    class Override(_message.Message):
        __slots__ = ("by", "time", "reason", "finding", "weights_sha256")
        BY_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        FINDING_FIELD_NUMBER: _ClassVar[int]
        WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
        by: str
        time: _timestamp_pb2.Timestamp
        reason: str
        finding: str
        weights_sha256: str
        def __init__(self, by: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., finding: _Optional[str] = ..., weights_sha256: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ROUTABLE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    GATE_ADVICE_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUILT_IN_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    digest: str
    domain: str
    task: str
    description: str
    base_model: str
    rank: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    state: Adapter.State
    default: bool
    pinned: bool
    leases: int
    last_used: _timestamp_pb2.Timestamp
    error: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    etag: str
    routable: bool
    routing: str
    gate: str
    gate_advice: str
    override: Adapter.Override
    invocation_tokens: _containers.RepeatedScalarFieldContainer[int]
    built_in: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., domain: _Optional[str] = ..., task: _Optional[str] = ..., description: _Optional[str] = ..., base_model: _Optional[str] = ..., rank: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., state: _Optional[_Union[Adapter.State, str]] = ..., default: _Optional[bool] = ..., pinned: _Optional[bool] = ..., leases: _Optional[int] = ..., last_used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., etag: _Optional[str] = ..., routable: _Optional[bool] = ..., routing: _Optional[str] = ..., gate: _Optional[str] = ..., gate_advice: _Optional[str] = ..., override: _Optional[_Union[Adapter.Override, _Mapping]] = ..., invocation_tokens: _Optional[_Iterable[int]] = ..., built_in: _Optional[bool] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "domain", "task")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    domain: str
    task: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., domain: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter", "freed_bytes")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    freed_bytes: int
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

class SetDefaultVersionRequest(_message.Message):
    __slots__ = ("name", "etag", "force", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    force: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., force: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SetDefaultVersionResponse(_message.Message):
    __slots__ = ("adapter", "previous")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    previous: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., previous: _Optional[str] = ...) -> None: ...

class ResetDefaultVersionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResetDefaultVersionResponse(_message.Message):
    __slots__ = ("adapter", "previous")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    previous: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., previous: _Optional[str] = ...) -> None: ...

class WatchAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchAdaptersResponse(_message.Message):
    __slots__ = ("kind", "adapter", "time")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[WatchAdaptersResponse.Kind]
        KIND_ADDED: _ClassVar[WatchAdaptersResponse.Kind]
        KIND_CHANGED: _ClassVar[WatchAdaptersResponse.Kind]
        KIND_REMOVED: _ClassVar[WatchAdaptersResponse.Kind]
    KIND_UNSPECIFIED: WatchAdaptersResponse.Kind
    KIND_ADDED: WatchAdaptersResponse.Kind
    KIND_CHANGED: WatchAdaptersResponse.Kind
    KIND_REMOVED: WatchAdaptersResponse.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    kind: WatchAdaptersResponse.Kind
    adapter: Adapter
    time: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[_Union[WatchAdaptersResponse.Kind, str]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListPluginsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPluginsResponse(_message.Message):
    __slots__ = ("plugins",)
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    def __init__(self, plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "source", "file", "version", "digest", "enabled", "error", "warnings", "package", "built_in", "classifiers", "hooks")
    class Classifier(_message.Message):
        __slots__ = ("name", "priority", "timeout_ms", "state", "breaker", "requests", "errors", "problem")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PRIORITY_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        BREAKER_FIELD_NUMBER: _ClassVar[int]
        REQUESTS_FIELD_NUMBER: _ClassVar[int]
        ERRORS_FIELD_NUMBER: _ClassVar[int]
        PROBLEM_FIELD_NUMBER: _ClassVar[int]
        name: str
        priority: int
        timeout_ms: int
        state: str
        breaker: str
        requests: int
        errors: int
        problem: str
        def __init__(self, name: _Optional[str] = ..., priority: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., state: _Optional[str] = ..., breaker: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    BUILT_IN_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIERS_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    file: str
    version: str
    digest: str
    enabled: bool
    error: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    package: str
    built_in: bool
    classifiers: _containers.RepeatedCompositeFieldContainer[Plugin.Classifier]
    hooks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., file: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., enabled: _Optional[bool] = ..., error: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., package: _Optional[str] = ..., built_in: _Optional[bool] = ..., classifiers: _Optional[_Iterable[_Union[Plugin.Classifier, _Mapping]]] = ..., hooks: _Optional[_Iterable[str]] = ...) -> None: ...
