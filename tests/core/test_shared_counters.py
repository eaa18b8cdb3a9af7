"""Counters of several processes: sums, ended processes, versions, and a full disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.support.small_disk import fill_disk, requires_root, small_disk
from webapp.core import shared_counters
from webapp.core.shared_counters import SharedCounters

KEYS = ("requests", "seconds")
SERVER = "127.0.0.1:8000"


def serve(folder: Path, amounts: list[float], pipe: Connection) -> None:
    """Share counters, count, and wait for the end of the test."""
    counters = SharedCounters(KEYS)
    counters.share(folder, SERVER)
    for amount in amounts:
        counters.add(("requests", 1), ("seconds", amount))
    pipe.send(counters.totals())
    pipe.recv()
    for amount in amounts:
        counters.add(("seconds", amount))
    pipe.send(counters.totals())
    pipe.recv()


@contextmanager
def counting_process(folder: Path, *amounts: float) -> Iterator[tuple[int, Connection, dict[str, float]]]:
    """Start a process that counts; yield its id, a pipe to it, and the totals that it read."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, list(amounts), theirs))
    process.start()
    assert process.pid
    try:
        assert ours.poll(60)
        yield process.pid, ours, ours.recv()
    finally:
        process.kill()
        process.join()


def test_each_process_returns_the_sum_of_all(tmp_path: Path) -> None:
    own = SharedCounters(KEYS)
    own.share(tmp_path, SERVER)
    own.add(("requests", 1), ("seconds", 0.5))

    with counting_process(tmp_path, 1.0, 2.0) as (_, _, first), counting_process(tmp_path, 4.0) as (_, _, second):
        assert first == {"requests": 3, "seconds": 3.5}
        assert second == own.totals() == {"requests": 4, "seconds": 7.5}


def test_the_counts_of_a_killed_process_stay_and_its_slot_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting_process(tmp_path, 1.0) as (pid, _, _):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    monkeypatch.setattr(shared_counters, "MAX_PROCESSES", 1)
    own = SharedCounters(KEYS)

    own.share(tmp_path, SERVER)
    own.add(("requests", 1))

    assert own.totals() == {"requests": 2, "seconds": 1}


def test_a_process_without_a_free_slot_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_counters, "MAX_PROCESSES", 1)
    with counting_process(tmp_path, 1.0):
        own = SharedCounters(KEYS)
        own.add(("requests", 1))
        # The other process has 80 slots, of which this one may use only the first.
        with pytest.raises(OSError, match="1 web processes are running"):
            own.share(tmp_path, SERVER)
        own.add(("requests", 1))

        assert own.totals() == {"requests": 2, "seconds": 0}


def test_servers_and_versions_do_not_share_counters(tmp_path: Path) -> None:
    first, other_server = SharedCounters(KEYS), SharedCounters(KEYS)
    first.add(("requests", 1))
    first.share(tmp_path, SERVER)
    other_server.share(tmp_path, "127.0.0.1:8001")

    newer = SharedCounters(("requests", "errors"))
    newer.share(tmp_path, SERVER)

    assert other_server.totals()["requests"] == newer.totals()["requests"] == 0
    # The file of the older version was deleted; a process that still has it goes on counting.
    assert len(list(tmp_path.iterdir())) == 2
    first.add(("requests", 1))
    assert first.totals()["requests"] == 2


def test_files_of_servers_that_no_longer_exist_are_deleted(tmp_path: Path) -> None:
    for server, days in (("old container", 31), ("idle server", 29)):
        SharedCounters(KEYS).share(tmp_path, server)
        newest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (time.time() - days * 86400,) * 2)

    SharedCounters(KEYS).share(tmp_path, SERVER)

    ages = sorted(time.time() - file.stat().st_mtime for file in tmp_path.iterdir())
    assert [round(age / 86400) for age in ages] == [0, 29]


def test_a_scrape_keeps_the_file_of_a_running_server(tmp_path: Path) -> None:
    running = SharedCounters(KEYS)
    running.share(tmp_path, "running server")
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - 31 * 86400,) * 2)

    running.totals()
    SharedCounters(KEYS).share(tmp_path, SERVER)

    assert file.exists()


def test_what_cannot_be_deleted_does_not_prevent_sharing(tmp_path: Path) -> None:
    """An old folder stands for a file that another user owns."""
    (tmp_path / "old").mkdir()
    os.utime(tmp_path / "old", (time.time() - 31 * 86400,) * 2)
    own, reader = SharedCounters(KEYS), SharedCounters(KEYS)

    own.share(tmp_path, SERVER)
    reader.share(tmp_path, SERVER)
    own.add(("requests", 1))

    # Locks do not exclude each other within a process: both have the same slot.
    assert reader.totals()["requests"] == 1


def test_concurrent_threads_lose_no_count(tmp_path: Path) -> None:
    counters = SharedCounters(KEYS)

    def count() -> None:
        for _ in range(2000):
            counters.add(("requests", 1), ("seconds", 0.5))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    counters.share(tmp_path, SERVER)
    for thread in threads:
        thread.join()

    assert counters.totals() == {"requests": 16000, "seconds": 8000}


def test_an_unknown_counter_is_an_error() -> None:
    with pytest.raises(KeyError):
        SharedCounters(KEYS).add(("errors", 1))


@pytest.mark.slow
@requires_root
def test_counting_continues_on_a_full_disk(tmp_path: Path) -> None:
    """A page that the file lacks could not be written: the process would be killed by SIGBUS."""
    folder = tmp_path / "disk"
    with small_disk(folder, "size=64k"), counting_process(folder / "metrics", 1.0) as (_, pipe, _):
        fill_disk(folder / "rest")
        pipe.send("count again")
        assert pipe.poll(60)
        assert pipe.recv() == {"requests": 1, "seconds": 2}

        own = SharedCounters(KEYS)
        own.add(("requests", 1))
        with pytest.raises(OSError, match="No space left"):
            own.share(folder / "metrics", "another server")
        own.add(("requests", 1))
        assert own.totals() == {"requests": 2, "seconds": 0}
