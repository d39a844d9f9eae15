"""Fourth in the chain: establishes which service calls, and whether the access policy lets it call this method."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping

import grpc

from kronos_db.runtime.crypto.master_key import MasterKeys
from kronos_db.runtime.errors import PermissionDeniedError, UnauthenticatedError
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.chain import Begin
from kronos_db.runtime.interceptors.method import Method
from kronos_db.runtime.interceptors.policy import Policy

_PURPOSE = "access-token"
_SCHEME = "hmac-sha256"
_BEARER = "bearer "
_MOST_REMEMBERED = 1024
_NOTHING: frozenset[str] = frozenset()
# Set by gRPC only when the verified client certificate has exactly one URI SAN and it is a SPIFFE id.
_SPIFFE_PROPERTY = "peer_spiffe_id"


def new_token() -> str:
    """Return a fresh bearer token: the prefix `kdb_`, which secret scanners can look for, and 256 random bits."""
    return "kdb_" + secrets.token_urlsafe(32)


def hash_token(token: str, masters: MasterKeys) -> str:
    """Return the form in which the access file keeps a bearer token: `hmac-sha256:<master key id>:<base64url>`.

    The key is derived from a master key, so the access file alone does not help to guess tokens.
    """
    key_id = masters.current_id
    return f"{_SCHEME}:{key_id}:{_digest(token, masters.derive(_PURPOSE, key_id))}"


def _digest(token: str, key: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key, token.encode(), "sha256")).rstrip(b"=").decode()


class Authentication:
    """Knows callers by bearer token or SPIFFE id. `public` methods are open to anybody.

    A caller without a known identity is UNAUTHENTICATED; a known one that the policy does not name for the method is
    PERMISSION_DENIED, before anything is said about what exists.
    """

    def __init__(self, policy: Policy, masters: MasterKeys, public: frozenset[str] = frozenset()) -> None:
        self._public = public
        self._masters = masters
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Decide by `policy` from now on."""
        # One key per master key that made a hash; more than one only while master keys are being rotated.
        keys: dict[str, bytes] = {}
        for stored in policy.token_hashes:
            key_id = stored.split(":")[1]
            keys[key_id] = self._masters.derive(_PURPOSE, key_id)
        # One assignment: a call sees a policy with the keys and the memory that belong to it.
        self._known = _Known(policy, keys)

    def begin(self, method: Method) -> Begin:
        """Identify the caller and ask the policy."""
        path = method.path
        public = path in self._public

        def begin(call: Call) -> None:
            known = self._known
            caller = known.identify(call)
            call.caller = caller or ""
            if public:
                return
            if caller is None:
                raise UnauthenticatedError
            if path not in known.policy.allowed[caller]:
                raise PermissionDeniedError(metadata={"method": path, "caller": caller})
            call.capabilities = known.policy.may.get(caller, _NOTHING)

        return begin

    def end(self, _method: Method) -> None:
        """Nothing to do after a call."""


class _Known:
    """A policy, the keys of its token hashes, and which `authorization` headers were found good under it."""

    def __init__(self, policy: Policy, keys: Mapping[str, bytes]) -> None:
        self.policy = policy
        self._keys = keys
        # Hashing a token costs a tenth of a cached read. Good headers alone are remembered: there are no more of them
        # than tokens in the policy, in a few spellings.
        self._good: dict[str | bytes, str] = {}

    def identify(self, call: Call) -> str | None:
        header = call.metadata.get("authorization")
        if header is None:
            return self._by_certificate(call.context) if self.policy.spiffe_ids else None
        return self._good.get(header) or self._by_header(header)

    def _by_header(self, header: str | bytes) -> str | None:
        if not isinstance(header, str) or header[: len(_BEARER)].lower() != _BEARER:
            return None
        caller = self._by_token(header[len(_BEARER) :].strip())
        if caller is not None and len(self._good) < _MOST_REMEMBERED:
            self._good[header] = caller
        return caller

    def _by_token(self, token: str) -> str | None:
        # Looked up by a keyed hash: how long the look-up takes says nothing about the tokens that exist.
        for key_id, key in self._keys.items():
            caller = self.policy.token_hashes.get(f"{_SCHEME}:{key_id}:{_digest(token, key)}")
            if caller is not None:
                return caller
        return None

    def _by_certificate(self, context: grpc.ServicerContext) -> str | None:
        properties: Mapping[str, list[bytes]] = context.auth_context()  # type: ignore[assignment]  # stubs say bytes
        ids = properties.get(_SPIFFE_PROPERTY, [])
        return self.policy.spiffe_ids.get(ids[0].decode("ascii", "replace")) if len(ids) == 1 else None
