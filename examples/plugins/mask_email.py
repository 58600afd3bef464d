"""Mask e-mail addresses before a request is routed and answered; refuse the request if that fails."""

import re
from dataclasses import replace

from router import hookimpl
from router.types import Request

EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


@hookimpl(required=True)
def rewrite_request(request: Request) -> Request:
    turns = tuple(replace(turn, text=EMAIL.sub("[e-mail]", turn.text)) for turn in request.turns)
    raw = request.raw_prompt and EMAIL.sub("[e-mail]", request.raw_prompt)
    return replace(request, turns=turns, raw_prompt=raw)
