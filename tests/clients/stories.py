"""What the examples print, in either language: a pattern for each domain."""

from __future__ import annotations

import re
from collections.abc import Mapping

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

STORIES: Mapping[str, str] = {
    "users": rf"""created ({_UUID}) (ann-\w+)
repeated \1 the same user
found \1 \2@example\.org
listed [1-9]\d*
refused ALREADY_EXISTS USERNAME_TAKEN user\.username: is taken by another user
refused INVALID_ARGUMENT BAD_REQUEST user\.username: .+ \| user\.email: .+
changed \1 USER_EVENT_ROLE_GRANTED
allowed true
""",
    "tokens": r"""issued TOKEN_KIND_REFRESH and TOKEN_KIND_ACCESS
active true true
checked CHECK_OUTCOME_SCOPE_MISSING
rotated ROTATION_OUTCOME_ROTATED
stolen ROTATION_OUTCOME_REUSE_DETECTED
told true
over false INACTIVE_REASON_REVOKED
left 0
""",
    "logs": r"""stored 6
refused 6 TRACE_ID_INVALID records\[6\]\.trace_id
told card was declined
read \[4, 2\]
counted 6 \[1, 5\]
""",
    "routes": r"""told ROUTE_EVENT_CREATED
resolved http://orders\.internal 7
asked true DENIAL_UNSPECIFIED 200
asked true DENIAL_UNSPECIFIED 200
asked false DENIAL_QUOTA 429
refused ALREADY_EXISTS ROUTE_CONFLICT
""",
    "messages": r"""enqueued \[false, false\]
enqueued \[true, true\]
received good
received bad
dead bad DEATH_CAUSE_REJECTED cannot be read
left 0 ready, 1 dead
""",
    "cache": r"""put \['PUT_OUTCOME_STORED', 'PUT_OUTCOME_STORED'\]
changed PUT_OUTCOME_STORED
changed PUT_OUTCOME_VERSION_CONFLICT
by price \['pen', 'ink'\]
leased LEASE_OUTCOME_LEASED LEASE_OUTCOME_WAIT
filled FILL_OUTCOME_STORED
told \['products'\]
gone \['pen', 'nib'\]
""",
    "admin": r"""status 7 domains [1-9]\d* PostgreSQL
columns \['answer', 'word'\]
row \[42, 'text'\]
end 1
refused INVALID_ARGUMENT QUERY_REFUSED
refused PERMISSION_DENIED QUERY_NOT_READABLE
recorded \['AUDIT_PHASE_ENDED', 'AUDIT_PHASE_BEGUN'\]
""",
}


def parted(text: str) -> dict[str, str]:
    """Return what each example printed, behind a line `== DOMAIN`."""
    parts = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)
    return {domain: _plain(said) for domain, said in zip(parts[1::2], parts[2::2], strict=True)}


def _plain(text: str) -> str:
    """Return a text without what differs between languages: blanks, and how truth is spelt."""
    text = re.sub(r"\[ (.*) \]", r"[\1]", re.sub(r" +", " ", text))
    return re.sub(r"\b(True|False)\b", lambda match: match[0].lower(), text)
