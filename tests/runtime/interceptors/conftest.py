"""The probe service behind the real chain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.interceptors.probe import ProbeServer


@pytest.fixture(scope="session")
def _probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeServer]:
    server = ProbeServer(tmp_path_factory.mktemp("probe"))
    yield server
    server.stop()


@pytest.fixture
def probe(_probe: ProbeServer) -> ProbeServer:
    """The service, as if it were new."""
    _probe.reset()
    return _probe
