"""A fleet of the tests: a supervisor with its serving processes, as `kronos-db serve` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ports import free_address
from kronos_db import schemas
from kronos_db.config import Settings, environment_of
from tests.parts.eventually import eventually
from tests.parts.serving import CHEAP, make_secrets

_LIMIT = 60.0  # seconds, for starts on a machine that does much else


class Fleet:
    """`count` processes on one port. `dsn` is a superuser's; `folder` takes the key and access files."""

    def __init__(self, folder: Path, dsn: str, count: int = 2, **changes: Any) -> None:
        self.tokens: dict[str, str] = {}
        self.count = count
        self.settings = Settings.model_validate(
            {
                "grpc_listen": free_address(),
                "ops_listen": free_address(),
                "postgres_dsn": dsn,
                "processes": count,
                **make_secrets(folder, self.tokens),
                **CHEAP,
                **changes,
            }
        )
        schemas.migrate(self.settings, lambda _domain, _name: None)
        self.process: subprocess.Popen[str] | None = None

    @property
    def bearer(self) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of a call by the operator."""
        return (("authorization", f"Bearer {self.tokens['operator']}"),)

    def start(self, **changes: Any) -> subprocess.Popen[str]:
        """Start the supervisor."""
        environment = {**os.environ, **environment_of(self.settings.model_copy(update=changes))}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-m", "kronos_db"], env=environment, stderr=pipe, text=True)
        return self.process

    def readyz(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /readyz; 0 and nothing while there is no answer."""
        try:
            with urllib.request.urlopen(f"http://{self.settings.ops_listen}/readyz", timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    def is_ready(self) -> bool:
        """Whether every process serves."""
        status, body = self.readyz()
        return status == 200 and body["status"] == "ok" and len(body["parts"]) == self.count + 1

    def await_ready(self) -> None:
        """Return when every process serves; fail when the supervisor ended, with what it said."""
        process = self.process
        assert process is not None
        eventually(lambda: self.is_ready() or process.poll() is not None, _LIMIT, self.readyz)
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")

    def metrics(self) -> dict[str, float]:
        """Every series of /metrics with its value."""
        with urllib.request.urlopen(f"http://{self.settings.ops_listen}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (li.rpartition(" ") for li in lines if li[0] != "#")}

    def children(self) -> list[psutil.Process]:
        """The serving processes."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        """End it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
