"""What the words of a report mean, for readers who are no statisticians."""

from __future__ import annotations

WORDS = (
    (
        "unit",
        "Who has the same experience throughout, such as a user. Everything is counted by unit, never by"
        " request.",
    ),
    ("arm, control", "One of the things compared; control is the one that the others are compared with."),
    ("promote", "The arm is shown to be better, no guardrail is in doubt, and all checks are sound."),
    ("stop for harm", "The arm is shown to be worse, on the primary metric or beyond a guardrail's margin."),
    ("undecided", "Nothing is shown yet, in either direction. This is not the same as no difference."),
    ("invalid", "A check of the pipeline failed; numbers of a broken pipeline say nothing about the arms."),
    (
        "interval",
        "All differences that the data do not rule out. It holds at every look, so looking often and stopping"
        " early are fine; the usual interval, for a single look at the end, would be narrower.",
    ),
    (
        "p",
        "How surprising the data would be if there were no difference; valid at every look, and adjusted for"
        " the number of arms (Holm).",
    ),
    (
        "asymptotic, exact",
        "Where the interval comes from: exact for proportions at any number of units, used early; close to it"
        " from 100 units in each arm. Burn-in: too early for any interval.",
    ),
    (
        "window, mature",
        "Outcomes count for this long after a unit was first served; then the unit is mature. Only mature"
        " units are compared.",
    ),
    (
        "guardrail",
        "A metric that must not get worse by more than its margin. Within: shown not to be; beyond: shown to"
        " be; open: neither yet.",
    ),
    (
        "sample ratio",
        "Arms must get their planned shares of units. If they do not, units were lost, and who is lost is not"
        " left to chance.",
    ),
    (
        "degraded",
        "The arm could not answer and something else did. The unit stays in its arm, or a broken arm would"
        " look good.",
    ),
    (
        "equal answer length",
        "People and judges prefer long answers whatever they say. This is the difference that is left when"
        " lengths are made equal; a gain that vanishes here may be nothing but length."
        " Its ± is a usual 95 % interval, for one look, and it gives no verdict.",
    ),
)
