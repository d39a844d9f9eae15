"""The arithmetic of pools: what the files say of it adds up, and PostgreSQL has room for it."""

from __future__ import annotations

import re

from kronos_db.config import DOMAINS
from tests.deploy import pools
from tests.deploy.dockerfile import ROOT

# PostgreSQL's own default.
SUPERUSERS = 3


def test_postgresql_has_room() -> None:
    most = int(pools.postgresql()["max_connections"])
    assert pools.all_together() + SUPERUSERS < most
    # And is not much too large: each connection may take its work_mem.
    assert most < pools.all_together() * 1.2


def test_the_comments_have_the_numbers() -> None:
    text = (ROOT / "deploy" / "pgbouncer.ini").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^;  .*=\s+(\d+)\b", text, re.MULTILINE)]
    assert numbers == [
        pools.clients_of_a_process(),
        pools.processes_with_room(),
        pools.pooled(),
        pools.straight() + pools.statements() + pools.OTHERS,
    ]
    assert f"each of its {len(DOMAINS)} domains" in text
    assert f"Together {pools.all_together()}: max_connections = {pools.postgresql()['max_connections']}" in text


def test_the_table_has_the_numbers() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").partition("## The arithmetic of pools")[2]
    last = [int(number) for number in re.findall(r"\| \**(\d+)\** \|$", text, re.MULTILINE)]
    assert last == [
        pools.clients_of_a_process(),
        pools.processes_with_room(),
        pools.pooled(),
        pools.straight(),
        pools.statements(),
        pools.OTHERS,
        pools.all_together(),
    ]
    without = len(DOMAINS) * 4 + pools.STRAIGHT
    fit = re.search(r"each process takes 28 \+ 2 from PostgreSQL: (\d+) processes fit into (\d+)", text)
    assert fit is not None
    assert int(fit[1]) * without + pools.statements() + pools.OTHERS + SUPERUSERS <= int(fit[2])
    assert fit[2] == pools.postgresql()["max_connections"]
