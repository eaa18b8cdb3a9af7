"""The coalescer: waiting requests are processed in groups, each exactly once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tests.support.live_server import wait_until
from webapp.core.coalescing import Coalescer, CoalescingTimeout, _Waiter


class WorkItem:
    """Doubles each request when the test allows it, and records the groups."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)

    def __call__(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        self.started.release()
        assert self.allowed.acquire(timeout=20)
        if -1 in requests:
            raise ValueError("no")
        return [2 * request for request in requests]


def in_threads(
    coalescer: Coalescer[int, int], requests: Sequence[int]
) -> tuple[list[threading.Thread], dict[int, object]]:
    """Submit each request in a thread; return threads and results."""
    results: dict[int, object] = {}

    def run(request: int) -> None:
        try:
            results[request] = coalescer.submit(request)
        except (ValueError, CoalescingTimeout) as error:
            results[request] = error

    threads = [threading.Thread(target=run, args=[request], daemon=True) for request in requests]
    for thread in threads:
        thread.start()
    return threads, results


def count_waiters(coalescer: Coalescer[int, int]) -> int:
    return len(coalescer._waiters)


def test_a_single_request_is_processed_in_its_own_thread() -> None:
    thread_ids: list[int] = []

    def work(requests: Sequence[int]) -> list[int]:
        thread_ids.append(threading.get_ident())
        return [2 * request for request in requests]

    assert Coalescer(work, max_group_size=4, timeout=1).submit(21) == 42
    assert thread_ids == [threading.get_ident()]


def test_requests_that_arrive_during_work_are_processed_as_one_group() -> None:
    work = WorkItem()
    coalescer = Coalescer(work, max_group_size=64, timeout=20)
    first, done = in_threads(coalescer, [1])
    work.started.acquire()
    others, more = in_threads(coalescer, range(2, 12))
    wait_until(lambda: count_waiters(coalescer) == 10)
    work.allowed.release(2)
    for thread in first + others:
        thread.join(20)
    assert [len(batch) for batch in work.batches] == [1, 10]
    assert done | more == {request: 2 * request for request in range(1, 12)}


def test_a_group_does_not_exceed_its_maximum_size() -> None:
    work = WorkItem()
    coalescer = Coalescer(work, max_group_size=4, timeout=20)
    first, _ = in_threads(coalescer, [1])
    work.started.acquire()
    others, more = in_threads(coalescer, range(2, 12))
    wait_until(lambda: count_waiters(coalescer) == 10)
    work.allowed.release(99)
    for thread in first + others:
        thread.join(20)
    assert [len(batch) for batch in work.batches] == [1, 4, 4, 2]
    assert more == {request: 2 * request for request in range(2, 12)}


def test_an_error_reaches_only_the_requests_of_its_group() -> None:
    work = WorkItem()
    coalescer = Coalescer(work, max_group_size=64, timeout=20)
    first, done = in_threads(coalescer, [1])
    work.started.acquire()
    others, more = in_threads(coalescer, [-1, 2])
    wait_until(lambda: count_waiters(coalescer) == 2)
    work.allowed.release(2)
    for thread in first + others:
        thread.join(20)
    assert done == {1: 2}
    assert [type(error) for error in more.values()] == [ValueError, ValueError]
    work.allowed.release()
    assert coalescer.submit(4) == 8


@pytest.mark.parametrize(("results", "error"), [(SystemExit(), SystemExit), ([], RuntimeError), ([1, 2], RuntimeError)])
def test_after_a_handler_that_ends_or_returns_a_wrong_number_of_results_the_next_one_runs(
    results: BaseException | list[int], error: type[BaseException]
) -> None:
    answers: list[BaseException | list[int]] = [results, [42]]

    def work(requests: Sequence[int]) -> list[int]:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    coalescer = Coalescer(work, max_group_size=4, timeout=0.05)
    with pytest.raises(error):
        coalescer.submit(1)

    assert coalescer.submit(21) == 42


def test_a_request_that_times_out_while_waiting_is_not_processed() -> None:
    work = WorkItem()
    coalescer = Coalescer(work, max_group_size=64, timeout=0.05)
    first, done = in_threads(coalescer, [1])
    work.started.acquire()
    others, more = in_threads(coalescer, [2])
    others[0].join(20)
    assert isinstance(more[2], CoalescingTimeout)
    assert not more[2].has_started
    work.allowed.release()
    first[0].join(20)
    assert done == {1: 2}
    assert work.batches == [[1]]
    work.allowed.release()
    assert coalescer.submit(3) == 6


def test_a_request_that_times_out_during_work_is_reported_as_started() -> None:
    work = WorkItem()
    coalescer = Coalescer(work, max_group_size=64, timeout=600)
    first, _ = in_threads(coalescer, [1])
    work.started.acquire()
    others, done = in_threads(coalescer, [2, 3, 4, 5])
    wait_until(lambda: count_waiters(coalescer) == 4)
    # The second of the group is the one whose timeout ends, so that others are before and behind it.
    timed_out = coalescer._waiters[1]
    work.allowed.release()
    work.started.acquire()
    # Its thread no longer reacts to the lock, as if it had ended.
    own_lock, timed_out.wake_lock = timed_out.wake_lock, threading.Lock()
    timed_out.wake_lock.acquire()
    with pytest.raises(CoalescingTimeout) as timeout:
        coalescer._stop_waiting(timed_out)
    assert timeout.value.has_started
    work.allowed.release()
    # The requests behind it still get their results.
    wait_until(lambda: len(done) == 3)
    assert set(done) == {2, 3, 4, 5} - {timed_out.item}
    assert all(result == 2 * item for item, result in done.items())
    assert sorted(map(len, work.batches)) == [1, 4]
    own_lock.release()
    for thread in first + others:
        thread.join(20)


@pytest.mark.parametrize("woken", ["to lead the next group", "with a result", "with an error"])
def test_a_waiter_that_is_woken_as_it_times_out_does_not_leave(woken: str) -> None:
    waiter: _Waiter[int, int] = _Waiter(1)
    if woken == "with a result":
        waiter.results.append(2)
    elif woken == "with an error":
        waiter.error = ValueError("no")
    else:
        waiter.wake_lock.release()

    Coalescer(WorkItem(), max_group_size=4, timeout=1)._stop_waiting(waiter)

    assert not waiter.has_left


@pytest.mark.parametrize("threads", [8])
def test_with_many_threads_every_request_is_processed_once(threads: int) -> None:
    done: list[int] = []

    def work(requests: Sequence[int]) -> list[int]:
        done.extend(requests)
        return [2 * request for request in requests]

    coalescer = Coalescer(work, max_group_size=3, timeout=20)
    wrong: list[int] = []

    def submit_many(start: int) -> None:
        for request in range(start, start + 500):
            if coalescer.submit(request) != 2 * request:
                wrong.append(request)

    workers = [threading.Thread(target=submit_many, args=[1000 * n]) for n in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(60)
    assert wrong == []
    assert sorted(done) == sorted(request for n in range(threads) for request in range(1000 * n, 1000 * n + 500))
