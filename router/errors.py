"""Every error the service makes on purpose; docs/grpc.md has the table of their codes and reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self


def install_extra(extra: str) -> str:
    """How to install an optional part of this package; its name is in no index."""
    return (
        f"pip install -e '.[{extra}]' in the checkout, or pip install 'WHEEL[{extra}]' with the wheel that "
        "`make wheel` writes there"
    )


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request."""

    field: str
    description: str


class RouterError(Exception):
    """Base of all; `reason` is the ErrorInfo reason, `code` the gRPC status name.

    `told` is what callers are told where the message is for the log only; empty: the message, in which there
    is then nothing that a caller may not know, such as a path of this machine or the text of an exception.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    told: str = ""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, so that an error of another process is raised here as it was there."""
        return _as_it_was, (type(self), self.args), dict(self.__dict__)


def _as_it_was(kind: type[RouterError], said: tuple[Any, ...]) -> RouterError:
    """Without the constructor, which subclasses call with other things than `args` holds."""
    return kind.__new__(kind, *said)


MOST_FINDINGS = 32


class InvalidRequest(RouterError):
    """The request cannot be served whatever the server's state.

    Of `violations` the first 32 are kept; the last entry then says how many there are beside them, and `more`
    that the caller did not collect.
    """

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"
    model: str = ""  # that the request asks for, where its body could not be read but for that

    def __init__(self, violations: Sequence[FieldViolation], more: int = 0) -> None:
        kept = tuple(violations[:MOST_FINDINGS])
        more += len(violations) - len(kept)
        if more:
            kept = (*kept, FieldViolation("", f"and {more} more"))
        super().__init__(_sentence(kept))
        self.violations = kept

    def reworded(self, word: Callable[[FieldViolation], FieldViolation]) -> Self:
        """The same error with other names of fields, or other descriptions."""
        made = copy(self)
        made.violations = tuple(map(word, self.violations))
        made.message = _sentence(made.violations)
        return made


def _sentence(violations: Sequence[FieldViolation]) -> str:
    text = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
    return text or "invalid request"


class WrongContentType(InvalidRequest):
    """The body is of another content type than the method takes, or encoded. It was not read."""

    reason = "UNSUPPORTED_MEDIA_TYPE"

    def __init__(self, wanted: str, header: str = "content-type") -> None:
        super().__init__([FieldViolation(header, f"must be {wanted}")])


class Findings:
    """Bad fields of a request in the order they were found, so that the caller sees all of them at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []
        self._more = 0

    def add(self, field: str, description: str) -> None:
        """Note a bad field; past 32 they are only counted."""
        if len(self._found) < MOST_FINDINGS:
            self._found.append(FieldViolation(field, description))
        else:
            self._more += 1

    def check(self) -> None:
        """Raise InvalidRequest if anything was found."""
        if self._found:
            raise InvalidRequest(self._found, self._more)

    def text(self, field: str, value: str, most: int) -> str:
        """`value`, noted if it has more than `most` bytes."""
        if len(value) > most or len(value.encode()) > most:
            self.add(field, f"must have at most {most} bytes")
        return value


class PromptTooLong(InvalidRequest):
    """Prompt plus max_tokens do not fit the context. Nothing is ever cut in silence.

    `at_least`: the prompt was not read to its end, and may have more tokens than `got` says.
    """

    reason = "PROMPT_TOO_LONG"

    def __init__(self, limit: int, got: int, field: str = "input", *, at_least: bool = False) -> None:
        need = f"at least {got}" if at_least else f"{got}"
        super().__init__(
            [FieldViolation(field, f"prompt and max_tokens need {need} tokens, the limit is {limit}")]
        )
        self.limit, self.got, self.at_least = limit, got, at_least
        self.metadata = {"limit": str(limit), "got": str(got)}


class NotActivated(InvalidRequest):
    """The prompt does not have the invocation tokens of an activated LoRA: the base would answer."""

    reason = "ADAPTER_NOT_ACTIVATED"

    def __init__(self, invocation: Sequence[int]) -> None:
        shown = ", ".join(map(str, invocation[:8])) + (", ..." if len(invocation) > 8 else "")
        text = (
            f"the adapter acts from the tokens {shown} on, and the prompt does not have them: send chat "
            "messages, or name another adapter"
        )
        super().__init__([FieldViolation("input", text)])


class Unauthenticated(RouterError):
    """Token or certificate are nobody's, or of a client whose time is over; which of it is not told."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_INVALID"
    told = "the token or certificate is not valid here"


