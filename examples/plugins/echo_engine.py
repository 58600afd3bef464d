"""An engine that answers with the prompt, word by word: `lora-router serve --set engine=echo`."""

import asyncio
import re

from router import hookimpl
from router.engine import TextEngine


class EchoEngine(TextEngine):
    name = "echo"

    async def answer(self, prompt, params):
        for word in re.findall(r"\s*\S+", prompt):
            yield word
            await asyncio.sleep(0)  # other requests' turn


@hookimpl
def register_engines(register):
    register("echo", EchoEngine)
