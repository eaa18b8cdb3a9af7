"""The task queue: run a function later, in a worker process.

The database rows are authoritative; the queue only shortens the delay. A periodic task finds the work of lost tasks
within a minute. Tasks are enqueued by name, so that code below `webapp.tasks` can enqueue without importing it.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import psycopg
from flask import Flask

from webapp.core import database_health, database_timeouts, logs
from webapp.core.extensions import huey
from webapp.core.settings import Settings

log = logging.getLogger(__name__)

# Every task of the program. The names are stored in the queue and shown in logs; those of periodic tasks are also the
# label `task` of a metric.
TaskName = Literal[
    "accounts.send_emails",
    "accounts.sweep",
    "campaigns.clean_up_cancelled",
    "campaigns.prepare",
    "campaigns.send",
    "campaigns.start",
    "campaigns.sweep",
    "customers.process_import",
    "customers.sweep_customers",
    "monitoring.drop_silent",
    "redemptions.count_hours",
    "redemptions.delete_expired_addresses",
    "redemptions.send_personal_link",
    "redemptions.send_receipt",
    "retention.run",
]
Function = Callable[..., None]

# Seconds between two attempts to enqueue a task that an outage has interrupted, and before they end. Then it is left to
# the sweep. No sweep sends receipts and personal links: customers request them again.
RESUME_INTERVAL_SECONDS = 2.0
MAX_RESUME_SECONDS = 600.0
# How often a process enqueues a task again whose statements got no response in time: they may be slow, in each attempt.
MAX_STATEMENT_TIMEOUTS = 3

# Set when this process is to stop: long-running tasks check it between two steps and return.
stop_requested = threading.Event()

_app: Flask | None = None
_tasks: dict[TaskName, Any] = {}
_functions: dict[TaskName, Function] = {}

# For the heartbeat, by `time.monotonic`: when each thread started its current task, and when each periodic task was
# last completed.
_task_started_at: dict[int, float] = {}
_periodic_task_completed_at: dict[str, float] = {}
# By task: how often a statement got no response in time since the task was last completed or given up.
_statement_timeouts: Counter[tuple[TaskName, tuple[int, ...]]] = Counter()


def init_app(app: Flask) -> None:
    """Set the app in whose context tasks run in this process.

    :raises RuntimeError: when a name of `TaskName` has no task.
    """
    global _app
    missing_names = set(get_args(TaskName)) - _tasks.keys()
    if missing_names:
        raise RuntimeError(f"no task is registered as {', '.join(sorted(missing_names))}")
    _app = app
    # Through a connection pooler that pools transactions, a worker would not receive what it listens for.
    settings: Settings = app.config["SETTINGS"]
    huey.storage.setting = settings.direct_url_setting
    if huey.storage.dsn != settings.direct_libpq_url:
        huey.storage.close()
        huey.storage.dsn = settings.direct_libpq_url


def task(
    name: TaskName,
    *,
    former_keys: tuple[str, ...] = (),
    statement_seconds: float = database_timeouts.STATEMENT_SECONDS,
) -> Callable[[Function], Function]:
    """Register the decorated function as a task, which runs in its own app context.

    :param former_keys: keys (`module.function`) under which older versions enqueued it; such tasks still run.
    :param statement_seconds: how long each of its statements may take.
    """

    def register(function: Function) -> Function:
        _register(name, function, former_keys, huey.task, statement_seconds)
        return function

    return register


def periodic_task(
    name: TaskName,
    schedule: Callable[..., bool],
    *,
    former_keys: tuple[str, ...] = (),
    statement_seconds: float = database_timeouts.STATEMENT_SECONDS,
) -> Callable[[Function], Function]:
    """Register the decorated function to run on a schedule (`huey.crontab`).

    It may run on two workers at the same time.
    """

    def register(function: Function) -> Function:
        make_task = functools.partial(huey.periodic_task, schedule)
        _register(name, function, former_keys, make_task, statement_seconds, is_periodic=True)
        return function

    return register


def enqueue(name: TaskName, *args: int, after: float = 0) -> bool:
    """Enqueue a task. Call it after the commit of the rows that it processes.

    A queue that is unavailable is only logged: the caller's rows are saved, and the next sweep finds them. A connection
    that was lost while idle (the server restarted), or that leads to a standby, is replaced: the task is enqueued over
    a new one. After a timeout there is no second attempt: a database that does not respond holds the caller only once.

    :param after: seconds to wait before it runs.
    :returns: whether the task was enqueued, for callers that no sweep covers.
    """
    try:
        try:
            _submit(name, args, after)
        except psycopg.Error as error:
            if not database_health.is_connection_lost(error) and not database_health.is_read_only(error):
                raise
            # Huey connects again at the next use. At worst the task is queued twice, which every task tolerates.
            _submit(name, args, after)
    except psycopg.Error as error:
        if not database_health.report_if_outage(error):
            log.warning("task %s was not enqueued: %s", name, error)
        return False
    return True


def _submit(name: TaskName, args: tuple[int, ...], after: float) -> None:
    if after:
        _tasks[name].schedule(args=args, delay=after)
    else:
        _tasks[name](*args)


def run(name: TaskName, *args: int) -> None:
    """Run a task in this thread, as a worker does."""
    _functions[name](*args)


def longest_running_seconds() -> float | None:
    """Return the seconds since the start of the longest-running task.

    None when this process runs no task.
    """
    started = list(_task_started_at.values())
    return time.monotonic() - min(started) if started else None


def failing_seconds() -> float:
    """Return for how many seconds this worker has been unable to reach the queue; 0 if it can."""
    seconds: float = huey.storage.failing_seconds()
    return seconds


def periodic_task_ages() -> dict[str, float]:
    """Return the seconds since this process completed each periodic task, by name.

    Tasks that it has not completed are omitted.
    """
    return {name: time.monotonic() - at for name, at in list(_periodic_task_completed_at.items())}


def _register(
    name: TaskName,
    function: Function,
    former_keys: tuple[str, ...],
    make_task: Callable[..., Any],
    statement_seconds: float,
    *,
    is_periodic: bool = False,
) -> None:
    _functions[name] = _wrap_in_app_context(
        name, function, is_periodic=is_periodic, statement_seconds=statement_seconds
    )
    _tasks[name] = _register_key(name, name, make_task, is_periodic)
    for key in former_keys:
        _register_key(key, name, huey.task, is_periodic)


def _register_key(key: str, name: TaskName, make_task: Callable[..., Any], is_periodic: bool) -> Any:
    """Register a task under exactly this key.

    Huey builds the key from the module and the name of a function.
    """

    def run_by_key(*args: int) -> None:
        try:
            run(name, *args)
        except Exception as error:
            if not is_periodic and database_health.report_if_outage(error) and not _is_too_slow(name, args, error):
                _enqueue_after_outage(name, args)
            raise
        _statement_timeouts.pop((name, args), None)

    run_by_key.__module__, _, function_name = key.rpartition(".")
    return make_task(name=function_name)(run_by_key)


def _wrap_in_app_context(
    name: str,
    function: Function,
    *,
    is_periodic: bool,
    statement_seconds: float = database_timeouts.STATEMENT_SECONDS,
) -> Function:
    @functools.wraps(function)
    def run_task(*args: int) -> None:
        if _app is None:
            raise RuntimeError("call create_app() before running a task")
        _task_started_at[threading.get_ident()] = time.monotonic()
        try:
            with (
                logs.log_context(task=name),
                _app.app_context(),
                database_timeouts.statement_deadline(statement_seconds),
            ):
                _run_and_log(name, function, args)
        finally:
            _task_started_at.pop(threading.get_ident(), None)
        if is_periodic:
            _periodic_task_completed_at[name] = time.monotonic()

    return run_task


def _is_too_slow(name: TaskName, args: tuple[int, ...], error: Exception) -> bool:
    """Return whether statements of a task have timed out so often that they are slow rather than the database down."""
    if not database_health.is_statement_timeout(error):
        return False
    _statement_timeouts[name, args] += 1
    if _statement_timeouts[name, args] <= MAX_STATEMENT_TIMEOUTS:
        return False
    del _statement_timeouts[name, args]
    log.error("task %s is not enqueued again: a statement got no response in time, repeatedly", name)
    return True


def _enqueue_after_outage(name: TaskName, args: tuple[int, ...]) -> None:
    """Enqueue a task that an outage has interrupted as soon as the queue responds, instead of after the next sweep.

    Until then it occupies its thread, which could do nothing else.
    """
    deadline = time.monotonic() + MAX_RESUME_SECONDS
    while not stop_requested.wait(RESUME_INTERVAL_SECONDS) and time.monotonic() < deadline:
        if enqueue(name, *args):
            return


def _run_and_log(name: str, function: Function, args: tuple[int, ...]) -> None:
    try:
        function(*args)
    except Exception as error:
        # Logged here, where the context is known; Huey keeps the worker running.
        if not database_health.report_if_outage(error):
            log.exception("task %s failed", name, extra=getattr(error, "log_context", None))
        # Huey logs it again, without the context; `logs` drops that line.
        error.__dict__["is_logged"] = True
        raise
