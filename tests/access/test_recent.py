"""The last acts and refusals."""

from __future__ import annotations

from pathlib import Path

from router.access.audit import MOST_ACTS, MOST_REFUSALS, Audit, AuditedCall, RecentAudit


def act(method: str = "LoadAdapter", code: str = "OK", client: str = "anna") -> AuditedCall:
    return AuditedCall("r", client, "127.0.0.1", method, "adapters/medical", code)


def test_the_newest_come_first_acts_and_refusals_among_each_other() -> None:
    recent = RecentAudit(now=lambda: 7.0)  # a clock that stands still
    recent.acted(act("one")).result(0)
    recent.refused(act("two", "PERMISSION_DENIED"))
    recent.acted(act("three"))
    assert [(e.number, e.act.method, e.refused) for e in recent] == [
        (3, "three", False),
        (2, "two", True),
        (1, "one", False),
    ]


def test_a_flood_of_refusals_pushes_no_act_out() -> None:
    recent = RecentAudit()
    recent.acted(act("kept"))
    for _ in range(3 * MOST_REFUSALS):
        recent.refused(act("refused", "UNAUTHENTICATED"))
    lines = list(recent)
    assert len(lines) == MOST_REFUSALS + 1
    assert lines[-1].act.method == "kept"
    for _ in range(MOST_ACTS + 5):
        recent.acted(act("more"))
    assert sum(not line.refused for line in recent) == MOST_ACTS


def test_what_the_file_has_is_remembered_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    before = RecentAudit(audit)
    before.acted(act("one")).result(5)
    before.refused(act("two", "PERMISSION_DENIED", client=""))
    audit.close()
    with path.open("ab") as file:
        file.write(b'no line\n{"previous": "x"}\n')
    after = RecentAudit()
    after.remember(path)
    assert [(e.act.method, e.act.client, e.refused) for e in after] == [
        ("two", "", True),
        ("one", "anna", False),
    ]
    assert after.since <= before.since + 5
    after.remember(tmp_path / "none")
