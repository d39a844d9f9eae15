"""A wish to stop that comes as a signal, at whatever moment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from kronos_db.runtime.stopping import Stop

MANY_SIGNALS = """
import random, signal, time
from kronos_db.runtime.stopping import Stop
signal.signal(signal.SIGALRM, lambda *_: stop.set())
end = time.monotonic() + 2
while time.monotonic() < end:
    stop = Stop()
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-5))
    stop.wait()
print("woken every time")
"""


def test_a_signal_wakes_at_any_moment() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_SIGNALS], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "woken every time\n", "")


def test_it_is_set_for_good() -> None:
    stop = Stop()
    assert not stop.wait(0.01)
    assert not stop.is_set()
    stop.set()
    stop.set()
    for _ in range(3):
        assert stop.wait()
    assert stop.is_set()


def test_a_thread_may_set_it_too() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.set).start()
    begin = time.monotonic()
    assert stop.wait(30)
    assert time.monotonic() - begin < 30
