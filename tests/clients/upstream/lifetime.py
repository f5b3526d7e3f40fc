"""How a stand-in upstream says that it is ready, and how it learns that it may go."""

import json
import os
import select
import signal
import sys
import threading

# llama.cpp writes to the process's own stdout; the ready line must stay alone there.
_READY = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def announce(facts: dict) -> None:
    """Prints the ready line that the starter waits for."""
    _READY.write(json.dumps(facts) + "\n")
    _READY.flush()


def wait_for_end() -> None:
    """Returns on SIGTERM, SIGINT or the end of standard input. Main thread only."""
    assert threading.current_thread() is threading.main_thread()
    woken, wake = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(wake, b"."))
    stdin = sys.stdin.fileno()
    while True:
        ready, _, _ = select.select([woken, stdin], [], [])
        if woken in ready or not os.read(stdin, 4096):
            return
