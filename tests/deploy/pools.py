"""The arithmetic of pools, from the defaults of the settings and the files in deploy/."""

from __future__ import annotations

import re

from kronos_db.config import DOMAINS, Settings
from kronos_db.runtime.database import reading_role
from tests.deploy.dockerfile import ROOT

# A look at whether the way of a domain is open; and straight: listening, and looking.
LOOKS = 1
STRAIGHT = 2
# Migrations, backups, drills and people.
OTHERS = 20


def pgbouncer() -> dict[str, str]:
    """Return the settings of the section [pgbouncer]."""
    text = (ROOT / "deploy" / "pgbouncer.ini").read_text(encoding="utf-8").partition("[pgbouncer]")[2]
    return dict(re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE))


def postgresql() -> dict[str, str]:
    """Return the settings of postgresql.conf."""
    text = (ROOT / "deploy" / "postgresql.conf").read_text(encoding="utf-8")
    return {name: value.strip("'") for name, value in re.findall(r"^([\w.]+) = (.*)$", text, re.MULTILINE)}


def clients_of_a_process() -> int:
    """Return the connections of one serving process to pgBouncer, at most."""
    return len(DOMAINS) * (int(Settings.model_fields["pool_max_size"].default) + LOOKS)


def processes_with_room() -> int:
    """Return how many serving processes pgBouncer has room for."""
    return int(pgbouncer()["max_client_conn"]) // clients_of_a_process()


def pooled() -> int:
    """Return the connections of pgBouncer to PostgreSQL, at most: a pool for each role, and one for auth_user."""
    return (len(DOMAINS) + 1) * int(pgbouncer()["default_pool_size"])


def straight() -> int:
    """Return the connections past pgBouncer of all the processes that there is room for."""
    return processes_with_room() * STRAIGHT


def statements() -> int:
    """Return the connections for statements of operators, of all processes."""
    return reading_role._MOST_CONNECTIONS


def all_together() -> int:
    """Return what PostgreSQL has to have room for."""
    return pooled() + straight() + statements() + OTHERS
