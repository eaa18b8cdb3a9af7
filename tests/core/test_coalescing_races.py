"""Timeouts at the moment when a waiter is woken lose no waiter and no result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from tests.support.live_server import wait_until
from webapp.core import coalescing
from webapp.core.coalescing import Coalescer, CoalescingTimeout

SECONDS = 20
LATE, GONE = 2, 9


class LateLock:
    """A wake lock whose timed acquire fails once the waiter is woken or has a result.

    Once the waiter has a result, it is woken only after it has found that it need not wait.
    """

    def __init__(self, waiter: coalescing._Waiter[int, int]) -> None:
        self._waiter = waiter
        self._lock = threading.Lock()
        self._was_woken = threading.Event()
        self._has_checked = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout < 0:
            taken = self._lock.acquire(blocking=blocking)
            if not blocking:
                self._has_checked.set()
            return taken
        wait_until(lambda: self._was_woken.is_set() or self._has_outcome())
        return False

    def release(self) -> None:
        if self._has_outcome():
            assert self._has_checked.wait(SECONDS)
        self._lock.release()
        self._was_woken.set()

    def _has_outcome(self) -> bool:
        return bool(self._waiter.results) or self._waiter.error is not None


class GoneLock:
    """A wake lock whose timed acquire fails once the item is being processed."""

    def __init__(self) -> None:
        self.is_processed = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout >= 0:
            assert self.is_processed.wait(SECONDS)
        return False

    def release(self) -> None:
        """Wake no thread: it has ended."""


class LateWaiter(coalescing._Waiter[int, int]):
    """A waiter; those of the items `LATE` and `GONE` have locks that time out."""

    __slots__ = ()

    def __init__(self, item: int) -> None:
        super().__init__(item)
        if item == LATE:
            self.wake_lock = LateLock(self)  # type: ignore[assignment]
            self.wake_lock.acquire()
        elif item == GONE:
            self.wake_lock = GoneLock()  # type: ignore[assignment]


class Group:
    """Threads that submit one item each, in order, while item 0 is being processed."""

    def __init__(self, items: Sequence[int], handler: Callable[[Sequence[int]], list[int]]) -> None:
        self._is_blocked, self._may_continue = threading.Event(), threading.Event()
        self._handler = handler
        self.results: dict[int, object] = {}
        # Far longer than a test waits: a waiter that nothing wakes has no result.
        self.coalescer: Coalescer[int, int] = Coalescer(self._handle, max_group_size=64, timeout=100 * SECONDS)
        self._threads = [threading.Thread(target=self._submit, args=[item], daemon=True) for item in (0, *items)]
        for n, thread in enumerate(self._threads):
            thread.start()
            if n == 0:
                assert self._is_blocked.wait(SECONDS)
            else:
                wait_until(lambda n=n: len(self.coalescer._waiters) == n)  # type: ignore[misc]

    def finish(self) -> dict[int, object]:
        """Let the item 0 finish; return the result or error of each item."""
        self._may_continue.set()
        for thread in self._threads:
            thread.join(SECONDS)
        return self.results

    def _handle(self, items: Sequence[int]) -> list[int]:
        if 0 in items:
            self._is_blocked.set()
            assert self._may_continue.wait(SECONDS)
            return [0]
        return self._handler(items)

    def _submit(self, item: int) -> None:
        try:
            self.results[item] = self.coalescer.submit(item)
        except (ValueError, CoalescingTimeout) as error:
            self.results[item] = type(error)


@pytest.fixture(autouse=True)
def late_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_Waiter", LateWaiter)


def double(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


def fail(items: Sequence[int]) -> list[int]:
    raise ValueError("no")


def test_a_waiter_that_times_out_as_it_becomes_leader_leads_the_others() -> None:
    group = Group([LATE, 3, 4], double)
    assert group.finish() == {0: 0, LATE: 4, 3: 6, 4: 8}
    assert group.coalescer.submit(5) == 10


def test_a_waiter_that_times_out_as_its_result_arrives_returns_it_and_wakes_the_next() -> None:
    group = Group([1, LATE, 3], double)
    assert group.finish() == {0: 0, 1: 2, LATE: 4, 3: 6}
    assert group.coalescer.submit(5) == 10


def test_a_waiter_that_times_out_as_the_handler_fails_raises_its_error_and_wakes_the_next() -> None:
    group = Group([1, LATE, 3], fail)
    assert group.finish() == {0: 0, 1: ValueError, LATE: ValueError, 3: ValueError}
    with pytest.raises(ValueError, match="no"):
        group.coalescer.submit(5)


def test_a_waiter_that_left_while_it_was_processed_does_not_block_those_behind_it() -> None:
    def finish_without(items: Sequence[int]) -> list[int]:
        for lock in gone:
            lock.is_processed.set()
        wait_until(lambda: GONE in group.results)
        return double(items)

    group = Group([1, GONE, 3, 4], finish_without)
    locks: list[object] = [waiter.wake_lock for waiter in group.coalescer._waiters]
    gone = [lock for lock in locks if isinstance(lock, GoneLock)]
    assert group.finish() == {0: 0, 1: 2, GONE: CoalescingTimeout, 3: 6, 4: 8}
    assert group.coalescer.submit(5) == 10
