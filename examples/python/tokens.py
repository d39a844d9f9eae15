"""Tokens: a refresh family, whether a token is active, rotation, what becomes of a stolen one, and revocations."""

from __future__ import annotations

import os
import time
import uuid

from kronos_db_client import connect, follow
from kronos_db_client.tokens.v1 import tokens_pb2 as pb
from kronos_db_client.tokens.v1.tokens_pb2_grpc import TokensServiceStub


def main() -> None:
    """Sign somebody in, and out."""
    subject = f"billing-{uuid.uuid4().hex[:8]}"
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        tokens = TokensServiceStub(channel)

        wanted = pb.Token(kind=pb.TOKEN_KIND_REFRESH, subject_kind=pb.SUBJECT_KIND_SERVICE, subject=subject)
        wanted.scopes.append("invoices")
        wanted.expire_time.FromSeconds(int(time.time()) + 3600)
        first = tokens.IssueToken(pb.IssueTokenRequest(token=wanted))
        print(
            "issued   ", pb.TokenKind.Name(first.issued.token.kind), "and", pb.TokenKind.Name(first.access.token.kind)
        )

        access = pb.IntrospectTokenRequest(token=first.access.secret)
        introspection = tokens.IntrospectToken(access).introspection
        print("active  ", introspection.active, introspection.token.subject == subject)
        check = pb.CheckTokenRequest(token=first.access.secret, permission="invoices:pay", required_scopes=["refunds"])
        print("checked ", pb.CheckOutcome.Name(tokens.CheckToken(check).outcome))

        second = tokens.RotateRefreshToken(pb.RotateRefreshTokenRequest(refresh_token=first.issued.secret))
        print("rotated ", pb.RotationOutcome.Name(second.outcome))
        tokens.RotateRefreshToken(pb.RotateRefreshTokenRequest(refresh_token=second.refresh.secret))

        # Whoever presents a token after its successor was used is not its owner: the whole family is revoked.
        revocations = follow(tokens.WatchRevocations, pb.WatchRevocationsRequest())
        next(revocations)
        stolen = tokens.RotateRefreshToken(pb.RotateRefreshTokenRequest(refresh_token=first.issued.secret))
        print("stolen  ", pb.RotationOutcome.Name(stolen.outcome))
        told = (message.revocation for message in revocations if message.HasField("revocation"))
        print("told    ", any(each.family_id == first.issued.token.family_id for each in told))
        revocations.close()
        over = tokens.IntrospectToken(access).introspection
        print("over    ", over.active, pb.InactiveReason.Name(over.reason))
        count = tokens.RevokeTokens(pb.RevokeTokensRequest(subject=subject)).revoked_count
        print("left    ", count)


if __name__ == "__main__":
    main()
