"""Last in the chain: seals the marked fields of requests and opens those of answers; nothing behind holds plaintext."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kronos_db.runtime.crypto.keyring import KeyRing
from kronos_db.runtime.crypto.marks import Marks
from kronos_db.runtime.crypto.sealing import Sealer
from kronos_db.runtime.interceptors.call import Call, Step
from kronos_db.runtime.interceptors.chain import Message
from kronos_db.runtime.interceptors.method import Method


class Encryption:
    """Works with the keys of the domain that serves the method.

    Of a mutating request that its caller may repeat it also takes the fingerprint: here, because the sealed form of one
    value is never the same twice, and keyed, because a bare hash of a password or a telephone number can be guessed.
    """

    def __init__(self, rings: Mapping[str, KeyRing], marks: Marks, request_id_window: float) -> None:
        self._rings = rings
        self._sealers = {domain: Sealer(ring) for domain, ring in rings.items()}
        self._marks = marks
        self._window = request_id_window

    def request(self, method: Method) -> Step | None:
        """Take the fingerprint and seal."""
        ring = self._rings.get(method.domain)
        plan = self._marks.plan(method.request)
        if ring is None or (plan is None and not method.mutating):
            return None
        sealer = self._sealers[method.domain]
        key = ring.subkey("fingerprint")

        def step(message: Message, call: Call) -> Message:
            if method.mutating:
                self._note_mutation(key, message, call)
            if plan is not None:
                plan.seal(message, sealer)
            return message

        return step

    def response(self, method: Method) -> Step | None:
        """Open."""
        sealer = self._sealers.get(method.domain)
        plan = self._marks.plan(method.response)
        if sealer is None or plan is None:
            return None

        def step(message: Message, call: Call) -> Message:
            # Bytes are an answer that was made before, with nothing sealed in it.
            if not isinstance(message, bytes):
                plan.open(message, _Knowing(sealer, call.sealed) if call.sealed else sealer)
            return message

        return step

    def _note_mutation(self, key: bytes, message: Any, call: Call) -> None:
        call.validate_only = message.validate_only
        call.request_id_window = self._window
        if message.request_id:
            call.write_id = UUID(message.request_id)
            body = message.SerializeToString(deterministic=True)
            call.fingerprint = hmac.digest(key, call.method.path.encode() + b"\0" + body, "sha256")


class _Knowing:
    """Opens what was sealed for the answer of this very call without opening it."""

    def __init__(self, sealer: Sealer, sealed: Mapping[str, str]) -> None:
        self._sealer = sealer
        self._sealed = sealed
        self.open_bytes = sealer.open_bytes

    def open_text(self, sealed: str, field: str, record_id: str) -> str:
        """Return what a value opens to."""
        known = self._sealed.get(sealed)
        return self._sealer.open_text(sealed, field, record_id) if known is None else known
