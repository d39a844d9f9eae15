"""What `kronos-db call` does: lists, describes and calls methods of a running server, once or for many lines."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kronos_db.client import CallError, Client, ClientError, Method, connect, headers_of
from kronos_db.describe import describe

# Seconds that a unary call gets when nothing else is said; a stream may last.
UNARY_DEADLINE = 30.0
# How many failed lines are shown one by one.
SHOWN_FAILURES = 10
# As shells say it of a program that ended by SIGINT.
_INTERRUPTED = 130


@contextmanager
def connected(
    address: str, *, token: str | None, headers: list[str], ca: Path | None, cert: Path | None, key: Path | None
) -> Iterator[Client]:
    """Give a client; what goes wrong with it becomes a typer.TyperException for the user."""
    try:
        channel = connect(address, ca=ca, certificate=cert, key=key)
        with Client(channel, headers=headers_of(headers, token)) as client:
            yield client
    except ClientError as error:
        raise typer.TyperException(str(error)) from None
    except CallError as error:
        hint = "" if token else "\n  --token or KRONOS_TOKEN gives a bearer token"
        raise typer.TyperException(refusal(error, address) + hint * (error.code == "UNAUTHENTICATED")) from None


def list_services(client: Client) -> None:
    """Print every service with its methods."""
    for service, methods in client.services():
        print(service)
        for method in methods:
            print(f"  {method.signature}")


def show_method(method: Method) -> None:
    """Print what a method takes and gives."""
    print("\n\n".join([f"rpc {method.signature};", *describe(method.descriptor)]))


def call_once(client: Client, method: Method, body: str, deadline: float | None) -> None:
    """Make one call and print its responses as JSON, those of a stream one on each line."""
    streams = method.descriptor.client_streaming, method.descriptor.server_streaming
    if body == "-" and streams[0]:
        # Line by line, so that a conversation is possible.
        requests = (method.request(line) for line in _lines("-") if line.strip())
    else:
        text = "".join(_lines(body.removeprefix("@"))) if body == "-" or body.startswith("@") else body
        requests = (request for request in (method.requests(text) if streams[0] else [method.request(text)]))
    timeout = deadline or (None if any(streams) else UNARY_DEADLINE)
    for response in client.call(method, requests, deadline=timeout):
        print(method.text(response, indent=None if streams[1] else 2), flush=True)


def call_for_each(
    client: Client, method: Method, source: str, *, in_flight: int, deadline: float | None, progress: bool
) -> None:
    """Call once for each line of `source` and print how many calls were OK.

    Exit code 1 when one was not, and 130 after Ctrl-C: calls under way are cancelled then, and may have taken effect.
    """
    total = sum(1 for line in _lines(source) if line.strip()) if progress and source != "-" else None
    begin = time.monotonic()
    done = failed = 0
    interrupted = False
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not progress) as bar:
        task = bar.add_task(method.descriptor.name, total=total)
        outcomes = client.repeat(method, _lines(source), in_flight=in_flight, deadline=deadline or UNARY_DEADLINE)
        try:
            for outcome in outcomes:
                done += 1
                bar.advance(task)
                if outcome.error is None:
                    continue
                failed += 1
                if failed <= SHOWN_FAILURES:
                    console.print(f"line {outcome.line}: {_text(outcome.error)}", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            outcomes.close()
    if failed > SHOWN_FAILURES:
        console.print(f"and {failed - SHOWN_FAILURES} more")
    seconds = time.monotonic() - begin
    end = ", then interrupted" if interrupted else ""
    print(f"{done - failed} OK, {failed} failed in {seconds:.1f} s ({done / max(seconds, 0.001):.0f} calls/s){end}")
    if failed or interrupted:
        raise typer.Exit(_INTERRUPTED if interrupted else 1)


def refusal(error: CallError, address: str | None = None) -> str:
    """Return what the server says of a failed call, one fact on each line."""
    if address and error.code == "UNAVAILABLE" and error.reason is None and "failed to connect" in error.message:
        return f"No server answers at {address}."
    reason = f" ({error.reason})" if error.reason else ""
    lines = [f"{error.code}{reason}: {error.message}"]
    lines += [f"  {field}: {fault}" for field, fault in error.violations]
    lines += [f"  {name} = {value}" for name, value in error.metadata.items()]
    if error.retry_after is not None:
        lines.append(f"  try again after {error.retry_after:g} s")
    if error.request_id:
        lines.append(f"  request id {error.request_id}")
    return "\n".join(lines)


def _text(error: ClientError | CallError) -> str:
    return refusal(error) if isinstance(error, CallError) else str(error)


def _lines(source: str) -> Iterator[str]:
    """Yield the lines of a file, or of standard input for `-`. What is not UTF-8 fails when it is read as JSON."""
    try:
        if source == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
            yield from sys.stdin
        else:
            with Path(source).open(encoding="utf-8", errors="surrogateescape") as file:
                yield from file
    except OSError as error:
        raise ClientError(f"{source} cannot be read: {error.strerror}.") from None