class TokenMissing(Unauthenticated):
    """The call brings neither token nor certificate."""

    reason = "TOKEN_MISSING"
    told = ""


class PermissionDenied(RouterError):
    """The client has not the role that the method needs."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_MISSING"


class NotFound(RouterError):
    """No such resource."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"

    def __init__(self, resource_type: str, name: str, hint: str = "") -> None:
        super().__init__(f"{resource_type} {name!r} not found{hint}", resource=name)
        self.resource_type, self.name, self.hint = resource_type, name, hint


class AdapterNotFound(NotFound):
    """No adapter of that name or version; never answered by the base in silence."""

    reason = "ADAPTER_NOT_FOUND"

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__("adapter", name, hint)


class ExperimentNotFound(NotFound):
    """No experiment, or no phase of it, by that name."""

    reason = "EXPERIMENT_NOT_FOUND"

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__("experiment", name, hint)


class AlreadyExists(RouterError):
    """A resource of that name is there already."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class FailedPrecondition(RouterError):
    """The server's state forbids it; trying again changes nothing."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class AdapterRejected(FailedPrecondition):
    """The adapter folder is refused; the message names the field or tensor."""

    reason = "ADAPTER_REJECTED"


class GateNotPassed(FailedPrecondition):
    """The version did not pass the gate and nobody overruled it; the finding is in the metadata."""

    reason = "GATE_NOT_PASSED"


class StaleEtag(RouterError):
    """The resource changed since it was read."""

    code = "ABORTED"
    reason = "STALE_ETAG"


class ChangedElsewhere(StaleEtag):
    """Another edge changed the same meanwhile; nothing was changed here."""

    reason = "CHANGED_ELSEWHERE"


class DataLoss(RouterError):
    """Bytes are not what they were."""

    code = "DATA_LOSS"
    reason = "DATA_LOSS"
    told = "files of the server are not what they were; its log names them"


class Unavailable(RouterError):
    """Try again after `retry_after` seconds, here or at another replica."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"

    def __init__(self, message: str, retry_after: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """A queue is full, or another limit of what is served at once is met. `bound` names it: docs/grpc.md#load
    has all of them."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after: float = 1.0, *, bound: str, **metadata: str) -> None:
        super().__init__(message, retry_after, bound=bound, **metadata)


class Draining(Unavailable):
    """The server is stopping."""

    reason = "DRAINING"


class NotLoaded(Unavailable):
    """The base model is still loading."""

    reason = "MODEL_LOADING"


class StoreDown(Unavailable):
    """The database of experiments cannot be reached or written. Answers are served without experiments."""

    reason = "STORE_DOWN"
    told = "the database of experiments cannot be reached or written now"  # the message has its address


class SharedDown(Unavailable):
    """The database of what edges share cannot be reached. What was known last holds, and nothing changes."""

    reason = "SHARED_STATE_DOWN"
    told = "the edges' shared database cannot be reached now: what held goes on, try the change again later"


class NotSaved(Unavailable):
    """What was to survive a restart could not be written, so nothing has changed."""

    reason = "NOT_SAVED"
    told = "it could not be saved, so nothing has changed; the server's log says why"


class ResourceExhausted(RouterError):
    """Memory for this load or request is not there."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class QuotaExceeded(RouterError):
    """A client or its tenant has used up a quota; `retry_after` seconds until there is enough, None: there
    never will. `holder` says whose it is."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUOTA"

    def __init__(
        self, message: str, quota: str = "", retry_after: float | None = None, holder: str = ""
    ) -> None:
        super().__init__(message, quota=quota)
        self.quota, self.retry_after, self.holder = quota, retry_after, holder


class BodyTooLarge(RouterError):
    """A message has more bytes than its method takes."""

    code = "RESOURCE_EXHAUSTED"
    reason = "BODY_TOO_LARGE"


class DeadlineExceeded(RouterError):
    """The caller's deadline passed or cannot be met."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class BodyIncomplete(DeadlineExceeded):
    """The caller did not send the whole body in time."""

    reason = "BODY_INCOMPLETE"


class EngineFailed(RouterError):
    """A step raised. The caller gets a fixed text, the log gets the rest."""

    reason = "ENGINE_FAILED"


class ConfigError(RouterError):
    """A setting is wrong; raised at start-up only."""

    reason = "CONFIG"
