"""`lora-router audit`."""

import json

from router.access.audit import Audit, AuditedCall


def write(path, number=3):
    audit = Audit(path)
    for i in range(number):
        audit.acted(
            AuditedCall(f"r-{i}", "ops" if i else "billing", "127.0.0.1", "S/Load", "adapters/m", "OK")
        ).result(5)
    audit.close()


def test_a_chain_is_followed(cli, own_folder):
    file = own_folder / "audit.jsonl"
    write(file)
    done = cli("audit", "verify", file)
    assert done.code == 0
    assert "audit.jsonl is whole: 3 lines" in done.out
    last = done.out.split()[-1]
    assert len(last) == 64
    when = json.loads(file.read_text().splitlines()[-1])["time"]
    assert f"last line 3, of {when}" in done.out
    assert cli("audit", "verify", file, "--has", last).code == 0
    cut = cli("audit", "verify", file, "--has", "0" * 63 + "1")
    assert (cut.code, "the end was cut off" in cut.err) == (1, True)
    file.rename(own_folder / "old.jsonl")
    assert "does not follow" in cli("audit", "verify", "old.jsonl", "--after", last).err
    lines = (own_folder / "old.jsonl").read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[2]]) + "\n")
    done = cli("audit", "verify", file)
    assert (done.code, "line 2 does not follow" in done.err) == (1, True)
    assert cli("audit", "verify", "none.jsonl").code == 1
