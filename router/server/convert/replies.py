"""Answers: `types` and engine events to proto."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from router.engine.base import Delta
from router.server.told import clean
from router.types import Decision, FinishReason, Reason, TokenLogprob, Usage, Vote
from router.v1 import inference_pb2 as pb

REASONS = {
    Reason.EXPLICIT: pb.DECISION_REASON_EXPLICIT,
    Reason.HINT: pb.DECISION_REASON_HINT,
    Reason.CLASSIFIED: pb.DECISION_REASON_CLASSIFIED,
    Reason.ABSTAINED: pb.DECISION_REASON_ABSTAINED,
    Reason.FALLBACK: pb.DECISION_REASON_FALLBACK,
    Reason.UNFAMILIAR: pb.DECISION_REASON_UNFAMILIAR,
}
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def duration(seconds: float) -> Duration:
    """A proto duration; negative times are 0."""
    nanos = max(round(seconds * 1e9), 0)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def decision_message(decision: Decision, explain: bool) -> pb.Decision:
    """The decision, with the votes if `explain`."""
    return pb.Decision(
        adapter=decision.adapter.resource if decision.adapter else "",
        digest=decision.digest,
        domain=decision.domain,
        task=decision.task,
        confidence=decision.confidence,
        classifier=decision.classifier,
        reason=REASONS[decision.reason],
        threshold=decision.threshold,
        votes=map(_vote, decision.votes) if explain else (),
        experiment=decision.experiment,
        arm=decision.arm,
        route_latency=duration(decision.latency),
        calibration=decision.calibration,
    )


def _vote(vote: Vote) -> pb.Vote:
    return pb.Vote(
        classifier=vote.classifier,
        scores=dict(vote.scores),
        declined=vote.declined,
        error=clean(vote.error),
        latency=duration(vote.latency),
        evidence=vote.evidence,
    )


def usage_message(usage: Usage) -> pb.Usage:
    """Tokens and times."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_time=duration(usage.queue_time),
        time_to_first_token=duration(usage.time_to_first_token),
        total_time=duration(usage.total_time),
    )


def logprob_messages(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    """One message a token."""
    return [
        pb.TokenLogprob(
            token=entry.token,
            token_id=entry.token_id,
            logprob=entry.logprob,
            top=[
                pb.TokenLogprob.Alternative(token=token, token_id=token_id, logprob=logprob)
                for token, token_id, logprob in entry.top
            ],
        )
        for entry in logprobs
    ]


def delta_message(delta: Delta) -> pb.StreamGenerateResponse:
    """Text of one step; on the path of every token, so nothing is built that is empty."""
    message = pb.Delta(text=delta.text, tokens=delta.tokens)
    if delta.logprobs:
        message.logprobs.extend(logprob_messages(delta.logprobs))
    return pb.StreamGenerateResponse(delta=message)


def started_message(response_id: str, decision: Decision, explain: bool) -> pb.StreamGenerateResponse:
    """The first event of a stream."""
    started = pb.Started(response_id=response_id, decision=decision_message(decision, explain))
    return pb.StreamGenerateResponse(started=started)


def finished_message(reason: FinishReason, usage: Usage) -> pb.StreamGenerateResponse:
    """The last event of a stream."""
    finished = pb.Finished(reason=FINISH_REASONS[reason], usage=usage_message(usage))
    return pb.StreamGenerateResponse(finished=finished)
