"""Signals that arrive in another thread than the main one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from queue import Queue
from types import SimpleNamespace

import pytest

from webapp.core import signals
from webapp.core.settings import ROOT

# The kernel delivers a signal sent to one thread to that thread. It stands for a signal to the process that happens to
# arrive there.
PROGRAM = """
import signal, sys, threading, time
from webapp.core import signals

signals.wake_main_thread_on_signals()
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
main = threading.main_thread()


def send():
    # Until the main thread waits in Event.wait.
    while sys._current_frames()[main.ident].f_code.co_name != "wait":
        time.sleep(0.01)
    signal.pthread_kill(other.ident, signal.SIGTERM)


threading.Thread(target=send, daemon=True).start()
done.wait()
print("stopped")
"""


def test_a_signal_that_arrives_in_another_thread_is_handled() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout == "stopped\n"


@pytest.mark.parametrize(
    ("error", "descriptor"), [(None, 8), (ProcessLookupError(), None), (OSError(38, "Function not implemented"), 7)]
)
def test_a_process_waits_for_its_parent_with_any_kernel(
    monkeypatch: pytest.MonkeyPatch, error: OSError | None, descriptor: int | None
) -> None:
    def open_descriptor(_pid: int) -> int:
        if error is not None:
            raise error
        return 8

    waits: Queue[tuple[int, int | None]] = Queue()
    monkeypatch.setattr(
        "webapp.core.signals.multiprocessing.parent_process", lambda: SimpleNamespace(pid=1234, sentinel=7)
    )
    monkeypatch.setattr("webapp.core.signals.os.pidfd_open", open_descriptor)
    monkeypatch.setattr(signals, "_stop_after", lambda *arguments: waits.put(arguments))

    signals.stop_with_parent()

    assert waits.get(timeout=60) == (1234, descriptor)


def test_a_process_without_a_parent_keeps_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webapp.core.signals.multiprocessing.parent_process", lambda: None)
    monkeypatch.setattr("webapp.core.signals.os.pidfd_open", pytest.fail)

    signals.stop_with_parent()


@pytest.mark.parametrize("is_parent_alive", [True, False])
def test_a_process_stops_when_its_parent_has_ended(monkeypatch: pytest.MonkeyPatch, is_parent_alive: bool) -> None:
    steps: list[object] = []
    monkeypatch.setattr("webapp.core.signals.select.select", lambda descriptors, *_: steps.append(descriptors))
    monkeypatch.setattr("webapp.core.signals.os.kill", lambda _pid, number: steps.append(number))
    monkeypatch.setattr("webapp.core.signals.time.sleep", steps.append)

    signals._stop_after(os.getppid() if is_parent_alive else 1 + os.getppid(), 7)

    stop = [signal.SIGTERM, signals._STOP_SECONDS, signal.SIGKILL]
    assert steps == ([[7]] if is_parent_alive else []) + stop
