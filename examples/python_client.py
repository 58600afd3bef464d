"""Talk to a running server: `python examples/python_client.py [HOST:PORT]`."""

import asyncio
import sys

from router.client import AsyncClient, Client, ClientError, Delta, Started

QUESTIONS = [
    'Which ICD-10-CM chapter does "Beard ringworm" belong to?',
    "Translate to French: high-level FTP client library for Python",
    "Why is the sky blue?",
]


def one_by_one(target: str) -> None:
    """The blocking client: see what is there, ask, stream."""
    with Client(target) as client:
        for adapter in client.adapters.list():
            print(f"{adapter.ref}  {adapter.state}  {adapter.error}")

        answer = client.generate(QUESTIONS[0], max_tokens=32)
        print(f"[{answer.decision.adapter or 'base'}] {answer.text}")

        for event in client.stream(QUESTIONS[2], max_tokens=32):
            if isinstance(event, Started):
                print(f"[{event.decision.adapter or 'base'}] ", end="")
            elif isinstance(event, Delta):
                print(event.text, end="", flush=True)
        print()

        try:
            client.generate("hello", adapter="no-such-adapter")
        except ClientError as error:
            print(f"{error.code} {error.reason} {dict(error.metadata)}")


async def all_at_once(target: str) -> None:
    """The asyncio client: different adapters answer in one batch."""
    async with AsyncClient(target) as client:
        answers = await asyncio.gather(*(client.generate(q, max_tokens=32) for q in QUESTIONS))
        for answer in answers:
            decision = answer.decision
            print(
                f"{decision.adapter or 'base'}  {decision.confidence:.2f} {decision.reason}  {answer.text!r}"
            )


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    one_by_one(address)
    asyncio.run(all_at_once(address))
