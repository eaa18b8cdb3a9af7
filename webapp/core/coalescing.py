"""Coalesce concurrent calls: process the items of many threads in groups.

A thread that submits an item while no group is being processed becomes the leader and processes it immediately in its
own thread, so that a single client never waits. Threads that submit an item during that time wait; when the group is
finished, the first waiter becomes the next leader and processes the waiting items, up to a maximum, as one group. There
is no background thread to keep alive, and no delay to let a group fill up.
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
    """No result arrived before the timeout.

    :ivar has_started: whether processing of the item had started; then it may have taken effect nevertheless.
    """

    def __init__(self, has_started: bool) -> None:
        super().__init__("started" if has_started else "not started")
        self.has_started = has_started


class _Waiter(Generic[Item, Result]):
    """A submitted item and its thread.

    `wake_lock` is released once: when there is a result, or to become leader.
    """

    __slots__ = ("error", "has_left", "item", "next_waiter", "results", "wake_lock")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.wake_lock = threading.Lock()
        self.wake_lock.acquire()
        self.results: list[Result] = []
        self.error: BaseException | None = None
        # The waiter that this one wakes after it has received its result.
        self.next_waiter: _Waiter[Item, Result] | None = None
        self.has_left = False


class Coalescer(Generic[Item, Result]):
    """Collects the items that threads of one process submit.

    :param handler: processes a group of items and returns their results in the same order. It runs in the thread of
        one of the submitters, one call at a time.
    :param max_group_size: maximum number of items per call of `handler`.
    :param timeout: seconds that a waiter waits for a result.
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
        """Process an item, together with those of other threads; return its result.

        :raises CoalescingTimeout: when there was no result before the timeout.
        :raises Exception: what `handler` raised for the group that this item was in.
        """
        waiter: _Waiter[Item, Result] = _Waiter(item)
        with self._lock:
            self._waiters.append(waiter)
            is_leader, self._has_leader = not self._has_leader, True
        if not is_leader and not waiter.wake_lock.acquire(timeout=self._timeout):
            self._stop_waiting(waiter)
        if not waiter.results and waiter.error is None:
            self._run_group()
        if waiter.next_waiter is not None:
            waiter.next_waiter.wake_lock.release()
        if waiter.error is not None:
            raise waiter.error
        return waiter.results[0]

    def _run_group(self) -> None:
        """Process the waiting items, up to the maximum group size.

        Then deliver their results and appoint the next leader.
        """
        with self._lock:
            group = [self._waiters.popleft() for _ in range(min(len(self._waiters), self._max_group_size))]
        results: Sequence[Result] = ()
        error: BaseException | None = None
        try:
            results = self._handler([waiter.item for waiter in group])
            if len(results) != len(group):
                raise RuntimeError("the handler must return one result per item")
        except BaseException as raised:
            error = raised
        self._deliver_results(group, results, error)

    def _deliver_results(
        self, group: list[_Waiter[Item, Result]], results: Sequence[Result], error: BaseException | None
    ) -> None:
        """Store the results of a group, link its waiters and wake the next leader.

        In `submit`, the leader of the group then wakes the second waiter, which wakes the third, and so on. Waking all
        of them at the same time would only make them compete for the interpreter lock.
        """
        with self._lock:
            for index, waiter in enumerate(group):
                if error is None:
                    waiter.results.append(results[index])
                waiter.error = error
            remaining = [waiter for waiter in group if not waiter.has_left]
            for waiter, following in pairwise(remaining):
                waiter.next_waiter = following
            if self._waiters:
                self._waiters[0].wake_lock.release()
            else:
                self._has_leader = False

    def _stop_waiting(self, waiter: _Waiter[Item, Result]) -> None:
        """Stop waiting, unless the waiter has been woken concurrently.

        :raises CoalescingTimeout: unless it was.
        """
        with self._lock:
            if waiter.wake_lock.acquire(blocking=False) or waiter.results or waiter.error is not None:
                return
            waiter.has_left = True
            has_started = waiter not in self._waiters
            if not has_started:
                self._waiters.remove(waiter)
        raise CoalescingTimeout(has_started)
