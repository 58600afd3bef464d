from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("protocol", "version", "base", "oldest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    base: EngineBase
    oldest: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., base: _Optional[_Union[EngineBase, _Mapping]] = ..., oldest: _Optional[int] = ...) -> None: ...

class EngineBase(_message.Message):
    __slots__ = ("name", "digest", "architecture", "dtype", "device", "context_length", "vocab_size", "sites", "size_bytes", "kernels", "weights", "abilities", "chat_template", "tool_form")
    class Site(_message.Message):
        __slots__ = ("path", "out_features", "in_features")
        PATH_FIELD_NUMBER: _ClassVar[int]
        OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
        IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
        path: str
        out_features: int
        in_features: int
        def __init__(self, path: _Optional[str] = ..., out_features: _Optional[int] = ..., in_features: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ABILITIES_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    architecture: str
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    sites: _containers.RepeatedCompositeFieldContainer[EngineBase.Site]
    size_bytes: int
    kernels: str
    weights: str
    abilities: _containers.RepeatedScalarFieldContainer[str]
    chat_template: bool
    tool_form: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., sites: _Optional[_Iterable[_Union[EngineBase.Site, _Mapping]]] = ..., size_bytes: _Optional[int] = ..., kernels: _Optional[str] = ..., weights: _Optional[str] = ..., abilities: _Optional[_Iterable[str]] = ..., chat_template: _Optional[bool] = ..., tool_form: _Optional[bool] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("edge", "commands")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    edge: str
    commands: _containers.RepeatedCompositeFieldContainer[EngineCommand]
    def __init__(self, edge: _Optional[str] = ..., commands: _Optional[_Iterable[_Union[EngineCommand, _Mapping]]] = ...) -> None: ...

class EngineCommand(_message.Message):
    __slots__ = ("key", "submit", "read", "compile", "load", "cancel", "drain")
    class Submit(_message.Message):
        __slots__ = ("request_id", "tokens", "sampling", "adapter", "seconds_left", "priority", "background", "tenant", "share", "own_constraint", "shared", "labels")
        REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        SAMPLING_FIELD_NUMBER: _ClassVar[int]
        ADAPTER_FIELD_NUMBER: _ClassVar[int]
        SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
        PRIORITY_FIELD_NUMBER: _ClassVar[int]
        BACKGROUND_FIELD_NUMBER: _ClassVar[int]
        TENANT_FIELD_NUMBER: _ClassVar[int]
        SHARE_FIELD_NUMBER: _ClassVar[int]
        OWN_CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
        SHARED_FIELD_NUMBER: _ClassVar[int]
        LABELS_FIELD_NUMBER: _ClassVar[int]
        request_id: str
        tokens: _containers.RepeatedScalarFieldContainer[int]
        sampling: EngineSampling
        adapter: EngineCommand.Load
        seconds_left: float
        priority: int
        background: bool
        tenant: str
        share: float
        own_constraint: bool
        shared: int
        labels: EngineCommand.Labels
        def __init__(self, request_id: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[EngineSampling, _Mapping]] = ..., adapter: _Optional[_Union[EngineCommand.Load, _Mapping]] = ..., seconds_left: _Optional[float] = ..., priority: _Optional[int] = ..., background: _Optional[bool] = ..., tenant: _Optional[str] = ..., share: _Optional[float] = ..., own_constraint: _Optional[bool] = ..., shared: _Optional[int] = ..., labels: _Optional[_Union[EngineCommand.Labels, _Mapping]] = ...) -> None: ...
    class Labels(_message.Message):
        __slots__ = ("temperature",)
        TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
        temperature: float
        def __init__(self, temperature: _Optional[float] = ...) -> None: ...
    class Read(_message.Message):
        __slots__ = ("tokens", "context", "depth", "ends", "seconds_left", "background")
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        CONTEXT_FIELD_NUMBER: _ClassVar[int]
        DEPTH_FIELD_NUMBER: _ClassVar[int]
        ENDS_FIELD_NUMBER: _ClassVar[int]
        SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
        BACKGROUND_FIELD_NUMBER: _ClassVar[int]
        tokens: _containers.RepeatedScalarFieldContainer[int]
        context: _containers.RepeatedScalarFieldContainer[int]
        depth: float
        ends: int
        seconds_left: float
        background: bool
        def __init__(self, tokens: _Optional[_Iterable[int]] = ..., context: _Optional[_Iterable[int]] = ..., depth: _Optional[float] = ..., ends: _Optional[int] = ..., seconds_left: _Optional[float] = ..., background: _Optional[bool] = ...) -> None: ...
    class Compile(_message.Message):
        __slots__ = ("constraint", "tenant")
        CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
        TENANT_FIELD_NUMBER: _ClassVar[int]
        constraint: EngineConstraint
        tenant: str
        def __init__(self, constraint: _Optional[_Union[EngineConstraint, _Mapping]] = ..., tenant: _Optional[str] = ...) -> None: ...
    class Load(_message.Message):
        __slots__ = ("digest", "folder", "parts")
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        FOLDER_FIELD_NUMBER: _ClassVar[int]
        PARTS_FIELD_NUMBER: _ClassVar[int]
        digest: str
        folder: str
        parts: _containers.RepeatedCompositeFieldContainer[EngineCommand.Part]
        def __init__(self, digest: _Optional[str] = ..., folder: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[EngineCommand.Part, _Mapping]]] = ...) -> None: ...
    class Part(_message.Message):
        __slots__ = ("digest", "weight", "folder")
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        WEIGHT_FIELD_NUMBER: _ClassVar[int]
        FOLDER_FIELD_NUMBER: _ClassVar[int]
        digest: str
        weight: float
        folder: str
        def __init__(self, digest: _Optional[str] = ..., weight: _Optional[float] = ..., folder: _Optional[str] = ...) -> None: ...
    class Cancel(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Drain(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    key: int
    submit: EngineCommand.Submit
    read: EngineCommand.Read
    compile: EngineCommand.Compile
    load: EngineCommand.Load
    cancel: EngineCommand.Cancel
    drain: EngineCommand.Drain
    def __init__(self, key: _Optional[int] = ..., submit: _Optional[_Union[EngineCommand.Submit, _Mapping]] = ..., read: _Optional[_Union[EngineCommand.Read, _Mapping]] = ..., compile: _Optional[_Union[EngineCommand.Compile, _Mapping]] = ..., load: _Optional[_Union[EngineCommand.Load, _Mapping]] = ..., cancel: _Optional[_Union[EngineCommand.Cancel, _Mapping]] = ..., drain: _Optional[_Union[EngineCommand.Drain, _Mapping]] = ...) -> None: ...

class EngineSampling(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed", "stop", "logprobs", "constraint", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: int
    constraint: EngineConstraint
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[int] = ..., constraint: _Optional[_Union[EngineConstraint, _Mapping]] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class EngineConstraint(_message.Message):
    __slots__ = ("kind", "text", "choices")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ..., choices: _Optional[_Iterable[str]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("events", "state")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[EngineEvent]
    state: EngineState
    def __init__(self, events: _Optional[_Iterable[_Union[EngineEvent, _Mapping]]] = ..., state: _Optional[_Union[EngineState, _Mapping]] = ...) -> None: ...

class EngineEvent(_message.Message):
    __slots__ = ("key", "delta", "finished", "error", "numbers", "size", "done")
    class Delta(_message.Message):
        __slots__ = ("text", "tokens", "logprobs")
        TEXT_FIELD_NUMBER: _ClassVar[int]
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        text: str
        tokens: int
        logprobs: _containers.RepeatedCompositeFieldContainer[EngineLogprob]
        def __init__(self, text: _Optional[str] = ..., tokens: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[EngineLogprob, _Mapping]]] = ...) -> None: ...
    class Finished(_message.Message):
        __slots__ = ("reason", "stop", "prompt_tokens", "cached_tokens", "completion_tokens", "queue_time", "time_to_first_token", "total_time", "accepted_draft_tokens", "labels", "labels_calibrated")
        REASON_FIELD_NUMBER: _ClassVar[int]
        STOP_FIELD_NUMBER: _ClassVar[int]
        PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
        COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
        QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
        TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
        TOTAL_TIME_FIELD_NUMBER: _ClassVar[int]
        ACCEPTED_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        LABELS_FIELD_NUMBER: _ClassVar[int]
        LABELS_CALIBRATED_FIELD_NUMBER: _ClassVar[int]
        reason: str
        stop: str
        prompt_tokens: int
        cached_tokens: int
        completion_tokens: int
        queue_time: float
        time_to_first_token: float
        total_time: float
        accepted_draft_tokens: int
        labels: _containers.RepeatedCompositeFieldContainer[EngineEvent.Label]
        labels_calibrated: bool
        def __init__(self, reason: _Optional[str] = ..., stop: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., queue_time: _Optional[float] = ..., time_to_first_token: _Optional[float] = ..., total_time: _Optional[float] = ..., accepted_draft_tokens: _Optional[int] = ..., labels: _Optional[_Iterable[_Union[EngineEvent.Label, _Mapping]]] = ..., labels_calibrated: _Optional[bool] = ...) -> None: ...
    class Label(_message.Message):
        __slots__ = ("text", "probability")
        TEXT_FIELD_NUMBER: _ClassVar[int]
        PROBABILITY_FIELD_NUMBER: _ClassVar[int]
        text: str
        probability: float
        def __init__(self, text: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...
    class Done(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    key: int
    delta: EngineEvent.Delta
    finished: EngineEvent.Finished
    error: EngineError
    numbers: bytes
    size: int
    done: EngineEvent.Done
    def __init__(self, key: _Optional[int] = ..., delta: _Optional[_Union[EngineEvent.Delta, _Mapping]] = ..., finished: _Optional[_Union[EngineEvent.Finished, _Mapping]] = ..., error: _Optional[_Union[EngineError, _Mapping]] = ..., numbers: _Optional[bytes] = ..., size: _Optional[int] = ..., done: _Optional[_Union[EngineEvent.Done, _Mapping]] = ...) -> None: ...

class EngineLogprob(_message.Message):
    __slots__ = ("token", "token_id", "logprob", "top", "bytes")
    class Alternative(_message.Message):
        __slots__ = ("token", "token_id", "logprob", "bytes")
        TOKEN_FIELD_NUMBER: _ClassVar[int]
        TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        token: str
        token_id: int
        logprob: float
        bytes: bytes
        def __init__(self, token: _Optional[str] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., bytes: _Optional[bytes] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    token: str
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[EngineLogprob.Alternative]
    bytes: bytes
    def __init__(self, token: _Optional[str] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[EngineLogprob.Alternative, _Mapping]]] = ..., bytes: _Optional[bytes] = ...) -> None: ...

class EngineError(_message.Message):
    __slots__ = ("kind", "code", "message", "metadata", "violations", "retry_after", "got", "at_least")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class Violation(_message.Message):
        __slots__ = ("field", "description")
        FIELD_FIELD_NUMBER: _ClassVar[int]
        DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
        field: str
        description: str
        def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    kind: str
    code: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    violations: _containers.RepeatedCompositeFieldContainer[EngineError.Violation]
    retry_after: float
    got: int
    at_least: bool
    def __init__(self, kind: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., violations: _Optional[_Iterable[_Union[EngineError.Violation, _Mapping]]] = ..., retry_after: _Optional[float] = ..., got: _Optional[int] = ..., at_least: _Optional[bool] = ...) -> None: ...

class EngineState(_message.Message):
    __slots__ = ("running", "waiting", "reading", "background", "background_dropped", "preemptions", "steps", "idle_seconds", "busy", "failed", "cache_blocks", "block_size", "cache_blocks_free", "prefix_hit_tokens", "prefix_query_tokens", "slots", "host_bytes", "device_adapters", "host_adapters", "flaws", "draining")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_DROPPED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HOST_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    FLAWS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    reading: int
    background: int
    background_dropped: int
    preemptions: int
    steps: int
    idle_seconds: float
    busy: bool
    failed: str
    cache_blocks: int
    block_size: int
    cache_blocks_free: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    slots: int
    host_bytes: int
    device_adapters: _containers.RepeatedScalarFieldContainer[str]
    host_adapters: _containers.RepeatedScalarFieldContainer[str]
    flaws: _containers.RepeatedScalarFieldContainer[str]
    draining: bool
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., reading: _Optional[int] = ..., background: _Optional[int] = ..., background_dropped: _Optional[int] = ..., preemptions: _Optional[int] = ..., steps: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., busy: _Optional[bool] = ..., failed: _Optional[str] = ..., cache_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., cache_blocks_free: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ..., prefix_query_tokens: _Optional[int] = ..., slots: _Optional[int] = ..., host_bytes: _Optional[int] = ..., device_adapters: _Optional[_Iterable[str]] = ..., host_adapters: _Optional[_Iterable[str]] = ..., flaws: _Optional[_Iterable[str]] = ..., draining: _Optional[bool] = ...) -> None: ...
