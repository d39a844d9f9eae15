"""Fills the table of tokens: some whose texts are known, by COPY, and any number that only take up room."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from kronos_db.config import Settings
from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.database.data_keys import DataKeys
from kronos_db.runtime.identifiers import uuid7
from kronos_db.schemas import open_database
from kronos_db.tokens.credentials import Credentials
from kronos_db.tokens.model import Kind

_COLUMNS = """
    id, family_id, kind, hash, mark, number, subject_kind, subject, client_id, device_id, scope, claims, expire_time,
    access_seconds, grace_seconds, grant_time, issue_time, seen_time, purge_time
"""
_STEP = 250_000
_STUFF = f"""
INSERT INTO tokens.token ({_COLUMNS})
SELECT gen_random_uuid(), gen_random_uuid(), 1, sha256(n::text::bytea), 'bench', 1, 2, 'subject' || n / 10, 'bench',
    'device' || n / 10, 'a b c', '{{}}', now() + interval '1 day', 0, 0, now(), now(), now(), now() + interval '8 days'
FROM generate_series(%s::bigint, %s::bigint) AS n
"""


@dataclass(frozen=True)
class Whose:
    """Whose tokens are filled in: the kind of subject as it is stored, and the subject."""

    kind: int
    subject: str


class Filler:
    """Fills the tokens of the server with `settings`, as IssueToken would."""

    def __init__(self, settings: Settings, whose: Whose) -> None:
        assert settings.master_key_file is not None
        dsn = settings.domain_direct_dsn("tokens")
        assert dsn is not None
        self._dsn = dsn
        self._whose = whose
        masters = FileMasterKeys(settings.master_key_file)
        database = open_database(settings, "tokens")
        try:
            ring = KeyRing("tokens", masters, DataKeys(database))
        finally:
            database.pool.close()
        self._credentials = Credentials(masters, ring.subkey("token mark"), ring.subkey("jwt id"))

    def known(self, number: int, subject: str | None = None) -> list[str]:
        """Add so many sessions, of one subject if it is given; return their texts."""
        texts = []
        now = datetime.now(UTC)
        ends = now + timedelta(days=1)
        of = (self._whose.kind, subject or self._whose.subject, "bench")
        with (
            psycopg.connect(self._dsn) as connection,
            connection.cursor() as cursor,
            cursor.copy(f"COPY tokens.token ({_COLUMNS}) FROM STDIN") as copy,
        ):
            for _ in range(number):
                token_id = uuid7()
                made = self._credentials.make(Kind.SESSION, token_id)
                texts.append(made.text)
                row = (token_id, uuid7(), int(Kind.SESSION), made.hash, made.mark, 1, *of)
                times = (ends, 0, 0, now, now, now, ends + timedelta(days=7))
                copy.write_row((*row, str(token_id), "a b c", "{}", *times))
        self._settle()
        return texts

    def others(self, number: int) -> None:
        """Add so many that nobody asks for."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            for first in range(1, number + 1, _STEP):
                last = min(first + _STEP - 1, number)
                connection.execute(_STUFF, (first, last))
                print(f"\rcreating tokens: {last:,} of {number:,}", end="", file=sys.stderr)
        print(file=sys.stderr)
        self._settle()

    def _settle(self) -> None:
        """Do what would else be done in the midst of a measurement."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE) tokens.token")
            connection.execute("CHECKPOINT")
