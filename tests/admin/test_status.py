"""GetStatus of one server: every part, told at once."""

from __future__ import annotations

import time

import pytest
from kronos.admin.v1 import status_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub

from tests.parts.serving import Serving


@pytest.fixture
def admin(serving: Serving) -> AdminServiceStub:
    return AdminServiceStub(serving.channel_of("operator"))


def test_first(admin: AdminServiceStub) -> None:
    for _ in range(3):
        begun = time.perf_counter()
        answer = admin.GetStatus(pb.GetStatusRequest())
        print((time.perf_counter() - begun) * 1000)
    print(answer)
    time.sleep(1)
    print(admin.GetStatus(pb.GetStatusRequest()))
