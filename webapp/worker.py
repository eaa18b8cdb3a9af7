"""The worker: a Huey consumer in one process with threads, each task in a fresh app context."""

from __future__ import annotations

import logging
import os
import sys
import time

# Imported so that the consumer knows every task, whether a door rings it or only the clock.
import webapp.campaigns.tasks
import webapp.customers.tasks
import webapp.monitoring.tasks
import webapp.redemptions.tasks  # noqa: F401
from webapp import create_app, release
from webapp.core import logs, task_queue
from webapp.core.extensions import huey
from webapp.core.settings import SettingsError, load
from webapp.monitoring import heartbeat

# Not __name__, which is __main__ here.
log = logging.getLogger("webapp.worker")


def main() -> None:
    """Run until SIGTERM; then finish the step in hand and leave."""
    # Every process reckons in UTC; Huey's crontab follows the process's zone.
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        settings = load()
    except SettingsError as error:
        sys.exit(f"onecode: {error}")
    logs.configure(settings)
    app = create_app(settings)
    consumer = huey.create_consumer(
        # Two threads more than connections to the relay: for an import (one at a time) and for the sweep.
        workers=settings.mail_connections + 2,
        worker_type="thread",
        periodic=True,
        graceful_signal="TERM",
    )
    task_queue.stopping = consumer.stop_flag
    with heartbeat.beating(app, release()):
        log.info("the worker starts: release %s, %s threads", release(), consumer.workers)
        consumer.run()
    log.info("the worker has ended")


if __name__ == "__main__":
    main()
