import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OutcomeStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_STATUS_UNSPECIFIED: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_COUNTED: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_DUPLICATE: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_LATE: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_UNKNOWN: _ClassVar[OutcomeStatus]
    OUTCOME_STATUS_INVALID: _ClassVar[OutcomeStatus]
OUTCOME_STATUS_UNSPECIFIED: OutcomeStatus
OUTCOME_STATUS_COUNTED: OutcomeStatus
OUTCOME_STATUS_DUPLICATE: OutcomeStatus
OUTCOME_STATUS_LATE: OutcomeStatus
OUTCOME_STATUS_UNKNOWN: OutcomeStatus
OUTCOME_STATUS_INVALID: OutcomeStatus

class Experiment(_message.Message):
    __slots__ = ("name", "hypothesis", "route", "arms", "control", "primary", "guardrails", "mode", "unit", "unit_label", "enrolment", "namespace", "slot", "margin", "alpha", "planned_units", "min_units", "min_matured", "window", "shadow_share", "state", "phases", "create_time", "update_time", "stop_time", "stop_reason", "promoted", "etag", "warnings", "secondary", "segments", "grace", "equal_arms")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[Experiment.Mode]
        MODE_SPLIT: _ClassVar[Experiment.Mode]
        MODE_SHADOW: _ClassVar[Experiment.Mode]
        MODE_HOLDOUT: _ClassVar[Experiment.Mode]
    MODE_UNSPECIFIED: Experiment.Mode
    MODE_SPLIT: Experiment.Mode
    MODE_SHADOW: Experiment.Mode
    MODE_HOLDOUT: Experiment.Mode
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Experiment.State]
        STATE_DRAFT: _ClassVar[Experiment.State]
        STATE_RUNNING: _ClassVar[Experiment.State]
        STATE_STOPPED: _ClassVar[Experiment.State]
    STATE_UNSPECIFIED: Experiment.State
    STATE_DRAFT: Experiment.State
    STATE_RUNNING: Experiment.State
    STATE_STOPPED: Experiment.State
    class Segment(_message.Message):
        __slots__ = ("label", "values")
        LABEL_FIELD_NUMBER: _ClassVar[int]
        VALUES_FIELD_NUMBER: _ClassVar[int]
        label: str
        values: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, label: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...
    class Arm(_message.Message):
        __slots__ = ("name", "weight", "adapter")
        NAME_FIELD_NUMBER: _ClassVar[int]
        WEIGHT_FIELD_NUMBER: _ClassVar[int]
        ADAPTER_FIELD_NUMBER: _ClassVar[int]
        name: str
        weight: float
        adapter: str
        def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., adapter: _Optional[str] = ...) -> None: ...
    class Metric(_message.Message):
        __slots__ = ("name", "kind", "higher_is_better", "aggregate", "per", "covariate", "margin", "relative", "cap", "least", "window", "missing", "improve")
        class Missing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            MISSING_UNSPECIFIED: _ClassVar[Experiment.Metric.Missing]
            MISSING_EXCLUDED: _ClassVar[Experiment.Metric.Missing]
            MISSING_ZERO: _ClassVar[Experiment.Metric.Missing]
        MISSING_UNSPECIFIED: Experiment.Metric.Missing
        MISSING_EXCLUDED: Experiment.Metric.Missing
        MISSING_ZERO: Experiment.Metric.Missing
        class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            KIND_UNSPECIFIED: _ClassVar[Experiment.Metric.Kind]
            KIND_PROPORTION: _ClassVar[Experiment.Metric.Kind]
            KIND_MEAN: _ClassVar[Experiment.Metric.Kind]
            KIND_RATIO: _ClassVar[Experiment.Metric.Kind]
        KIND_UNSPECIFIED: Experiment.Metric.Kind
        KIND_PROPORTION: Experiment.Metric.Kind
        KIND_MEAN: Experiment.Metric.Kind
        KIND_RATIO: Experiment.Metric.Kind
        class Aggregate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            AGGREGATE_UNSPECIFIED: _ClassVar[Experiment.Metric.Aggregate]
            AGGREGATE_SUM: _ClassVar[Experiment.Metric.Aggregate]
            AGGREGATE_MEAN: _ClassVar[Experiment.Metric.Aggregate]
            AGGREGATE_MAX: _ClassVar[Experiment.Metric.Aggregate]
            AGGREGATE_LAST: _ClassVar[Experiment.Metric.Aggregate]
        AGGREGATE_UNSPECIFIED: Experiment.Metric.Aggregate
        AGGREGATE_SUM: Experiment.Metric.Aggregate
        AGGREGATE_MEAN: Experiment.Metric.Aggregate
        AGGREGATE_MAX: Experiment.Metric.Aggregate
        AGGREGATE_LAST: Experiment.Metric.Aggregate
        NAME_FIELD_NUMBER: _ClassVar[int]
        KIND_FIELD_NUMBER: _ClassVar[int]
        HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
        AGGREGATE_FIELD_NUMBER: _ClassVar[int]
        PER_FIELD_NUMBER: _ClassVar[int]
        COVARIATE_FIELD_NUMBER: _ClassVar[int]
        MARGIN_FIELD_NUMBER: _ClassVar[int]
        RELATIVE_FIELD_NUMBER: _ClassVar[int]
        CAP_FIELD_NUMBER: _ClassVar[int]
        LEAST_FIELD_NUMBER: _ClassVar[int]
        WINDOW_FIELD_NUMBER: _ClassVar[int]
        MISSING_FIELD_NUMBER: _ClassVar[int]
        IMPROVE_FIELD_NUMBER: _ClassVar[int]
        name: str
        kind: Experiment.Metric.Kind
        higher_is_better: bool
        aggregate: Experiment.Metric.Aggregate
        per: str
        covariate: bool
        margin: float
        relative: bool
        cap: float
        least: float
        window: _duration_pb2.Duration
        missing: Experiment.Metric.Missing
        improve: bool
        def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[Experiment.Metric.Kind, str]] = ..., higher_is_better: _Optional[bool] = ..., aggregate: _Optional[_Union[Experiment.Metric.Aggregate, str]] = ..., per: _Optional[str] = ..., covariate: _Optional[bool] = ..., margin: _Optional[float] = ..., relative: _Optional[bool] = ..., cap: _Optional[float] = ..., least: _Optional[float] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., missing: _Optional[_Union[Experiment.Metric.Missing, str]] = ..., improve: _Optional[bool] = ...) -> None: ...
    class Phase(_message.Message):
        __slots__ = ("number", "start_time", "end_time", "reason", "enrolment_salt", "variant_salt", "arms", "enrolment")
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        START_TIME_FIELD_NUMBER: _ClassVar[int]
        END_TIME_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        ENROLMENT_SALT_FIELD_NUMBER: _ClassVar[int]
        VARIANT_SALT_FIELD_NUMBER: _ClassVar[int]
        ARMS_FIELD_NUMBER: _ClassVar[int]
        ENROLMENT_FIELD_NUMBER: _ClassVar[int]
        number: int
        start_time: _timestamp_pb2.Timestamp
        end_time: _timestamp_pb2.Timestamp
        reason: str
        enrolment_salt: str
        variant_salt: str
        arms: _containers.RepeatedCompositeFieldContainer[Experiment.Arm]
        enrolment: float
        def __init__(self, number: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., enrolment_salt: _Optional[str] = ..., variant_salt: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Experiment.Arm, _Mapping]]] = ..., enrolment: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESIS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    UNIT_LABEL_FIELD_NUMBER: _ClassVar[int]
    ENROLMENT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    PLANNED_UNITS_FIELD_NUMBER: _ClassVar[int]
    MIN_UNITS_FIELD_NUMBER: _ClassVar[int]
    MIN_MATURED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SHARE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STOP_TIME_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    SECONDARY_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    EQUAL_ARMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    hypothesis: str
    route: str
    arms: _containers.RepeatedCompositeFieldContainer[Experiment.Arm]
    control: str
    primary: Experiment.Metric
    guardrails: _containers.RepeatedCompositeFieldContainer[Experiment.Metric]
    mode: Experiment.Mode
    unit: str
    unit_label: str
    enrolment: float
    namespace: str
    slot: _containers.RepeatedScalarFieldContainer[float]
    margin: float
    alpha: float
    planned_units: int
    min_units: int
    min_matured: float
    window: _duration_pb2.Duration
    shadow_share: float
    state: Experiment.State
    phases: _containers.RepeatedCompositeFieldContainer[Experiment.Phase]
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    stop_time: _timestamp_pb2.Timestamp
    stop_reason: str
    promoted: str
    etag: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    secondary: _containers.RepeatedCompositeFieldContainer[Experiment.Metric]
    segments: _containers.RepeatedCompositeFieldContainer[Experiment.Segment]
    grace: _duration_pb2.Duration
    equal_arms: bool
    def __init__(self, name: _Optional[str] = ..., hypothesis: _Optional[str] = ..., route: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Experiment.Arm, _Mapping]]] = ..., control: _Optional[str] = ..., primary: _Optional[_Union[Experiment.Metric, _Mapping]] = ..., guardrails: _Optional[_Iterable[_Union[Experiment.Metric, _Mapping]]] = ..., mode: _Optional[_Union[Experiment.Mode, str]] = ..., unit: _Optional[str] = ..., unit_label: _Optional[str] = ..., enrolment: _Optional[float] = ..., namespace: _Optional[str] = ..., slot: _Optional[_Iterable[float]] = ..., margin: _Optional[float] = ..., alpha: _Optional[float] = ..., planned_units: _Optional[int] = ..., min_units: _Optional[int] = ..., min_matured: _Optional[float] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., shadow_share: _Optional[float] = ..., state: _Optional[_Union[Experiment.State, str]] = ..., phases: _Optional[_Iterable[_Union[Experiment.Phase, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stop_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stop_reason: _Optional[str] = ..., promoted: _Optional[str] = ..., etag: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., secondary: _Optional[_Iterable[_Union[Experiment.Metric, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[Experiment.Segment, _Mapping]]] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., equal_arms: _Optional[bool] = ...) -> None: ...

class CreateExperimentRequest(_message.Message):
    __slots__ = ("experiment_id", "experiment")
    EXPERIMENT_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment_id: str
    experiment: Experiment
    def __init__(self, experiment_id: _Optional[str] = ..., experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class CreateExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class GetExperimentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class ListExperimentsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListExperimentsResponse(_message.Message):
    __slots__ = ("experiments", "next_page_token")
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    next_page_token: str
    def __init__(self, experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateExperimentRequest(_message.Message):
    __slots__ = ("experiment", "update_mask", "new_phase")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    NEW_PHASE_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    update_mask: _field_mask_pb2.FieldMask
    new_phase: bool
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., new_phase: _Optional[bool] = ...) -> None: ...

class UpdateExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class DeleteExperimentRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DeleteExperimentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartExperimentRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class StartExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class StopExperimentRequest(_message.Message):
    __slots__ = ("name", "etag", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StopExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class PromoteArmRequest(_message.Message):
    __slots__ = ("name", "arm", "etag", "force", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    arm: str
    etag: str
    force: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., arm: _Optional[str] = ..., etag: _Optional[str] = ..., force: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteArmResponse(_message.Message):
    __slots__ = ("experiment", "default_version", "previous_version")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    default_version: str
    previous_version: str
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., default_version: _Optional[str] = ..., previous_version: _Optional[str] = ...) -> None: ...

class RollBackPromotionRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RollBackPromotionResponse(_message.Message):
    __slots__ = ("experiment", "default_version")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VERSION_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    default_version: str
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., default_version: _Optional[str] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("name", "phase")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    name: str
    phase: int
    def __init__(self, name: _Optional[str] = ..., phase: _Optional[int] = ...) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("experiment", "phase", "verdict", "arm", "arms", "checks", "numbers", "audit", "notes", "time", "units_per_day", "missing")
    class Missing(_message.Message):
        __slots__ = ("arm", "control", "treatment", "settled", "lee_low", "lee_high")
        ARM_FIELD_NUMBER: _ClassVar[int]
        CONTROL_FIELD_NUMBER: _ClassVar[int]
        TREATMENT_FIELD_NUMBER: _ClassVar[int]
        SETTLED_FIELD_NUMBER: _ClassVar[int]
        LEE_LOW_FIELD_NUMBER: _ClassVar[int]
        LEE_HIGH_FIELD_NUMBER: _ClassVar[int]
        arm: str
        control: float
        treatment: float
        settled: bool
        lee_low: float
        lee_high: float
        def __init__(self, arm: _Optional[str] = ..., control: _Optional[float] = ..., treatment: _Optional[float] = ..., settled: _Optional[bool] = ..., lee_low: _Optional[float] = ..., lee_high: _Optional[float] = ...) -> None: ...
    class Waiting(_message.Message):
        __slots__ = ("rule", "text", "units")
        RULE_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        UNITS_FIELD_NUMBER: _ClassVar[int]
        rule: str
        text: str
        units: int
        def __init__(self, rule: _Optional[str] = ..., text: _Optional[str] = ..., units: _Optional[int] = ...) -> None: ...
    class SegmentReport(_message.Message):
        __slots__ = ("label", "effects", "p", "differ")
        LABEL_FIELD_NUMBER: _ClassVar[int]
        EFFECTS_FIELD_NUMBER: _ClassVar[int]
        P_FIELD_NUMBER: _ClassVar[int]
        DIFFER_FIELD_NUMBER: _ClassVar[int]
        label: str
        effects: _containers.RepeatedCompositeFieldContainer[GetReportResponse.SegmentEffect]
        p: float
        differ: bool
        def __init__(self, label: _Optional[str] = ..., effects: _Optional[_Iterable[_Union[GetReportResponse.SegmentEffect, _Mapping]]] = ..., p: _Optional[float] = ..., differ: _Optional[bool] = ...) -> None: ...
    class SegmentEffect(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: GetReportResponse.Comparison
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[GetReportResponse.Comparison, _Mapping]] = ...) -> None: ...
    class Verdict(_message.Message):
        __slots__ = ("decision", "rule", "text")
        DECISION_FIELD_NUMBER: _ClassVar[int]
        RULE_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        decision: str
        rule: str
        text: str
        def __init__(self, decision: _Optional[str] = ..., rule: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
    class Comparison(_message.Message):
        __slots__ = ("metric", "values", "effect", "low", "high", "p", "units", "method", "state", "relative", "relative_low", "relative_high", "margin", "margin_relative", "higher_is_better", "waiting", "cap", "alpha", "age", "early")
        METRIC_FIELD_NUMBER: _ClassVar[int]
        VALUES_FIELD_NUMBER: _ClassVar[int]
        EFFECT_FIELD_NUMBER: _ClassVar[int]
        LOW_FIELD_NUMBER: _ClassVar[int]
        HIGH_FIELD_NUMBER: _ClassVar[int]
        P_FIELD_NUMBER: _ClassVar[int]
        UNITS_FIELD_NUMBER: _ClassVar[int]
        METHOD_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        RELATIVE_FIELD_NUMBER: _ClassVar[int]
        RELATIVE_LOW_FIELD_NUMBER: _ClassVar[int]
        RELATIVE_HIGH_FIELD_NUMBER: _ClassVar[int]
        MARGIN_FIELD_NUMBER: _ClassVar[int]
        MARGIN_RELATIVE_FIELD_NUMBER: _ClassVar[int]
        HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
        WAITING_FIELD_NUMBER: _ClassVar[int]
        CAP_FIELD_NUMBER: _ClassVar[int]
        ALPHA_FIELD_NUMBER: _ClassVar[int]
        AGE_FIELD_NUMBER: _ClassVar[int]
        EARLY_FIELD_NUMBER: _ClassVar[int]
        metric: str
        values: _containers.RepeatedScalarFieldContainer[float]
        effect: float
        low: float
        high: float
        p: float
        units: _containers.RepeatedScalarFieldContainer[int]
        method: str
        state: str
        relative: float
        relative_low: float
        relative_high: float
        margin: float
        margin_relative: bool
        higher_is_better: bool
        waiting: GetReportResponse.Waiting
        cap: float
        alpha: float
        age: float
        early: bool
        def __init__(self, metric: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., effect: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., p: _Optional[float] = ..., units: _Optional[_Iterable[int]] = ..., method: _Optional[str] = ..., state: _Optional[str] = ..., relative: _Optional[float] = ..., relative_low: _Optional[float] = ..., relative_high: _Optional[float] = ..., margin: _Optional[float] = ..., margin_relative: _Optional[bool] = ..., higher_is_better: _Optional[bool] = ..., waiting: _Optional[_Union[GetReportResponse.Waiting, _Mapping]] = ..., cap: _Optional[float] = ..., alpha: _Optional[float] = ..., age: _Optional[float] = ..., early: _Optional[bool] = ...) -> None: ...
    class ArmReport(_message.Message):
        __slots__ = ("arm", "verdict", "primary", "adjusted_p", "guardrails", "secondary", "segments", "early")
        ARM_FIELD_NUMBER: _ClassVar[int]
        VERDICT_FIELD_NUMBER: _ClassVar[int]
        PRIMARY_FIELD_NUMBER: _ClassVar[int]
        ADJUSTED_P_FIELD_NUMBER: _ClassVar[int]
        GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
        SECONDARY_FIELD_NUMBER: _ClassVar[int]
        SEGMENTS_FIELD_NUMBER: _ClassVar[int]
        EARLY_FIELD_NUMBER: _ClassVar[int]
        arm: str
        verdict: GetReportResponse.Verdict
        primary: GetReportResponse.Comparison
        adjusted_p: float
        guardrails: _containers.RepeatedCompositeFieldContainer[GetReportResponse.Comparison]
        secondary: _containers.RepeatedCompositeFieldContainer[GetReportResponse.Comparison]
        segments: _containers.RepeatedCompositeFieldContainer[GetReportResponse.SegmentReport]
        early: _containers.RepeatedCompositeFieldContainer[GetReportResponse.Comparison]
        def __init__(self, arm: _Optional[str] = ..., verdict: _Optional[_Union[GetReportResponse.Verdict, _Mapping]] = ..., primary: _Optional[_Union[GetReportResponse.Comparison, _Mapping]] = ..., adjusted_p: _Optional[float] = ..., guardrails: _Optional[_Iterable[_Union[GetReportResponse.Comparison, _Mapping]]] = ..., secondary: _Optional[_Iterable[_Union[GetReportResponse.Comparison, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[GetReportResponse.SegmentReport, _Mapping]]] = ..., early: _Optional[_Iterable[_Union[GetReportResponse.Comparison, _Mapping]]] = ...) -> None: ...
    class Check(_message.Message):
        __slots__ = ("name", "failed", "text")
        NAME_FIELD_NUMBER: _ClassVar[int]
        FAILED_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        name: str
        failed: bool
        text: str
        def __init__(self, name: _Optional[str] = ..., failed: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...
    class ArmNumbers(_message.Message):
        __slots__ = ("arm", "units", "matured", "degraded", "responses", "expected", "answered", "weight")
        class AnsweredEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: int
            def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
        ARM_FIELD_NUMBER: _ClassVar[int]
        UNITS_FIELD_NUMBER: _ClassVar[int]
        MATURED_FIELD_NUMBER: _ClassVar[int]
        DEGRADED_FIELD_NUMBER: _ClassVar[int]
        RESPONSES_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_FIELD_NUMBER: _ClassVar[int]
        ANSWERED_FIELD_NUMBER: _ClassVar[int]
        WEIGHT_FIELD_NUMBER: _ClassVar[int]
        arm: str
        units: int
        matured: int
        degraded: int
        responses: int
        expected: float
        answered: _containers.ScalarMap[str, int]
        weight: float
        def __init__(self, arm: _Optional[str] = ..., units: _Optional[int] = ..., matured: _Optional[int] = ..., degraded: _Optional[int] = ..., responses: _Optional[int] = ..., expected: _Optional[float] = ..., answered: _Optional[_Mapping[str, int]] = ..., weight: _Optional[float] = ...) -> None: ...
    class AuditEntry(_message.Message):
        __slots__ = ("experiment", "time", "actor", "act", "reason", "detail")
        EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        ACTOR_FIELD_NUMBER: _ClassVar[int]
        ACT_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        DETAIL_FIELD_NUMBER: _ClassVar[int]
        experiment: str
        time: _timestamp_pb2.Timestamp
        actor: str
        act: str
        reason: str
        detail: _struct_pb2.Struct
        def __init__(self, experiment: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., act: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    UNITS_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    phase: int
    verdict: GetReportResponse.Verdict
    arm: str
    arms: _containers.RepeatedCompositeFieldContainer[GetReportResponse.ArmReport]
    checks: _containers.RepeatedCompositeFieldContainer[GetReportResponse.Check]
    numbers: _containers.RepeatedCompositeFieldContainer[GetReportResponse.ArmNumbers]
    audit: _containers.RepeatedCompositeFieldContainer[GetReportResponse.AuditEntry]
    notes: _containers.RepeatedScalarFieldContainer[str]
    time: _timestamp_pb2.Timestamp
    units_per_day: float
    missing: _containers.RepeatedCompositeFieldContainer[GetReportResponse.Missing]
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., phase: _Optional[int] = ..., verdict: _Optional[_Union[GetReportResponse.Verdict, _Mapping]] = ..., arm: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[GetReportResponse.ArmReport, _Mapping]]] = ..., checks: _Optional[_Iterable[_Union[GetReportResponse.Check, _Mapping]]] = ..., numbers: _Optional[_Iterable[_Union[GetReportResponse.ArmNumbers, _Mapping]]] = ..., audit: _Optional[_Iterable[_Union[GetReportResponse.AuditEntry, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., units_per_day: _Optional[float] = ..., missing: _Optional[_Iterable[_Union[GetReportResponse.Missing, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("response_id", "unit", "metric", "value", "time", "idempotency_key")
    class UnitOfExperiment(_message.Message):
        __slots__ = ("experiment", "unit", "unit_hash")
        EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
        UNIT_FIELD_NUMBER: _ClassVar[int]
        UNIT_HASH_FIELD_NUMBER: _ClassVar[int]
        experiment: str
        unit: str
        unit_hash: str
        def __init__(self, experiment: _Optional[str] = ..., unit: _Optional[str] = ..., unit_hash: _Optional[str] = ...) -> None: ...
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    unit: Outcome.UnitOfExperiment
    metric: str
    value: float
    time: _timestamp_pb2.Timestamp
    idempotency_key: str
    def __init__(self, response_id: _Optional[str] = ..., unit: _Optional[_Union[Outcome.UnitOfExperiment, _Mapping]] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class RecordOutcomeRequest(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class RecordOutcomeResponse(_message.Message):
    __slots__ = ("status", "warning")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    status: OutcomeStatus
    warning: str
    def __init__(self, status: _Optional[_Union[OutcomeStatus, str]] = ..., warning: _Optional[str] = ...) -> None: ...

class RecordOutcomesRequest(_message.Message):
    __slots__ = ("sequence", "outcomes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, sequence: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class RecordOutcomesResponse(_message.Message):
    __slots__ = ("sequence", "statuses", "errors", "warnings")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    statuses: _containers.RepeatedScalarFieldContainer[OutcomeStatus]
    errors: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sequence: _Optional[int] = ..., statuses: _Optional[_Iterable[_Union[OutcomeStatus, str]]] = ..., errors: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
