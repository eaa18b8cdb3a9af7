"""Doing at once what many threads ask for at the same time.

Whoever asks while nobody is at it does the work at once, in its own thread: alone if it is alone, so that a quiet
client never waits. Who comes meanwhile waits; when the work is done, the first of those who wait does the next piece
for all of them. There is no thread that has to be kept alive, and no time is spent on waiting for more to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class CoalescingTimeout(Exception):
    """No answer came in time. `begun` tells whether somebody was at it: then it may have been done all the same."""

    def __init__(self, has_started: bool) -> None:
        super().__init__("begun" if has_started else "not begun")
        self.has_started = has_started


class _Waiter(Generic[Item, Result]):
    """One thread's ask. Its bell is rung once: when there is an answer or when it is its turn to lead."""

    __slots__ = ("after", "error", "has_left", "item", "next_waiter", "results", "wake_lock")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.wake_lock = threading.Lock()
        self.wake_lock.acquire()
        self.results: list[Result] = []
        self.error: BaseException | None = None
        # Who is woken by this one, once it has its answer.
        self.next_waiter: _Waiter[Item, Result] | None = None
        self.has_left = False


class Coalescer(Generic[Item, Result]):
    """Gathers what threads of one process ask for.

    :param work: answers many asks, in their order. It runs in the thread of one of those who ask, one call at a time.
    :param at_most: how many asks it is given at once.
    :param patience: seconds after which somebody who waits is told that nobody answers.
    """

    def __init__(
        self, handler: Callable[[Sequence[Item]], Sequence[Result]], max_group_size: int, timeout: float
    ) -> None:
        self._handler = handler
        self._max_group_size = max_group_size
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter[Item, Result]] = deque()
        self._has_leader = False

    def submit(self, item: Item) -> Result:
        """The answer to this ask.

        :raises Stuck: when none came in time.
        :raises Exception: what `work` raised for the asks that were gathered with this one.
        """
        mine: _Waiter[Item, Result] = _Waiter(item)
        with self._lock:
            self._waiters.append(mine)
            leads, self._has_leader = not self._has_leader, True
        if not leads and not mine.wake_lock.acquire(timeout=self._timeout):
            self._abandon(mine)
        if not mine.results and mine.error is None:
            self._run_group()
        if mine.next_waiter is not None:
            mine.next_waiter.wake_lock.release()
        if mine.error is not None:
            raise mine.error
        return mine.results[0]

    def _run_group(self) -> None:
        """Do one piece of work for all who wait, hand on to the first of those who came meanwhile, then answer."""
        with self._lock:
            batch = [self._waiters.popleft() for _ in range(min(len(self._waiters), self._max_group_size))]
        answers: Sequence[Result] = ()
        error: BaseException | None = None
        try:
            answers = self._handler([waiting.item for waiting in batch])
            if len(answers) != len(batch):
                raise RuntimeError("there must be one answer for each ask")
        except BaseException as raised:
            error = raised
        self._deliver_results(batch, answers, error)

    def _deliver_results(
        self, batch: list[_Waiter[Item, Result]], answers: Sequence[Result], error: BaseException | None
    ) -> None:
        """Wake the next leader and the first who gets an answer, who wakes the second, and so on.

        Woken all at once they would only fight for the interpreter.
        """
        with self._lock:
            for n, waiting in enumerate(batch):
                if error is None:
                    waiting.results.append(answers[n])
                waiting.error = error
            staying = [waiting for waiting in batch if not waiting.has_left]
            for waiting, after in pairwise(staying):
                waiting.next_waiter = after
            if self._waiters:
                self._waiters[0].wake_lock.release()
            else:
                self._has_leader = False

    def _abandon(self, mine: _Waiter[Item, Result]) -> None:
        """Give up waiting, unless the bell rang at this very moment."""
        with self._lock:
            if mine.wake_lock.acquire(blocking=False) or mine.results or mine.error is not None:
                return
            mine.has_left = True
            begun = mine not in self._waiters
            if not begun:
                self._waiters.remove(mine)
        raise CoalescingTimeout(begun)
