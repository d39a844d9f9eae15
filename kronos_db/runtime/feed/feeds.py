"""All feeds of a process, and the threads that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kronos_db.runtime.database.changes import channel as channel_of
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.listening import Listener, Notifier
from kronos_db.runtime.feed.feed import Feed, Log, Pace
from kronos_db.runtime.feed.limits import CallerStreams
from kronos_db.runtime.feed.tokens import ResumeTokens
from kronos_db.runtime.pusher import Pusher


class Feeds:
    """Opens a feed for each domain, and wakes it over one connection for each database.

    `listening_dsns` has for each domain the DSN to listen at; domains with the same one share the connection.
    `caller_streams` is how many streams one caller may hold.
    """

    def __init__(self, listening_dsns: Mapping[str, str], caller_streams: int, pace: Pace | None = None) -> None:
        self.streams = CallerStreams(caller_streams)
        self.notifier = Notifier()
        self._dsns = listening_dsns
        self._pace = pace
        self.pusher = Pusher()
        self._feeds: dict[str, Feed] = {}
        # What to wake, by the DSN to listen at and the channel.
        self._wakers: dict[str, dict[str, Callable[[], None]]] = {}
        self._listeners: list[Listener] = []

    def open(self, database: Database, key: bytes, log: Log | None = None, pace: Pace | None = None) -> Feed:
        """Return the feed of a domain; `key` vouches for its resume tokens. To be called before `start`.

        `log` reads the changes in place of the database, at a `pace` of its own.
        """
        tokens = ResumeTokens(key, database.domain)
        feed = Feed(log or database, tokens, self.pusher, self.streams, pace or self._pace)
        self._feeds[database.domain] = feed
        self.listen(database.domain, channel_of(database.domain), feed.wake)
        database.on_changed = partial(self.notifier.changed, database)
        return feed

    def listen(self, domain: str, channel: str, wake: Callable[[], None]) -> None:
        """Have `wake` called, too, for a channel in the database of `domain`. To be called before `start`."""
        wakers = self._wakers.setdefault(self._dsns[domain], {})
        wakers[channel] = partial(_both, wakers[channel], wake) if channel in wakers else wake

    def start(self) -> None:
        """Listen, notify and push."""
        self._listeners = [Listener(dsn, wakers) for dsn, wakers in self._wakers.items()]
        for listener in self._listeners:
            listener.start()
        self.notifier.start()
        self.pusher.start()

    def close(self) -> None:
        """End all streams with SHUTTING_DOWN, and refuse new ones the same way."""
        for feed in self._feeds.values():
            feed.close()

    def stop(self) -> None:
        """Let go of threads and connections."""
        for listener in self._listeners:
            listener.stop()
        self.notifier.stop()
        self.pusher.stop()

    def watched(self) -> dict[str, int]:
        """Return how many streams watch each domain."""
        return {domain: feed.watched for domain, feed in self._feeds.items()}


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
