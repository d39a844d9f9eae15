"""Conversations: both sides speak, in order, with back-pressure both ways, and an idle one holds no thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kronos_db.runtime.interceptors import conversation as module
from kronos_db.runtime.interceptors.conversation import Replies
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.runtime.interceptors.probe import CALLER_STREAMS, Probe, ProbeServer, TeapotError

# More than a window of flow control may ever hold.
_LARGE = "x" * 60_000


class Echoing:
    """Answers each message, and notes what happens."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.begun = 0
        self.heard: list[str] = []
        self.threads: set[str] = set()
        self.finished = threading.Event()
        self.over = threading.Event()
        # Set: messages wait for `go`.
        self.go = threading.Event()
        self.go.set()

    def receive(self, message: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.begun += 1
        assert self.go.wait(10)
        self.heard.append(message.name)
        if message.name == "teapot":
            raise TeapotError(metadata={"vessel": "pot"})
        self.replies.send(message)

    def finish(self) -> None:
        self.finished.set()
        self.replies.complete()

    def closed(self) -> None:
        self.over.set()


class Verbose(Echoing):
    """Answers each message at length."""

    def receive(self, message: Any) -> None:
        self.heard.append(message.name)
        self.replies.send(Probe(word=_LARGE))


class Talk:
    """The caller's side of one conversation."""

    def __init__(self, probe: ProbeServer, **kw: Any) -> None:
        self.said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stream = probe.start("Converse", self._say(), **kw)

    def _say(self) -> Iterator[Any]:
        while (message := self.said.get()) is not None:
            yield message

    def say(self, *names: str) -> None:
        for name in names:
            self.said.put(Probe(name=name))


@pytest.fixture
def echoing(probe: ProbeServer) -> Iterator[list[Echoing]]:
    """The server's sides, in the order of their beginnings."""
    begun: list[Echoing] = []

    def begin(replies: Replies) -> Echoing:
        begun.append(Echoing(replies))
        return begun[-1]

    probe.on["Converse"] = begin
    yield begun
    eventually(lambda: all(each.over.is_set() for each in begun))


def test_messages_are_answered_in_order_and_the_end_comes_behind(probe: ProbeServer, echoing: list[Echoing]) -> None:
    names = [str(number) for number in range(300)]
    answers = probe.call("Converse", *[Probe(name=name) for name in names])
    assert [answer.name for answer in answers] == names
    assert echoing[0].heard == names
    assert echoing[0].finished.is_set()


def test_messages_pass_the_filters_both_ways(probe: ProbeServer, echoing: list[Echoing]) -> None:
    plain = Probe(id="0192f0c4-0000-7000-8000-000000000000", secret="Attack at dawn")
    seen: list[str] = []
    hear = Echoing.receive

    def receive(self: Echoing, message: Any) -> None:
        seen.append(message.secret)
        hear(self, message)

    Echoing.receive = receive  # type: ignore[method-assign]
    try:
        answers = probe.call("Converse", plain)
    finally:
        Echoing.receive = hear  # type: ignore[method-assign]
    assert answers[0].secret == "Attack at dawn"
    assert seen
    assert "dawn" not in seen[0]


def test_a_message_that_breaks_a_rule_ends_it_with_the_rule(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("good")
    assert next(talk.stream).name == "good"
    talk.say("much too long a name")
    refusal = refused(lambda: next(talk.stream))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert echoing[0].heard == ["good"]
    assert echoing[0].over.wait(10)


def test_what_the_domain_raises_ends_it_with_its_answer(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("teapot", "never")
    refusal = refused(lambda: list(talk.stream))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "TEAPOT")
    assert echoing[0].over.wait(10)
    assert echoing[0].heard == ["teapot"]


def test_a_caller_that_leaves_is_noticed(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("hello")
    next(talk.stream)
    talk.stream.cancel()
    assert echoing[0].over.wait(10)


def test_an_unknown_caller_is_refused(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe, caller=None)
    talk.say("hello")
    assert refused(lambda: next(talk.stream)).reason == "CREDENTIAL_INVALID"
    assert echoing == []


def test_idle_ones_hold_no_thread(probe: ProbeServer, echoing: list[Echoing]) -> None:
    # A first call of each kind has made the threads that there will be.
    probe.call("Unary")
    probe.call("Converse", Probe(name="first"))
    servers = {
        thread.name for thread in threading.enumerate() if thread.name.startswith(("worker-", "writer-", "stream-"))
    }
    talks = [Talk(probe, timeout=60) for _ in range(40)]
    eventually(lambda: len(echoing) == 41)
    after = {
        thread.name for thread in threading.enumerate() if thread.name.startswith(("worker-", "writer-", "stream-"))
    }
    assert after == servers
    # And none of them is taken: unary calls and every stream are answered.
    for number, talk in enumerate(talks):
        talk.say(str(number))
    for number, talk in enumerate(talks):
        assert next(talk.stream).name == str(number)
    probe.call("Unary")
    assert {name for each in echoing for name in each.threads} <= servers
    for talk in talks:
        talk.said.put(None)
        assert list(talk.stream) == []


def test_nothing_more_is_read_while_a_message_is_being_handled(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("first")
    assert next(talk.stream).name == "first"
    side = echoing[0]
    side.go.clear()
    talk.say(*["more"] * 5)
    talk.said.put(None)
    eventually(talk.said.empty)
    assert side.heard == ["first"]
    assert not side.finished.is_set()
    side.go.set()
    assert len(list(talk.stream)) == 5


def test_who_does_not_read_is_not_read_from(probe: ProbeServer, echoing: list[Echoing]) -> None:
    def begin(replies: Replies) -> Echoing:
        echoing.append(Verbose(replies))
        return echoing[-1]

    probe.on["Converse"] = begin
    talk = Talk(probe)
    talk.say(*["more"] * 2_000)
    eventually(lambda: bool(echoing) and echoing[0].replies.waiting >= module._MOST_WAITING, 30)
    # Far from all: what gRPC took of the replies before, and those that wait.
    heard = len(echoing[0].heard)
    assert heard < 1_000
    assert echoing[0].replies.waiting <= module._MOST_WAITING + 1
    assert echoing[0].replies.untaken_seconds() > 0
    talk.said.put(None)
    assert sum(1 for _ in talk.stream) == 2_000
    assert len(echoing[0].heard) == 2_000


def test_one_caller_holds_a_bounded_number(probe: ProbeServer, echoing: list[Echoing]) -> None:
    eventually(lambda: probe.streams.held("friend") == 0)
    held = [Talk(probe) for _ in range(CALLER_STREAMS)]
    eventually(lambda: probe.streams.held("friend") == CALLER_STREAMS)
    one_more = Talk(probe)
    assert refused(lambda: next(one_more.stream)).reason == "TOO_MANY_STREAMS"
    for talk in held:
        talk.stream.cancel()
    eventually(lambda: probe.streams.held("friend") == 0)


def test_all_end_when_the_process_ends(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("hello")
    next(talk.stream)
    try:
        probe.conversations.close()
        refusal = refused(lambda: next(talk.stream))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        late = Talk(probe)
        assert refused(lambda: next(late.stream)).reason == "SHUTTING_DOWN"
    finally:
        probe.conversations._closing = False


def test_an_end_comes_behind_the_replies_that_wait(probe: ProbeServer, echoing: list[Echoing]) -> None:
    """What was answered may be stored: the caller is to know, whatever came behind it."""

    def begin(replies: Replies) -> Echoing:
        echoing.append(Verbose(replies))
        return echoing[-1]

    probe.on["Converse"] = begin
    talk = Talk(probe)
    talk.say(*["more"] * 2_000)
    eventually(lambda: bool(echoing) and echoing[0].replies.waiting >= module._MOST_WAITING, 30)
    echoing[0].replies.end(TeapotError(metadata={"vessel": "pot"}))
    answers: list[Any] = []
    refusal = refused(lambda: answers.extend(talk.stream))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "TEAPOT")
    assert len(answers) == len(echoing[0].heard) < 2_000
    # Too late for both, and no harm.
    echoing[0].replies.send(Probe(name="late"))
    echoing[0].replies.complete()


def test_a_process_that_ends_answers_what_it_received(probe: ProbeServer, echoing: list[Echoing]) -> None:
    talk = Talk(probe)
    talk.say("first")
    next(talk.stream)
    echoing[0].go.clear()
    talk.say("last")
    eventually(lambda: echoing[0].begun == 2)
    try:
        probe.conversations.close()
        echoing[0].go.set()
        answers: list[Any] = []
        refusal = refused(lambda: answers.extend(talk.stream))
    finally:
        probe.conversations._closing = False
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert [answer.name for answer in answers] == ["last"]


def test_calls_and_messages_are_counted(probe: ProbeServer, echoing: list[Echoing]) -> None:
    before = probe.counts("Converse")
    probe.call("Converse", Probe(name="a"), Probe(name="b"))
    eventually(lambda: probe.counts("Converse")["handled OK"] == before["handled OK"] + 1)
    counted = probe.counts("Converse")
    counted.subtract(before)
    assert (counted["msg_received"], counted["msg_sent"], counted["started"]) == (2, 2, 1)
