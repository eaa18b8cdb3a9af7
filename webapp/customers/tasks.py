"""What workers do with imports: read them, and once a minute look for those that nobody reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from huey import crontab

from webapp.core import task_queue
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions

# One import at a time in a worker: several would hold every thread, and no mail would go out until they are done.
_reading = threading.Lock()


def read_import(import_id: int) -> None:
    """Read an import, then ring for those that came meanwhile. Whoever finds one being read leaves it at that."""
    if not _reading.acquire(blocking=False):
        return
    try:
        import_actions.run(import_id)
    finally:
        _reading.release()
    _ring_waiting()


import_customers = task_queue.task(read_import)


def receive_import(
    pieces: Iterable[bytes], filename: str, media_type: str, audience: str, by: str, kind: str = "customers"
) -> int:
    """Keep an arriving file and ask a worker to read it. See `import_actions.receive`."""
    import_id = import_actions.receive(pieces, filename, media_type, audience, by, kind)
    task_queue.ring(import_customers, import_id)
    return import_id


def sweep_customers() -> None:
    """Ring again for imports whose bell or worker was lost; close uploads that broke off; forget what is to be
    forgotten."""
    customer_actions.forget_what_came_late()
    customer_actions.drop_old_refused_rows()
    import_actions.close_broken_uploads()
    _ring_waiting()


def _ring_waiting() -> None:
    for import_id in customer_queries.waiting_imports():
        task_queue.ring(import_customers, import_id)


sweep = task_queue.every(crontab(minute="*"), sweep_customers)
