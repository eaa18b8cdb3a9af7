"""Run the handlers of signals although the main thread waits for a lock."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

# Sent to the main thread to interrupt a system call. Nothing else uses it.
_INTERRUPT = signal.SIGURG
# Time between two interruptions until the main thread has run the handlers.
_REPEAT_SECONDS = 0.1

_interrupted = threading.Event()


def wake_main_thread_on_signals() -> None:
    """Interrupt the main thread whenever this process receives a signal. Call it in the main thread.

    The kernel may deliver a signal to any thread, such as one that is starting another thread. Python only runs
    handlers in the main thread, and one that waits for a lock does not notice that there is something to run. A worker
    process of the web server would go on accepting requests after SIGTERM until it is killed.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python writes the number of each signal, in whichever thread it arrives.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(_INTERRUPT, _note_interruption)
    arguments = (reader, threading.get_ident())
    threading.Thread(target=_interrupt_main_thread, args=arguments, name="signals", daemon=True).start()


def _interrupt_main_thread(reader: int, main_thread: int) -> None:
    while numbers := os.read(reader, 64):
        if set(numbers) == {_INTERRUPT}:
            continue
        _interrupted.clear()
        # The first interruption is lost when it comes just before the main thread starts to wait.
        while not _interrupted.is_set():
            signal.pthread_kill(main_thread, _INTERRUPT)
            _interrupted.wait(_REPEAT_SECONDS)


def _note_interruption(_number: int, _frame: FrameType | None) -> None:
    # Handlers run in the order of their numbers, so those of the usual signals have run before.
    _interrupted.set()
