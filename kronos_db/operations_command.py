"""What `kronos-db slow-queries` and `kronos-db advise` do: they ask a running server and print tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from kronos_db.client import Client

# Seconds. Reading the counters of every domain takes a moment, and trying indexes out takes many.
_DEADLINE = 30.0
_MEASURING = 1800.0
_PAGE = 1000
_SHOWN_TEXT = 200


def list_slow_queries(client: Client, *, domain: str, order: str, limit: int, as_json: bool) -> None:
    """Print the statements that cost most, at most `limit`."""
    request = {"domain": domain, "order": f"SLOW_QUERY_ORDER_{order.upper().replace('-', '_')}"}
    queries: list[Mapping[str, Any]] = []
    page: dict[str, Any] = {}
    while len(queries) < limit:
        asked = {**request, "pageSize": min(_PAGE, limit - len(queries)), "pageToken": page.get("nextPageToken", "")}
        (page,) = _call(client, "AdminService/ListSlowQueries", asked, _DEADLINE)
        queries += page["slowQueries"]
        if not page["nextPageToken"]:
            break
    if as_json:
        print(json.dumps({"slowQueries": queries, "sources": page.get("sources", [])}, indent=2, ensure_ascii=False))
        return
    table = Table("calls", "mean ms", "total s", "rows", "by", "statement")
    for query in queries:
        name = ", ".join(query["queryNames"])
        methods = ", ".join(method.rpartition(".")[2] for method in query["methods"])
        table.add_row(
            str(query["calls"]),
            f"{_seconds(query['meanTime']) * 1000:.2f}",
            f"{_seconds(query['totalTime']):.2f}",
            str(query["rows"]),
            methods or name or query["domain"],
            (f"{name}: " if name else "") + " ".join(query["text"].split())[:_SHOWN_TEXT],
        )
    _print(table)
    for source in page.get("sources", []):
        if source["remedy"]:
            print(f"{source['domain']} is not counted: {source['remedy']}")


def advise(client: Client, *, domain: str, measure: bool, as_json: bool) -> None:
    """Print what there is to do about indexes."""
    deadline = _MEASURING if measure else _DEADLINE
    (answer,) = _call(client, "AdminService/AdviseIndexes", {"domain": domain, "measure": measure}, deadline)
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    table = Table("id", "kind", "table", "what", "why", "saves", show_lines=True)
    for advice in answer["advices"]:
        why = "\n".join([advice["reason"], *advice["evidence"], *_measured(advice)])
        table.add_row(
            advice["id"],
            advice["kind"].removeprefix("INDEX_ADVICE_KIND_"),
            f"{advice['domain']}.{advice['table']}",
            advice["statement"],
            why,
            f"{_seconds(advice['estimatedGain']):.1f} s in 7 days" if "estimatedGain" in advice else "",
        )
    if answer["advices"]:
        _print(table)
        print("To do one of them: kronos-db advise --apply ID")
    else:
        print("Nothing to do.")
    for skipped in answer["skippedDomains"]:
        print(f"{skipped['domain']}: {skipped['reason']}")


def apply(client: Client, advice_id: str) -> None:
    """Do what is advised, and print how far it is."""
    before = ""
    for step in _call(client, "AdminService/ApplyIndexAdvice", {"adviceId": advice_id}, None):
        change = step["change"]
        waiting = f", waits for {step['waitingFor']} transactions" if step["waitingFor"] else ""
        line = f"{change['state'].removeprefix('INDEX_CHANGE_STATE_')} {step['phase']}{waiting}".rstrip()
        if line != before:
            print(line, flush=True)
        before = line


def _measured(advice: Mapping[str, Any]) -> list[str]:
    found = advice.get("measurement")
    if found is None:
        return []
    before, after = (_seconds(found[name]) * 1000 for name in ("timeBefore", "timeAfter"))
    used = "" if found["used"] else ", not used"
    write = _seconds(found["writeCost"]) * 1e6
    return [
        f"measured: {before:.2f} ms → {after:.2f} ms{used}; {found['sizeBytes']} bytes, {write:.1f} µs a row written"
    ]


def _call(client: Client, name: str, request: Mapping[str, Any], deadline: float | None) -> Iterator[dict[str, Any]]:
    method = client.method(name)
    message = method.request(json.dumps(request))
    for response in client.call(method, [message], deadline=deadline):
        yield MessageToDict(response, always_print_fields_with_no_presence=True, descriptor_pool=method.pool)


def _seconds(duration: str) -> float:
    return timedelta(seconds=float(duration.removesuffix("s"))).total_seconds()


def _print(table: Table) -> None:
    console = Console(highlight=False, markup=False)
    # A pipe has no width: nothing is to be broken there.
    (console if console.is_terminal else Console(highlight=False, markup=False, width=500)).print(table)
