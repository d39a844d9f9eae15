"""Sends calls of one method at a fixed rate, whether the ones before were answered or not.

    python -m benchmarks.flood < JOB.json

The job is one JSON object, see `Job`. Prints one JSON object: for each status code an `Answers`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import grpc.aio


@dataclass(frozen=True)
class Job:
    """What to call: `rate` calls a second for `seconds`; each is given up after `timeout` seconds.

    Calls of the first `warm_up` seconds are not counted.
    """

    target: str
    method: str
    rate: float
    seconds: float
    warm_up: float = 0.5
    timeout: float = 10.0
    metadata: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """How many calls ended with a code, and after how many milliseconds, from each call's own start."""

    count: int
    p50_ms: float
    p99_ms: float


async def run(job: Job) -> dict[str, Answers]:
    """Do the job."""
    milliseconds: dict[str, list[float]] = {}
    calls = set()

    async def once(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], counts: bool) -> None:
        started = time.perf_counter()
        try:
            await call(b"", metadata=job.metadata, timeout=job.timeout)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        if counts:
            milliseconds.setdefault(code, []).append((time.perf_counter() - started) * 1000)

    async with grpc.aio.insecure_channel(job.target) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(job.method)
        begin = time.perf_counter()
        for number in range(int(job.rate * (job.seconds + job.warm_up))):
            due = number / job.rate
            ahead = begin + due - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            task = asyncio.ensure_future(once(call, due >= job.warm_up))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)
    return {code: _answers(sorted(found)) for code, found in milliseconds.items()}


def _answers(milliseconds: list[float]) -> Answers:
    count = len(milliseconds)
    return Answers(count, milliseconds[count // 2], milliseconds[int(count * 0.99)])


if __name__ == "__main__":
    outcome = asyncio.run(run(Job(**json.load(sys.stdin))))
    print(json.dumps({code: asdict(answers) for code, answers in outcome.items()}))
