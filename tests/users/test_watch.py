"""WatchUsers through real gRPC."""

from __future__ import annotations
from kronos.users.v1 import users_pb2 as pb
from tests.parts.serving import Serving
from tests.users import population as p


def test_smoke(serving: Serving) -> None:
    users = serving.users()
    stream = users.WatchUsers(pb.WatchUsersRequest(), timeout=20)
    first = next(stream)
    print(first)
    import time

    t = time.time()
    u = p.create(users)
    got = next(stream)
    print(got, time.time() - t)
    assert got.change.user_id == u.id
    stream.cancel()
    s2 = users.WatchUsers(pb.WatchUsersRequest(resume_token=first.resume_token), timeout=20)
    assert not next(s2).HasField("change")
    n = next(s2)
    assert n.change == got.change
    print(n.resume_token == got.resume_token)
    s2.cancel()
