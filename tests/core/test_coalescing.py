"""Gathering: one piece of work for all who wait, nobody forgotten, nobody kept waiting for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from webapp.core.coalescing import Coalescer, CoalescingTimeout, _Waiter


class Work:
    """Answers each ask with its double, when it is let; notes what it was given at once."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, asks: Sequence[int]) -> list[int]:
        self.batches.append(list(asks))
        self.begun.release()
        assert self.let.acquire(timeout=20)
        if -1 in asks:
            raise ValueError("no")
        return [2 * ask for ask in asks]


def in_threads(gatherer: Coalescer[int, int], asks: Sequence[int]) -> tuple[list[threading.Thread], dict[int, object]]:
    """A thread for each ask; what came of it."""
    results: dict[int, object] = {}

    def run(ask: int) -> None:
        try:
            results[ask] = gatherer.submit(ask)
        except (ValueError, CoalescingTimeout) as error:
            results[ask] = error

    threads = [threading.Thread(target=run, args=[ask], daemon=True) for ask in asks]
    for thread in threads:
        thread.start()
    return threads, results


def wait_until(there: Callable[[], bool]) -> None:
    for _ in range(2000):
        if there():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def waiting(gatherer: Coalescer[int, int]) -> int:
    return len(gatherer._waiters)


def test_who_asks_alone_is_answered_in_its_own_thread() -> None:
    at: list[int] = []

    def work(asks: Sequence[int]) -> list[int]:
        at.append(threading.get_ident())
        return [2 * ask for ask in asks]

    assert Coalescer(work, max_group_size=4, timeout=1).submit(21) == 42
    assert at == [threading.get_ident()]


def test_who_comes_meanwhile_is_answered_together_each_with_its_own_answer() -> None:
    work = Work()
    gatherer = Coalescer(work, max_group_size=64, timeout=20)
    first, done = in_threads(gatherer, [1])
    work.begun.acquire()
    others, more = in_threads(gatherer, range(2, 12))
    wait_until(lambda: waiting(gatherer) == 10)
    work.let.release(2)
    for thread in first + others:
        thread.join(20)
    assert [len(batch) for batch in work.batches] == [1, 10]
    assert done | more == {ask: 2 * ask for ask in range(1, 12)}


def test_no_more_are_taken_at_once_than_told() -> None:
    work = Work()
    gatherer = Coalescer(work, max_group_size=4, timeout=20)
    first, _ = in_threads(gatherer, [1])
    work.begun.acquire()
    others, more = in_threads(gatherer, range(2, 12))
    wait_until(lambda: waiting(gatherer) == 10)
    work.let.release(99)
    for thread in first + others:
        thread.join(20)
    assert [len(batch) for batch in work.batches] == [1, 4, 4, 2]
    assert more == {ask: 2 * ask for ask in range(2, 12)}


def test_what_goes_wrong_is_heard_by_those_it_was_gathered_for_and_by_nobody_else() -> None:
    work = Work()
    gatherer = Coalescer(work, max_group_size=64, timeout=20)
    first, done = in_threads(gatherer, [1])
    work.begun.acquire()
    others, more = in_threads(gatherer, [-1, 2])
    wait_until(lambda: waiting(gatherer) == 2)
    work.let.release(2)
    for thread in first + others:
        thread.join(20)
    assert done == {1: 2}
    assert [type(found) for found in more.values()] == [ValueError, ValueError]
    work.let.release()
    assert gatherer.submit(4) == 8


def test_who_waits_too_long_hears_so_and_is_not_done_later() -> None:
    work = Work()
    gatherer = Coalescer(work, max_group_size=64, timeout=0.05)
    first, done = in_threads(gatherer, [1])
    work.begun.acquire()
    others, more = in_threads(gatherer, [2])
    others[0].join(20)
    assert isinstance(more[2], CoalescingTimeout)
    assert not more[2].has_started
    work.let.release()
    first[0].join(20)
    assert done == {1: 2}
    assert work.batches == [[1]]
    work.let.release()
    assert gatherer.submit(3) == 6


def test_who_was_taken_up_and_waits_too_long_hears_that_it_may_be_done() -> None:
    work = Work()
    gatherer = Coalescer(work, max_group_size=64, timeout=600)
    first, _ = in_threads(gatherer, [1])
    work.begun.acquire()
    others, done = in_threads(gatherer, [2, 3, 4, 5])
    wait_until(lambda: waiting(gatherer) == 4)
    # The second of the group is the one whose timeout ends, so that others are before and behind it.
    hasty = gatherer._waiters[1]
    work.let.release()
    work.begun.acquire()
    # As if its thread had gone: it does not react to the lock any more.
    own_lock, hasty.wake_lock = hasty.wake_lock, threading.Lock()
    hasty.wake_lock.acquire()
    with pytest.raises(CoalescingTimeout) as timeout:
        gatherer._abandon(hasty)
    assert timeout.value.has_started
    work.let.release()
    # Those behind it get their answers all the same.
    wait_until(lambda: len(done) == 3)
    assert set(done) == {2, 3, 4, 5} - {hasty.item}
    assert all(answer == 2 * ask for ask, answer in done.items())
    assert sorted(map(len, work.batches)) == [1, 4]
    own_lock.release()
    for thread in first + others:
        thread.join(20)


@pytest.mark.parametrize("woken", ["to lead the next group", "with a result", "with an error"])
def test_who_is_woken_at_the_moment_of_the_timeout_does_not_leave(woken: str) -> None:
    waiter: _Waiter[int, int] = _Waiter(1)
    if woken == "with a result":
        waiter.results.append(2)
    elif woken == "with an error":
        waiter.error = ValueError("no")
    else:
        waiter.wake_lock.release()

    Coalescer(Work(), max_group_size=4, timeout=1)._abandon(waiter)

    assert not waiter.has_left


@pytest.mark.parametrize("threads", [8])
def test_under_many_threads_every_ask_is_done_once(threads: int) -> None:
    done: list[int] = []

    def work(asks: Sequence[int]) -> list[int]:
        done.extend(asks)
        return [2 * ask for ask in asks]

    gatherer = Coalescer(work, max_group_size=3, timeout=20)
    wrong: list[int] = []

    def many(start: int) -> None:
        for ask in range(start, start + 500):
            if gatherer.submit(ask) != 2 * ask:
                wrong.append(ask)

    crowd = [threading.Thread(target=many, args=[1000 * n]) for n in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert wrong == []
    assert sorted(done) == sorted(ask for n in range(threads) for ask in range(1000 * n, 1000 * n + 500))
