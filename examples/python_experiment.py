"""Is the adapter better than the base? An A/B test from plan to verdict.

`python examples/python_experiment.py [HOST:PORT]`

An experiment divides users, not requests: `unit` says whose request it is. What became of an answer is told
later, by the answer's id. Here a dice says whether users are pleased; in your application they do.
"""

import random
import sys
import time

from router.client import AdapterRef, Client
from router.extensions.experiments.client import ArmSpec, Experiments, Outcome, Spec, metric

NAME = f"medical-or-base-{int(time.time())}"
PLAN = Spec(
    hypothesis="users are pleased more often with the adapter than with the base",
    route="medical",  # requests that would go to this adapter take part
    arms=(ArmSpec("base", 0.5), ArmSpec("adapter", 0.5, AdapterRef("medical", "1.0.0"))),
    control="base",
    primary=metric("thumbs_up"),
)


def main(target: str, users: int = 40) -> None:
    """Plan, start, ask for made-up users, tell what they thought, look, stop."""
    dice = random.Random(7)
    with Client(target) as client:
        experiments = Experiments(client)
        experiments.create(NAME, PLAN)
        experiments.start(NAME)
        for user in range(users):
            answer = client.generate(
                "Which ICD-10-CM chapter does Beard ringworm belong to?",
                adapter="medical",  # or leave it to routing; naming a version would leave the experiment
                unit=f"user-{user}",
                max_tokens=8,
            )
            pleased = dice.random() < (0.9 if answer.decision.arm == "adapter" else 0.5)
            vote = Outcome("thumbs_up", float(pleased), response_id=answer.response_id, key=f"{NAME}-{user}")
            experiments.record_outcome(vote)  # the same key counts once, so sending again is safe
        report = experiments.report(NAME)
        for numbers in report.numbers:
            print(f"{numbers.arm}: {numbers.units} users")
        print(f"{report.verdict.decision}: {report.verdict.text}")
        experiments.stop(NAME, reason="the example ends here")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
