"""Calls side by side, and what becomes of those that nobody waits for."""

import subprocess
import sys
import threading
import time

import pytest

from swavg.storage.calls import Abandoned, abandoned, begin, call


def test_calls_are_made_side_by_side_and_their_errors_raised():
    barrier = threading.Barrier(3)
    waiting = [begin(barrier.wait, 10) for _ in range(3)]
    assert sorted(each.result() for each in waiting) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0)
    # In a thread that makes calls no other is waited for.
    assert call(lambda: call(threading.current_thread) is threading.current_thread())


def test_who_is_abandoned_waits_no_more():
    never, ended = threading.Event(), []

    def wait():
        try:
            call(never.wait)
        except Abandoned:
            ended.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.1)
    with abandoned({waiting.ident}):
        waiting.join(5)
    assert len(ended) == 1
    never.set()


def test_a_process_that_was_forked_uses_stores_if_its_parent_has_not():
    code = (
        "import os\n"
        "from swavg.storage.calls import abandoned, call\n"
        "def child():\n"
        "    if pid := os.fork():\n"
        "        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    try:\n        os._exit(call(lambda: 7))\n"
        "    except Exception as error:\n        print(error, flush=True)\n        os._exit(1)\n"
        "with abandoned({1}):\n    pass\n"
        "print(child(), call(lambda: 8), child())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("Object stores were used before this process was forked")
    assert told.stdout.endswith("7 8 1\n")
