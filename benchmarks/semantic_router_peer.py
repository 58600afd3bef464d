"""The peer of routing_quality, run by the Python of its own environment: it imports nothing of ours.

Reads {"encoder": FOLDER, "routes": {NAME: [EXAMPLE...]}, "texts": [...], "times": N} from stdin; writes
{"confidences": [{NAME: CONFIDENCE}...], "milliseconds": [...], "threads": N} as the last line of stdout. Its
documentation says nothing of threads: they are left as torch sets them.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """One router of semantic-router with its defaults: dense vectors, mean of the best five utterances."""
    import torch
    from semantic_router import Route
    from semantic_router.encoders import HuggingFaceEncoder
    from semantic_router.routers import IndexedRouter

    task = json.load(sys.stdin)
    encoder = HuggingFaceEncoder(name=task["encoder"], tokenizer_kwargs={"model_max_length": 256})
    routes = [Route(name=name, utterances=texts) for name, texts in task["routes"].items()]
    router = IndexedRouter(encoder, routes)
    confidences = [{c.name: c.confidence for c in router(text, limit=None)} for text in task["texts"]]
    milliseconds = []
    for text in task["texts"][: task["times"]]:
        started = time.perf_counter()
        router(text)
        milliseconds.append((time.perf_counter() - started) * 1000)
    threads = torch.get_num_threads()
    print(json.dumps({"confidences": confidences, "milliseconds": milliseconds, "threads": threads}))


if __name__ == "__main__":
    main()
