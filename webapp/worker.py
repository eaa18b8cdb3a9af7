"""The worker: a Huey consumer in one process with threads, each task in a fresh app context."""

from __future__ import annotations

import logging
import os
import sys
import time

from webapp import create_app, get_app_version
from webapp.core import logs, task_queue
from webapp.core.extensions import huey
from webapp.core.settings import SettingsError, load_settings
from webapp.monitoring import heartbeat

# Not __name__, which is __main__ here.
log = logging.getLogger("webapp.worker")


def main() -> None:
    """Run until SIGTERM; then finish the step in hand and leave."""
    # Every process reckons in UTC; Huey's crontab follows the process's zone.
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(f"onecode: {error}")
    logs.configure_logging(settings)
    app = create_app(settings)
    consumer = huey.create_consumer(
        # Two threads more than connections to the relay: for an import (one at a time) and for the sweep.
        workers=settings.mail_connections + 2,
        worker_type="thread",
        periodic=True,
        graceful_signal="TERM",
    )
    task_queue.stop_requested = consumer.stop_flag
    with heartbeat.send_heartbeats(app, get_app_version()):
        log.info("the worker starts: release %s, %s threads", get_app_version(), consumer.workers)
        consumer.run()
    log.info("the worker has ended")


if __name__ == "__main__":
    main()
