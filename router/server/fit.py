"""Sampling as the engine gets it: layers merged, and prompt and answer made to fit the context."""

from __future__ import annotations

from dataclasses import replace

from router.errors import PromptTooLong
from router.types import Sampling, SamplingParams


def fit(said: Sampling, adapter: Sampling, prompt_tokens: int, context: int, most: int) -> SamplingParams:
    """What the caller said, else the adapter's defaults, else the server's.

    A max_tokens the caller said must fit beside the prompt in `context` tokens, else PromptTooLong; one that
    was not said becomes what fits, at most `most`. A prompt is never cut.
    """
    params = SamplingParams.of(said, adapter)
    room = context - prompt_tokens
    needed = said.max_tokens or max(said.min_tokens or 0, 1)
    if needed > room:
        raise PromptTooLong(context, prompt_tokens + needed)
    max_tokens = said.max_tokens or min(max(params.max_tokens, needed), most, room)
    return replace(params, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))
