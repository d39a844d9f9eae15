"""One core: threads are gathered on it and do not push each other off; those let go are free; a crowded one is left."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kronos_db.runtime.affinity import is_crowded


@pytest.mark.parametrize(
    ("ran", "waited", "crowded"),
    [
        (1.0, 0.0, False),  # the core is all ours
        (1.0, 0.9, False),  # our threads wait for each other
        (0.1, 0.0, False),  # little to do
        (0.5, 0.5, True),  # somebody else has half of it
        (0.1, 0.9, True),
    ],
)
def test_crowded_is_when_somebody_else_takes_the_core(ran: float, waited: float, crowded: bool) -> None:
    assert is_crowded(ran, waited) is crowded


# A process starts with what its parent has, and a server that served in this one may have left it what it took.
AS_EVER = "import os; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))"


def run(program: str) -> str:
    """Run a program in a process that is under the policy of every process; return what it says."""
    command = [sys.executable, "-c", f"{AS_EVER}\n{program}"]
    done = subprocess.run(command, check=True, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


PROGRAM = """
import os, threading
from kronos_db.runtime.affinity import OneCore
everywhere = os.sched_getaffinity(0)
core = OneCore(slot=1, slots=len(everywhere))
stop, ids = threading.Event(), []
def work(release):
    if release:
        core.release()
    ids.append((release, threading.get_native_id()))
    stop.wait(10)
threads = [threading.Thread(target=work, args=(release,)) for release in (False, True)]
for thread in threads:
    thread.start()
while len(ids) < 2:
    pass
core.start()
later = threading.Thread(target=work, args=(False,))
later.start()
while len(ids) < 3:
    pass
def start_another():
    core.release()
    ids.append((True, threading.get_native_id()))
    child = threading.Thread(target=lambda: (ids.append((True, threading.get_native_id())), stop.wait(10)))
    child.start()
    stop.wait(10)
threading.Thread(target=start_another).start()
while len(ids) < 5:
    pass
gathered = core._gathered()
if len(everywhere) > 1:
    assert not {tid for release, tid in ids if release} & set(gathered)
assert {tid for release, tid in ids if not release} <= set(gathered)
core._pin(gathered)
cores = sorted(everywhere)
for release, tid in ids:
    assert os.sched_getaffinity(tid) == (everywhere if release else {cores[1 % len(cores)]}), (release, tid)
    assert os.sched_getscheduler(tid) == (os.SCHED_OTHER if release else os.SCHED_BATCH), (release, tid)
core.stop()
stop.set()
"""


def test_threads_are_on_one_core_but_for_those_let_go() -> None:
    run(PROGRAM)


REFUSED = """
import os
from kronos_db.runtime.affinity import OneCore
allowed = os.sched_getaffinity(0)
def refuse(*_):
    raise PermissionError
os.{refused} = refuse
core = OneCore()
core.start()
core.release()
core.stop()
assert os.sched_getscheduler(0) == os.SCHED_OTHER
assert os.sched_getaffinity(0) == allowed
"""


@pytest.mark.parametrize("refused", ["sched_setaffinity", "sched_setscheduler"])
def test_what_a_sandbox_refuses_is_said_and_done_without(refused: str) -> None:
    assert "does not allow" in run(REFUSED.format(refused=refused))


GIVEN = """
import os
from kronos_db.runtime.affinity import OneCore
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
core = OneCore()
core.start()
assert os.sched_getscheduler(0) == os.SCHED_IDLE
core.release()
assert os.sched_getscheduler(0) == os.SCHED_IDLE
core.stop()
"""


def test_the_policy_that_an_operator_gave_the_process_is_kept() -> None:
    run(GIVEN)
