"""Loads a unary method from a process of its own: so many calls in flight, each answered one replaced at once.

    python -m benchmarks.load < JOB.json

The job is one JSON object, see `Job`. Prints one JSON object, see `Outcome`. Requests are sent as bytes that were
encoded beforehand and answers are not decoded, so that the generator costs as little as it can; what it costs is
reported.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass, field

import grpc.aio


@dataclass(frozen=True)
class Job:
    """What to call: `requests` are base64; they are sent in random order. Times in seconds."""

    target: str
    method: str
    requests: list[str]
    in_flight: int
    seconds: float
    warm_up: float = 1.0
    metadata: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of it: calls a second, failures, latencies in milliseconds, the generator's own share of a core."""

    calls_per_second: float
    failures: int
    p50_ms: float
    p99_ms: float
    generator_cpu: float


async def run(job: Job) -> Outcome:
    """Do the job."""
    requests = [base64.b64decode(text) for text in job.requests]
    latencies: list[float] = []
    failures = 0
    begin = time.perf_counter() + job.warm_up
    end = begin + job.seconds

    async def caller(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        nonlocal failures
        while (started := time.perf_counter()) < end:
            try:
                await call(random.choice(requests), metadata=job.metadata)
            except grpc.aio.AioRpcError:
                failures += 1
                continue
            finished = time.perf_counter()
            if begin <= started and finished <= end:
                latencies.append(finished - started)

    async with grpc.aio.insecure_channel(job.target) as channel:
        call = channel.unary_unary(job.method)
        await asyncio.gather(*(caller(call) for _ in range(job.in_flight)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    latencies.sort()
    return Outcome(
        calls_per_second=len(latencies) / job.seconds,
        failures=failures,
        p50_ms=latencies[len(latencies) // 2] * 1000 if latencies else 0.0,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000 if latencies else 0.0,
        generator_cpu=(usage.ru_utime + usage.ru_stime) / (job.seconds + job.warm_up),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Job(**json.load(sys.stdin)))))))
