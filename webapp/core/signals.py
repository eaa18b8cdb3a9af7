"""Signals of web processes: run their handlers although the main thread waits, and stop with the parent process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from types import FrameType

# Sent to the main thread to interrupt a system call. Nothing else uses it.
_INTERRUPT = signal.SIGURG
# Time between two interruptions until the main thread has run the handlers.
_REPEAT_SECONDS = 0.1

# Time for the requests in progress, as `workers-kill-timeout` of the web server.
_STOP_SECONDS = 30

_interrupted = threading.Event()
log = logging.getLogger(__name__)


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


def stop_with_parent() -> None:
    """Let this process finish its requests and stop when its parent has died.

    A parent that is killed can't stop its children: they would go on listening on its port, with the code and the
    settings of the time when it was started.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    descriptor: int | None
    try:
        descriptor = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        descriptor = None
    except (AttributeError, OSError):
        # Not Linux, or an old kernel. The descriptor of multiprocessing becomes readable once the processes that were
        # started after this one have ended, too.
        descriptor = parent.sentinel
    threading.Thread(target=_stop_after, args=(parent.pid, descriptor), name="parent", daemon=True).start()


def _stop_after(parent_pid: int, descriptor: int | None) -> None:
    # The parent may have died, and another process may have got its id, before the descriptor was opened.
    if descriptor is not None and os.getppid() == parent_pid:
        select.select([descriptor], [], [])
    log.error("the parent process was killed; this process finishes its requests and stops")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
