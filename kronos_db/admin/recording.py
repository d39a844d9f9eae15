"""Records the calls of AdminService in the audit log: at once, or soon where nobody may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from uuid import uuid4

import structlog
from prometheus_client import CollectorRegistry

from kronos_db.admin.audit import Event, Phase
from kronos_db.runtime.interceptors.audit import Entry
from kronos_db.runtime.ops.metrics import gauges

# Events that wait one by one; those that come beyond are counted together when they are alike.
_MOST_WAITING = 1000
_WRITTEN_AT_ONCE = 500
# Seconds until it is tried again, and that the last events get when the process ends.
_RETRY = 1.0
_PATIENCE = 5.0

_log = structlog.get_logger(__name__)


class Recording:
    """Adds events by `add`, which returns when they are durable and raises a KronosError when it is not possible.

    What is noted waits in memory while the database is away, and is lost only if the process dies meanwhile.
    """

    def __init__(self, add: Callable[[Sequence[Event]], None]) -> None:
        self._add = add
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Event] = {}
        # Events that are being written: they are not to be counted up any more.
        self._writing = 0
        self._away = False
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write what is noted."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is still noted, if that takes no more than some seconds."""
        self._stopping.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        if self.waiting:
            _log.error("audit events lost", events=self.waiting)

    @property
    def waiting(self) -> int:
        """How many events are noted and not yet written."""
        return len(self._waiting) + self._writing

    def watch(self, registry: CollectorRegistry) -> None:
        """Register how many events wait."""
        gauges(
            registry,
            "kronos_db_audit_events_waiting",
            "Events of the audit log that are noted and not yet durable.",
            [],
            lambda: [((), self.waiting)],
        )

    def record(self, entry: Entry) -> None:
        """Return when `entry` is durable. Raises what `add` raises."""
        self._add([_event(entry)])

    def note(self, entry: Entry) -> None:
        """Record `entry` soon."""
        event = _event(entry)
        with self._lock:
            crowded = self.waiting >= _MOST_WAITING and event.phase == Phase.REFUSED
            key = (event.caller, event.method, event.code, event.reason) if crowded else event.id
            before = self._waiting.get(key)
            self._waiting[key] = before._replace(call_count=before.call_count + 1) if before else event
        self._due.set()

    def _write_on(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            self._due.clear()
            while self._waiting and not self._stopping.is_set():
                if not self._write_some():
                    self._stopping.wait(_RETRY)
        while self._waiting and self._write_some():
            pass

    def _write_some(self) -> bool:
        """Write the oldest of the events that wait, all when they are few; return False when that did not work."""
        with self._lock:
            keys = list(self._waiting)[:_WRITTEN_AT_ONCE]
            events = [self._waiting.pop(key) for key in keys]
            self._writing = len(events)
        try:
            self._add(events)
        except Exception as error:  # noqa: BLE001  # whatever it is, events stay and the thread goes on
            if not self._away:
                _log.warning("audit events wait", reason=str(error))
            with self._lock:
                self._waiting = {**{event.id: event for event in events}, **self._waiting}
                self._writing = 0
            self._away = True
            return False
        self._writing = 0
        self._away = False
        return True


def _event(entry: Entry) -> Event:
    return Event(
        sequence=0,
        id=uuid4(),
        call_id=entry.call_id,
        phase=Phase[entry.phase.name],
        event_time=entry.time,
        caller=entry.caller,
        method=entry.method,
        request=entry.request,
        detail=entry.detail,
        code=entry.code,
        reason=entry.reason,
        request_id=entry.request_id,
        call_count=1,
        previous_hash=b"",
        hash=b"",
    )
