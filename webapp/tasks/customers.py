"""Tasks for customers: process imports, complete erasures, delete rejected rows."""

from __future__ import annotations

import threading

from huey import crontab

from webapp.core import database_timeouts, task_queue
from webapp.customers import actions as customer_actions
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries

# One import at a time in a worker: several would occupy every thread, and no email would be sent until they are done.
_import_lock = threading.Lock()


@task_queue.task(
    "customers.process_import",
    former_keys=("webapp.customers.tasks.read_import",),
    statement_seconds=database_timeouts.LONG_STATEMENT_SECONDS,
)
def process_import(import_id: int) -> None:
    """Process an import, then enqueue the imports that are waiting.

    Does nothing while this worker processes another one.
    """
    if not _import_lock.acquire(blocking=False):
        return
    try:
        import_processing.run_import(import_id)
    finally:
        _import_lock.release()
    _enqueue_waiting_imports()


@task_queue.periodic_task(
    "customers.sweep_customers",
    crontab(minute="*"),
    former_keys=("webapp.customers.tasks.sweep_customers",),
    statement_seconds=database_timeouts.LONG_STATEMENT_SECONDS,
)
def sweep() -> None:
    """Repeat recent erasures and maintain the imports.

    Deletes expired rejected rows, fails stalled uploads and enqueues waiting imports. Its last run is a metric with the
    label `customers.sweep_customers`.
    """
    customer_actions.repeat_recent_erasures()
    customer_actions.delete_old_rejected_rows()
    import_actions.fail_stalled_uploads()
    _enqueue_waiting_imports()


def _enqueue_waiting_imports() -> None:
    for import_id in import_queries.list_claimable_import_ids():
        task_queue.enqueue("customers.process_import", import_id)
