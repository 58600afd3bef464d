import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from router.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_VERDICT_UNSPECIFIED: _ClassVar[FeedbackVerdict]
    FEEDBACK_VERDICT_GOOD: _ClassVar[FeedbackVerdict]
    FEEDBACK_VERDICT_BAD: _ClassVar[FeedbackVerdict]
    FEEDBACK_VERDICT_CORRECTED: _ClassVar[FeedbackVerdict]

class FeedbackKept(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_KEPT_UNSPECIFIED: _ClassVar[FeedbackKept]
    FEEDBACK_KEPT_LABELS: _ClassVar[FeedbackKept]
    FEEDBACK_KEPT_TEXTS: _ClassVar[FeedbackKept]
FEEDBACK_VERDICT_UNSPECIFIED: FeedbackVerdict
FEEDBACK_VERDICT_GOOD: FeedbackVerdict
FEEDBACK_VERDICT_BAD: FeedbackVerdict
FEEDBACK_VERDICT_CORRECTED: FeedbackVerdict
FEEDBACK_KEPT_UNSPECIFIED: FeedbackKept
FEEDBACK_KEPT_LABELS: FeedbackKept
FEEDBACK_KEPT_TEXTS: FeedbackKept

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("response_id", "verdict", "corrected", "comment", "answered_by", "prompt", "answer", "unit", "should_have_been")
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SHOULD_HAVE_BEEN_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    verdict: FeedbackVerdict
    corrected: str
    comment: str
    answered_by: str
    prompt: str
    answer: str
    unit: str
    should_have_been: str
    def __init__(self, response_id: _Optional[str] = ..., verdict: _Optional[_Union[FeedbackVerdict, str]] = ..., corrected: _Optional[str] = ..., comment: _Optional[str] = ..., answered_by: _Optional[str] = ..., prompt: _Optional[str] = ..., answer: _Optional[str] = ..., unit: _Optional[str] = ..., should_have_been: _Optional[str] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("kept", "replaced")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    kept: FeedbackKept
    replaced: bool
    def __init__(self, kept: _Optional[_Union[FeedbackKept, str]] = ..., replaced: _Optional[bool] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("response_id", "time", "tenant", "unit_hash", "adapter", "digest", "verdict", "input", "answer", "corrected", "comment", "should_have_been")
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    UNIT_HASH_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    SHOULD_HAVE_BEEN_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    time: _timestamp_pb2.Timestamp
    tenant: str
    unit_hash: str
    adapter: str
    digest: str
    verdict: FeedbackVerdict
    input: _inference_pb2.Input
    answer: str
    corrected: str
    comment: str
    should_have_been: str
    def __init__(self, response_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant: _Optional[str] = ..., unit_hash: _Optional[str] = ..., adapter: _Optional[str] = ..., digest: _Optional[str] = ..., verdict: _Optional[_Union[FeedbackVerdict, str]] = ..., input: _Optional[_Union[_inference_pb2.Input, _Mapping]] = ..., answer: _Optional[str] = ..., corrected: _Optional[str] = ..., comment: _Optional[str] = ..., should_have_been: _Optional[str] = ...) -> None: ...

class ListFeedbackRequest(_message.Message):
    __slots__ = ("adapter", "since", "page_size", "page_token")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    since: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, adapter: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFeedbackResponse(_message.Message):
    __slots__ = ("feedback", "next_page_token")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    next_page_token: str
    def __init__(self, feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteFeedbackRequest(_message.Message):
    __slots__ = ("unit", "unit_hash", "tenant")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    UNIT_HASH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    unit: str
    unit_hash: str
    tenant: str
    def __init__(self, unit: _Optional[str] = ..., unit_hash: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class DeleteFeedbackResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...
